"""Advantages, losses and gradients of TRL's GRPOTrainer and RLOOTrainer."""

from types import SimpleNamespace

import pytest
import torch

from minillm.alignment.groups import group_advantages, rloo_advantages
from minillm.alignment.grpo import grpo_loss
from minillm.alignment.logprobs import model_logprobs
from minillm.data import Tokenizer
from minillm.model import GPT, GPTConfig, export_huggingface

transformers = pytest.importorskip("transformers")
trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")

TOKENIZER = Tokenizer.train("Compute 17+15=32. " * 9, 290)
CONFIG = GPTConfig(TOKENIZER.vocab_size, n_layer=1, n_head=2, n_embd=16, context=64)
G, LONGEST = 4, 6
LENGTHS = torch.tensor([6, 2, 1, 4, 3, 6, 5, 2])
MASK = torch.arange(LONGEST) < LENGTHS[:, None]


def random_batch():
    dice = torch.Generator().manual_seed(0)
    draw = (torch.randn(8, 6, generator=dice, dtype=torch.float64) for _ in range(3))
    old, step, other = draw
    advantages = torch.randn(8, generator=dice, dtype=torch.float64)
    return (old + 0.3 * step).requires_grad_(), old, old + 0.5 * other, advantages


class Metrics(dict):
    def __missing__(self, mode):
        return self.setdefault(mode, _Lists())


class _Lists(dict):
    def __missing__(self, name):
        return self.setdefault(name, [])


def theirs(logprobs, old, advantages, mask=MASK, **settings):
    """Run the trainer's own loss on log-probabilities that we give it."""
    one = SimpleNamespace(
        gather=lambda x: x, reduce=lambda x, reduction: x, num_processes=1
    )
    given = {
        "loss_type": "grpo",
        "importance_sampling_level": "token",
        "epsilon_low": 0.2,
        "epsilon_high": 0.2,
        "beta": 0.0,
    } | settings
    ref = given.pop("ref", None)
    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *a, **k: (logprobs, 0 * old, None),
        args=SimpleNamespace(delta=None, use_bias_correction_kl=False),
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        aux_loss_enabled=False,
        use_vllm=False,
        vllm_importance_sampling_correction=False,
        _entropy_bonus_enabled=False,
        max_completion_length=LONGEST,
        current_gradient_accumulation_steps=1,
        model=SimpleNamespace(training=False),
        accelerator=one,
        _metrics=Metrics(),
        **given,
    )
    nothing = torch.zeros(len(mask), 0, dtype=torch.long)
    inputs = {
        "prompt_ids": nothing,
        "prompt_mask": nothing,
        "completion_ids": torch.zeros(mask.shape, dtype=torch.long),
        "completion_mask": mask.long(),
        "advantages": advantages,
        "old_per_token_logps": old,
        "ref_per_token_logps": ref,
        "num_items_in_batch": mask.sum(),
    }
    return trl.GRPOTrainer._compute_loss(trainer, None, inputs), trainer._metrics


def same(ours, other, logprobs):
    torch.testing.assert_close(ours, other, rtol=1e-9, atol=1e-12)
    slopes = [torch.autograd.grad(x, logprobs)[0] for x in (ours, other)]
    torch.testing.assert_close(*slopes, rtol=1e-9, atol=1e-12)
    assert slopes[0].any()


NAMES = {  # TRL's loss_type: our aggregation
    "grpo": "sequence",
    "bnpo": "token",
    "dapo": "token",
    "dr_grpo": "constant",
}


@pytest.mark.parametrize("beta", [0.0, 0.3])
@pytest.mark.parametrize("high", [0.2, 0.28])
@pytest.mark.parametrize("loss_type", NAMES)
def test_losses_and_gradients_are_those_of_the_grpo_trainer(loss_type, high, beta):
    logprobs, old, ref, A = random_batch()
    other, metrics = theirs(
        logprobs, old, A, loss_type=loss_type, epsilon_high=high, beta=beta, ref=ref
    )
    ours = grpo_loss(
        logprobs, old, A, MASK, 0.2, high, beta, ref, NAMES[loss_type], length=LONGEST
    )
    same(ours, other, logprobs)
    clipped = metrics["eval"]["clip_ratio/region_mean"][0]
    assert 0 < clipped < 1  # or the batch would not tell a clip from none


@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo"])
@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_the_ratio_of_a_sequence_is_that_of_the_grpo_trainer(loss_type, beta):
    logprobs, old, ref, A = random_batch()
    settings = {"importance_sampling_level": "sequence", "epsilon_low": 0.05}
    settings |= {"loss_type": loss_type, "epsilon_high": 0.07, "beta": beta}
    aggregation = NAMES[loss_type]
    ours = grpo_loss(
        logprobs, old, A, MASK, 0.05, 0.07, beta, ref, aggregation, "sequence", LONGEST
    )
    other, _ = theirs(logprobs, old, A, ref=ref, **settings)
    same(ours, other, logprobs)


def test_mini_batches_of_dapo_are_divided_by_the_tokens_of_all():
    logprobs, old, _, A = random_batch()
    whole, _ = theirs(logprobs, old, A, loss_type="dapo")
    n = int(MASK.sum())
    parts = [
        grpo_loss(logprobs[s], old[s], A[s], MASK[s], aggregation="token", n_tokens=n)
        for s in (slice(0, 3), slice(3, 8))
    ]
    same(sum(parts), whole, logprobs)


