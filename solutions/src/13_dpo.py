# %% [markdown]
# # Exercises: the DPO family, and whether it is a shortcut
#
# Ten exercises, easier ones first. Write your answer where a cell says `raise
# NotImplementedError`, run it, then run the check below it. A check tells what is right
# and what is wrong, and it knows the usual mistakes. It costs nothing to ask:
# `hint("13.dpo_loss", 1)` prints the first of three hints.
#
# The chapter is `notebooks/13_dpo.ipynb`.
#
# CPU 2 cores · ~5 s · < 1 GB

# %% tags=["setup"]
import math
from operator import mul

import torch
import torch.nn.functional as F

from minillm.alignment.displacement import Displacement, displace, outcome
from minillm.alignment.kto import kto_loss as package_kto
from minillm.school.checks import check, hint, params
from minillm.school.studies import load_study
from minillm.world import closed, menus, preferences, questions

_ = torch.manual_seed(0)

# %% [markdown]
# ## 1. How probable was the response? (implement, about fifteen minutes)
#
# For each row, add up the log-probabilities of the tokens at which `mask` is True. With
# `average=True`, divide by how many there are.
#
# - `logits` (B, T, V): the scores at position $t$ are about the token at $t + 1$.
# - `tokens` (B, T): prompts with their responses, padded on either side.
# - `mask` (B, T): True at the tokens of the response, never at the first token.


# %% tags=["ex-sequence-logprobs"]
def sequence_logprobs(logits, tokens, mask, average=False):
    # --- solution
    logprobs = logits[:, :-1].log_softmax(-1)
    scored = logprobs.gather(-1, tokens[:, 1:, None])[..., 0]
    response = mask[:, 1:]  # the mask belongs to the tokens, so it moves along
    total = torch.where(response, scored, 0.0).sum(1)
    return total / response.sum(1) if average else total
    # --- end of solution


# %%
check("13.sequence_logprobs", sequence_logprobs)

# %% [markdown]
# ## 2. The loss of DPO (implement, about fifteen minutes)
#
# Return the loss of each pair, not their mean. All log-probs are sums over the tokens
# of a response. Margins may be of any size: the loss must stay finite.


# %% tags=["ex-dpo-loss"]
def dpo_loss(policy_chosen, policy_rejected, ref_chosen, ref_rejected, beta):
    # --- solution
    margin = (policy_chosen - policy_rejected) - (ref_chosen - ref_rejected)
    return -F.logsigmoid(beta * margin)  # log(sigmoid(x)) would be -inf
    # --- end of solution


# %%
hint("13.dpo_loss", 1)
check("13.dpo_loss", dpo_loss)

# %% [markdown]
# ## 3. SimPO (implement, about ten minutes)
#
# The reward of a response is `beta` times its log-prob *per token*, and the chosen one
# must win by `gamma`. You get sums and lengths.


# %% tags=["ex-simpo-loss"]
def simpo_loss(chosen, rejected, chosen_lengths, rejected_lengths, beta, gamma):
    # --- solution
    lead = chosen / chosen_lengths - rejected / rejected_lengths
    return -F.logsigmoid(beta * lead - gamma)
    # --- end of solution


# %%
check("13.simpo_loss", simpo_loss)

# %% [markdown]
# ## 4. IPO (implement, about ten minutes)
#
# From summed log-probs, the loss of each pair: smallest, and zero, where the margin of
# the log-ratios is $1/(2\beta)$. What does it do to a margin that is too large?


# %% tags=["ex-ipo-loss"]
def ipo_loss(policy_chosen, policy_rejected, ref_chosen, ref_rejected, beta):
    # --- solution
    margin = (policy_chosen - policy_rejected) - (ref_chosen - ref_rejected)
    return (margin - 1 / (2 * beta)) ** 2
    # --- end of solution


# %%
check("13.ipo_loss", ipo_loss)

# %% [markdown]
# ## 5. How far does the best policy go? (derive, about fifteen minutes)
#
# Four responses have reference probabilities and rewards. Return the `kl` to the
# reference, in nats, and the expected `reward` of the policy that maximises
# $E[r] - \beta\, KL$, which is where DPO leads. When you are done: what happens to both
# as beta goes to zero, and as it grows without end?

