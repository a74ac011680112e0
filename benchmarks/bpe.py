"""How fast is BPE in pure Python, and how fast is the engine behind the tokenizer?

    python benchmarks/bpe.py

Training compares our trainer with Hugging Face's (in Rust) on one megabyte of Python's
documentation; both learn the same merges, and this is checked. Encoding compares our
tokenizer with a bare tiktoken of the same vocabulary, with Hugging Face, and with the
readable encoder. All on one thread, in CPU seconds.
"""

import json
import warnings
from functools import partial
from tempfile import TemporaryDirectory

import tiktoken
import tokenizers
from common import interleaved, print_table, write_result

from minillm.data import Tokenizer, bpe, load_corpus
from minillm.data.huggingface import byte_alphabet
from minillm.data.pieces import PATTERN

VOCAB_SIZES = (512, 1024, 4096)
REPEATS = 5


def one_megabyte() -> str:
    text = "\n".join(load_corpus("python-docs").documents)
    return text.encode()[:1_000_000].decode(errors="ignore")


def train_huggingface(text: str, vocab_size: int) -> tokenizers.Tokenizer:
    """Their trainer on our pieces, with the bytes listed first so that ties agree."""
    pre = tokenizers.pre_tokenizers
    engine = tokenizers.Tokenizer(tokenizers.models.BPE())
    cut = pre.Split(tokenizers.Regex(PATTERN), "isolated")
    to_bytes = pre.ByteLevel(add_prefix_space=False, use_regex=False)
    engine.pre_tokenizer = pre.Sequence([cut, to_bytes])
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(byte_alphabet()),
        show_progress=False,
        min_frequency=0,
    )
    engine.train_from_iterator([text], trainer)
    return engine


def same_merges(text: str, vocab_size: int) -> bool:
    model = json.loads(train_huggingface(text, vocab_size).to_str())["model"]
    theirs = [(model["vocab"][a], model["vocab"][b]) for a, b in model["merges"]]
    return theirs == bpe.train_bpe(text, vocab_size)


def time_training(text: str) -> dict[str, dict]:
    results = {}
    for vocab_size in VOCAB_SIZES:
        rivals = {
            "minillm": partial(bpe.train_bpe, text, vocab_size),
            "huggingface": partial(train_huggingface, text, vocab_size),
        }
        timings = interleaved(rivals, REPEATS)
        print_table(f"Training {vocab_size} tokens on 1 MB", timings)
        results[str(vocab_size)] = {
            "same_merges": same_merges(text, vocab_size),
            "timings": timings,
        }
    return results


def time_encoding(text: str, vocab_size: int = 4096) -> dict:
    ours = Tokenizer.train(text, vocab_size)
    ranks = {token: i for i, token in enumerate(bpe.token_bytes(ours.merges))}
    bare = tiktoken.Encoding(
        "bare", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={}
    )
    with TemporaryDirectory() as folder:
        ours.to_huggingface(folder)
        theirs = tokenizers.Tokenizer.from_file(f"{folder}/tokenizer.json")
    rivals = {
        "minillm": lambda: ours.encode(text),
        "tiktoken": lambda: bare.encode_ordinary(text),
        "huggingface": lambda: theirs.encode(text).ids,
        "readable (bpe.encode)": lambda: bpe.encode(text, ours.merges),
    }
    ids = [encode() for encode in rivals.values()]  # warms up, too
    timings = interleaved(rivals, REPEATS)
    print_table(f"Encoding 1 MB with {vocab_size} tokens", timings)
    same = all(other == ids[0] for other in ids)
    return {"vocab_size": vocab_size, "same_ids": same, "timings": timings}


def main() -> None:
    warnings.simplefilter("error")  # a vocabulary out of reach would be no benchmark
    text = one_megabyte()
    result = {
        "what": "CPU seconds, median of interleaved repeats, ratio to the first",
        "text_bytes": len(text.encode()),
        "repeats": REPEATS,
        "training": time_training(text),
        "encoding": time_encoding(text),
    }
    path = write_result("bpe", result, "tiktoken", "tokenizers")
    print(f"\nwritten to {path.parent.name}/{path.name}")


if __name__ == "__main__":
    main()