def test_a_response_without_tokens_counts_as_one_of_the_batch_there_too():
    logprobs, old, _, A = random_batch()
    mask = MASK & (torch.arange(8) != 2)[:, None]
    for loss_type, aggregation in NAMES.items():
        other, _ = theirs(logprobs, old, A, mask, loss_type=loss_type)
        ours = grpo_loss(
            logprobs, old, A, mask, aggregation=aggregation, length=LONGEST
        )
        same(ours, other, logprobs)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The same model in our hands and in theirs, both in float64."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    ours = GPT(CONFIG)
    export_huggingface(ours, folder, TOKENIZER)
    return ours.double(), folder


def trainer_of(kind, both, tmp_path, reward, **settings):
    tokenizer = transformers.AutoTokenizer.from_pretrained(both[1], padding_side="left")
    model = transformers.AutoModelForCausalLM.from_pretrained(both[1]).double()
    config = {"GRPO": trl.GRPOConfig, "RLOO": trl.RLOOConfig}[kind]
    args = config(
        output_dir=str(tmp_path),
        report_to=[],
        use_cpu=True,
        bf16=False,
        per_device_train_batch_size=2 * G,
        num_generations=G,
        max_completion_length=LONGEST,
        **settings,
    )
    data = datasets.Dataset.from_list([{"prompt": p} for p in PROMPTS])
    trainer = {"GRPO": trl.GRPOTrainer, "RLOO": trl.RLOOTrainer}[kind]
    return trainer(model, reward, args, train_dataset=data, processing_class=tokenizer)


PROMPTS = ("Compute 17+15=", "Compute 1+2")
REWARDS = [0.3, 1.0, 0.0, 1.0, 0.1, 0.1, 0.1, 0.1]  # the second group is all equal


def fixed_rewards(completions, **_):
    return REWARDS


@pytest.mark.parametrize("scale", ["group", "none"])
def test_from_samples_to_gradients_all_is_as_in_the_grpo_trainer(both, tmp_path, scale):
    """Their generation, rewards, advantages, log-probabilities and loss, in one go."""
    settings = {"loss_type": "grpo", "scale_rewards": scale, "beta": 0.2}
    trainer = trainer_of("GRPO", both, tmp_path, fixed_rewards, **settings)
    trainer.current_gradient_accumulation_steps = 1
    batch = [{"prompt": p} for p in PROMPTS for _ in range(G)]
    made = trainer._generate_and_score_completions(batch)
    ours = group_advantages(torch.tensor(REWARDS).view(-1, G), scale == "group")
    torch.testing.assert_close(ours.flatten(), made["advantages"], rtol=1e-6, atol=1e-6)
    assert not ours[1].any()
    other = trainer._compute_loss(trainer.model, made)
    other.backward()

    tokens = torch.cat([made["prompt_ids"], made["completion_ids"]], dim=1)
    real = torch.cat([made["prompt_mask"], made["completion_mask"]], dim=1).bool()
    acts = real.clone()
    acts[:, : made["prompt_ids"].shape[1]] = False
    model = both[0]
    model.zero_grad()
    logprobs = model_logprobs(model, tokens, real)
    anchor = torch.zeros_like(logprobs)
    anchor[:, -made["completion_ids"].shape[1] :] = made["ref_per_token_logps"]
    A = made["advantages"].double()
    rest = {"beta": 0.2, "ref_logprobs": anchor}
    loss = grpo_loss(logprobs, logprobs, A, acts[:, 1:], **rest)
    loss.backward()
    # Theirs has RMSNorm and RoPE in float32, whatever the weights are.
    torch.testing.assert_close(loss, other, rtol=1e-5, atol=1e-6, check_dtype=False)
    named = dict(trainer.model.named_parameters())
    for name, p in model.named_parameters():
        slope = named.get(f"model.{name}", named.get(name)).grad
        assert (p.grad - slope).norm() < 1e-5 * slope.norm(), name


def test_advantages_are_those_of_the_rloo_trainer(both, tmp_path):
    """Leave one out, with the price of KL in the reward: k1, summed over the tokens."""
    trainer = trainer_of("RLOO", both, tmp_path, fixed_rewards, beta=0.2)
    with torch.no_grad():  # away from its reference, or the KL would be 0
        for p in trainer.model.parameters():
            p.mul_(1.5)
    batch = [{"prompt": p} for p in PROMPTS for _ in range(G)]
    made = trainer._generate_and_score_completions(batch)
    tokens = torch.cat([made["prompt_ids"], made["completion_ids"]], dim=1)
    real = torch.cat([made["prompt_mask"], made["completion_mask"]], dim=1).bool()
    acts = real.clone()
    acts[:, : made["prompt_ids"].shape[1]] = False
    reference, policy = both[0], GPT(CONFIG).double()
    weights = {name: 1.5 * w for name, w in reference.state_dict().items()}
    policy.load_state_dict(weights)
    with torch.no_grad():
        now, anchor = (model_logprobs(m, tokens, real) for m in (policy, reference))
    kl = ((now - anchor) * acts[:, 1:]).sum(1)
    assert kl.abs().max() > 0.01
    rewards = torch.tensor(REWARDS).double() - 0.2 * kl
    ours = rloo_advantages(rewards.view(-1, G)).flatten()
    torch.testing.assert_close(ours, made["advantages"].double(), rtol=1e-5, atol=1e-5)


def test_a_reward_that_is_no_number_is_refused_here_and_left_out_there(both, tmp_path):
    """Differs from TRL: it gives such a response advantage 0; we want to know."""
    rewards = [None, *REWARDS[1:]]
    trainer = trainer_of("GRPO", both, tmp_path, lambda completions, **_: rewards)
    batch = [{"prompt": p} for p in PROMPTS for _ in range(G)]
    assert trainer._generate_and_score_completions(batch)["advantages"][0] == 0
    with pytest.raises(ValueError, match="rewards must be finite"):
        group_advantages(torch.tensor([[torch.nan, 1.0]]))
