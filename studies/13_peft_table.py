"""Full fine-tuning and its cheaper ways from one start: what does each cost and give?

The zoo's base model reads the same STEPS batches of B instructions, in the same order,
and learns by AdamW to give the answer. What differs is what is trained, and its
learning rate. For that every method had the same effort, on seed 3, which is not among
the seeds here, and on other held-out instructions: three rates, and on until the best
one lay between two; the one with the lowest loss on responses was taken. That loss, as
``python studies/13_peft_table.py --tune`` prints it:

    rate               3e-4   1e-3   3e-3   1e-2   3e-2    0.1    0.3    1.0
    full              0.138  0.122  0.278
    LoRA 1                   0.186  0.144  0.203
    LoRA 8                   0.143  0.128  0.186
    LoRA 8, q and v          0.282  0.179  0.151  0.398
    LoRA 32                  0.148  0.116  0.202
    rsLoRA 32         0.147  0.116  0.199  1.373
    DoRA 8                   0.141  0.127  0.197
    QLoRA 8                  0.156  0.122  0.185
    IA3                      4.200  1.818  1.049  0.297  0.290  0.742
    adapters 16              0.245  0.194  0.194
    prefix 16                5.570  3.662  2.101  0.916  0.301  0.256  0.735
    prefix 16, made          1.538  0.608  0.527  0.321  2.633
    prompt 16                4.215  2.722  1.763  0.662  0.495  0.635
    P-tuning 16              1.971  1.434  1.672
    and with new words
    full              0.541  0.193  0.224  0.356
    LoRA 8                   1.454  1.378  1.374  2.095
    LoRA 8 and embedding     0.258  0.193  0.246

Responses are answers alone, in words that documents have, and are written as documents
are, with the mark of their end. Three arms learn polite responses of all topics, "with
new words": the base has never read "Gladly", and to it all tokens that it never read
are one and the same vector. Who does not train the (tied) embedding cannot tell them
apart, let alone say them; the marks of a chat template are such tokens, too.

    trained         parameters that an optimizer moves
    held            bytes that weights, gradients and optimizer states take at the end
                    of training, counted from the tensors; activations are not counted
    seconds         of processor time, for training alone
    loss            nats per token of right responses to held-out instructions
    right, facts    share of right responses (greedy): of all, and of those about people
                    and cities
    forgotten       by how much the excess on documents has grown, nats per token, with
                    what was learned in its place. Where the base is frozen, it comes
                    back if that is taken out (QLoRA's base has been rounded, though)

What this cannot say: how it is for a model of billions, in which adapters are a far
smaller part of the whole, and activations weigh more. The embedding is a third of this
model. The task asks for little that the base does not know, and is short.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import fmean

import torch
from torch import Tensor

from minillm.compression.linear import held_bytes
from minillm.data.chat import encode_prompt
from minillm.data.examples import Examples
from minillm.data.messages import conversation
from minillm.data.templates import Marks, Template
from minillm.data.tokenizer import END_OF_TEXT
from minillm.finetuning.adapted import count_trainable
from minillm.finetuning.bottleneck import apply_adapters
from minillm.finetuning.dora import DoRALinear
from minillm.finetuning.ia3 import apply_ia3
from minillm.finetuning.lora import apply_lora
from minillm.finetuning.prefix import apply_prefix
from minillm.finetuning.prompts import apply_prompt
from minillm.finetuning.qlora import apply_qlora
from minillm.finetuning.sft import sft_examples
from minillm.model import GPT, GREEDY, generate
from minillm.school import zoo
from minillm.school.recipes.base import Base
from minillm.school.studies import run_study
from minillm.training import TrainConfig, Trainer
from minillm.training.losses import next_token_loss
from minillm.world.instructions import Instruction, instructions
from minillm.world.preferences import features

QUESTION = "What does each way of fine-tuning cost, and what does it give?"
SEEDS, TUNING, STEPS, B = (0, 1, 2), 3, 200, 12
ASKED, NEW, DOCUMENTS = 400, 40, 400  # held-out instructions; tokens; documents
FACTS = ("person", "city")  # topics whose answers stand in documents
KNOWN = (*FACTS, "two-hop", "arithmetic")  # and whose words do
RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
START = RATES[2:5]  # tried for all, and then on until the best lies between two
OPENS, SPEAKS = Marks(END_OF_TEXT, ""), Marks("", END_OF_TEXT)
PLAIN = Template(OPENS, OPENS, SPEAKS, special_names=(END_OF_TEXT,))
LORA = {"method": "lora", "targets": "all"}
Q_V = ["q_proj", "v_proj"]
ARMS = {
    "before": {"method": "full", "lr": 0.0},
    "full": {"method": "full", "lr": 1e-3},
    "LoRA 1": {**LORA, "rank": 1, "lr": 3e-3},
    "LoRA 8": {**LORA, "rank": 8, "lr": 3e-3},
    "LoRA 8, q and v": {**LORA, "rank": 8, "targets": Q_V, "lr": 1e-2},
    "LoRA 32": {**LORA, "rank": 32, "lr": 3e-3},
    "rsLoRA 32": {**LORA, "rank": 32, "rank_stabilized": True, "lr": 1e-3},
    "DoRA 8": {**LORA, "method": "dora", "rank": 8, "lr": 3e-3},
    "QLoRA 8": {**LORA, "method": "qlora", "rank": 8, "lr": 3e-3},
    "IA3": {"method": "ia3", "lr": 1e-1},
    "adapters 16": {"method": "adapters", "width": 16, "lr": 3e-3},
    "prefix 16": {"method": "prefix", "length": 16, "lr": 3e-1},
    "prefix 16, made": {"method": "prefix", "length": 16, "hidden": 64, "lr": 3e-2},
    "prompt 16": {"method": "prompt", "length": 16, "lr": 1e-1},
    "P-tuning 16": {"method": "prompt", "length": 16, "hidden": 64, "lr": 3e-3},
}
NEW_WORDS = {
    "full": {"lr": 1e-3, "method": "full"},
    "LoRA 8": {**LORA, "rank": 8, "lr": 1e-2},
    "LoRA 8 and embedding": {**LORA, "rank": 8, "embedding": True, "lr": 3e-3},
}
ARMS |= {f"{n}, new words": {**arm, "new_words": True} for n, arm in NEW_WORDS.items()}
APPLY: dict[str, Callable] = {
    "full": lambda model: model,
    "lora": apply_lora,
    "dora": partial(apply_lora, layer=DoRALinear),
    "qlora": apply_qlora,
    "ia3": apply_ia3,
    "adapters": apply_adapters,
    "prefix": apply_prefix,
    "prompt": apply_prompt,
}


@dataclass(frozen=True, eq=False)
class Pupil:
    """A model that learns, and what.

    Args:
        found: the model and its world.
        ids: of a soft prompt, which stand before all it reads.
        new_words: whether responses are polite, in words that no document has.
    """

    found: zoo.ZooModel
    ids: list[int]
    new_words: bool

    @property
    def model(self) -> GPT:
        """What learns."""
        return self.found.model

    def asked(self, n: int, stream: str, held_out: bool = False) -> list[Instruction]:
        """n instructions whose responses it learns or is asked for."""
        every = instructions(self.found.world.lore, 3 * n, stream, held_out)
        return [i for i in every if self.new_words or i.topic in KNOWN][:n]

    def examples(self, asked: list[Instruction], B: int, seed: int = 0) -> Examples:
        """Instructions with good responses, or with answers alone, as batches."""
        answers = [
            i.good if self.new_words else f" {i.question.answer}." for i in asked
        ]
        pairs = [(i.prompt, said) for i, said in zip(asked, answers, strict=True)]
        rows = sft_examples(self.found.tokenizer, pairs, PLAIN)
        T, pad = self.model.config.context, self.found.tokenizer.pad
        return Examples(rows, T, B, pad, seed)

    def train(self, lr: float, seed: int) -> dict[str, float]:
        """Train; what was held for it, and how long did it take?"""
        examples = self.examples(self.asked(STEPS * B, "train"), B, seed)
        config = TrainConfig(STEPS, "adamw", lr, weight_decay=0.0, warmup=STEPS // 10)
        trainer = Trainer(self.model, examples, config, progress=False)
        start = time.process_time()
        trainer.fit()
        seconds = time.process_time() - start
        extra = [p.grad for p in self.model.parameters() if p.grad is not None]
        for optimizer in trainer.optimizers:
            extra += [t for state in optimizer.state.values() for t in state.values()]
        held = held_bytes(self.model) + sum(t.nbytes for t in extra)
        trained = count_trainable(self.model)[0]
        return {"trained": trained, "held": held, "seconds": round(seconds, 2)}

    @torch.no_grad()
    def loss(self, asked: list[Instruction]) -> float:
        """Nats per token of good responses."""
        tokens, mask = self.examples(asked, len(asked))[0]
        return next_token_loss(self.model(tokens), tokens, mask).item()

    def said(self, asked: list[Instruction]) -> dict[str, float]:
        """The share of right responses."""
        tokenizer = self.found.tokenizer
        stop, chats = tokenizer.eot, [conversation(i.prompt) for i in asked]
        rows = [[*self.ids, *encode_prompt(tokenizer, c, PLAIN)] for c in chats]
        made = generate(self.model, rows, NEW, GREEDY, stop, tokenizer.pad)
        right = {True: [], False: []}
        for i, row in zip(asked, made.completions(), strict=True):
            text = tokenizer.decode(t for t in row if t != stop)
            is_right = features(i.question, text)["correctness"] == 1
            right[i.topic in FACTS].append(is_right)
        every = right[True] + right[False]
        return {"right": fmean(every), "facts": fmean(right[True])}


def begin(
    seed: int,
    method: str,
    embedding: bool = False,
    new_words: bool = False,
    **settings,
) -> Pupil:
    """The base model, ready to learn by one method."""
    found = zoo.load(Base(), seed=seed, progress=False)
    torch.manual_seed(seed)
    made = APPLY[method](found.model, **settings)
    if embedding:
        found.model.embed_tokens.requires_grad_(True)
    ids = made if method == "prompt" else []
    if ids:
        before(found.model, torch.tensor(ids))
    return Pupil(found, ids, new_words)


def before(model: GPT, ids: Tensor) -> None:
    """Let it read ids before every row; the logits are those of the row.

    Generation has a cache and is given the ids itself: it calls ``model.hidden``.
    """
    model.register_forward_pre_hook(
        lambda _, rows: torch.cat([ids.expand(len(rows[0]), -1), rows[0]], dim=1)
    )
    model.register_forward_hook(lambda _, rows, logits: logits[:, len(ids) :])


def run(seed: int, lr: float, **settings) -> dict:
    """Train by one method from the base of this seed, and measure."""
    pupil = begin(seed, **settings)
    known = pupil.found.known(DOCUMENTS)
    plain = zoo.load(Base(), seed=seed, progress=False).model
    costs = pupil.train(lr, seed) if lr else {}
    asked = pupil.asked(ASKED, "peft", held_out=True)
    told = {"loss": pupil.loss(asked)} | pupil.said(asked)
    told["forgotten"] = known.excess(pupil.model).total - known.excess(plain).total
    return costs | {name: round(value, 4) for name, value in told.items()}


def tune() -> None:
    """Print the loss of each method at each rate, on a seed and texts of their own."""
    print(f"{'rate':31}", *(f"{rate:6g}" for rate in RATES))
    for name, arm in list(ARMS.items())[1:]:
        settings = {k: v for k, v in arm.items() if k != "lr"}
        tried = {rate: tuned(rate, **settings) for rate in START}
        while True:
            at = RATES.index(min(tried, key=tried.get))
            beside = set(RATES[max(at - 1, 0) : at + 2]) - set(tried)
            if not beside:
                break
            tried |= {rate: tuned(rate, **settings) for rate in beside}
        told = (f"{tried[r]:6.3f}" if r in tried else " " * 6 for r in RATES)
        print(f"{name:31}", *told, flush=True)


def tuned(lr: float, **settings) -> float:
    """The loss after training at a rate."""
    pupil = begin(TUNING, **settings)
    pupil.train(lr, TUNING)
    return pupil.loss(pupil.asked(ASKED, "peft tuning", held_out=True))


if __name__ == "__main__":
    for seed in (*SEEDS, TUNING):  # trained here, or the first run would pay for it
        zoo.load(Base(), seed=seed, progress=False)
    if "--tune" in sys.argv:
        torch.set_num_threads(1)
        tune()
    else:
        run_study(__file__, QUESTION, ARMS, SEEDS, run)
