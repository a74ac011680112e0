r"""The tour's cheap ways of fine-tuning: the same lessons, by LoRA and by QLoRA.

Training holds more than a model: each trained weight has a gradient, and the optimizer
keeps moments of it. LoRA spares both where nothing is trained, and QLoRA holds what is
frozen in four bits:

.. math:: bytes = weights + gradients + moments

counted from the tensors that are held after a step; activations are left out.

**A frozen embedding has no words for what nobody read.** Some tokens of the lessons
stand in no document, the marks of the chat template among them. Pre-training only ever
pushed them down, all alike, so that they ended as one and the same vector: no adapter
can write one of them and not the others, and no turn would ever end. So the rows of
these tokens are drawn anew, like those of tokens that were read.

Source: Hu et al. 2021 (LoRA); Dettmers et al. 2023 (QLoRA), section 3; for the rows
Hewitt 2021, "Initializing New Word Embeddings for Pretrained Language Models".
"""

import copy
from dataclasses import asdict, dataclass
from functools import partial

import torch

from minillm.alignment.own_responses import frozen_copy
from minillm.compression.linear import held_bytes
from minillm.data.examples import Examples
from minillm.finetuning import (
    apply_lora,
    apply_qlora,
    count_trainable,
    finetune,
    lora_layers,
    merged_floats,
    save_lora,
    sft_config,
    sft_examples,
)
from minillm.finetuning.targets import put
from minillm.model import GPT
from minillm.school.pipeline import Run
from minillm.school.tiny_align import Start, trained
from minillm.school.tiny_sft import BATCH, EXAMPLES, RATES, respond_to_all
from minillm.school.tinytext import TinyText
from minillm.training import TrainConfig, Trainer
from minillm.training.checkpoints import save_checkpoint
from minillm.world.instructions import instructions

LORA = {"rank": 8, "alpha": 16.0, "targets": "all"}
LORA_RATE = {"optimizer": "adamw", "lr": 4e-3, "warmup": 50}
BASE = "lora-base"  # the folder of the model that adapters belong to
WAYS = {"lora": apply_lora, "qlora": apply_qlora}


@dataclass(frozen=True)
class Cost:
    """Parameters that are trained, and bytes that are held to train them."""

    trained: int
    weights: int
    gradients: int
    moments: int

    @property
    def nbytes(self) -> int:
        """All bytes."""
        return self.weights + self.gradients + self.moments


@dataclass(frozen=True)
class Found:
    """What a way of fine-tuning costs, gives and forgets."""

    cost: Cost
    rows: list[tuple[str, ...]]  # metric, truth and measured, of its responses
    right: float  # part of the held-out instructions
    before: float  # excess over the floor, on documents
    after: float