# %%
for name, given in params("13.beta_and_kl").items():
    print(f"{name:8}", [round(x, 3) for x in given] if name != "beta" else given)


# %% tags=["ex-beta-and-kl"]
def beta_and_kl(params):
    ref, rewards, beta = params["ref"], params["rewards"], params["beta"]
    # --- solution
    tilted = [p * math.exp(r / beta) for p, r in zip(ref, rewards, strict=True)]
    policy = [w / sum(tilted) for w in tilted]
    kl = sum(p * math.log(p / q) for p, q in zip(policy, ref, strict=True))
    reward = sum(p * r for p, r in zip(policy, rewards, strict=True))
    return {"kl": kl, "reward": reward}
    # --- end of solution


# %%
check("13.beta_and_kl", beta_and_kl)

# %% tags=["solution", "both-ends"]
given = params("13.beta_and_kl")
best = max(range(4), key=lambda i: given["rewards"][i])
for beta in (0.02, 1e6):
    end = beta_and_kl({**given, "beta": beta})
    print(f"beta {beta:g}: KL {end['kl']:.2f}, reward {end['reward']:.2f}")
print(f"-ln of the best response's share: {-math.log(given['ref'][best]):.2f}")

# %% [markdown]
# ## 6. What does a fresh pair cost? (derive, about fifteen minutes)
#
# A step of online DPO samples some responses to each of its prompts. A verifier says of
# each whether it is right, which it is with probability `right`. A prompt gives one
# pair if it has a right and a wrong response. Return the expected number of `pairs` in
# a step, and the `tokens` that the step generates for each. When is a pair dearest?

# %%
print(params("13.fresh_pairs"))


# %% tags=["ex-fresh-pairs"]
def fresh_pairs(params):
    P, K, p = params["prompts"], params["responses"], params["right"]
    # --- solution
    pairs = P * (1 - p**K - (1 - p) ** K)  # neither all right nor all wrong
    return {"pairs": pairs, "tokens": P * K * params["length"] / pairs}
    # --- end of solution


# %%
check("13.fresh_pairs", fresh_pairs)

# %% [markdown]
# ## 7. A log-prob that depends on its neighbours (debug, about ten minutes)
#
# With this code a response is more probable alone than in a batch with a longer row. By
# convention of many models the padding has the same id as the end of a turn, here 0.
# `lengths` counts the real tokens of each row, the end of the turn included;
# `prompt_lengths` those of its prompt. Repair it.


# %% tags=["ex-padded-logprob"]
def response_logprobs(logits, tokens, prompt_lengths, lengths):
    logprobs = logits[:, :-1].log_softmax(-1)
    scored = logprobs.gather(-1, tokens[:, 1:, None])[..., 0]
    at = torch.arange(1, tokens.shape[1])  # places of the tokens that are scored
    # --- solution: response = at >= prompt_lengths[:, None]
    response = (at >= prompt_lengths[:, None]) & (at < lengths[:, None])
    # --- end of solution
    return (scored * response).sum(1)


# %%
check("13.padded_logprob", response_logprobs)

# %% [markdown]
# ## 8. KTO (implement, about twenty minutes)
#
# The loss of each response, from its summed log-probs, a label (`desirable`, a tensor
# of bools) and the reference point `kl`, a number. Check your answer at `policy = ref`
# and `kl = 0` first: each response should cost half of its weight.


# %% tags=["ex-kto-loss"]
def kto_loss(
    policy, ref, desirable, kl, beta, desirable_weight=1.0, undesirable_weight=1.0
):
    # --- solution
    gain = beta * (policy - ref - kl)
    value = torch.sigmoid(torch.where(desirable, gain, -gain))
    weight = torch.where(desirable, desirable_weight, undesirable_weight)
    return weight * (1 - value)
    # --- end of solution


# %%
check("13.kto_loss", kto_loss)

# %% [markdown]
# ## 9. ORPO (implement, about twenty minutes)
#
# `chosen` and `rejected` are log-probs per token. Fine-tune on the chosen response, and
# add `beta` times the surprise at its winning by odds. Your answer must be exact where
# a response is nearly certain, with log-probs like $-10^{-6}$ in float32.


