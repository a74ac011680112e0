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
from minillm.alignment.logprobs import model_logprobs
from minillm.alignment.masked import masked_sum
from minillm.alignment.own_responses import Ask, ask_model, frozen_copy
from minillm.alignment.ppo_loop import ppo
from minillm.alignment.preference_data import PreferencePairs, encode_preferences
from minillm.alignment.preference_loop import PreferConfig, prefer
from minillm.alignment.reward_model import RewardModel
from minillm.alignment.settings import GRPOConfig, PPOConfig
from minillm.alignment.verifiers import says_answer, verifier_reward
from minillm.data.chat import encode_prompt, stop_token
from minillm.data.messages import conversation
from minillm.model import GPT
from minillm.school.pipeline import Run
from minillm.school.tiny_reward import ANNOTATOR, held_out_verdicts
from minillm.school.tiny_sft import HELD_OUT, Response
from minillm.school.tinytext import TinyText
from minillm.training import TrainingInterrupted, load_model
from minillm.training.checkpoints import load_checkpoint, save_checkpoint
from minillm.world.instructions import Instruction, instructions, preferences
from minillm.world.preferences import true_reward

PROMPTS, LONGEST = 3_000, 24  # to ask while training; tokens of a response
PPO = {"steps": 32, "lr": 2e-4, "beta": 0.15, "max_new_tokens": LONGEST}
DPO = {"steps": 45, "lr": 1e-4}
GRPO = {"steps": 100, "lr": 5e-4, "skip_equal": True, "max_new_tokens": LONGEST}
VERDICTS = 1_000  # for DPO


@dataclass(frozen=True)
class Start:
    """What all three begin with: the assistant, frozen, and who judges."""

    text: TinyText
    assistant: GPT
    judge: RewardModel
    seed: int

    def asked(self) -> list[Instruction]:
        """What is asked in training."""
        return list(instructions(self.text.world.lore, PROMPTS, "alignment"))

    def prompts(self) -> tuple[list[list[int]], int, int]:
        """The same as ids, with the ids that stop a response and that pad."""
        known = self.text.tokenizer
        ids = [encode_prompt(known, conversation(i.prompt)) for i in self.asked()]
        return ids, stop_token(known), known.pad


def by_ppo(policy: GPT, start: Start) -> None:
    """Earn the reward model's praise."""
    prompts, stop, pad = start.prompts()

    @torch.no_grad()
    def reward(which, rollouts):
        return start.judge(rollouts.tokens, rollouts.real)

    config, critic = PPOConfig(**PPO, seed=start.seed), Critic(policy)
    ppo(policy, critic, start.assistant, prompts, reward, config, stop, pad)


def by_dpo(policy: GPT, start: Start) -> None:
    """Make what annotators chose more probable than what they did not."""
    pairs = as_pairs(start, preferences(start.text.world.lore, VERDICTS, ANNOTATOR), 16)
    prefer(policy, start.assistant, pairs, PreferConfig(**DPO))


def by_grpo(policy: GPT, start: Start) -> None:
    """Be right, as the verifier says, more often than the others of the group."""
    prompts, stop, pad = start.prompts()
    questions = [asked.question for asked in start.asked()]
    reward = verifier_reward(questions, start.text.tokenizer, says_answer)
    config = GRPOConfig(**GRPO, seed=start.seed)
    grpo(policy, prompts, reward, config, stop, pad, start.assistant)


WAYS = {
    "ppo": ("earning the reward model's praise", by_ppo),
    "dpo": ("learning from verdicts directly", by_dpo),
    "grpo": ("earning what a verifier gives", by_grpo),
}


@dataclass(frozen=True)
class Aligned:
    """What a model responds to held-out instructions, and what that is worth.

    Args:
        responses: sampled at temperature 1.
        proxy: mean reward by the reward model.
        kl: to the assistant, in nats per response.
    """

    responses: list[Response]
    proxy: float
    kl: float

    @property
    def reward(self) -> float:
        """Mean true reward."""
        return fmean(response.reward for response in self.responses)

    @property
    def right(self) -> float:
        """The part of the responses that is right."""
        return fmean(response.right for response in self.responses)


def align(
    run: Run, text: TinyText, assistant: GPT, judge: RewardModel, resumed: bool
) -> dict[str, Aligned]:
    """Train a copy of the assistant in each way; measure all, the assistant first."""
    start = Start(text, frozen_copy(assistant), judge, run.settings["seed"])
    found = {"sft": look(assistant, start)}
    for name, (doing, way) in WAYS.items():
        with run.stage(name, doing):
            model = trained(run, name, way, start, resumed)
            found[name] = look(model, start)
            if name == "dpo":
                tell_verdicts(run, model, start)
        tell(run, name, found["sft"], found[name])
    parts = ("reward", "right", "proxy", "kl")
    run.results["alignment"] = {
        name: {part: getattr(one, part) for part in parts}
        for name, one in found.items()
    }
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
def look(model: GPT, start: Start) -> Aligned:
    """Ask a model what it was never asked; judge by the truth and by the judge."""
    known, ask = start.text.tokenizer, Ask(LONGEST, seed=start.seed)
    asked = list(instructions(start.text.world.lore, HELD_OUT, "tour", held_out=True))
    rollouts = ask_model(model, known, asked, ask, ask.dice())
    rows = rollouts.tokens, rollouts.real
    before, said = model_logprobs(start.assistant, *rows), rollouts.texts(known)
    nats = masked_sum(rollouts.logprobs - before, rollouts.actions[:, 1:], dim=1)
    responses = [Response(*pair) for pair in zip(asked, said, strict=True)]
    return Aligned(responses, start.judge(*rows).mean().item(), nats.mean().item())


def as_pairs(start: Start, verdicts, B: int) -> PreferencePairs:
    """Verdicts as batches; two responses that are equal say nothing."""
    known = start.text.tokenizer
    triples = [
        (asked.prompt, p.chosen, p.rejected)
        for asked, p in verdicts
        if p.chosen != p.rejected
    ]
    rows, T = encode_preferences(known, triples), start.assistant.config.context
    return PreferencePairs(rows, T, min(B, len(rows)), known.pad, start.seed)


@torch.no_grad()
def tell_verdicts(run: Run, model: GPT, start: Start) -> None:
    """A row for DPO, which is a reward model itself: how well does it judge?"""
    verdicts = list(held_out_verdicts(start.text.world.lore, HELD_OUT))
    pairs = as_pairs(start, verdicts, HELD_OUT).with_reference(start.assistant)
    found = pairs[0].score(model).metrics(beta=0.1)["accuracy"]
    odds = [ANNOTATOR.probability(*vars(verdict).values()) for _, verdict in verdicts]
    ceiling = fmean(max(p, 1 - p) for p in odds)
    told = (f"{ceiling:.0%} at most", f"{found:.0%}")
    run.add("dpo", "implicit reward agrees with annotators", *told)
    run.results["implicit reward"] = found


def tell(run: Run, name: str, before: Aligned, after: Aligned) -> None:
    """Rows for the table: truth first, then what training looked at, then the price."""
    best = fmean(
        true_reward(r.instruction.question, r.instruction.good) for r in after.responses
    )
    for metric, truth, form, part in (
        ("true reward, sampled", f"{best:.2f}", ".2f", "reward"),
        ("right, sampled", "100%", ".0%", "right"),
        ("reward model's reward", "", ".2f", "proxy"),
    ):
        values = [format(getattr(one, part), form) for one in (before, after)]
        run.add(name, metric, truth, " -> ".join(values))
    run.add(name, "KL to the assistant (nats per response)", "", f"{after.kl:.2f}")
