"""What does PPO find when it optimises a learned reward for long?

A reward model has learned from 12,000 noisy verdicts what annotators prefer, and judges
good and mediocre responses well. PPO then asks it about responses that neither it nor
the annotators have ever seen. Beside the *proxy*, which PPO maximises, stands the
*true* reward, a formula that the policy never meets: in life it is not known.

Arms differ in the price of KL, from none to one that keeps the policy near the start,
and in the proxy: one reward model, or the worst verdict of three with different trunks,
which are wrong in different places. All have learned from the same verdicts; what these
are silent about they may be wrong about together.

The policy begins as an assistant that was also shown mediocre responses, so that there
is something to be gained. Settings were found on seed 0, in runs that were shorter.

Measured on the responses that PPO samples, which are to instructions of training; lists
hold means over WINDOW steps: ``proxy``, ``true``, ``kl`` to the start in nats per
response, ``right``, the share of right answers, and ``length`` in tokens. For the
ensemble ``proxy`` is the mean of the three, though PPO maximises the worst.

Of ``true_best`` a part is luck: it is the largest of twelve noisy means.

What this cannot say: how much of the ensemble's help is its caution, and how much that
it is three, for the mean of three was not tried; and at which KL a reward model of
another size, or with a trunk that is trained, too, would be found out.
"""

import copy
from collections.abc import Sequence
from functools import cache
from statistics import fmean

import torch
from torch import Tensor

from minillm.alignment.critic import Critic
from minillm.alignment.ppo_loop import ppo
from minillm.alignment.reward_judging import ensemble_reward
from minillm.alignment.rollouts import Rollouts
from minillm.alignment.settings import PPOConfig
from minillm.data import Tokenizer
from minillm.data.chat import encode_prompt, stop_token
from minillm.data.examples import Examples
from minillm.data.messages import conversation
from minillm.finetuning import finetune, sft_config, sft_examples
from minillm.model import GPT
from minillm.school import zoo
from minillm.school.recipes.reward import Reward
from minillm.school.recipes.sft import Sft
from minillm.school.studies import run_study
from minillm.school.tiny_sft import RATES
from minillm.school.zoo import ZooModel
from minillm.world import World
from minillm.world.instructions import Instruction, instructions
from minillm.world.preferences import features, true_reward

QUESTION = "What becomes of the true reward while PPO maximises a learned one?"
SEEDS = (0, 1, 2)  # also of the ensemble's members
STEPS, BATCH, WINDOW, ASKED = 60, 48, 5, 2000
LR, LONGEST, SHOWN = 3e-4, 24, 1200
ARMS = {
    "beta 0": {"beta": 0.0},
    "beta 0.1": {"beta": 0.1},
    "beta 0.5": {"beta": 0.5},
    "beta 0, the worst of three": {"beta": 0.0, "rule": "worst"},
    "beta 0.1, the worst of three": {"beta": 0.1, "rule": "worst"},
}


@cache
def load(recipe: Sft | Reward) -> ZooModel:
    """A model of the zoo, read once for all runs."""
    return zoo.load(recipe, progress=False)


@cache
def asked() -> list[Instruction]:
    """What the policy responds to."""
    return list(instructions(World().lore, ASKED, "ppo"))


@cache
def start(seed: int) -> tuple[GPT, Tokenizer]:
    """An assistant that has forgotten its manners: for once, it was also shown mediocre
    responses. One that was only shown good ones could not become much better."""
    begun, lore = load(Sft(seed=seed)), World().lore
    model, tokenizer = copy.deepcopy(begun.model), begun.tokenizer
    shown = instructions(lore, SHOWN, "mixed")
    said = [(i.prompt, (i.good, i.mediocre)[n % 2]) for n, i in enumerate(shown)]
    rows = sft_examples(tokenizer, said)
    examples = Examples(rows, T=128, B=12, pad=tokenizer.pad, seed=seed)
    finetune(model, examples, sft_config(examples, epochs=1, **RATES), progress=False)
    return model.eval(), tokenizer


class Proxy:
    """One reward from some reward models; beside it, what nobody asks for."""

    def __init__(self, seeds: Sequence[int], rule: str, tokenizer):
        self.models = [load(Reward(seed=seed)).model for seed in seeds]
        self.rule, self.tokenizer, self.seen = rule, tokenizer, []

    @torch.no_grad()
    def __call__(self, which: Sequence[int], rollouts: Rollouts) -> Tensor:
        """The rewards of a batch."""
        every = torch.stack([m(rollouts.tokens, rollouts.real) for m in self.models])
        questions = [asked()[i].question for i in which]
        said = list(zip(questions, rollouts.texts(self.tokenizer), strict=True))
        self.seen.append(
            {
                "proxy": every.mean().item(),
                "true": fmean(true_reward(*one) for one in said),
                "right": fmean(features(*one)["correctness"] for one in said),
                "length": rollouts.actions.sum(1).float().mean().item(),
            }
        )
        return ensemble_reward(every, self.rule)


def run(seed: int, beta: float, rule: str = "mean") -> dict:
    """Maximise the proxy; both rewards over the steps."""
    ref, tokenizer = start(seed)
    policy = copy.deepcopy(ref)
    proxy = Proxy((seed,) if rule == "mean" else SEEDS, rule, tokenizer)
    batch = {"batch": BATCH, "minibatch": BATCH, "epochs": 1, "value_clip": 10.0}
    rates = {"lr": LR, "critic_lr": 2 * LR, "max_new_tokens": LONGEST}
    config = PPOConfig(STEPS, **batch, **rates, beta=beta, seed=seed)
    prompts = [encode_prompt(tokenizer, conversation(i.prompt)) for i in asked()]
    marks = {"stop": stop_token(tokenizer), "pad": tokenizer.pad}
    models = (policy, Critic(policy), ref)
    log = ppo(*models, prompts, proxy, config, **marks, progress=False)
    seen = {name: [one[name] for one in proxy.seen] for name in proxy.seen[0]}
    return summary(seen | {"kl": log.column("kl")})


def summary(seen: dict[str, list[float]]) -> dict:
    """Means over windows of steps, and where the true reward was highest."""
    windows = range(0, STEPS, WINDOW)
    curves = {
        name: [round(fmean(column[i : i + WINDOW]), 4) for i in windows]
        for name, column in seen.items()
    }
    true, kl = curves["true"], curves["kl"]
    best = max(range(len(true)), key=true.__getitem__)
    ends = {"true_first": true[0], "true_best": true[best], "true_last": true[-1]}
    ends |= {"kl_best": kl[best], "kl_last": kl[-1], "proxy_last": curves["proxy"][-1]}
    return {"steps": [i + WINDOW // 2 for i in windows]} | curves | ends


if __name__ == "__main__":
    for number in SEEDS:  # made here, or the first runs would pay for them
        load(Reward(seed=number))
    run_study(__file__, QUESTION, ARMS, SEEDS, run)
