"""The losses of TRL's DPO, KTO, ORPO and CPO trainers, by calling their own code.

Its losses are methods of trainers. They are called here on a stand-in that has the few
settings they read, and with a model that returns the log-probs we want to compare.
"""

from collections import defaultdict
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch

from minillm.alignment.dpo import dpo_loss, reward_metrics
from minillm.alignment.kto import kto_kl, kto_loss
from minillm.alignment.logprobs import sequence_logprobs
from minillm.alignment.preference_losses import hinge_loss, ipo_loss, robust_dpo_loss
from minillm.alignment.reference_free import (
    cpo_loss,
    log1mexp,
    log_odds_ratio,
    orpo_loss,
    simpo_loss,
)
from minillm.evaluation.perplexity import token_logprobs

trl = pytest.importorskip("trl")
orpo_trainer = pytest.importorskip("trl.experimental.orpo.orpo_trainer")
cpo_trainer = pytest.importorskip("trl.experimental.cpo.cpo_trainer")

BETA = 0.3
LENGTHS = torch.tensor([[3, 5, 1, 4], [2, 6, 4, 1]])  # chosen, rejected
PROMPT = torch.tensor([2, 1, 3, 2])
WIDTH = 9


def batch_of(lengths: torch.Tensor) -> dict:
    """Rows in TRL's layout: all chosen, then all rejected, padded on the right."""
    start = PROMPT[: lengths.shape[1]].expand_as(lengths).reshape(-1, 1)
    end, place = start + lengths.reshape(-1, 1), torch.arange(WIDTH)
    completion = (place >= start) & (place < end)
    return {
        "input_ids": torch.ones(len(end), WIDTH, dtype=torch.long),
        "attention_mask": (place < end).long(),
        "completion_mask": completion.long(),
    }


def random_logprobs(completion_mask: torch.Tensor) -> torch.Tensor:
    """What their fused head returns: zero where nothing is scored."""
    mask = completion_mask[:, 1:].double()
    return -3 * torch.rand(mask.shape, dtype=torch.float64) * mask


def says(logprobs: torch.Tensor) -> MagicMock:
    """A model that returns these log-probs, and nothing else of interest."""
    zero = torch.zeros_like(logprobs)
    out = SimpleNamespace(
        log_probs=logprobs, entropy=zero, mean_logits=zero, is_top1=zero.bool()
    )
    return MagicMock(return_value=out)


def stand_in(ref: torch.Tensor, **settings) -> MagicMock:
    """What their methods read of ``self``."""
    trainer = MagicMock(
        beta=BETA,
        ld_alpha=None,
        precompute_ref_logps=False,
        aux_loss_enabled=False,
        use_weighting=False,
        f_divergence_type="reverse_kl",
        loss_weights=[1.0],
        ref_model=says(ref),
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
        _tp_size=1,
        **settings,
    )
    trainer.accelerator.device = torch.device("cpu")
    trainer.accelerator.gather_for_metrics = trainer.accelerator.gather = lambda x: x
    return trainer


def their_dpo(loss_type: str, B: int = 4, smoothing: float = 0.0):
    """Per-token log-probs of both models, TRL's loss, and what it logged."""
    batch = batch_of(LENGTHS[:, :B])
    policy, ref = (random_logprobs(batch["completion_mask"]) for _ in range(2))
    policy.requires_grad_()
    trainer = stand_in(ref, loss_types=[loss_type], label_smoothing=smoothing)
    loss = trl.DPOTrainer._compute_loss(trainer, says(policy), batch, False)
    return policy, ref, loss, trainer._metrics["train"]


def sums(policy: torch.Tensor, ref: torch.Tensor) -> list[torch.Tensor]:
    """Chosen and rejected, by the policy and then by the reference."""
    return [*policy.sum(1).chunk(2), *ref.sum(1).chunk(2)]


def means(policy: torch.Tensor, ref: torch.Tensor) -> list[torch.Tensor]:
    lengths = LENGTHS.repeat(2, 1)
    return [s / n for s, n in zip(sums(policy, ref), lengths, strict=True)]


def agree(ours: torch.Tensor, theirs: torch.Tensor, policy: torch.Tensor) -> None:
    """Both the value and the gradient by each token."""
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)
    (our_grad,) = torch.autograd.grad(ours, policy, retain_graph=True)
    (their_grad,) = torch.autograd.grad(theirs, policy)
    assert their_grad.abs().sum() > 0
    torch.testing.assert_close(our_grad, their_grad, rtol=1e-6, atol=1e-9)


def test_dpo_is_their_sigmoid():
    policy, ref, theirs, _ = their_dpo("sigmoid")
    agree(dpo_loss(*sums(policy, ref), BETA).mean(), theirs, policy)


