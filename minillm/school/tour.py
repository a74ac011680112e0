"""The main job: text, tokenizer, pre-training, evaluation, samples, report.

Everything that the course explains happens here once, at the size of a laptop:

    read      documents, some held out
    tokenize  a byte-level BPE learns its vocabulary from the training text
    train     a Llama-style model learns to predict the next token
    evaluate  bits per byte on held-out text, beside gzip, xz and a 5-gram model
    report    a table and a page with pictures

An interrupted run goes on where it stopped when the same command is given again.
"""

import statistics
from dataclasses import dataclass
from pathlib import Path

import torch

from minillm.data import Corpus, Tokenizer, load_corpus, overlap, train_heldout_split
from minillm.data.batches import Windows
from minillm.evaluation import Likelihood, bits_per_byte, score_stream
from minillm.evaluation.baselines import compressor_bits_per_byte
from minillm.evaluation.ngram import KneserNey
from minillm.model import GPT, count_parameters
from minillm.school.looks import Look
from minillm.school.options import TourOptions, model_config
from minillm.school.pace import UNKNOWN, Pace
from minillm.school.pipeline import HEADER, Run, open_run
from minillm.school.report import plain_table
from minillm.training import MetricsLog, TrainConfig, Trainer, load_checkpoint


@dataclass(frozen=True)
class Text:
    """A corpus as the model sees it: both parts as text and as one stream of tokens."""

    corpus: Corpus
    train: list[str]
    heldout: list[str]
    tokenizer: Tokenizer
    train_stream: torch.Tensor
    heldout_stream: torch.Tensor

    @property
    def heldout_bytes(self) -> int:
        """Bytes of held-out text; a document's end counts as none."""
        return sum(len(document.encode()) for document in self.heldout)


def tour(
    options: TourOptions, folder: str | Path = "runs/tour", fresh: bool = False
) -> Run:
    """Take the model through the pipeline; return the run with its table.

    Args:
        options: what to do.
        folder: where weights, tokenizer, measurements and ``report.html`` go.
        fresh: discard an interrupted run in that folder.

    Raises:
        TrainingInterrupted: Ctrl-C; the same call goes on.
        ValueError, FileNotFoundError: see ``load_corpus`` and ``open_run``.
    """
    from minillm.school.tour_report import write_report  # matplotlib takes a second

    run, resumed = open_run(folder, options, fresh)
    text = prepare(run, options)
    model, metrics, looks = pretrain(run, options, text, resumed)
    scores = evaluate(run, text, model)
    with run.stage("report", "drawing what was measured"):
        page = write_report(run, options, text, model, metrics, looks, scores)
    run.save(finished=True)
    print("\n" + plain_table(HEADER, run.table()))
    print(f"\nreport: {page}")
    return run


def prepare(run: Run, options: TourOptions) -> Text:
    """Read the corpus, hold a part out, learn the tokenizer on the rest."""
    with run.stage("read", f"documents from {options.data}"):
        corpus = load_corpus(options.data, progress=True)
        train, heldout = train_heldout_split(corpus.documents, 0.08, options.seed)
        run.add("read", "documents", "", f"{len(corpus.documents):,}")
        run.add("read", "bytes", "", f"{corpus.n_bytes:,}")
        leaked = f"{overlap(train, heldout):.1%}"
        run.add("read", "held-out text also in training", "0.0%", leaked)
    with run.stage("tokenize", f"learning {options.vocab_size:,} tokens"):
        tokenizer = Tokenizer.train(train, options.vocab_size, progress=True)
        tokenizer.save(run.folder / "tokenizer.json")
        streams = [join(tokenizer, documents) for documents in (train, heldout)]
        n_bytes = sum(len(document.encode()) for document in train)
        run.add("tokenize", "vocabulary", "256", f"{tokenizer.vocab_size:,}")
        length = f"{n_bytes / len(streams[0]):.2f}"
        run.add("tokenize", "bytes per token", "1.00", length)
    return Text(corpus, train, heldout, tokenizer, *streams)


