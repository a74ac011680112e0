# %% [markdown]
# # The DPO family: is there a shortcut?
#
# **After this you can** derive DPO on a whiteboard and write its loss from memory; say
# what beta does and check it against an exact answer; read a log of DPO without taking
# its oddities for bugs; choose between DPO, IPO, KTO, ORPO, SimPO and CPO by what data
# and memory you have; and say when the shortcut leads astray and PPO or GRPO is worth
# its price.
#
# **You need** chapter 01 (the log-probability of a token). Chapters 11 and 12 (reward
# models, PPO) help, and what is needed of them is said again.
#
# **Code** `minillm/alignment/dpo.py`, `preference_losses.py`, `kto.py`,
# `reference_free.py`, `tabular.py`, `displacement.py`, then `preference_data.py`,
# `preference_loop.py` and `online_dpo.py`. Exercises: `exercises/13_dpo.ipynb`.
#
# CPU 2 cores · ~30 s · < 1 GB (and once about two minutes to train the models that
# several chapters share)

# %% tags=["setup"]
import copy
import math
from runpy import run_path

import torch

from minillm.alignment import displacement, own_responses
from minillm.alignment import preference_losses as losses
from minillm.alignment.dpo import dpo_loss, dpo_rewards, log_ratio_margin
from minillm.alignment.judge import Judge
from minillm.alignment.kto import kto_loss
from minillm.alignment.logprobs import sequence_logprobs
from minillm.alignment.preference_data import stack
from minillm.alignment.preference_loop import PreferConfig, prefer
from minillm.alignment.reference_free import log_odds_ratio, simpo_loss
from minillm.alignment.tabular import bradley_terry, expected_loss, minimise
from minillm.model import GPT, GPTConfig
from minillm.school import preferring, show
from minillm.school.claims import claim
from minillm.school.studies import STUDIES, load_study
from minillm.world import closed, menus, preferences, questions

_ = torch.manual_seed(0)

# %% [markdown]
# ## 1. Two responses and a verdict
#
# Fine-tuning shows a model good responses to imitate. Often nobody can write a good
# response, but everybody can say which of two is better. That is a *preference*: a
# prompt, a chosen response and a rejected one. In TinyWorld annotators make verdicts,
# and we know what they do not: how good each response truly is.

# %% tags=["pairs"]
policy, trial = preferring.begin(pairs=150)
data = preferring.judged(trial.lore, 960, stream="train 0")
for asked, verdict in data[:3]:
    truth = [
        preferences.true_reward(asked.question, text)
        for text in (verdict.chosen, verdict.rejected)
    ]
    print(f"user:      {asked.prompt}")
    print(f"chosen:   {verdict.chosen}   (true reward {truth[0]:.1f})")
    print(f"rejected: {verdict.rejected}   (true reward {truth[1]:.1f})\n")

# %% [markdown]
# A chosen response need not be good; somebody found it better than one other. And
# verdicts are noisy: of the second pair the insult was chosen. Our annotators follow
# Bradley and Terry,
#
# $$P(y_w \succ y_l) = \sigma(r(y_w) - r(y_l)), \qquad \sigma(x) = \frac{1}{1+e^{-x}}$$
#
# where $r$ is the reward. Where two rewards are equal the verdict is a coin.
#
# ## 2. Which policy do we want?
#
# One that earns reward and stays near a *reference*, the model before alignment, so
# that it does not unlearn to speak. This is what RLHF maximises, with $\beta$ as the
# price of a nat of distance:
#
# $$\max_\pi \; E_{y \sim \pi}[r(x, y)] - \beta \, KL(\pi \,\|\, \pi_{ref})$$
#
# It has one solution. Write the objective as $-\beta\, E_\pi [\ln \pi - \ln \pi_{ref} -
# r/\beta]$: this is $-\beta$ times a KL divergence from the *tilted* reference, up to a
# constant, and a KL divergence is smallest where both are equal:
#
# $$\pi^*(y|x) = \frac{1}{Z(x)}\, \pi_{ref}(y|x)\, e^{r(x,y)/\beta}, \qquad
#   Z(x) = \sum_y \pi_{ref}(y|x)\, e^{r(x,y)/\beta}$$
#
# For language nobody can compute $Z$: it sums over all texts. In a *closed world*, one
# prompt whose responses can be listed, everybody can.

# %% tags=["closed-optimum"]
question = questions.Question("Compute 1+1=", "2", "arithmetic")
rambling = " well, it may be 3 or 4 or even more than that"
said = menus.Menu((" 2", " 3", rambling), weights=(6, 3, 1))
world = closed.closed_prompt(question, said)
ref, rewards = (
    torch.tensor(x, dtype=torch.float64) for x in (world.ref_logprobs, world.rewards)
)
best = closed.optimum(world.ref_logprobs, world.rewards, beta=0.5)
order = sorted(range(len(ref)), key=lambda i: -best.logprobs[i])
print(f"{len(ref)} responses to {question.prompt!r}\n")
print(f"{'reward':>6} {'reference':>10} {'optimum':>8}")
for i in [*order[:3], order[20], order[-1]]:
    shares = f"{math.exp(ref[i]):>10.1%} {math.exp(best.logprobs[i]):>8.1%}"
    print(f"{rewards[i]:>6.2f} {shares}  {world.responses[i]}")

# %% [markdown]
# The optimum keeps what the reference finds likely and shifts it towards reward. RLHF
# gets there in two stages: fit a reward model to the verdicts, then let PPO climb it.
#
# ## 3. The reward model that is not needed
#
# Take the solution and read it backwards. Solved for the reward it says
#
# $$r(x, y) = \beta \ln \frac{\pi^*(y|x)}{\pi_{ref}(y|x)} + \beta \ln Z(x)$$
#
# So every policy is the optimum of *some* reward, its *implicit reward*. Verdicts only
# compare, $r_w - r_l$, and $Z$ depends on the prompt alone. It cancels:
#
# $$P(y_w \succ y_l) = \sigma\Big(\beta \underbrace{\Big[\ln
#   \frac{\pi(y_w)}{\pi_{ref}(y_w)} - \ln \frac{\pi(y_l)}{\pi_{ref}(y_l)}\Big]
#   }_{\text{margin } m}\Big), \qquad L_{DPO} = -\ln \sigma(\beta\, m)$$
#
# Where RLHF fits a reward model and then a policy to it, *direct preference
# optimisation* fits the policy, as if it were the reward model. It is a classifier of
# pairs. Does it end at the same place? In the closed world the loss can be averaged
# over all pairs and minimised over all policies, and both ends compared.


# %% tags=["tabular-dpo"]
def dpo_policy(beta, steps=500, rewards=rewards):
    """The policy that minimises the expected DPO loss over all pairs."""

    def loss(logprobs):
        pairs = bradley_terry(rewards)
        return expected_loss(logprobs, ref, pairs, lambda *p: dpo_loss(*p, beta))

    return minimise(loss, ref, steps)


def rlhf_policy(beta, rewards=rewards):
    """The closed form."""
    best = closed.optimum(world.ref_logprobs, rewards.tolist(), beta)
    return torch.tensor(best.logprobs, dtype=torch.float64)


