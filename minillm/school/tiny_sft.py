"""The tour's second stage of training: the model learns to respond, and is asked.

Pre-training made it go on with documents. Now it reads instructions with good responses
and learns to answer in one turn, politely and in short, and to say so where there is
nothing to say: about people who do not exist. It is measured on instructions that no
training ever held, in the same words and about the same world.
"""

from dataclasses import dataclass
from statistics import fmean

from minillm.data.examples import Examples
from minillm.finetuning import finetune, respond, sft_config, sft_examples
from minillm.model import GPT
from minillm.school.options import TourOptions
from minillm.school.pipeline import Run
from minillm.school.tinytext import TinyText
from minillm.world.instructions import Instruction, instructions
from minillm.world.preferences import features, refuses, true_reward

EXAMPLES, HELD_OUT = 6_000, 300  # to learn from, and to be measured with
RATES = {"lr": 1.5e-3, "matrix_lr": 1.5e-3}
BATCH = 12  # rows in a batch: few, so that there are many steps


@dataclass(frozen=True)
class Response:
    """What the model responded to an instruction, and what that is worth."""

    instruction: Instruction
    text: str

    @property
    def right(self) -> bool:
        """Whether it holds the answer, or refuses where there is none."""
        return features(self.instruction.question, self.text)["correctness"] == 1

    @property
    def reward(self) -> float:
        """The true reward."""
        return true_reward(self.instruction.question, self.text)


def fine_tune(
    run: Run, options: TourOptions, text: TinyText, model: GPT, resumed: bool
) -> GPT:
    """Fine-tune the model on instructions; its folder is ``sft`` in that of the run."""
    folder, lore = run.folder / "sft", text.world.lore
    text.tokenizer.save(folder / "tokenizer.json")
    good = [(i.prompt, i.good) for i in instructions(lore, EXAMPLES)]
    examples = Examples(
        sft_examples(text.tokenizer, good),
        T=options.context,
        B=BATCH,
        pad=text.tokenizer.pad,
        seed=options.seed,
    )
    config = sft_config(examples, epochs=1, **RATES)
    doing = f"{len(good):,} instructions with good responses, {config.steps} steps"
    with run.stage("sft", doing):
        metrics = finetune(model, examples, config, folder=folder, resume=resumed)
    model.eval()
    targets = sum(metrics.column("tokens"))
    run.add("sft", "instructions", "", f"{len(good):,}")
    run.add("sft", "tokens learned from (responses only)", "", f"{targets:,}")
    return model


def respond_to_all(run: Run, text: TinyText, model: GPT) -> list[Response]:
    """Ask what no training ever asked, and judge the responses by the truth."""
    lore = text.world.lore
    asked = list(instructions(lore, HELD_OUT, "tour", held_out=True))
    with run.stage("respond", f"{len(asked)} instructions that were held out"):
        said = respond(model, text.tokenizer, [i.prompt for i in asked], 40)
        responses = [Response(*pair) for pair in zip(asked, said, strict=True)]
        excess = text.test.excess(model)
    tell_responses(run, responses)
    run.add("respond", "documents: excess after SFT", "0.000", f"{excess.total:.3f}")
    run.results["excess after SFT"] = excess.total
    return responses


def tell_responses(run: Run, responses: list[Response]) -> None:
    """Rows for the table: right, rewarded, refusing whom it should refuse."""
    topics = dict.fromkeys(r.instruction.topic for r in responses)
    known = [r for r in responses if r.instruction.question.answer is not None]
    best = fmean(
        true_reward(r.instruction.question, r.instruction.good) for r in responses
    )
    right = {
        topic: fmean(r.right for r in responses if r.instruction.topic == topic)
        for topic in sorted(topics)
    }
    for topic, share in right.items():
        run.add("respond", f"held-out instructions: {topic}", "100%", f"{share:.0%}")
    refused = fmean(refuses(r.text) for r in known)
    run.add("respond", "refused though there is an answer", "0%", f"{refused:.0%}")
    reward = fmean(r.reward for r in responses)
    run.add("respond", "true reward (mean)", f"{best:.2f}", f"{reward:.2f}")
    all_right = {"right": fmean(response.right for response in responses)}
    judged = {"reward": reward, "refused wrongly": refused}
    run.results["responses"] = right | all_right | judged
