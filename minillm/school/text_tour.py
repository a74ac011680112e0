"""The main job on real text, whose truth nobody knows.

read      documents, some held out
tokenize  a byte-level BPE learns its vocabulary from the training text
train     a Llama-style model learns to predict the next token
evaluate  bits per byte on held-out text, beside gzip, xz and a 5-gram model
report    a table and a page with pictures
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from minillm.data import Corpus, Tokenizer, load_corpus, overlap, train_heldout_split
from minillm.data.batches import Windows
from minillm.evaluation import Likelihood, bits_per_byte, score_stream
from minillm.evaluation.baselines import compressor_bits_per_byte
from minillm.evaluation.ngram import KneserNey
from minillm.model import GPT
from minillm.school.looks import Look
from minillm.school.options import TourOptions
from minillm.school.pipeline import Run
from minillm.school.pretraining import pretrain
from minillm.training import Trainer


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


def text_tour(run: Run, options: TourOptions, resumed: bool) -> Path:
    """Take the model through the stages for real text; return the page."""
    text = prepare(run, options)
    windows = Windows(text.train_stream, options.context, options.batch, options.seed)

    def look_at(trainer: Trainer) -> Look:
        return Look(run, text, trainer)

    model, metrics, looks = pretrain(
        run, options, text.tokenizer, windows, look_at, resumed
    )
    scores = evaluate(run, text, model)
    from minillm.school.text_report import write_report  # matplotlib takes a second

    with run.stage("report", "drawing what was measured"):
        return write_report(run, options, text, model, metrics, looks, scores)


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
