"""The loss of TRL's RewardTrainer and the scores of transformers' classifier."""

from types import SimpleNamespace

import pytest
import torch

from minillm.alignment.choices import (
    bradley_terry_loss,
    centring_loss,
    pair_accuracy,
)
from minillm.alignment.reward_model import RewardModel, last_token_index
from minillm.model import GPT, GPTConfig, export_huggingface

transformers = pytest.importorskip("transformers")
trl = pytest.importorskip("trl")

CHOSEN = torch.tensor([1.5, -0.3, 40.0, 0.2, 0.7], dtype=torch.float64)
REJECTED = torch.tensor([0.5, 0.9, -60.0, 0.1, 90.0], dtype=torch.float64)
MARGIN = torch.tensor([0.0, 1.0, 3.0, 0.5, 2.0], dtype=torch.float64)
CONFIG = GPTConfig(vocab_size=40, n_layer=2, n_head=2, n_embd=32, context=32)


def theirs(chosen, rejected, margin=None, centring=None) -> tuple[torch.Tensor, dict]:
    """Their ``compute_loss``, on a model whose scores are given."""
    scores = torch.cat([chosen, rejected])[:, None]
    metrics = {"train": {}, "eval": {}}
    for mode in metrics.values():
        names = ("min_reward", "mean_reward", "max_reward", "accuracy", "margin")
        mode.update({name: [] for name in names})
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=False),
        args=SimpleNamespace(center_rewards_coefficient=centring),
        accelerator=SimpleNamespace(gather=lambda x: x, gather_for_metrics=lambda x: x),
        _metrics=metrics,
        _total_train_tokens=0,
    )
    inputs = {} if margin is None else {"margin": margin}
    loss = trl.RewardTrainer.compute_loss(
        trainer, lambda **_: SimpleNamespace(logits=scores), inputs
    )
    return loss, metrics["eval"]


@pytest.mark.parametrize("margin", [None, MARGIN])
@pytest.mark.parametrize("centring", [None, 0.01, 1.0])
def test_loss_and_gradients_are_those_of_the_reward_trainer(margin, centring):
    pairs = [
        (CHOSEN.clone().requires_grad_(), REJECTED.clone().requires_grad_())
        for _ in range(2)
    ]
    ours = bradley_terry_loss(*pairs[0], 0.0 if margin is None else margin)
    if centring:
        ours = ours + centring * centring_loss(*pairs[0])
    expected, _ = theirs(*pairs[1], margin, centring)
    ours.backward()
    expected.backward()
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=0)
    for a, b in zip(*pairs, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-12, atol=0)


def test_accuracy_is_theirs_but_for_equal_rewards():
    _, metrics = theirs(CHOSEN, REJECTED)
    assert pair_accuracy(CHOSEN, REJECTED) == pytest.approx(metrics["accuracy"][0])
    _, metrics = theirs(CHOSEN, CHOSEN)
    assert metrics["accuracy"] == [0.0]
    assert pair_accuracy(CHOSEN, CHOSEN) == 0.5


def test_scores_are_those_of_the_classifier_whatever_the_padding(tmp_path):
    """Theirs finds the last token that is not the padding's id; ours asks the mask."""
    torch.manual_seed(0)
    trunk = GPT(CONFIG)
    export_huggingface(trunk, tmp_path)
    other = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path, num_labels=1, pad_token_id=0
    ).double()
    ours = RewardModel(trunk).double()
    other.score.weight.data = ours.head.data[None].clone()
    for side in ("left", "right"):
        tokens = torch.randint(1, 40, (3, 9))
        for row, n in enumerate((0, 2, 5)):
            tokens[row, slice(0, n) if side == "left" else slice(9 - n, 9)] = 0
        mask = tokens != 0
        assert last_token_index(mask).tolist() == (
            [8, 8, 8] if side == "left" else [8, 6, 3]
        )
        expected = other(tokens, attention_mask=mask.long()).logits[:, 0]
        # Theirs has RMSNorm and RoPE in float32, whatever the weights are.
        torch.testing.assert_close(ours(tokens, mask), expected, rtol=1e-5, atol=1e-5)