def join(tokenizer: Tokenizer, documents: list[str]) -> torch.Tensor:
    """Encode documents as one stream, an end-of-text token after each.

    >>> join(Tokenizer(merges=()), ["a", "b"])
    tensor([ 97, 256,  98, 256])
    """
    encoded = tokenizer.encode_batch(documents)
    return torch.tensor([i for ids in encoded for i in (*ids, tokenizer.eot)])


def pretrain(
    run: Run, options: TourOptions, text: Text, resumed: bool
) -> tuple[GPT, MetricsLog, MetricsLog]:
    """Train a new model, or go on; return it, the measurements and the looks at it."""
    torch.manual_seed(options.seed)
    model = GPT(model_config(options, text.tokenizer))
    windows = Windows(text.train_stream, options.context, options.batch, options.seed)
    run.save(finished=False)
    config = TrainConfig(steps_planned(run, resumed), save_every=100)
    n = count_parameters(model.config)["total"]
    size = options.batch * options.context
    doing = f"{n:,} parameters, {options.minutes:g} minutes, {size:,} tokens a step"
    with run.stage("train", doing):
        trainer = Trainer(model, windows, config, run.folder, resume=resumed)
        pace, look = Pace(trainer, options.minutes), Look(run, text, trainer)

        def on_step(trainer: Trainer) -> None:
            pace(trainer)
            look(trainer)

        trainer.on_step = on_step
        metrics = trainer.fit()
    model.eval()
    tokens = sum(metrics.column("tokens"))
    run.add("train", "parameters", "", f"{n:,}")
    run.add("train", "tokens seen", f"{len(text.train_stream):,} in all", f"{tokens:,}")
    loss = statistics.fmean(metrics.column("loss")[-20:])
    run.add("train", "loss, last 20 steps (nats)", "", f"{loss:.3f}")
    return model, metrics, look.log


def steps_planned(run: Run, resumed: bool) -> int:
    """What the checkpoint of an interrupted run was heading for; else not known yet."""
    path = run.folder / "checkpoint.safetensors"
    if not (resumed and path.is_file()):
        return UNKNOWN
    return load_checkpoint(path).notes["steps"]


def evaluate(run: Run, text: Text, model: GPT) -> dict[str, float]:
    """Score the held-out text in bits per byte, with the model and with yardsticks."""
    n_bytes = text.heldout_bytes
    with run.stage("evaluate", f"{n_bytes:,} bytes that training has not seen"):
        nats = -score_stream(model, text.heldout_stream).sum().item()
        likelihood = Likelihood(nats, len(text.heldout_stream), n_bytes)
        ids = text.train_stream.numpy()
        ngram = KneserNey.fit(ids, text.tokenizer.vocab_size, order=5)
        ngram_nats = -ngram.logprobs(text.heldout_stream.numpy()).sum().item()
        train, heldout = (
            "\0".join(part).encode() for part in (text.train, text.heldout)
        )
        scores = {
            "gzip": compressor_bits_per_byte(heldout, "gzip"),
            "xz": compressor_bits_per_byte(heldout, "xz"),
            "gzip (primed)": compressor_bits_per_byte(heldout, "gzip", train),
            "xz (primed)": compressor_bits_per_byte(heldout, "xz", train),
            "5-gram": bits_per_byte(ngram_nats, n_bytes),
            "minillm": likelihood.bits_per_byte,
        }
    run.results["bits per byte"] = scores
    measured = f"{scores['minillm']:.3f}"
    for name in ("gzip", "xz (primed)", "5-gram"):
        yardstick = f"{scores[name]:.3f} {name}"
        run.add("evaluate", "held-out bits per byte", yardstick, measured)
    perplexity = f"{likelihood.perplexity:.1f}"
    uniform = f"{text.tokenizer.vocab_size:,} uniform"
    run.add("evaluate", "held-out perplexity per token", uniform, perplexity)
    return scores
