"""PPO's policy loss, in the two forms in which TRL still has it.

TRL 1.16 has no PPOTrainer. Its GRPOTrainer takes an advantage for each token, and with
``loss_type="bnpo"`` that is PPO; its RLOOTrainer clips the ratio of whole sequences. Of
GAE, whitening and the critic's loss it holds no code to compare with.
"""

from types import SimpleNamespace

import pytest
import torch
from test_grpo_parity import LENGTHS, MASK, Metrics, random_batch, theirs

from minillm.alignment.ppo import ppo_policy_loss

trl = pytest.importorskip("trl")


@pytest.mark.parametrize("clip", [0.1, 0.2])
def test_the_policy_loss_is_that_of_the_grpo_trainer_with_advantages_of_tokens(clip):
    logprobs, old, advantages, _ = random_batch()
    bounds = {"epsilon_low": clip, "epsilon_high": clip}
    other, _ = theirs(logprobs, old, advantages, loss_type="bnpo", **bounds)
    ours = ppo_policy_loss(logprobs, old, advantages, MASK, clip)
    torch.testing.assert_close(ours, other, rtol=1e-9, atol=1e-12)
    slopes = [torch.autograd.grad(x, logprobs)[0] for x in (ours, other)]
    torch.testing.assert_close(*slopes, rtol=1e-9, atol=1e-12)


def test_on_whole_sequences_it_is_the_loss_of_the_rloo_trainer():
    logprobs, old, _, A = random_batch()
    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *a, **k: (logprobs, 0 * old, None),
        epsilon_low=0.2,
        epsilon_high=0.2,
        aux_loss_enabled=False,
        model=SimpleNamespace(training=False),
        accelerator=SimpleNamespace(
            gather=lambda x: x, reduce=lambda x, reduction: x, num_processes=1
        ),
        _metrics=Metrics(),
    )
    nothing = torch.zeros(8, 0, dtype=torch.long)
    inputs = {
        "prompt_ids": nothing,
        "prompt_mask": nothing,
        "completion_ids": torch.zeros(MASK.shape, dtype=torch.long),
        "completion_mask": MASK.long(),
        "advantages": A,
        "old_logps": (old * MASK).sum(1),
    }
    other = trl.RLOOTrainer._compute_loss(trainer, None, inputs)
    whole, before = ((x * MASK).sum(1, keepdim=True) for x in (logprobs, old))
    everywhere = torch.ones(8, 1).bool()
    ours = ppo_policy_loss(whole, before, A[:, None], everywhere)
    torch.testing.assert_close(ours, other, rtol=1e-9, atol=1e-12)
    assert len(LENGTHS.unique()) > 1  # so that a mean of log-ratios would be another
    mean = ppo_policy_loss(
        *(x / LENGTHS[:, None] for x in (whole, before)), A[:, None], everywhere
    )
    assert mean.item() != pytest.approx(other.item(), rel=1e-3)