# %% tags=["ex-orpo-loss"]
def orpo_loss(chosen, rejected, beta):
    # --- solution
    def log_odds(logp):
        return logp - torch.log(-torch.expm1(logp))  # 1 - exp(x) would cancel

    return -chosen - beta * F.logsigmoid(log_odds(chosen) - log_odds(rejected))
    # --- end of solution


# %%
check("13.orpo_loss", orpo_loss)

# %% [markdown]
# ## 10. Mend likelihood displacement (experiment, about fifteen minutes)
#
# In the chapter's section 14 plain DPO prefers the chosen response and makes it rare.
# Choose a run that does better: `loss` is `"dpo"`, `"ipo"` or `"hinge"`; then `beta`,
# the weight `nll` of the chosen response's NLL, and `steps`.

# %%
for goal, reached in outcome(Displacement("dpo", beta=0.5)).items():
    print(f"plain DPO: {goal}: {reached}")


# %% tags=["ex-fix-displacement"]
def fix_displacement():
    # --- solution
    return Displacement("dpo", beta=0.5, nll=0.2, steps=100)
    # --- end of solution


# %%
check("13.fix_displacement", fix_displacement, slow=True)

# %% [markdown]
# # Interview questions
#
# Try each for half a minute, aloud, before you read the answer. Each answer has five
# parts: what to say in half a minute; what is behind it; a number that was measured
# here; the answer that is often given and wrong; and how you would test it.

# %% tags=["solution", "closed-world"]
question = questions.Question("Compute 1+1=", "2", "arithmetic")
rambling = " well, it may be 3 or 4 or even more than that"
said = menus.Menu((" 2", " 3", rambling), weights=(6, 3, 1))
world = closed.closed_prompt(question, said)
print(f"{len(world.responses)} responses")
for beta in (0.1, 5.0):
    best = closed.optimum(world.ref_logprobs, world.rewards, beta)
    print(f"beta {beta}: KL {best.kl:.3f} nats, reward {best.expected_reward:.2f}")

# %% tags=["solution", "over-optimised"]
fond = preferences.Annotator(length_bias=0.3)
liked = [fond.utility(question, text) for text in world.responses]
words = [len(text.split()) for text in world.responses]
for beta in (10.0, 1.0, 0.1):
    p = [*map(math.exp, closed.optimum(world.ref_logprobs, liked, beta).logprobs)]
    own, true, n = (sum(map(mul, p, x)) for x in (liked, world.rewards, words))
    print(f"beta {beta}: annotators {own:.2f}, truth {true:.2f}, {n:.0f} words")

# %% tags=["solution", "bytes"]
trained, frozen = 2 + 2 + 4 + 4 + 4, 2
dpo, ppo = trained + frozen, 2 * trained + 2 * frozen
print(f"ln 2 = {math.log(2):.2f}")
print(f"bytes a weight: SFT {trained}, DPO {dpo}, scored before {trained}, PPO {ppo}")

# %% tags=["solution", "family"]
family = load_study("06_dpo_family")
print(f"{'three seeds':15} {'true reward':>11} {'right':>6} {'KL':>6} {'order':>6}")
for arm in family.settings:
    names = ("reward", "right", "kl", "accuracy")
    reward, right, kl, order = (family.mean(arm, name) for name in names)
    print(f"{arm:15} {reward:>11.2f} {right:>6.0%} {kl:>6.2f} {order:>6.0%}")
start = family.mean("SFT", "reward")
gains = (family.mean(arm, "reward") - start for arm in ("DPO, beta 0.1", "online DPO"))
print("gain over SFT, DPO with a beta of 0.1 and online:", [f"{x:.2f}" for x in gains])

# %% tags=["solution", "closed-world-study"]
near = load_study("05_closed_world")
for method in ("DPO", "PPO", "GRPO, KL in reward", "GRPO, KL in loss"):
    gap = near.mean(f"{method}, beta 0.5", "gap")
    print(f"beta 0.5, {method:19} {gap:.3f} nats from the optimum")
start = near.mean("DPO, beta 0.5", "start_gap")
print(f"the reference, before training {start:.2f} nats")

# %% tags=["solution", "refusals"]
moved = load_study("07_displacement")
print(f"refused before training: {moved.mean('DPO', 'right_before'):.0%}")
for arm in ("DPO", "DPO + NLL", "DPO, pairs of its own"):
    print(f"refused after {arm}: {moved.mean(arm, 'right'):.0%}")