def test_their_sigmoid_ignores_label_smoothing_and_aot_for_one_pair_does_not():
    """Two readings: a single pair sorts to itself, so aot is then cDPO."""
    policy, ref, theirs, _ = their_dpo("sigmoid", smoothing=0.2)
    agree(dpo_loss(*sums(policy, ref), BETA).mean(), theirs, policy)
    smoothed = dpo_loss(*sums(policy, ref), BETA, label_smoothing=0.2).mean()
    assert abs((smoothed - theirs).item()) > 0.05
    policy, ref, theirs, _ = their_dpo("aot", B=1, smoothing=0.2)
    agree(dpo_loss(*sums(policy, ref), BETA, 0.2).mean(), theirs, policy)


def test_robust_and_hinge_are_theirs():
    policy, ref, theirs, _ = their_dpo("robust", smoothing=0.2)
    agree(robust_dpo_loss(*sums(policy, ref), BETA, 0.2).mean(), theirs, policy)
    policy, ref, theirs, _ = their_dpo("hinge")
    agree(hinge_loss(*sums(policy, ref), BETA).mean(), theirs, policy)


def test_their_ipo_is_ours_on_means_and_the_papers_is_ours_on_sums():
    policy, ref, theirs, _ = their_dpo("ipo")
    agree(ipo_loss(*means(policy, ref), BETA).mean(), theirs, policy)
    by_sum = ipo_loss(*sums(policy, ref), BETA).mean()
    assert abs((by_sum - theirs).item()) > 0.1


def test_dpo_on_means_is_their_sigmoid_norm():
    policy, ref, theirs, _ = their_dpo("sigmoid_norm")
    agree(dpo_loss(*means(policy, ref), BETA).mean(), theirs, policy)


def test_metrics_are_those_that_they_log_but_for_ties():
    policy, ref, _, logged = their_dpo("sigmoid")
    pc, pr, rc, rr = sums(policy, ref)
    ours = reward_metrics(BETA * (pc - rc), BETA * (pr - rr))
    for name, value in (
        ("chosen", ours.chosen),
        ("rejected", ours.rejected),
        ("margins", ours.margin),
        ("accuracies", ours.accuracy),
    ):
        assert logged[f"rewards/{name}"] == [pytest.approx(value)]
    batch = batch_of(LENGTHS)
    same = random_logprobs(batch["completion_mask"])
    trainer = stand_in(same, loss_types=["sigmoid"], label_smoothing=0.0)
    trl.DPOTrainer._compute_loss(trainer, says(same), batch, False)
    assert trainer._metrics["train"]["rewards/accuracies"] == [0.0]
    assert reward_metrics(torch.zeros(4), torch.zeros(4)).accuracy == 0.5


@pytest.mark.parametrize("shift", [2.0, -2.0], ids=["positive kl", "negative kl"])
def test_kto_is_theirs_with_the_reference_point_of_mismatched_pairs(shift):
    """Their mean runs over all examples together; the KL is held at zero."""
    batch = batch_of(LENGTHS[:1])
    labels = torch.tensor([1, 0, 0, 1])
    logprobs = [random_logprobs(batch["completion_mask"]) for _ in range(3)]
    policy, ref, mismatched = logprobs
    policy.requires_grad_()
    ref_mismatched = mismatched - shift * batch["completion_mask"][:, 1:]
    batch |= {f"KL_{k}": v for k, v in batch.items()} | {"label": labels}
    trainer = stand_in(
        ref,
        loss_type="kto",
        calculate_KL=True,
        desirable_weight=1.5,
        undesirable_weight=0.8,
    )
    kls = iter((mismatched.sum(1), ref_mismatched.sum(1)))
    trainer._compute_kl_logps = lambda model, batch: next(kls)
    theirs = trl.KTOTrainer._compute_loss(trainer, says(policy), batch, False)
    kl = kto_kl(mismatched.sum(1), ref_mismatched.sum(1))
    assert (kl > 0) == (shift > 0)
    settings = (labels.bool(), kl, BETA, 1.5, 0.8)
    agree(kto_loss(policy.sum(1), ref.sum(1), *settings).mean(), theirs, policy)


def trainer_free(**settings) -> SimpleNamespace:
    """What the methods of trainers without a reference read of ``self``."""
    device = SimpleNamespace(device=torch.device("cpu"))
    settings = {"beta": BETA, "label_smoothing": 0.0, "alpha": 0.0} | settings
    return SimpleNamespace(accelerator=device, **settings)


