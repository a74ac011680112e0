"""The main job on TinyWorld, where every measurement stands beside the truth.

world     the language writes documents and says what each of them is worth
tokenize  a byte-level BPE learns its vocabulary
train     a Llama-style model learns to predict the next token
measure   how far from the floor, and in what? what does it know, can it reckon?
          is it as sure as it is right, and what does it say of nobody?
sft       the same model learns to respond to instructions
respond   held-out instructions, true reward, people who do not exist
lora      another copy learns the same by LoRA: what is trained, held, forgotten?
qlora     the same beside weights in four bits
reward    a model of what annotators prefer, beside what is truly good
ppo       the assistant earns that model's praise: is it better for it?
dpo       or learns from the verdicts themselves
grpo      or from a verifier, who knows what is right
report    a table and a page with pictures
"""

import copy
from pathlib import Path

from minillm.data.packed import Rows
from minillm.school.options import TRAINING, TourOptions
from minillm.school.pipeline import Run
from minillm.school.pretraining import pretrain
from minillm.school.tiny_align import align
from minillm.school.tiny_judge import teach_judge
from minillm.school.tiny_looks import TinyLook
from minillm.school.tiny_lora import fine_tune_cheaply
from minillm.school.tiny_measure import measure
from minillm.school.tiny_sft import fine_tune, respond_to_all
from minillm.school.tinytext import TinyText, tiny_text
from minillm.training import Trainer

PER_MINUTE = 200_000  # documents; more than a laptop reads in a minute
MOST = 600_000  # then they are read again


def tiny_tour(run: Run, options: TourOptions, resumed: bool) -> Path:
    """Take the model through the stages for TinyWorld; return the page."""
    text = write(run, options)
    rows = Rows(text.rows, options.batch, options.seed)

    def look_at(trainer: Trainer) -> TinyLook:
        return TinyLook(run, text, trainer)

    model, metrics, looks = pretrain(
        run, options, text.tokenizer, rows, look_at, resumed, **TRAINING
    )
    measured, base = measure(run, text, model), copy.deepcopy(model)
    assistant = fine_tune(run, options, text, model, resumed)
    responses = respond_to_all(run, text, assistant)
    cheaper = fine_tune_cheaply(run, text, base, resumed)
    judge = teach_judge(run, text, assistant)
    aligned = align(run, text, assistant, judge, resumed)
    from minillm.school.tiny_report import write_report  # matplotlib takes a second

    with run.stage("report", "drawing what was measured"):
        said = (measured, responses, cheaper, aligned)
        return write_report(run, text, model, metrics, looks, *said)


def write(run: Run, options: TourOptions) -> TinyText:
    """Let the world write, and learn its tokenizer."""
    n = min(max(2_000, int(PER_MINUTE * options.minutes)), MOST)
    with run.stage("world", f"{n:,} documents, each with what it is worth"):
        text = tiny_text(
            None, n, 1500, options.vocab_size, options.context, progress=True
        )
        text.tokenizer.save(run.folder / "tokenizer.json")
    documents = text.test.documents
    n_tokens = sum(len(account) + 1 for account in text.test.accounts)
    floor, nats = (sum(getattr(d, x) for d in documents) for x in ("floor", "nats"))
    run.add("world", "floor (nats per token)", f"{floor / n_tokens:.3f}", "")
    facts = f"{nats / n_tokens:.3f}"
    run.add("world", "the same for who knows no fact", facts, "")
    run.add("world", "tokens to train on", "", f"{text.rows.numel():,}")
    return text