# %% tags=["solution", "sums"]
sums = load_study("08_where_dpo_fails")
for arm in sums.settings:
    before, after = (torch.tensor(sums.values(arm, x)) for x in ("before", "after"))
    change, order = 100 * (after - before), sums.mean(arm, "pair_accuracy")
    told = f"{change.mean().item():+.1f} ± {change.std().item():.1f} points"
    print(f"{arm:26} order {order:.0%}, right results {told}")

# %% tags=["solution", "annotators"]
taste = load_study("09_annotators")
for arm in taste.settings:
    names = ("longer", "politer", "wrong")
    told = [f"{name} {taste.mean(arm, name):.0%}" for name in names]
    print(f"{arm:14} prefers {', '.join(told)}")

# %% tags=["solution", "displaced"]
before, *_, after = displace(Displacement()).exp()[:, 0].tolist()
print(f"plain DPO, chosen response: {before:.0%} before, {after:.0%} after")
pull = torch.zeros(1, requires_grad=True)
package_kto(pull, torch.zeros(1), torch.tensor([True]), 0.0, beta=0.1).sum().backward()
print(f"KTO's pull at the reference, beta 0.1: {abs(pull.grad.item()):.3f}")

# %% [markdown]
# ## A. Derive DPO
#
# *Derive the DPO loss from the RLHF objective and Bradley-Terry. Where does the reward
# model go?*

# %% [markdown] tags=["answer-derive-dpo"]
# **In half a minute.** RLHF maximises reward minus $\beta$ times the KL to a reference.
# That problem has a closed solution: the reference, tilted by $e^{r/\beta}$. Take the
# logarithm and solve for the reward: $\beta$ times the log-ratio of policy and
# reference, plus $\beta \ln Z$. Annotators compare, and Bradley and Terry's probability
# of a verdict depends on a difference of rewards, in which $Z$ cancels. So the
# likelihood of the verdicts can be written with the policy alone, and maximising it
# fits the policy directly. The reward model has not vanished: the policy is it.
#
# **Behind it.**
#
# $$\max_\pi E_\pi[r] - \beta KL(\pi\|\pi_{ref}) \;\Rightarrow\;
#   \pi^* = \tfrac{1}{Z}\pi_{ref}\, e^{r/\beta} \;\Rightarrow\;
#   r = \beta \ln\tfrac{\pi^*}{\pi_{ref}} + \beta \ln Z$$
#
# $$P(y_w \succ y_l) = \sigma(r_w - r_l) \;\Rightarrow\;
#   L = -\ln \sigma\big(\beta[(\ln\pi_w - \ln\pi_l) -
#   (\ln\pi^{ref}_w - \ln\pi^{ref}_l)]\big)$$
#
# The first arrow: the objective is $-\beta\, KL(\pi\|\pi^*) + \beta \ln Z$.

# %% [markdown] tags=["answer-derive-dpo"]
# **Measured here.** In a closed world with 48 responses (cell `closed-world`) the
# minimum of the expected DPO loss is the closed form, in all log-probs to five digits,
# for every beta that was tried (the chapter's section 3).
#
# **Often said, and wrong.** "The implicit reward is the reward." Only at the optimum:
# half-way it was off by several units. "DPO needs no assumptions." It needs verdicts
# by Bradley and Terry, pairs that connect the responses, and a policy that can
# represent the optimum.
#
# **How to test it.** List all responses of a small world, minimise the expected loss
# over tables, and compare with $\pi_{ref} e^{r/\beta} / Z$. Then take away one
# condition at a time.

# %% [markdown]
# ## B. DPO and RLHF side by side
#
# *Explain DPO, write its loss, and say how it differs from RLHF.*