def their_forward(cls, trainer: SimpleNamespace) -> tuple:
    """Their way from random logits to log-probs and NLL: logits, ids, results."""
    V, batch = 7, batch_of(LENGTHS)
    ids = torch.randint(1, V, batch["input_ids"].shape)
    labels = ids.masked_fill(batch["completion_mask"] == 0, -100)
    logits = torch.randn(*ids.shape, V, dtype=torch.float64, requires_grad=True)
    trainer.is_encoder_decoder = trainer.aux_loss_enabled = False
    trainer.pad_token_id = trainer.padding_value = 0
    inputs = {
        "concatenated_input_ids": ids,
        "concatenated_attention_mask": batch["attention_mask"],
        "concatenated_labels": labels,
    }
    trainer.concatenated_inputs = lambda *args, **kwargs: inputs
    trainer.get_batch_logps = cls.get_batch_logps
    model = MagicMock(return_value=SimpleNamespace(logits=logits))
    rows = {"chosen_labels": labels[: len(labels) // 2]}
    return logits, ids, cls.concatenated_forward(trainer, model, rows)


def two_rows() -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs per token of four chosen and four rejected responses."""
    both = -3 * torch.rand(2, 4, dtype=torch.float64)
    return both[0].requires_grad_(), both[1].requires_grad_()


def test_log1mexp_is_theirs():
    x = -torch.logspace(-5, 2, 50, dtype=torch.float64)
    torch.testing.assert_close(log1mexp(x), orpo_trainer.log1mexp(x))


def test_the_odds_ratio_of_orpo_is_theirs_in_float32():
    """They compute it in float32 whatever they get, so that is what can be compared."""
    chosen, rejected = two_rows()
    theirs, *_, log_odds = orpo_trainer.ORPOTrainer.odds_ratio_loss(
        trainer_free(), chosen, rejected
    )
    ours = orpo_loss(chosen, rejected, BETA) + chosen  # without the NLL
    torch.testing.assert_close(ours.float(), -theirs, rtol=1e-5, atol=1e-6)
    ratio = log_odds_ratio(chosen.float(), rejected.float())
    torch.testing.assert_close(ratio.mean(), log_odds, rtol=1e-6, atol=1e-6)


def test_both_readings_of_the_nll_in_orpo():
    """Ours is the paper's: each response's own mean. Theirs is the mean over all tokens
    of the batch, prompts included."""
    logits, ids, (chosen, rejected, *_, nll) = their_forward(
        orpo_trainer.ORPOTrainer, trainer_free()
    )
    mask = batch_of(LENGTHS)["completion_mask"].bool()
    ours = sequence_logprobs(logits, ids, mask, average=True).chunk(2)
    torch.testing.assert_close(ours, (chosen, rejected))
    logprobs, seen = token_logprobs(logits, ids), batch_of(LENGTHS)["attention_mask"]
    every_token = logprobs[:4][seen[:4, 1:].bool()]
    torch.testing.assert_close(nll, -every_token.mean())
    paper = orpo_loss(*ours, BETA).mean()
    theirs = (
        nll
        - orpo_trainer.ORPOTrainer.odds_ratio_loss(trainer_free(), chosen, rejected)[
            0
        ].mean()
    )
    torch.testing.assert_close(
        paper + ours[0].mean() + nll, theirs, rtol=1e-6, atol=1e-6
    )
    assert abs((theirs - paper).item()) > 0.01


@pytest.mark.parametrize("loss_type", ["sigmoid", "simpo"])
def test_cpo_and_simpo_are_theirs(loss_type):
    """SimPO's gamma is theirs and the paper's; the authors' code tunes gamma / beta."""
    chosen, rejected = two_rows()
    settings = trainer_free(loss_type=loss_type, simpo_gamma=0.7)
    theirs, *_ = cpo_trainer.CPOTrainer.cpo_loss(settings, chosen, rejected)
    if loss_type == "simpo":
        ours = simpo_loss(chosen, rejected, BETA, gamma=0.7)
    else:
        ours = cpo_loss(chosen, rejected, BETA, alpha=0.0)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)
    for x in (chosen, rejected):
        (our_grad,) = torch.autograd.grad(ours.sum(), x, retain_graph=True)
        (their_grad,) = torch.autograd.grad(theirs.sum(), x, retain_graph=True)
        torch.testing.assert_close(our_grad, their_grad, rtol=1e-6, atol=1e-9)


def test_both_readings_of_the_nll_in_cpo():
    """Their whole loss from logits: with lengths it is ours, without, the paper's."""
    trainer = trainer_free(loss_type="sigmoid", cpo_alpha=0.6)
    cls = cpo_trainer.CPOTrainer
    logits, ids, (chosen, rejected, *_, nll) = their_forward(cls, trainer)
    theirs = cls.cpo_loss(trainer, chosen, rejected)[0].mean() + 0.6 * nll
    mask = batch_of(LENGTHS)["completion_mask"].bool()
    ours = sequence_logprobs(logits, ids, mask).chunk(2)
    agree(cpo_loss(*ours, BETA, 0.6, LENGTHS[0].double()).mean(), theirs, logits)
    paper = cpo_loss(*ours, BETA, 0.6).mean()
    assert paper.item() > theirs.item() + 0.5