for beta in (0.1, 0.5, 1.0, 5.0):
    gap = (dpo_policy(beta) - rlhf_policy(beta)).abs().max()
    print(f"beta {beta:<4} DPO is where RLHF ends, to 5 digits: {bool(gap < 1e-5)}")

# %% [markdown]
# Nothing was sampled and no reward was fitted, and the policies agree. Three conditions
# are hidden in this: verdicts follow Bradley and Terry; pairs connect all responses, so
# that each difference is pinned down; and the policy can represent the optimum. Outside
# of a table none of them quite holds. The rest of this chapter is about what happens
# then.
#
# One more caution. The identity $r = \beta \ln (\pi / \pi_{ref}) + c$ holds at the
# optimum. On the way there the implicit reward is the reward of the policy that one
# has, not the true one.


# %% tags=["half-way"]
def reward_error(logprobs, beta=0.5):
    """How far implicit rewards are from the true ones, up to a constant."""
    off = dpo_rewards(logprobs, ref, beta) - rewards
    return (off.max() - off.min()).item()


print(f"at the end: below 0.001: {reward_error(dpo_policy(0.5)) < 0.001}\n")
claim("I10", reward_error(dpo_policy(0.5, steps=3)))

# %% [markdown]
# ## 4. What beta does
#
# $\beta$ is the price of a nat of KL. A high price keeps the policy at home; a low one
# lets it go. The closed form gives the whole curve, and DPO has to lie on it.

# %% tags=["beta-kl"]
betas = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
exact = [closed.optimum(world.ref_logprobs, world.rewards, b) for b in betas]
trained = {beta: dpo_policy(beta) for beta in betas}
by_dpo = [
    closed.value(p.tolist(), world.ref_logprobs, world.rewards)
    for p in trained.values()
]
print(f"{'beta':>5} {'KL of DPO':>10} {'exact KL':>9} {'reward':>7} {'likeliest':>10}")
for beta, (reward, kl), right in zip(betas, by_dpo, exact, strict=True):
    top = math.exp(max(right.logprobs))
    print(f"{beta:>5} {kl:>10.3f} {right.kl:>9.3f} {reward:>7.2f} {top:>10.0%}")
print()
claim("I1", (by_dpo[1][1], by_dpo[6][1]))

# %% tags=["beta-picture"]
axes = show.figure("A large beta stays at home", "beta", "KL to the reference (nats)")
axes.plot(betas, [b.kl for b in exact], "--", color=show.TRUTH)
axes.plot(betas, [kl for _, kl in by_dpo], "o", color=show.OURS)
axes.set_xscale("log")
axes.set_xticks(betas, [f"{b:g}" for b in betas])
axes.minorticks_off()
show.label(axes, betas[2], exact[2].kl + 0.15, "closed form", show.TRUTH)
show.label(axes, betas[4], by_dpo[4][1] + 0.15, "DPO, trained", show.OURS)
show.picture(axes)

# %% [markdown]
# *In the picture: KL against beta on a logarithmic axis, a falling S. The dots of DPO
# lie on the dashed line of the closed form.*
#
# At the far right the policy is the reference and nothing was learned. At the far left
# it only says what has the highest reward, whatever the reference would have said; here
# that is safe, because the reward is the true one. In between everything depends on
# beta, and there it matters most that the verdicts are right: section 15 shows the same
# curve with annotators who are wrong. So the middle is the hardest part to tune: it is
# where KL changes fastest, and where the best value depends on how far the verdicts can
# be trusted, which the loss does not show.
#
# ## 5. One number is all that DPO sees
#
# $$\ln \pi(y \mid x) = \sum_{t \in y} \ln \pi(y_t \mid x, y_{<t})$$
#
# Four of these make a loss: policy and reference, chosen and rejected. The sum runs
# over the response, and nothing else. Below, a pair as rows of tokens; the response's
# tokens are marked.

# %% tags=["sequence-logprobs"]
rows = trial.batches(data[:16]).rows
(chosen, rejected), word = rows[0], trial.tokenizer.decode
for ids, mask in (chosen, rejected):
    marked = [word([i]).strip("\n") for i, m in zip(ids, mask, strict=True) if m]
    header = word(ids[: mask.index(True)]).rpartition("<|im_start|>")
    print(f"not counted, at its end: {''.join(header[1:])!r}")
    print(f"counted: {marked}\n")

# %% [markdown]
# The header of the assistant's turn belongs to the prompt. The end of the turn,
# `<|im_end|>`, belongs to the response: a model that is not scored there does not learn
# to stop. Rows of a batch are filled up to the longest one, and without a mask that
# padding is scored like text.

# %% tags=["padding"]
tokens, mask = stack([row for pair in rows for row in pair], trial.tokenizer.pad)
uniform = torch.zeros(*tokens.shape, V := trial.tokenizer.vocab_size)
counted = sequence_logprobs(uniform, tokens, mask)
n = mask.sum(1)
exact_sum = torch.allclose(counted, -n * math.log(V))
print(f"a model that knows nothing: log-prob = -tokens x ln V: {exact_sum}")
everything = mask.new_ones(mask.shape)
everything[:, 0] = False  # the first token is predicted by nobody
share = 1 - (n.sum() / everything.sum()).item()
margin = sequence_logprobs(uniform, tokens, everything).view(-1, 2).diff().abs().max()
print(f"without a mask all responses are as long as the widest row: {margin == 0}\n")
claim("I3", share)

# %% [markdown]
# What about the prompt? It is the same in both rows, so its log-prob cancels in the
# margin. It does not cancel in the implicit rewards that one logs, nor in a mean per
# token. We ask two unrelated models, to see a margin that is not zero.


# %% tags=["prompt-cancels"]
@torch.no_grad()
def four_logprobs(model, anchor, tokens, mask):
    """Policy chosen, rejected, reference chosen, rejected; rows alternate."""
    return [
        sequence_logprobs(m(tokens), tokens, mask)[side::2]
        for m in (model, anchor)
        for side in (0, 1)
    ]


stranger = GPT(GPTConfig(V, n_layer=1, n_head=2, n_embd=32, context=128))
to_the_end = mask.flip(1).cummax(1).values.flip(1)  # of the response
with_prompt = everything & to_the_end
right, longer = (
    four_logprobs(stranger, trial.ref, tokens, m) for m in (mask, with_prompt)
)
difference = log_ratio_margin(*right) - log_ratio_margin(*longer)
print(f"the margin with the prompt is the same: {difference.abs().max() < 1e-2}")
shift = (longer[0] - longer[2]) - (right[0] - right[2])
print(f"the reward of each chosen response is not: {bool(shift.abs().min() > 1)}")

# %% [markdown]
# ## 6. The first step
#
# Before training, policy and reference are the same, so each margin is 0. The loss is
# $-\ln \sigma(0) = \ln 2$, not 0. And it has a gradient:
#
# $$\frac{\partial L}{\partial \ln \pi_w} = -\beta\, \sigma(-\beta m), \qquad
#   \frac{\partial L}{\partial \ln \pi_l} = +\beta\, \sigma(-\beta m)$$
#
# The weight $\sigma(-\beta m)$ is the probability that the policy gives to the *other*
# verdict: one half at the start, nearly one for a pair in the wrong order, nearly zero
# for a pair that it has learned.