# %% [markdown] tags=["answer-dpo-and-rlhf"]
# **In half a minute.** Both look for the same optimum. RLHF goes there in two stages:
# fit a reward model to verdicts, then sample from the policy, score, and improve it
# with PPO. DPO goes in one: a classification of pairs in which the policy's log-ratios
# are the scores. It is offline: it never samples, and learns from what is in the file.
#
# **Behind it.** $L = -\ln\sigma(\beta m)$, where $m$ is the chosen log-ratio minus the
# rejected one, each summed over the response's tokens. The gradient raises the chosen
# and lowers the rejected log-prob with weight $\beta\,\sigma(-\beta m)$.
#
# | | RLHF with PPO | DPO |
# |---|---|---|
# | models in memory | policy, critic, reward, reference | policy, reference (or none) |
# | data | prompts, and pairs for the reward model | pairs |
# | sampling while it trains | yes | no |
# | reward | a model, can be looked at | implicit |
# | new responses | judged as they come | never seen |
# | what fails | reward hacking, instability | displacement, old pairs |

# %% [markdown] tags=["answer-dpo-and-rlhf"]
# **Measured here.** By arithmetic (cell `bytes`), for each weight: fine-tuning 16
# bytes, DPO with a frozen reference 18, with log-probs scored beforehand 16, PPO 36.
#
# **Often said, and wrong.** "DPO takes twice the memory of fine-tuning": a frozen copy
# has no gradient and no optimiser state. "A loss of 0.69 after the first step means
# that nothing happens": it is $\ln 2$, and its gradient is not zero.
#
# **How to test it.** Before training, assert a loss of $\ln 2$ and a gradient of
# $\beta/2$ on each side. After ten steps, assert that the margin of one fixed batch has
# grown. If not, look for a reference that moves along.

# %% [markdown]
# ## C. DPO or PPO?
#
# *Compare them on stability, coverage and reward hacking. What are DPO's practical
# gains and failures, and when would you still choose PPO?*

# %% [markdown] tags=["answer-dpo-or-ppo"]
# **In half a minute.** DPO is stable and cheap: a supervised loss, no sampling, no
# critic. Its weak point is coverage: it only hears about responses in the file. Where
# the policy ends, nobody has compared anything, and mass may flow there unseen. PPO
# samples from the policy and asks about exactly that, at the price of a reward model
# that can be hacked and a loop that can fail in many ways. I choose PPO, or GRPO, if
# there is a reward that can be trusted or checked, if the task needs search
# (mathematics, code), or if the policy moves far from the data. Otherwise DPO, perhaps
# with fresh pairs.

# %% [markdown] tags=["answer-dpo-or-ppo"]
# **Behind it.** The expectation in RLHF's objective is over the policy's own responses,
# in DPO's loss over those of the file. They have the same minimum if every response is
# covered. If not, the margin of the compared pairs is pinned down and all else is free.
#
# **Measured here.** Where pairs cover everything, both end near the optimum, PPO
# nearer: 0.016 and 0.002 nats at a beta of 0.5 (cell `closed-world-study`). Where they
# do not: trained to prefer one refusal over nearly the same one, the model refused
# strangers less often, 0% after 27% (cell `refusals`). And where they show what the
# policy would not say: trained to prefer right sums to random numbers it orders 91% of
# such pairs, and gives fewer right results, by 3.2 points, but the seeds differ by more
# (cell `sums`).
#
# **Often said, and wrong.** "DPO cannot be hacked." It over-optimises its verdicts just
# as well (question D). "DPO is more stable, therefore better": being stable says
# nothing about where it ends.
#
# **How to test it.** Same start, same judge, equal generated tokens: offline pairs
# against pairs sampled from the policy. Measure what it says, not how it orders pairs.

# %% [markdown]
# ## D. Over-optimisation without a reward model
#
# *DPO has no explicit KL coefficient and no reward model. How does it over-optimise,
# and what do beta and the reference do about it?*

# %% [markdown] tags=["answer-over-optimisation"]
# **In half a minute.** It has both, implicitly. The implicit reward is learned from
# verdicts, with their biases, and beta is the price of KL in the objective whose
# optimum the loss encodes. Over-optimisation looks the same as ever: along the KL the
# reward by the annotators' lights keeps rising, the true one rises, turns and falls. A
# larger beta stops earlier. The reference is the only memory of what was fine before;
# where verdicts are certain or training is long, even beta lets go.
#
# **Behind it.** With verdicts that all agree the loss has its minimum at an infinite
# margin: $\sigma(\beta m) \to 1$ for any beta. Then early stopping is the regulariser,
# or a loss with a finite margin (IPO, $m = \frac{1}{2\beta}$), or label smoothing.

