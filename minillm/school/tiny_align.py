"""The tour's last stages of training: three ways to be better than what was imitated.

ppo   earns what the reward model gives, at a price for each nat of KL
dpo   learns from the annotators' verdicts themselves, without a reward model
grpo  earns what a verifier gives, who knows the right answer

Each begins with a copy of the assistant and is asked, at temperature 1 as in training,
what no training ever asked. Only here, where the true reward is known, can it be seen
what the reward model's praise is worth.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean

import torch

from minillm.alignment.critic import Critic
from minillm.alignment.grpo_loop import grpo
from minillm.alignment.held_out import (
    Outcome,
    held_out_verdicts,
    outcome,
    verdict_pairs,
)
from minillm.alignment.own_responses import Ask, frozen_copy
from minillm.alignment.ppo_loop import ppo
from minillm.alignment.preference_loop import PreferConfig, prefer
from minillm.alignment.reward_model import RewardModel
from minillm.alignment.settings import GRPOConfig, PPOConfig
from minillm.alignment.verifiers import says_answer, verifier_reward
from minillm.data.chat import encode_prompt, stop_token
from minillm.data.messages import conversation
from minillm.model import GPT
from minillm.school.pipeline import Run
from minillm.school.tiny_reward import ANNOTATOR
from minillm.school.tiny_sft import HELD_OUT
from minillm.school.tinytext import TinyText
from minillm.training import TrainingInterrupted, load_model
from minillm.training.checkpoints import load_checkpoint, save_checkpoint
from minillm.world.instructions import Instruction, instructions, preferences
from minillm.world.preferences import true_reward

PROMPTS, LONGEST = 3_000, 24  # to ask while training; tokens of a response
PPO = {"steps": 32, "lr": 2e-4, "beta": 0.3, "max_new_tokens": LONGEST}
DPO = {"steps": 45, "lr": 1e-4}
GRPO = {"steps": 100, "lr": 5e-4, "skip_equal": True, "max_new_tokens": LONGEST}
VERDICTS = 1_000  # for DPO


@dataclass(frozen=True)
class Start:
    """What all begin with: the assistant, frozen, and who judges, if anybody does."""

    text: TinyText
    assistant: GPT
    judge: RewardModel | None
    seed: int

    def asked(self) -> list[Instruction]:
        """What is asked in training."""
        return list(instructions(self.text.world.lore, PROMPTS, "alignment"))

    def prompts(self) -> tuple[list[list[int]], int, int]:
        """The same as ids, with the ids that stop a response and that pad."""
        known = self.text.tokenizer
        ids = [encode_prompt(known, conversation(i.prompt)) for i in self.asked()]
        return ids, stop_token(known), known.pad

    def pairs(self, verdicts, B: int):
        """Verdicts as batches."""
        parts = (self.assistant.config.context, B, self.seed)
        return verdict_pairs(self.text.tokenizer, verdicts, *parts)

    def look(self, model: GPT) -> Outcome:
        """Ask a model what it was never asked."""
        lore, ask = self.text.world.lore, Ask(LONGEST, seed=self.seed)
        asked = list(instructions(lore, HELD_OUT, "tour", held_out=True))
        parts = (self.assistant, self.judge, self.text.tokenizer, asked, ask)
        return outcome(model, *parts)


def by_ppo(policy: GPT, start: Start) -> None:
    """Earn the reward model's praise, at a price for each nat of KL."""
    prompts, stop, pad = start.prompts()

    @torch.no_grad()
    def reward(which, rollouts):
        return start.judge(rollouts.tokens, rollouts.real)

    config, critic = PPOConfig(**PPO, seed=start.seed), Critic(policy)
    ppo(policy, critic, start.assistant, prompts, reward, config, stop, pad)


def by_dpo(policy: GPT, start: Start) -> None:
    """Make what annotators chose more probable than what they did not."""
    verdicts = preferences(start.text.world.lore, VERDICTS, ANNOTATOR)
    pairs = start.pairs(verdicts, 16)
    prefer(policy, start.assistant, pairs, PreferConfig(**DPO))


def by_grpo(policy: GPT, start: Start) -> None:
    """Be right, as the verifier says, more often than the others of the group."""
    prompts, stop, pad = start.prompts()
    questions = [asked.question for asked in start.asked()]
    reward = verifier_reward(questions, start.text.tokenizer, says_answer)
    config = GRPOConfig(**GRPO, seed=start.seed)
    grpo(policy, prompts, reward, config, stop, pad, start.assistant)


WAYS = {"ppo": by_ppo, "dpo": by_dpo, "grpo": by_grpo}


def align(
    run: Run, text: TinyText, assistant: GPT, judge: RewardModel, resumed: bool
) -> dict[str, Outcome]:
    """Train a copy of the assistant in each way; measure all, the assistant first."""
    start = Start(text, frozen_copy(assistant), judge, run.settings["seed"])
    found = {"sft": start.look(assistant)}
    for name, way in WAYS.items():
        with run.stage(name, way.__doc__):
            model = trained(run, name, way, start, resumed)
            found[name] = start.look(model)
            if name == "dpo":
                tell_verdicts(run, model, start)
        tell(run, name, found["sft"], found[name])
    run.results["alignment"] = {name: one.numbers for name, one in found.items()}
    return found


def trained(run: Run, name: str, way: Callable, start: Start, resumed: bool) -> GPT:
    """The copy that was trained one way; read again if this run has done so before."""
    path = run.folder / name / "checkpoint.safetensors"
    notes = {"began as": start.assistant.embed_tokens.weight.sum().item()}
    if resumed and path.is_file() and load_checkpoint(path).notes == notes:
        return load_model(path)
    policy = copy.deepcopy(start.assistant).requires_grad_(True)
    torch.manual_seed(start.seed)
    try:
        way(policy, start)
    except TrainingInterrupted as stopped:
        done, *_ = str(stopped).split(";")
        remedy = f"Run the same command again to go on, with {name} from its beginning."
        raise TrainingInterrupted(f"{name} {done}. {remedy}") from None
    start.text.tokenizer.save(run.folder / name / "tokenizer.json")
    save_checkpoint(path, policy, [], 0, notes)
    return policy.eval()


@torch.no_grad()
def tell_verdicts(run: Run, model: GPT, start: Start) -> None:
    """A row for DPO, which is a reward model itself: how well does it judge?"""
    verdicts = list(held_out_verdicts(start.text.world.lore, HELD_OUT, ANNOTATOR))
    pairs = start.pairs(verdicts, HELD_OUT).with_reference(start.assistant)
    found = pairs[0].score(model).metrics(beta=0.1)["accuracy"]
    told = (f"{run.results['reward model']['ceiling']:.0%} at most", f"{found:.0%}")
    run.add("dpo", "implicit reward agrees with annotators", *told)
    run.results["implicit reward"] = found


def tell(run: Run, name: str, before: Outcome, after: Outcome) -> None:
    """Rows for the table: truth first, then what training looked at, then the price."""
    best = fmean(true_reward(i.question, i.good) for i in after.asked)
    for metric, truth, form, part in (
        ("true reward, sampled", f"{best:.2f}", ".2f", "reward"),
        ("right, sampled", "100%", ".0%", "right"),
        ("reward model's reward", "", ".2f", "proxy"),
    ):
        values = [format(getattr(one, part), form) for one in (before, after)]
        run.add(name, metric, truth, " -> ".join(values))
    run.add(name, "KL to the assistant (nats per response)", "", f"{after.kl:.2f}")
