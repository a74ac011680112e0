"""Alignment: from what a model says to what people, or a verifier, would rather hear.

Read in this order:

- what all of it is made of: ``logprobs``, ``kl``, ``rollouts``, ``masked``;
- a reward learned from choices: ``choices``, ``reward_model``, ``reward_pairs``,
  ``reward_training``, ``reward_judging``; then ``surprise``, ``reward_fitting``;
- PPO: ``advantages``, ``surrogate``, ``ppo``, ``critic``, then ``loop``, ``ppo_loop``;
- GRPO: ``groups``, ``grpo``, ``verifiers``, ``grpo_loop``;
- preferences without a reward model: ``dpo``, ``preference_losses``, ``kto``,
  ``reference_free``, ``tabular``, then ``preference_data`` and ``preference_loop``;
- fresh pairs, and who judges them: ``own_responses``, ``online_dpo``, ``judge``,
  ``constitution``.
"""

from minillm.alignment.advantages import gae, token_rewards
from minillm.alignment.choices import (
    bradley_terry_loss,
    centring_loss,
    pair_accuracy,
)
from minillm.alignment.constitution import critique, critique_and_revise
from minillm.alignment.critic import Critic
from minillm.alignment.dpo import dpo_loss, dpo_rewards, log_ratio_margin
from minillm.alignment.feedback import Feedback, from_pairs
from minillm.alignment.groups import group_advantages, rloo_advantages
from minillm.alignment.grpo import aggregate, grpo_loss
from minillm.alignment.grpo_loop import grpo
from minillm.alignment.judge import Judge, SwapDebiased, swap_debiased
from minillm.alignment.kl import kl_exact, kl_k1, kl_k2, kl_k3
from minillm.alignment.kto import kto_kl, kto_loss
from minillm.alignment.logprobs import (
    model_logprobs,
    scored_logprobs,
    sequence_logprobs,
)
from minillm.alignment.masked import masked_mean, masked_whiten
from minillm.alignment.online_dpo import iterative_dpo, online_dpo, spin
from minillm.alignment.own_responses import Ask, frozen_copy, sampled_kl
from minillm.alignment.ppo import (
    adapt_beta,
    explained_variance,
    ppo_policy_loss,
    ppo_value_loss,
)
from minillm.alignment.ppo_loop import ppo
from minillm.alignment.preference_data import PreferencePairs, encode_preferences
from minillm.alignment.preference_loop import PreferConfig, prefer
from minillm.alignment.preference_losses import hinge_loss, ipo_loss, robust_dpo_loss
from minillm.alignment.reference_free import (
    cpo_loss,
    log1mexp,
    log_odds_ratio,
    orpo_loss,
    simpo_loss,
)
from minillm.alignment.reward_fitting import fit_head
from minillm.alignment.reward_judging import (
    choice_confidence,
    ensemble_reward,
    evaluate_reward_model,
)
from minillm.alignment.reward_model import RewardModel, last_token_index
from minillm.alignment.reward_pairs import encode_pairs, opening_ids, ranking_to_pairs
from minillm.alignment.reward_training import RewardConfig, train_reward_model
from minillm.alignment.rollouts import Rollouts, sample_rollouts
from minillm.alignment.settings import GRPOConfig, PPOConfig
from minillm.alignment.tabular import bradley_terry, expected_loss, minimise
from minillm.alignment.verifiers import (
    is_answer,
    mentions_answer,
    says_answer,
    verifier_reward,
)