# %% [markdown] tags=["answer-over-optimisation"]
# **Measured here.** In the closed world with annotators who like length (cell
# `over-optimised`), the true reward is 3.06 at a beta of 10, 3.52 at 1 and 2.50 at 0.1,
# while the annotators' own rises from 5.76 to 9.69 and responses grow from 9 to 24
# words.
#
# **Often said, and wrong.** "A lower beta is more conservative." It is the other way
# round. "The loss still falls, so it still learns": in that table it falls all the
# time.
#
# **How to test it.** Train with several betas, draw the true reward (or fresh verdicts
# by people) against the KL of *sampled* responses, and look for the turn.

# %% [markdown]
# ## E. SFT, RLHF, DPO, KTO, ORPO
#
# *What is the difference, and when do you take which?*

# %% [markdown] tags=["answer-five-methods"]
# **In half a minute.** They differ in what a person has to give. SFT: good responses to
# imitate. DPO: pairs. KTO: single responses with a thumb up or down. ORPO: pairs, and
# it does fine-tuning in the same stage, without a reference. RLHF: pairs for a reward
# model, then only prompts. I begin with SFT always; pairs at hand: DPO; thumbs from a
# product: KTO; pairs and no fine-tuned model or no memory: ORPO; a reward that I trust
# or can check, and a budget for sampling: RLHF.
#
# **Behind it.** With log-ratio $r$ to the reference and means per token $\bar\ell$:
#
# - SFT: $-\ln\pi_w$
# - DPO: $-\ln\sigma(\beta(r_w - r_l))$
# - KTO: $\lambda_D[1-\sigma(\beta(r - z_0))]$ or $\lambda_U[1-\sigma(\beta(z_0 - r))]$
# - ORPO: $-\bar\ell_w - \beta\ln\sigma(\ln odds_w - \ln odds_l)$, $odds = p/(1-p)$
# - RLHF: $\max E_\pi[r_\phi] - \beta KL$, by sampling

# %% [markdown] tags=["answer-five-methods"]
# **Measured here.** On equally many pairs from elsewhere (cell `family`) fine-tuning's
# true reward of 3.78 became 3.92 with DPO, 3.88 with KTO on single thumbs, and 3.71
# with ORPO, which imitates chosen responses that are worse than the model's own. On
# pairs of its own, DPO reached 3.95 to 3.98. The spread of three seeds is about 0.05,
# so DPO and KTO cannot be told apart; ORPO was made for a model that is not fine-tuned
# yet, and is at a disadvantage here.
#
# **Often said, and wrong.** "KTO squares a clamped log-ratio": then its gradient before
# the first step is zero and training never starts. "ORPO compares log-probs": it
# compares log *odds* per token, and without the NLL it is not ORPO.
#
# **How to test it.** Give all of them the same pairs, the same steps and a learning
# rate of their own, over several seeds. Compare true reward at equal KL, and length.

# %% [markdown]
# ## F. RLHF, DPO, GRPO
#
# *What's the difference between RLHF, DPO, and GRPO?*

# %% [markdown] tags=["answer-rlhf-dpo-grpo"]
# **In half a minute.** RLHF is the aim (reward minus KL) and usually means a reward
# model with PPO, whose critic says how good a state is. DPO is the same aim without
# sampling: a loss on pairs. GRPO is PPO without the critic: sample a group of responses
# to a prompt, and judge each against the mean of its group. PPO and GRPO are online,
# DPO is offline; GRPO shines where a verifier gives the reward.
#
# **Behind it.** PPO: advantages from a critic (GAE), clipped ratio, KL taken off the
# reward. GRPO: $A_i = (r_i - \bar r)/s$, clipped ratio, often KL in the loss as $k_3$.
# DPO: $-\ln\sigma(\beta m)$.

# %% [markdown] tags=["answer-rlhf-dpo-grpo"]
# **Measured here.** In a closed world with all responses covered (cell
# `closed-world-study`), from 2.53 nats away: at a beta of 0.5 DPO ended 0.016 nats from
# the optimum, PPO 0.002, GRPO with the KL in the reward 0.003. GRPO with $k_3$ in the
# loss ended 0.220 away, at another optimum.
#
# **Often said, and wrong.** "DPO is GRPO with a group of two": DPO's responses come
# from a file, their order from a verdict, and no ratio corrects for who wrote them.
# "GRPO needs no reward": it needs one for each response; it only drops the critic.
#
# **How to test it.** In a world whose optimum is known, compare the distance to it at
# the same beta. In a task with a verifier, compare accuracy at equal generated tokens.