def fine_tune_cheaply(
    run: Run, text: TinyText, base: GPT, resumed: bool
) -> dict[str, Found]:
    """Fine-tune copies of the base by LoRA and QLoRA; measure them as full SFT was.

    The stages that follow draw the random numbers that they would draw without it.

    Args:
        run: that has fine-tuned another copy of the base, and asked it.
        text: of the tour.
        base: the pre-trained model; its rows for unread tokens are drawn anew.
        resumed: read again what was trained already.
    """
    seed, before = run.settings["seed"], run.results["excess"]["total"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        examples = lessons(text, base.config.context, seed)
        full = copy.deepcopy(base).requires_grad_(True)
        cost = cost_of(full, examples, sft_config(examples, epochs=1, **RATES))
        found = {"sft": gathered(run, cost, before)}
        n = tell_apart(base, text, examples)
        start = Start(text, frozen_copy(base), None, seed)
        before = text.test.excess(start.assistant).total
        text.tokenizer.save(run.folder / BASE / "tokenizer.json")
        keep = run.folder / BASE / "checkpoint.safetensors"
        save_checkpoint(keep, base, [], 0, {"drawn anew": n})
        for name in WAYS:
            found[name] = one_way(run, name, start, examples, before, resumed)
            tell(run, name, found["sft"].cost, found[name])
    run.results["adapters"] = {name: asdict(one) for name, one in found.items()}
    return found


def lessons(text: TinyText, T: int, seed: int) -> Examples:
    """What full fine-tuning learns from, in the same order."""
    good = [(i.prompt, i.good) for i in instructions(text.world.lore, EXAMPLES)]
    encoded = sft_examples(text.tokenizer, good)
    return Examples(encoded, T=T, B=BATCH, pad=text.tokenizer.pad, seed=seed)


def cost_of(model: GPT, examples: Examples, config: TrainConfig) -> Cost:
    """Train a copy for one step, and count what is held then.

    >>> from minillm.data.chat import Encoded
    >>> from minillm.model import GPTConfig
    >>> model = GPT(GPTConfig(64, n_layer=1, n_head=2, n_embd=16))
    >>> examples = Examples([Encoded([5, 6], [False, True])], T=8, B=1, pad=0)
    >>> cost = cost_of(model, examples, TrainConfig(1))
    >>> cost.weights == cost.gradients == 4 * cost.trained
    True
    """
    trainer = Trainer(copy.deepcopy(model), examples, config, progress=False)
    trainer.train_step()
    parameters = trainer.model.parameters()
    gradients = sum(p.grad.nbytes for p in parameters if p.grad is not None)
    states = [s for o in trainer.optimizers for s in o.state.values()]
    moments = sum(t.nbytes for s in states for t in s.values() if torch.is_tensor(t))
    weights = held_bytes(trainer.model)
    return Cost(count_trainable(model)[0], weights, gradients, moments)


@torch.no_grad()
def tell_apart(base: GPT, text: TinyText, examples: Examples) -> int:
    """Draw new rows, in place, for tokens that only examples hold; return how many."""
    E = base.embed_tokens.weight
    read = torch.bincount(text.rows.flatten(), minlength=len(E)) > 0
    used = torch.zeros_like(read)
    used[sorted({i for ids, _ in examples.encoded for i in ids})] = True
    new, known = used & ~read, E[read]
    E[new] = known.mean(0) + known.std(0) * torch.randn_like(E[new])
    return int(new.sum())


def one_way(
    run: Run, name: str, start: Start, examples: Examples, before: float, resumed: bool
) -> Found:
    """Train one adapter beside a copy of the base, and ask what full SFT was asked."""
    config = sft_config(examples, epochs=1, **LORA_RATE)
    with run.stage(name, f"the same instructions, rank {LORA['rank']}"):
        base = copy.deepcopy(start.assistant)
        cost = cost_of(WAYS[name](base, **LORA), examples, config)
        way = partial(learn, run=run, name=name, examples=examples, config=config)
        model = trained(run, name, way, start, resumed)
        own = Run(run.folder, run.settings)
        respond_to_all(own, start.text, model)
    return gathered(own, cost, before)


def learn(
    policy: GPT, _: Start, run: Run, name: str, examples: Examples, config: TrainConfig
) -> None:
    """Train an adapter, save it alone in PEFT's format, and merge it into floats."""
    WAYS[name](policy, **LORA)
    finetune(policy, examples, config)
    save_lora(policy, run.folder / name, base=str(run.folder / BASE))
    plain = merged_floats(policy)
    for layer in lora_layers(policy):
        put(policy, layer, plain.get_submodule(layer))


def gathered(run: Run, cost: Cost, before: float) -> Found:
    """What a run that has been asked tells of its responses."""
    rows = [tuple(cells) for stage, *cells in run.rows if stage == "respond"]
    right, after = run.results["responses"]["right"], run.results["excess after SFT"]
    return Found(cost, rows, right, before, after)


def tell(run: Run, name: str, full: Cost, found: Found) -> None:
    """Rows for the table: prices beside those of full SFT, then the same questions."""
    held = "bytes: weights, gradients, moments"
    for metric, part in (("parameters trained", "trained"), (held, "nbytes")):
        theirs, ours = (f"{getattr(cost, part):,}" for cost in (full, found.cost))
        run.add(name, metric, f"{theirs} in full SFT", ours)
    for row in found.rows:
        run.add(name, *row)