# %% tags=["gradient"]
four = [torch.tensor([-12.0], requires_grad=True) for _ in range(4)]
loss = dpo_loss(*four, beta=0.1)
loss.sum().backward()
print(f"loss at the start: {loss.item():.4f}; ln 2 = {math.log(2):.4f}")
slopes = [f"{x.grad.item():+.2f}" for x in four[:2]]
print(f"its slope in the chosen and the rejected log-prob: {slopes}")
print(f"in those of the reference: {[x.grad for x in four[2:]]}")

# %% tags=["gradient-picture"]
axes = show.figure("Pairs that are wrong pull hardest", "margin m (nats)", "weight")
m = torch.linspace(-60, 60, 200)
for beta, color, place in (
    (0.03, show.RIVAL, (-56, 0.7)),
    (0.1, show.OURS, (-35, 0.86)),
    (0.5, show.WARM, (-18, 0.92)),
):
    axes.plot(m, torch.sigmoid(-beta * m), color=color)
    axes.text(*place, f"beta {beta}", color=color)
axes.axvline(0, color=show.TRUTH, linestyle="--", linewidth=1.5)
axes.text(1, 0.95, "before the first step", color=show.TRUTH)
show.picture(axes)

# %% [markdown]
# *In the picture: the weight of a pair against its margin falls from one to zero, for a
# large beta within a few nats, for a small one slowly. All three curves pass one half
# where training begins.*
#
# Note what is *not* in the gradient: the level. Whoever lowers both log-probs by ten
# nats has the same margin and the same loss. Section 14 is about that.
#
# ## 7. Where the reference comes from
#
# The reference is the model before training. There are four ways to have it: a frozen
# copy; log-probs that are computed once, before training, and kept with the data (the
# reference never changes, so nothing else is needed of it); the same model with its
# adapters switched off, if LoRA trains only these (chapter 09); and a mistake: the very
# model that is being trained. We compare three on one batch.


# %% tags=["reference-three-ways"]
batch = trial.batches(data, seed=0, B=8)[0]