# %% [markdown]
# ## G. Equivalent but simpler
#
# *DPO is equivalent to RLHF under assumptions and far simpler. Where else in software
# does this pattern show up, and what does it cost?*

# %% [markdown] tags=["answer-equivalent-but-simpler"]
# **In half a minute.** Whenever a closed form replaces a search. Normal equations
# instead of gradient descent; a hash instead of a comparison of all pairs; a compiled
# regular expression instead of backtracking; an event log folded into a view instead of
# a state machine that is kept in step; eventual consistency in place of a lock. The
# gain is fewer moving parts. The price is always in the assumptions: the simple form is
# equal only where they hold, and has no part left that could notice when they do not.
#
# **Behind it.** DPO solves RLHF's inner maximisation on paper. What falls away with the
# loop is its feedback: PPO, too, would end at the wrong place with wrong rewards, but
# it samples, and somebody may look at the samples.

# %% [markdown] tags=["answer-equivalent-but-simpler"]
# **Measured here.** With all responses covered and verdicts by Bradley and Terry both
# agree to five digits. With three weights in place of a table the same loss drives the
# chosen response from 25% to 1% (cell `displaced`).
#
# **Often said, and wrong.** "Mathematically equivalent, so nothing is lost." Equal
# minima of two problems do not make equal paths, nor equal failures.
#
# **How to test it.** Write down each assumption of the equivalence, and build the
# smallest case in which it fails. If the simple form gives no sign there, add a
# monitor that does: here, the log-prob of the chosen response, and samples.

# %% [markdown]
# ## H. Offline: strength and weakness
#
# *DPO is offline. Why is that its greatest strength and weakness? Compare batch and
# stream processing.*

# %% [markdown] tags=["answer-offline"]
# **In half a minute.** Offline means that the data are fixed before training. That
# makes it cheap, repeatable, easy to audit and to debug: a batch job. It also means
# that the answers to "what if the policy said this?" are missing: like a batch job, it
# works on yesterday's world. The further the policy moves, the staler the data. Online
# methods are stream processing: always fresh, and with everything that makes streams
# hard, such as feedback loops, moving targets, and a judge that must be there all the
# time. Iterative DPO is the micro-batch in between.
#
# **Behind it.** Offline, the gradient of a pair does not depend on whether the policy
# would still say either response. Online, pairs are drawn from the policy, so the
# margin is pinned down where the policy is.

# %% [markdown] tags=["answer-offline"]
# **Measured here.** On sums (cell `sums`), offline DPO on right and wrong results that
# the model itself gave before training loses 4.4 points of right results, with the same
# sign in all seeds. Online DPO, with as many sampled tokens, loses none. On pairs from
# elsewhere offline DPO gained 0.14 in true reward; online DPO gained 0.21 (cell
# `family`).
#
# **Often said, and wrong.** "More pairs solve it." More pairs *of the same source* do
# not cover where the policy goes. "Online is always better": with a judge that errs,
# fresh pairs let the policy find the error sooner.
#
# **How to test it.** Measure the share of training responses that the current policy
# would still say (their log-prob per token), before and after; then compare rounds of
# fresh pairs with as many old ones.

# %% [markdown]
# ## I. One annotator
#
# *If all preference data come from one annotator, which traits will the model develop?
# How does this differ from the usual problem of data diversity?*

# %% [markdown] tags=["answer-one-annotator"]
# **In half a minute.** Theirs, amplified. A verdict says nothing about facts of the
# world but about a reader: what they like, skip, and find too long. DPO optimises it,
# so a slight leaning becomes a habit. In classical learning a narrow sample leaves
# gaps: the model is bad where there was no data. Here it is the *target* that is
# narrow. The model is not ignorant of other readers, it is confidently shaped for one.
# More data of the same person make it worse, not better.
#
# **Behind it.** The optimum is $\pi_{ref} e^{u/\beta}$ with the annotator's utility $u$
# in place of the reward. With many annotators, verdicts average over their utilities
# (roughly: a sigmoid of differences), so tastes that differ cancel in part, and those
# that all share remain.

# %% [markdown] tags=["answer-one-annotator"]
# **Measured here.** DPO on verdicts of one for whom manners count four times as much
# and truth a quarter (cell `annotators`): the politer response of a pair is preferred
# in 94% of cases (fair annotators: 85%). Annotators who like length: the longer in 57%
# (fair: 23%), and the wrong one in 31% (fair: 15%). Five with different tastes, whose
# mean is the truth, teach what fair ones do.
#
# **Often said, and wrong.** "It becomes inconsistent." On the contrary: one person is
# more consistent than many. "Take the majority of many": then a minority's taste is
# treated as noise.
#
# **How to test it.** Train on each annotator alone and on all together with as many
# pairs; measure each trait by itself, and the agreement with people left out.

# %% [markdown]
# ## J. Beta, very large and very small
#
# *What happens at the extremes, and why is the middle the hardest part to tune?*

# %% [markdown] tags=["answer-beta"]
# **In half a minute.** Beta is the price of moving away from the reference. Very large:
# the policy stays where it is; verdicts hardly count. Very small: it says only what the
# implicit reward likes best, and every mistake of the verdicts is carried out. At both
# ends the result hardly depends on beta. In the middle it depends on everything at
# once: how noisy the verdicts are, how good the reference is, how long and at which
# rate one trains. And the loss cannot tell, since losses at two betas are not
# comparable.
#
# **Behind it.** $\pi^* \propto \pi_{ref}\, e^{r/\beta}$. As $\beta \to \infty$ it is
# $\pi_{ref}$; as $\beta \to 0$ all mass goes to the best response, and the KL to
# $-\ln \pi_{ref}(y_{best})$.

# %% [markdown] tags=["answer-beta"]
# **Measured here.** In the closed world the KL falls from 2.278 nats at a beta of 0.1
# to 0.034 at 5 (cell `closed-world`). With annotators who like length, the true reward
# is best near a beta of 1 and worse on both sides (cell `over-optimised`).
#
# With a small transformer and few pairs the middle is best, too: a true reward of 3.88
# at 0.03, 3.92 at 0.1 and 3.84 at 1 (cell `family`), but the spread of the seeds is as
# large as these differences.
#
# **Often said, and wrong.** "Lower beta keeps it closer to the reference": reversed.
# "Beta is a learning rate": it moves the optimum, not only the speed.
#
# **How to test it.** Sweep it over two decades with several seeds; plot true reward
# against sampled KL, not against beta, so that different methods share one axis.

# %% [markdown]
# ## K. After DPO
#
# *After DPO came IPO, KTO, ORPO and more. Where might methods break ground, and what if
# there are no pairs at all?*

# %% [markdown] tags=["answer-after-dpo"]
# **In half a minute.** Each successor dropped an assumption: IPO that verdicts follow
# Bradley and Terry; KTO that there are pairs; ORPO and SimPO that there is a reference;
# SPIN that there are verdicts. What is left to drop: that one number says what is good
# (several aims, several groups of readers), that judges are fixed people (a model by
# principles, and who checks it), that feedback concerns one response (whole dialogues,
# outcomes weeks later), and that alignment comes after pre-training.
#
# **Behind it.** Without pairs there are: thumbs (KTO), outcomes that a verifier checks
# (GRPO and its kin), demonstrations against one's own responses (SPIN), principles
# (constitutional AI), and conditioning on a label of quality, already in pre-training
# (Korbak et al. 2023).

# %% [markdown] tags=["answer-after-dpo"]
# **Measured here.** SPIN ends at the demonstrations: at the start of a round its
# expected gradient is that of fine-tuning times $\beta/2$. In the study (cell `family`)
# a model that was fine-tuned on them has a true reward of 3.78 before and after it. And
# thumbs suffice: at the reference KTO pulls with 0.025 on each side at a beta of 0.1,
# where a clamped square would not pull at all.
#
# **Often said, and wrong.** "The newest loss is the best." Differences between losses
# are small beside those between data; most comparisons in papers tune one side more.
#
# **How to test it.** Ask of a new method: what is held fixed, what is compared, where
# can mass go that nobody sees? Then try it in a world where the truth is known.