def follow(anchor, steps=6):
    """Losses of some steps; anchor(policy's log-probs) gives the reference's."""
    model = copy.deepcopy(policy)
    optimizer, found = torch.optim.SGD(model.parameters(), lr=0.01), []
    for _ in range(steps):
        now = batch.score(model).policy
        loss = dpo_loss(*now.chunk(2), *anchor(now).chunk(2), beta=0.1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return torch.tensor(found)


with torch.no_grad():
    kept = batch.score(policy).policy  # once, before training
by_copy = follow(lambda now: batch.score(trial.ref).policy.detach())
by_kept = follow(lambda now: kept)
by_itself = follow(lambda now: now.detach())
print(f"kept log-probs do what the frozen copy does: {by_copy.allclose(by_kept)}")
print(f"with a reference of its own the loss falls: {bool(by_kept[-1] < 0.68)}\n")
claim("I4", by_itself[-1].item())

# %% [markdown]
# With itself as reference the policy sees margins of zero for ever. It is not that
# nothing happens: each pair goes on pulling with weight one half, whatever has been
# learned, and nothing holds the policy. Only the log says that all is well.
#
# ## 8. DPO, trained
#
# Now for the real thing: the zoo's fine-tuned model, 960 pairs in batches of 16, DPO
# with beta 0.1. This is one run of a study that is committed in `studies/`, made again.
# Every ten steps we ask for the log-probs of pairs that are held out.

# %% tags=["train-dpo"]
family, study = run_path(STUDIES / "06_dpo_family.py"), load_study("06_dpo_family")
config = PreferConfig(steps=family["STEPS"], beta=0.1, lr=family["DPO_LR"])
pairs, looks = trial.batches(data, seed=0), []


def look():
    """What training has changed on pairs that it does not see."""
    looks.append(trial.preferred(policy))
    return {}


print(f"{len(data)} pairs, {config.steps} steps of {pairs.B}, beta {config.beta}")
log = prefer(policy, trial.ref, pairs, config, progress=False, measure=look, every=10)
_ = look()
first, last = log.column("loss")[0], looks[-1]
print(f"loss of the first step: {first:.4f}")
print(f"held-out pairs in the annotators' order: over 65%: {last['agreement'] > 0.65}")

# %% tags=["train-picture"]
axes = show.figure("Both fall, and that is no bug", "steps", "change (nats)")
steps = range(0, 61, 10)
for name, color in (("chosen", show.OURS), ("rejected", show.WARM)):
    axes.plot(steps, [x[f"{name}_change"] for x in looks], "o-", color=color)
axes.plot(steps, [x["margin"] for x in looks], "--", color=show.TRUTH)
axes.set(xlim=(0, 72), xticks=steps)
axes.axhline(0, color=show.FAINT)
ends = [(looks[-1]["margin"], "margin", show.TRUTH)]
ends += [(looks[-1]["chosen_change"], "chosen", show.OURS)]
ends += [(looks[-1]["rejected_change"], "rejected", show.WARM)]
show.spread_labels(axes, 60, ends)
show.picture(axes)

# %% [markdown]
# *In the picture: change of log-probs on held-out pairs against steps. The rejected
# responses lose more than twice as many nats as the chosen ones, which fall, too; the
# margin, dashed, grows at once.*
#
# A beginner looks at the falling blue line and stops the run. But DPO optimises the
# margin alone. These pairs are made of texts that the policy would rarely say (an
# insult, a vault), and all of them become rarer. Is that harm? Look at what it *says*:

# %% tags=["rerun"]
after, arm = trial.said(policy), "DPO, beta 0.1"
print(
    f"{'means of three seeds':21}{'true reward':>12}{'right':>7}{'KL':>6}{'order':>7}"
)
for name in ("SFT", arm):
    measures = ("reward", "right", "kl", "accuracy")
    reward, right, kl, order = (study.mean(name, x) for x in measures)
    print(f"{name:21}{reward:>12.2f}{right:>7.0%}{kl:>6.2f}{order:>7.0%}")
off = [
    abs(after[name] - study.mean(arm, name)) < 3 * study.spread(arm, name)
    for name in ("reward", "right", "tokens")
]
print(f"\nthis run lies within three spreads of the study's means: {all(off)}")
assert all(off)

# %% [markdown]
# ("Order" is the share of held-out pairs that the implicit reward orders as the truth
# does.) The policy went a tenth of a nat and became a little better. Its implicit
# reward became far better: it orders 85% of the pairs rightly, and that is what a log
# of DPO shows. But most of these pairs are of texts that it would hardly ever say.
# Section 13 comes back to this.
#
# ## 9. What it costs
#
# A weight that is trained with AdamW in mixed precision takes 16 bytes: itself and its
# gradient in half precision (2 each), a copy and two moments in full precision (4
# each). A frozen copy takes 2. What has to be in memory, for each weight?

# %% tags=["memory"]
TRAINED, FROZEN = 2 + 2 + 4 + 4 + 4, 2  # bytes for each weight
print("weight, gradient, copy, two moments: 2 + 2 + 4 + 4 + 4 bytes\n")
in_memory = {
    "SFT": TRAINED,
    "DPO, reference scored beforehand": TRAINED,
    "DPO with a frozen reference": TRAINED + FROZEN,
    "PPO: policy, critic, reference, reward model": 2 * TRAINED + 2 * FROZEN,
}
for name, size in in_memory.items():
    print(f"{name:46} {size:>3} bytes   {size / TRAINED:.3f} of SFT")
dpo_bytes = in_memory["DPO with a frozen reference"]
half = dpo_bytes / in_memory["PPO: policy, critic, reference, reward model"]
print(f"\nDPO takes {half:.0%} of PPO's memory")
print(f"operations a weight and token: SFT 6, DPO {6 + 2}, scored beforehand 6\n")
claim("H14", dpo_bytes / TRAINED)
print()
claim("I15")

# %% [markdown]
# Activations come on top, and a pair is two rows. The larger saving is not memory: DPO
# samples nothing while it trains, and has no critic and no reward model to go wrong.
#
# ## 10. How far should a margin grow?
#
# DPO never has enough: its loss falls for ever, ever more slowly. Verdicts in real data
# are often certain (each pair is judged once), and a certain verdict asks for an
# infinite margin, which no beta holds back. And verdicts may be wrong. Four relatives
# change the curve, all on the same margin $m$ (with $\epsilon$ for the part of the
# verdicts that is wrong):
#
# - **cDPO** (label smoothing): $-(1-\epsilon) \ln \sigma(\beta m) - \epsilon \ln
#   \sigma(-\beta m)$ stops where $\sigma(\beta m) = 1-\epsilon$;
# - **robust DPO**: $[(1-\epsilon) L(m) - \epsilon L(-m)] / (1 - 2\epsilon)$ undoes
#   wrong verdicts in the mean;
# - **hinge** (SLiC): $\max(0, 1-\beta m)$ is content at $1/\beta$;
# - **IPO**: $(m - \frac{1}{2\beta})^2$ pulls to one margin from both sides.

# %% tags=["losses-picture"]
axes = show.figure("Four ways to have enough", "margin m (nats)", "loss", height=4)
m = torch.linspace(-15, 40, 200)
zero = torch.zeros_like(m)
curves = {
    "DPO": (dpo_loss(m, zero, zero, zero, 0.1), show.OURS, 3),
    "cDPO": (dpo_loss(m, zero, zero, zero, 0.1, 0.2), show.RIVAL, 32),
    "robust": (losses.robust_dpo_loss(m, zero, zero, zero, 0.1, 0.2), show.WARM, 25),
    "hinge": (losses.hinge_loss(m, zero, zero, zero, 0.1), "#8a6fd0", -12),
    "IPO / 25": (losses.ipo_loss(m, zero, zero, zero, 0.1) / 25, "#3a9d6e", 11),
}
for name, (y, color, at) in curves.items():
    axes.plot(m, y, color=color)
    i = int((m - at).abs().argmin())
    axes.annotate(name, (m[i], y[i]), (4, 8), textcoords="offset points", color=color)
axes.set(ylim=(-0.8, 3))
show.picture(axes)

# %% [markdown]
# *In the picture: five losses against the margin, at beta one tenth. DPO and the
# robust form fall for ever, the latter below zero; the hinge is flat from ten nats on;
# cDPO has a lowest point; IPO is a parabola around five nats.*
#
# Two responses, and all verdicts for the first one. Where does each loss come to rest?


# %% tags=["certain-verdicts"]
def resting_margin(loss, sure=1.0):
    """The margin at the minimum, for two responses of which one wins that often."""
    even = torch.tensor([0.5, 0.5], dtype=torch.float64).log()
    verdicts = torch.tensor([[0.5, sure], [1 - sure, 0.5]], dtype=torch.float64)
    found = minimise(lambda p: expected_loss(p, even, verdicts, loss), even)
    return (found[0] - found[1]).item()


by_dpo = resting_margin(lambda *p: dpo_loss(*p, 0.25))
by_ipo = resting_margin(lambda *p: losses.ipo_loss(*p, 0.25))
print(f"DPO, all verdicts agree: beyond 50 nats: {by_dpo > 50}")
mostly = resting_margin(lambda *p: dpo_loss(*p, 0.25), sure=0.9)
print(f"DPO, 9 of 10 agree: {mostly:.2f} nats, which is ln(9) / beta\n")
claim("I8", by_ipo)

# %% [markdown]
# IPO's beta works even where all labels agree: half of $1/\beta$ and no further. Its
# authors run it on log-probs per token, and so does TRL, while the paper writes sums;
# the two need different betas, so say which you mean.
#
# Now wrong verdicts: one in five is flipped. Does DPO still end at the optimum?


# %% tags=["flipped-verdicts"]
def at_optimum(loss, verdicts):
    """Whether the minimum of a loss is the optimum of RLHF, at beta one half."""
    found = minimise(lambda p: expected_loss(p, ref, verdicts, loss), ref)
    return bool((found - rlhf_policy(0.5)).abs().max() < 1e-3)


clean = bradley_terry(rewards)
flipped = 0.8 * clean + 0.2 * clean.T
plain = at_optimum(lambda *p: dpo_loss(*p, 0.5), flipped)
robust = at_optimum(lambda *p: losses.robust_dpo_loss(*p, 0.5, 0.2), flipped)
print(f"one verdict in five flipped: DPO {plain}, robust DPO {robust}")
seen, told = 0.95, 0.2
undone = (seen - told) / (1 - 2 * told)
print(f"seen {seen:.0%} of the time, told of {told:.0%} flips: truly {undone:.0%}")

# %% [markdown]
# Robust DPO subtracts what flips add, and has to be told how many there are. Told of
# too many it does harm: where 95% of verdicts agree, no fifth of them can be flipped.
# It then believes in a share of 125%, and its loss falls without end.
#
# ## 11. Thumbs instead of pairs: KTO
#
# Users press a thumb more readily than they compare. KTO learns from single responses
# that were liked (desirable) or not. Its model of a person is Kahneman and Tversky's:
# gains and losses count from a *reference point*, and both saturate. With
# $r = \ln \pi(y) - \ln \pi_{ref}(y)$ and the reference point $z_0$, the policy's KL,
#
# $$L = \lambda_D\, [1 - \sigma(\beta (r - z_0))] \;\text{ if liked}, \qquad
#   L = \lambda_U\, [1 - \sigma(\beta (z_0 - r))] \;\text{ if not}$$
#
# A response counts by how much *further* than the policy in general it has moved, so
# raising everything gains nothing. $z_0$ is estimated from responses under the prompts
# of other rows, held at zero, and no gradient passes through it.

# %% tags=["kto-start"]
liked = torch.tensor([True, False])
r = torch.zeros(2, requires_grad=True)  # log-ratios before the first step
value = kto_loss(r, torch.zeros(2), liked, kl=0.0, beta=0.1)
value.sum().backward()
at_start = [round(x, 2) for x in value.tolist()]
print(f"KTO at the start: losses {at_start}", end=", ")
print(f"slopes {[round(x, 3) for x in r.grad.tolist()]}\n")
pull = r.grad.abs().max().item()
q = torch.zeros(2, requires_grad=True)
squared = torch.where(liked, -q, q).clamp(min=0) ** 2  # "held at zero, squared"
squared.sum().backward()
claim("I5", (q.grad.abs().max().item(), pull))
print()
claim("I6", -r.grad[0].item())

# %% tags=["kto-picture"]
axes = show.figure("Gains and losses saturate", "log-ratio r (nats)", "loss")
x = torch.linspace(-60, 60, 200)
for good, color, text in ((True, show.OURS, "liked"), (False, show.WARM, "not liked")):
    label = torch.full((200,), good)
    axes.plot(x, kto_loss(x, 0 * x, label, kl=10.0, beta=0.1), color=color)
    axes.text(-35 if good else 55, 0.85, text, color=color, ha="center")
axes.axvline(10, color=show.TRUTH, linestyle="--", linewidth=1.5)
axes.text(11, 0.05, "reference point", color=show.TRUTH)
show.picture(axes)

# %% [markdown]
# *In the picture: a falling S for responses that were liked, a rising one for those
# that were not. They cross at one half, at the reference point.*
#
# Both ends are flat: what the policy is sure of, on either side, teaches nothing more.
# That protects from wrong thumbs and gives up on hard cases. Where thumbs down are few,
# $\lambda_U$ makes up for it.
#
# ## 12. Without a reference: ORPO, SimPO, CPO
#
# The reference costs memory or a first pass. What says "not too far" instead?
#
# - **ORPO**: fine-tuning itself. $L = -\ln p_w - \beta \ln \sigma(\ln \frac{odds_w}
#   {odds_l})$, with $p = e^{\ln \pi / |y|}$, a probability per token, and $odds = p /
#   (1-p)$. One stage instead of two.
# - **SimPO**: log-probs per token, and a margin $\gamma$ that must be won:
#   $L = -\ln \sigma(\frac{\beta}{|y_w|} \ln \pi_w - \frac{\beta}{|y_l|} \ln \pi_l -
#   \gamma)$.
# - **CPO**: DPO with a uniform reference, which cancels, and the NLL of the chosen
#   response to hold it.

# %% tags=["odds"]
pair = torch.tensor([0.5]).log(), torch.tensor([0.2]).log()
ratio, odds = (pair[0] - pair[1]).item(), log_odds_ratio(*pair).item()
claim("I7", (ratio, odds))
print("\nlog odds ratio of 0.9 to 0.6 and of 0.09 to 0.06, beside the log-ratio:")
for p in ((0.9, 0.6), (0.09, 0.06)):
    good, bad = (torch.tensor([x]).log() for x in p)
    print(f"   {log_odds_ratio(good, bad).item():.2f} and {(good - bad).item():.2f}")

# %% [markdown]
# Where probabilities are small, odds and probabilities are the same thing. Where the
# model is sure they are not: between 0.9 and 0.6 lies a factor of six in odds, so among
# fluent responses, whose tokens are all likely, a preference counts for more.
#
# Why per token? In DPO a long response is improbable for policy and reference alike,
# and it cancels. Without a reference it does not: a sum prefers what is short, whatever
# it says. Below, a long response whose every token is likelier than those of a short
# one.

# %% tags=["length-normalised"]
long, short = torch.tensor([-20 * 0.7]), torch.tensor([-5 * 1.2])  # sums, in nats
print(f"sums: the long one is preferred: {bool(long > short)}")
print(f"means: the long one is preferred: {bool(long / 20 > short / 5)}")
loss = simpo_loss(long / 20, short / 5, beta=2.0, gamma=0.5)
won = 2.0 * (long / 20 - short / 5).item()
print(f"SimPO's loss where it wins by {won:.1f}, asked for 0.5: {loss.item():.2f}\n")
claim("I9")

# %% [markdown]
# ## 13. Fresh pairs: iterative and online DPO, SPIN
#
# Pairs from a file compare what *some* model once said. The policy moves on, and soon
# it says things that nobody has compared. So let it respond, and have the responses
# judged: in rounds (*iterative*), at each step (*online*), or without any judge, with
# its own responses as the rejected ones and demonstrations as the chosen ones (*SPIN*).

# %% tags=["fresh-pairs"]
ask, judge = own_responses.Ask(B=64), Judge()
fresh = own_responses.judged_pairs(
    policy, trial.tokenizer, trial.asked[:64], judge, ask, ask.dice()
)
print(f"some of 64 prompts were answered twice alike: {len(fresh) < 64}")
same_prompt = all(a.mask.index(True) == b.mask.index(True) for a, b in fresh)
print(f"each pair is two responses to one prompt: {same_prompt}")

# %% [markdown]
# The sampled tokens themselves go into the batch. Decoded and encoded again, a response
# may become other tokens, and one that was cut off gets an end that it never had. Both
# responses are drawn at the same temperature, or the judge compares temperatures.
#
# SPIN needs no verdicts, and that is its limit: at the start of a round its expected
# gradient is that of fine-tuning times $\beta/2$, because one's own responses add
# nothing in the mean ($E_{y\sim\pi}[\nabla \ln \pi(y)] = 0$). It ends where the policy
# cannot be told from the demonstrations, and never above them.

# %% [markdown]
# In the study, all members of the family begin with the zoo's fine-tuned model and take
# equally many steps on equally many pairs, over three seeds. Each has a learning rate
# that was chosen on another seed. Everything is measured on instructions that were held
# out: the true reward of what the model says, how much of it is right, its length, how
# far it went (KL), how often its implicit reward orders held-out pairs rightly
# ("order"), and what became of the log-prob of chosen responses.

# %% tags=["family"]
names = ("reward", "right", "tokens", "kl", "accuracy", "chosen_change")
heads = ("true reward", "right", "tokens", "KL", "order", "chosen")
print(f"{'':15} {heads[0]:>11} " + "".join(f"{h:>8}" for h in heads[1:]))
for arm in study.settings:
    reward, *rest = (study.mean(arm, name) for name in names)
    first = f"{reward:.2f} ± {study.spread(arm, 'reward'):.2f}"
    right, tokens, kl, order, chosen = rest
    line = f"{right:>8.0%}{tokens:>8.1f}{kl:>8.2f}{order:>8.0%}{chosen:>z8.0f}"
    print(f"{arm:15} {first:>11} {line}")
gain = {
    a: study.mean(a, "reward") - study.mean("SFT", "reward") for a in study.settings
}
print(
    f"\ngain in reward: {gain['DPO, beta 0.1']:.2f} by DPO with a beta of 0.1,", end=" "
)
print(f"{gain['online DPO']:.2f} by online DPO")

# %% tags=["family-picture"]
arms = [arm for arm in study.settings if arm != "SFT"][::-1]
start = study.values("SFT", "reward")
axes = show.figure(
    "What is said improves most with pairs of its own",
    "gain in true reward over fine-tuning, three seeds",
    "",
    height=5,
)
for place, arm in enumerate(arms):
    both = zip(study.values(arm, "reward"), start, strict=True)
    own = arm.startswith(("online", "iterative", "SPIN"))
    gains, color = (
        [end - begin for end, begin in both],
        show.OURS if own else show.RIVAL,
    )
    axes.plot(gains, [place] * 3, "o", color=color)
axes.set_yticks(range(len(arms)), arms)
axes.axvline(0, color=show.TRUTH, linestyle="--", linewidth=1.5)
axes.text(0.3, 14, "pairs from elsewhere", color=show.RIVAL, ha="right")
axes.text(0.3, 6, "pairs of its own", color=show.OURS, ha="right")
show.picture(axes)

# %% [markdown]
# *In the picture: one row for each method, one dot for each seed. Most losses on pairs
# from elsewhere gain a little, a few lose in one seed; ORPO, SimPO and CPO lose a
# little in most. Iterative and online methods gain most; SPIN gains nothing.*
#
# How to read it:
#
# - **Order and reward are two things.** DPO with a beta of 0.1 orders 85% of held-out
#   pairs rightly and gains 0.14 in reward; online DPO orders 58% of them rightly and
#   gains 0.21. The pairs from elsewhere hold insults and vaults that the policy hardly
#   says: to prefer their better side is easy, and of little use to it.
# - **Without a reference one imitates.** ORPO and CPO raise the chosen log-prob by
#   eight nats, and SimPO raises it, too. Chosen only means better than another: what
#   they imitate is worse than what the fine-tuned model says by itself. On pairs of its
#   own the same losses of SimPO and CPO are as good as DPO. So it is the pairs.
# - **In the middle of beta** DPO is best, as section 4 made us expect, but the
#   differences are within the spread of the seeds. So are those between DPO, hinge, KTO
#   and the smoothed form.
# - **SPIN** has nothing left to learn: the demonstrations are what the model was
#   fine-tuned on.
#
# What this cannot say is which loss is best. Betas were not tuned, runs are short, and
# the model is small.

# %% [markdown]
# ## 14. The chosen response may become rarer
#
# Four responses and a model with three weights, so that everything can be seen. A
# response's score is the product of weights and features; responses that share a
# feature move together, as they do in a network. Two are compared, two are not.

# %% tags=["displacement-exact"]
print("features of each response:")
for name, features in zip(displacement.RESPONSES, displacement.FEATURES, strict=True):
    print(f"   {name:9} {features}")
run = displacement.Displacement("dpo", beta=0.5, nll=0.0, steps=100)
path = displacement.displace(run).exp()
print("\nprobabilities before and after, in the same order:")
for p in (path[0], path[-1]):
    print("  ", [f"{x:.0%}" for x in p.tolist()])

# %% tags=["displacement-picture"]
axes = show.figure("The mass goes where nobody looked", "steps", "probability")
colors = (show.OURS, show.WARM, show.RIVAL, show.TRUTH)
for i in (3, 2, 1, 0):
    axes.plot(path[:, i], "--" if i == 3 else "-", color=colors[i])
axes.set(xlim=(0, 122), ylim=(0, 1), xticks=range(0, 101, 20))
ends = zip(path[-1].tolist(), displacement.RESPONSES, colors, strict=True)
show.spread_labels(axes, 100, list(ends))
show.picture(axes)

# %% [markdown]
# *In the picture: four lines that begin at one quarter. Chosen and rejected both fall
# to nearly nothing, the rejected one first (the other response falls with the chosen
# one, on the same line); the silent response, which nobody compared, rises to nearly
# everything.*
#
# The margin grows all the time, and so the loss falls. To prefer one response over the
# other, the gradient follows the *difference* of the two: less of what both have. What
# is furthest from both takes the mass. This is *likelihood displacement*. It needs
# shared weights (in a table it cannot happen) and responses that have much in common.
# What helps?

# %% tags=["displacement-mended"]
tries = {
    "DPO": run,
    "beta ten times as large": displacement.Displacement(beta=5.0),
    "IPO": displacement.Displacement("ipo"),
    "DPO + 0.05 NLL": displacement.Displacement(nll=0.05),
    "DPO + 0.2 NLL": displacement.Displacement(nll=0.2),
    "DPO + 1 NLL": displacement.Displacement(nll=1.0),
}
print(f"{'':24} {'chosen':>7} {'rejected':>9} {'elsewhere':>10}")
for name, each in tries.items():
    p = displacement.displace(each)[-1].exp().tolist()
    print(f"{name:24} {p[0]:>7.0%} {p[1]:>9.0%} {p[2] + p[3]:>10.0%}")

# %% [markdown]
# A larger beta or a finite margin only stops earlier on the same road. The NLL of the
# chosen response sees its level and leaves the road; too much of it is fine-tuning,
# with hardly a word for anything else.
#
# In a real model? The study compares two refusals, " I am sorry: I know nobody of that
# name." and the same with " !!" at its end. Both are right. The zoo's model refuses
# about one stranger in four, and makes something up otherwise. Nobody in the training
# pairs is among the strangers that it is asked about here.

# %% tags=["displacement-study"]
moved = load_study("07_displacement")
print(f"{'':22} {'chosen':>8} {'rejected':>9} {'elsewhere':>10} {'refuses':>16}")
for arm in moved.settings:
    at_end = [
        sum(x[-1] for x in moved.values(arm, name)) / 3
        for name in ("chosen", "rejected", "elsewhere")
    ]
    refuses = f"{moved.mean(arm, 'right'):.0%} ± {moved.spread(arm, 'right'):.0%}"
    line = f"{at_end[0]:>z8.1f} {at_end[1]:>9.1f} {at_end[2]:>10.0%}"
    print(f"{arm:22} {line} {refuses:>16}")
print(f"{'before training':22} {'':29} {moved.mean('DPO', 'right_before'):>16.0%}")

# %% tags=["displacement-study-picture"]
axes = show.figure(
    "DPO on like pairs unlearns to refuse", "steps", "mass of all other responses"
)
steps, ends = moved.values("DPO", "steps")[0], []
for arm, color in {
    "DPO": show.OURS,
    "IPO": "#8a6fd0",
    "DPO-Positive": "#3a9d6e",
    "DPO, pairs of its own": show.RIVAL,
    "DPO + NLL": show.WARM,
}.items():
    runs = torch.tensor(moved.values(arm, "elsewhere"))
    axes.plot(steps, runs.mean(0), color=color)
    axes.fill_between(steps, runs.amin(0), runs.amax(0), color=color, alpha=0.2, lw=0)
    ends.append((runs.mean(0)[-1].item(), arm, color))
axes.set(ylim=(0, 1.05), xlim=(0, steps[-1] * 1.5), xticks=steps)
show.spread_labels(axes, steps[-1], ends)
show.picture(axes)

# %% [markdown]
# *In the picture: the mass of responses that nobody compared, against steps; bands show
# three seeds. It begins at three quarters. With DPO it rises to everything, with IPO it
# stays, with the others it falls.*
#
# DPO prefers the better refusal in every pair, and refuses nobody any more: the mass
# went to responses that nobody compared, and these are made up. A larger beta and IPO
# do less harm, and no good. What helps is to see the chosen response itself: its NLL,
# or a penalty where it falls below the reference (DPO-Positive). "NLL alone" is
# fine-tuning on the chosen responses, and does as well: it is the imitation that mends,
# not the preference. The other way is to compare something else: responses that differ
# in what matters, or two that the policy itself would give. The run that unlearns to
# refuse, made again:

# %% tags=["displacement-rerun"]
again = run_path(STUDIES / "07_displacement.py")["run"](seed=0)
print(f"refused before: over 10%: {again['right_before'] > 0.1}")
print(f"refused after: under 1%: {again['right'] < 0.01}")
print(f"prefers the better refusal in all pairs: {again['agreement'] == 1}")
assert again["elsewhere"][-1] > 0.99

# %% [markdown]
# ## 15. Too much of a good thing
#
# "DPO has no reward model, so there is nothing to hack." It has an implicit one,
# learned from verdicts, with all of their mistakes. Back to the closed world, whose
# annotators now like length: a bonus for every word. The policy to which DPO leads is
# known exactly for every beta. What is it worth by the annotators' lights, and what in
# truth?

# %% tags=["length-bias-exact"]
fond = preferences.Annotator(length_bias=0.3)
liked = torch.tensor([fond.utility(question, text) for text in world.responses])
words = torch.tensor([len(text.split()) for text in world.responses])
ends_at = {b: rlhf_policy(b, liked.double()).exp() for b in sorted((*betas, 0.3, 3.0))}
print(f"{'beta':>5} {'annotators':>11} {'truth':>6} {'words':>6}  likeliest response")
for b in (10.0, 2.0, 1.0, 0.5, 0.1):
    p = ends_at[b]
    top = world.responses[int(p.argmax())]
    numbers = [(p * x).sum().item() for x in (liked, rewards, words)]
    print(
        f"{b:>5} {numbers[0]:>11.2f} {numbers[1]:>6.2f} {numbers[2]:>6.1f} {top[:44]}"
    )
true = {b: (p * rewards).sum().item() for b, p in ends_at.items()}
print()
claim("I11", (max(true.values()), true[0.05]))

# %% tags=["over-optimisation-picture"]
axes = show.figure(
    "What annotators like, and what it is worth", "KL (nats)", "change of reward"
)
kls = [(p * (p.log() - ref)).sum().item() for p in ends_at.values()]
for worth, color, text in (
    (liked, show.WARM, "by the annotators"),
    (rewards, show.OURS, "in truth"),
):
    gain = [((p - ref.exp()) * worth).sum().item() for p in ends_at.values()]
    axes.plot(kls, gain, "o-", color=color)
    axes.text(kls[3], gain[3] + (-0.8 if worth is liked else 0.4), text, color=color)
axes.axhline(0, color=show.TRUTH, linestyle="--", linewidth=1.5)
show.picture(axes)

# %% [markdown]
# *In the picture: against the KL, the reward by the annotators' lights rises all the
# way; the true reward rises a little, turns, and falls below the dashed line of the
# reference.*
#
# This is over-optimisation, without a reward model in sight. Beta and the reference are
# what holds it back: at a beta of 1 the policy is better than the reference, at 0.1 it
# says something long and wrong. No number in the log tells the two apart, since loss,
# margin and accuracy are all by the annotators' lights. Only a look at what the policy
# says does.

# %% [markdown]
# ## 16. Whose taste is it?
#
# What if all verdicts come from one person, who has a taste? The study trains on the
# same pairs, ordered by different annotators: fair ones; some who give a bonus for
# every word; one for whom manners count four times as much and truth a quarter; five
# with different tastes who take turns, and whose mean is the true reward; and some who
# press the wrong button three times in ten. What is preferred afterwards, in held-out
# pairs that differ in it: the longer response, the more polite one, the wrong one?

# %% tags=["annotators"]
taste = load_study("09_annotators")
names = ("longer", "politer", "wrong", "agreement")
print(f"{'annotators':14}" + "".join(f"{name:>12}" for name in names), end="")
print(f"{'true reward':>14}{'tokens':>8}")
for arm in taste.settings:
    cells = [
        f"{taste.mean(arm, name):.0%} ± {taste.spread(arm, name):.0%}" for name in names
    ]
    reward = f"{taste.mean(arm, 'reward'):.2f} ± {taste.spread(arm, 'reward'):.2f}"
    line = "".join(f"{cell:>12}" for cell in cells)
    print(f"{arm:14}{line}{reward:>14}{taste.mean(arm, 'tokens'):>8.1f}")

# %% tags=["annotators-picture"]
axes = show.figure(
    "A policy prefers what its annotators prefer", "share of pairs", "", height=3.8
)
arms = [arm for arm in taste.settings if arm != "nobody"][::-1]
for name, color, up in (
    ("longer", show.WARM, 0.2),
    ("politer", show.OURS, 0.0),
    ("wrong", show.RIVAL, -0.2),
):
    for place, arm in enumerate(arms):
        axes.plot(taste.values(arm, name), [place + up] * 3, "o", color=color)
    at = taste.mean(arms[-1], name)
    axes.text(at, len(arms) - 0.45, name, color=color, ha="center")
axes.axvline(0.5, color=show.TRUTH, linestyle="--", linewidth=1.5)
axes.set_yticks(range(len(arms)), arms)
axes.set(ylim=(-0.5, len(arms) - 0.1))
show.picture(axes)

# %% [markdown]
# *In the picture: one row for each kind of annotator, one dot for each seed; how often
# the longer, the politer and the wrong response of a pair is preferred. Those who like
# length move "longer" over the dashed line of one half, and "wrong" to the right; the
# one with a taste moves "politer" towards always.*
#
# - **Length** is bought with truth: the longer response is preferred in 57% of the
#   pairs in place of 23%, and the wrong one in 31% in place of 15%.
# - **One taste** is learned faithfully: politer in 94%. What that person cares less for
#   is kept a little less (wrong in 20%, which is hardly beyond the spread).
# - **Many tastes** whose mean is the truth teach what fair annotators teach.
# - **Noise** teaches less, and differs from seed to seed. It has no direction.
#
# No log of training tells them apart: each policy agrees with its own annotators
# ("agreement"), the length-biased one with 70% of their verdicts and the fair one with
# 74%. And what is *said* differs less than what is preferred: the true rewards lie
# within the spread, as pairs from elsewhere move speech so little. A taste even helps
# here, because manners are part of the true reward. With a small beta a leaning is
# lived out; section 15 shows exactly how far.
#
# This is not the usual lack of diversity. Where data are narrow, a model is bad at what
# it has not seen. Here it is the *aim* that is narrow: the model is not ignorant of
# other readers, it is shaped for one, and more verdicts of the same person shape it
# more.

# %% [markdown]
# ## 17. Offline against online
#
# How much is lost by not sampling? First the easy case: a closed world, a small
# transformer, and pairs of the reference's own responses without end, so that
# everything is covered. How far from the optimum do DPO, PPO and GRPO come to rest?

# %% tags=["closed-world-study"]
near, at = load_study("05_closed_world"), (0.3, 0.5, 1, 3)
print("KL from the optimum in nats, mean of three seeds (and standard deviation)")
print(f"{'':20}" + "".join(f"{f'beta {b:g}':>15}" for b in at))
begun = [f"{near.mean(f'DPO, beta {b:g}', 'start_gap'):.2f}" for b in at]
print(f"{'the reference':20}" + "".join(f"{x:>15}" for x in begun))
for method in ("DPO", "PPO", "GRPO, KL in reward", "GRPO, KL in loss"):
    arms = [f"{method}, beta {b:g}" for b in at]
    found = [f"{near.mean(x, 'gap'):.3f} ({near.spread(x, 'gap'):.3f})" for x in arms]
    print(f"{method:20}" + "".join(f"{x:>15}" for x in found))

# %% [markdown]
# DPO, PPO, and GRPO with the KL in the reward all come to rest close to the optimum;
# DPO a little less close than those that sample where the policy is. (GRPO with $k_3$
# in the loss rests elsewhere, and not by accident: that gradient has another optimum;
# see chapter 15.) So where everything is covered the shortcut leads to the goal.
#
# Now a task, where little is covered. The zoo's base model gets fewer than one sum in
# three right, and a verifier knows which. All methods take equally many steps. "Order"
# is what a log of DPO would show: the share of held-out pairs of a right and some wrong
# number that the margin puts in order.

# %% tags=["where-dpo-fails"]
sums = load_study("08_where_dpo_fails")
print(f"{'':27} {'right before':>12} {'change':>13} {'order':>7} {'tokens made':>12}")
for arm in sums.settings:
    before, after = (torch.tensor(sums.values(arm, x)) for x in ("before", "after"))
    change = 100 * (after - before)  # of the same seed, in points
    told = f"{change.mean().item():+.1f} ± {change.std().item():.1f}"
    order, made = sums.mean(arm, "pair_accuracy"), sums.mean(arm, "generated")
    share = before.mean().item()
    print(f"{arm:27} {share:>12.0%} {told:>13} {order:>7.0%} {made:>12,.0f}")

# %% [markdown]
# DPO on pairs from elsewhere orders 91% of the held-out pairs rightly, and its sums
# become no better, in the mean worse: to know that 4 is wrong is not to say 17. On
# wrong results of its own it loses 4.4 points, with the same sign in all three seeds;
# the likely reason (not measured here) is that it soon gives other wrong results, which
# nobody has compared. Fresh pairs, GRPO and rejection sampling lose nothing; only the
# last gains in each seed. That is little: sixty steps teach nobody to add. Chapter 15
# gives the online methods more of them.
#
# So the shortcut is safe where pairs cover what the policy says, and is no way to find
# what it does not say yet. One more difference: an offline run is a batch job. It can
# be repeated, audited and debugged. An online one is a stream, always fresh, with a
# judge that must always be there, and whose errors the policy finds.
#
# ## 18. Claims that no code of ours can decide
#
# Who wrote what, at which rate somebody trained, what a dataset looks like: for these
# one reads the source.

# %% tags=["read-claims"]
claim("I2")
print()
claim("I12")
print()
claim("I13")
print()
claim("I14")

# %% tags=["more-read-claims"]
claim("I16")
print()
claim("I17")

# %% [markdown] tags=["what-comes-next"]
# ## 19. What comes after pairs
#
# All of this began with a verdict on two responses. What if there is none?
#
# - **No pairs, but thumbs**: KTO, as above. No thumbs but outcomes (a passed test, a
#   kept appointment): a verifier as judge, and with it online methods (chapter 15).
# - **Several aims at once**: helpful and harmless pull apart. One can mix rewards, or
#   the weights of policies; a single margin hides who paid.
# - **No people**: a model judges by written principles (chapter 14), or judges itself.
#   Whatever the judge gets wrong, the policy finds.
# - **Earlier**: put preferences into pre-training, for instance by a token that says
#   how good the text is, on which one conditions later (Korbak et al. 2023).
#
# What stays is what this chapter asked of every method: what is held fixed, what is
# compared, and where does the mass go?

# %% [markdown]
# ## What to remember
#
# 1. The optimum of RLHF is the reference, tilted by $e^{r/\beta}$. Read backwards, each
#    policy has an implicit reward; $Z$ cancels in pairs, and what is left is a
#    classifier: $-\ln\sigma(\beta m)$.
# 2. Beta is the price of KL: large stays, small goes. It does not make wrong verdicts
#    right.
# 3. At the start the loss is $\ln 2$ and its gradient is not $0$. Only the margin is
#    optimised; the chosen log-prob may fall.
# 4. Sum over the response's own tokens, the end of the turn included; freeze the
#    reference, or score with it once beforehand.
# 5. The family differs in where a margin ends (IPO, hinge, cDPO), in what it is fed
#    (KTO: thumbs; SPIN: no verdicts) and in what replaces the reference (ORPO, CPO: the
#    NLL; SimPO: length and a margin).

# %% [markdown]
# ## Common mistakes
#
# - Believing that a smaller beta is the careful choice.
# - Scoring padding, or losing the end of the turn because padding has the same id.
# - Passing the trained model itself as the reference, or one that has dropout on.
# - Reading a loss of $\ln 2$ as "nothing is learned", or a falling chosen log-prob as a
#   bug; and never looking how far it fell.
# - Means where sums belong (DPO, KTO), or sums where means belong (SimPO, ORPO).
# - Log-ratios in place of log odds in ORPO, and ORPO without its NLL.
# - Judging a run by the accuracy of its implicit reward, without reading a response.

# %% [markdown]
# ## Exercises
#
# In `exercises/13_dpo.ipynb`, in this order: the log-prob of a response; the loss of
# DPO; SimPO; IPO; how far the optimum goes for a given beta; what a fresh pair costs; a
# log-prob that depends on the width of the batch, to be repaired; KTO; ORPO; likelihood
# displacement, to be mended.
#
# ## Interview questions
#
# Answered in `solutions/13_dpo.ipynb`: derive DPO; its loss and how it differs from
# RLHF; what it gains, where it fails, and when PPO is worth it; over-optimisation
# without a reward model; SFT, RLHF, DPO, KTO and ORPO compared; RLHF, DPO and GRPO;
# where else "equivalent but simpler" shows up; offline as strength and weakness; one
# annotator; beta at its extremes; what may come next.

# %% [markdown]
# ## References
#
# - Rafailov et al. 2023, *Direct Preference Optimization*, arXiv:2305.18290.
# - Azar et al. 2023, *A General Theoretical Paradigm to Understand Learning from Human
#   Preferences* (IPO), arXiv:2310.12036. Mitchell 2023, *A note on DPO with noisy
#   preferences*. Chowdhury et al. 2024, *Provably Robust DPO*, arXiv:2403.00409. Zhao
#   et al. 2023, *SLiC-HF*, arXiv:2305.10425.
# - Ethayarajh et al. 2024, *KTO*, arXiv:2402.01306. Hong et al. 2024, *ORPO*,
#   arXiv:2403.07691. Meng et al. 2024, *SimPO*, arXiv:2405.14734. Xu et al. 2024,
#   *CPO*, arXiv:2401.08417. Chen et al. 2024, *SPIN*, arXiv:2401.01335.
# - Xu et al. 2023, *Some things are more CRINGE than others* (iterative DPO),
#   arXiv:2312.16682. Guo et al. 2024, *Direct Language Model Alignment from Online AI
#   Feedback*, arXiv:2402.04792.
# - Razin et al. 2024, *Unintentional Unalignment*, arXiv:2410.08847. Pang et al. 2024,
#   *Iterative Reasoning Preference Optimization*, arXiv:2404.19733. Pal et al. 2024,
#   *Smaug* (DPO-Positive), arXiv:2402.13228.
# - Rafailov et al. 2024, *Scaling Laws for Reward Model Overoptimization in Direct
#   Alignment Algorithms*, arXiv:2406.02900. Korbak et al. 2023, *Pretraining Language
#   Models with Human Preferences*, arXiv:2302.08582.
