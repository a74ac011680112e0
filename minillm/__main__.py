"""The command line: ``minillm tour | train | generate | ask | check | grade | ...``.

Heavy imports happen inside the commands, so that ``--help`` answers at once.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from minillm.school.classroom import add_classroom


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit status.

    Bad input is told in one sentence, with status 2; ``MINILLM_TRACEBACK=1`` shows
    where it was found. Ctrl-C ends with status 130.
    """
    # Threads of GNU's OpenMP (torch on Linux) spin while they wait for each other. For
    # ever, a step takes ten times as long where there is other work to do; never, the
    # second thread gains nothing. A little has the best of both. Read when torch comes.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    options = parser().parse_args(argv)
    try:
        return options.command(options) or 0
    except KeyboardInterrupt as stop:
        print(f"\nminillm: {stop or 'interrupted'}", file=sys.stderr)
        return 130
    except (ValueError, TypeError, OSError, FloatingPointError) as error:
        if os.environ.get("MINILLM_TRACEBACK"):
            raise
        print(f"\nminillm: {error}", file=sys.stderr)
        return 2


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    top = argparse.ArgumentParser(
        "minillm", description="Train language models, and see."
    )
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    _add_tour(commands)
    _add_train(commands)
    _add_generate(commands)
    _add_ask(commands)
    _add_export(commands)
    add_classroom(commands)
    return top


def _add_tour(commands) -> None:
    tour = commands.add_parser(
        "tour", help="the whole pipeline, in minutes, with a report"
    )
    source = "tinyworld (default) | python-docs | FILE | FOLDER | hf:NAME"
    tour.add_argument("--data", help=f"text to train on: {source}")
    tour.add_argument("--minutes", type=float, help="of pre-training (default 1.25)")
    tour.add_argument("--size", help="tiny (default) | small | medium | large")
    tour.add_argument("--vocab-size", type=int, help="tokens (default 1024)")
    tour.add_argument("--prompt", help="what the samples continue")
    tour.add_argument("--seed", type=int, help="default 0")
    tour.add_argument("--out", default="runs/tour", help="folder (default %(default)s)")
    tour.add_argument("--fresh", action="store_true", help="discard an interrupted run")
    tour.set_defaults(command=_tour)


def _add_train(commands) -> None:
    train = commands.add_parser(
        "train", help="pre-train for a number of steps; runs under torchrun, too"
    )
    train.add_argument("--data", default="python-docs", help="as in tour")
    train.add_argument("--out", required=True, help="folder; an unfinished run goes on")
    train.add_argument("--steps", type=int, required=True)
    train.add_argument("--size", default="small", help="tiny | small | medium | large")
    train.add_argument("--vocab-size", type=int, default=1024)
    train.add_argument("--context", type=int, default=128, help="tokens in a row")
    train.add_argument("--batch", type=int, default=16, help="rows, over all processes")
    train.add_argument("--accumulate", type=int, default=1, help="batches in a step")
    train.add_argument(
        "--optimizer", default="muon", help="muon | adamw | adamw-by-hand"
    )
    train.add_argument("--lr", type=float, default=5e-3, help="of AdamW")
    train.add_argument("--schedule", default="wsd", help="wsd | cosine | constant")
    train.add_argument("--precision", default="float32", help="float32 | bfloat16")
    train.add_argument("--parallel", default="ddp", help="ddp | fsdp, under torchrun")
    train.add_argument("--device", default="cpu", help="cpu | cuda")
    train.add_argument("--save-every", type=int, default=200, help="steps")
    train.add_argument("--seed", type=int, default=0)
    train.set_defaults(command=_train)


def _add_generate(commands) -> None:
    generate = commands.add_parser("generate", help="let a trained model go on writing")
    generate.add_argument("run", help="folder of a run, for instance runs/tour")
    generate.add_argument("prompt")
    generate.add_argument(
        "--tokens", type=int, default=80, help="at most so many new ones"
    )
    generate.add_argument("--temperature", type=float, default=0.8, help="0 is greedy")
    generate.add_argument("--top-k", type=int)
    generate.add_argument("--top-p", type=float, default=0.95)
    generate.add_argument("--min-p", type=float)
    generate.add_argument("--repetition-penalty", type=float, default=1.0)
    generate.add_argument("--seed", type=int, default=0)
    generate.set_defaults(command=_generate)


def _add_ask(commands) -> None:
    ask = commands.add_parser("ask", help="let a fine-tuned model respond")
    ask.add_argument("run", help="folder of a run on TinyWorld, for instance runs/tour")
    ask.add_argument("prompts", nargs="+", metavar="prompt", help="what a user says")
    ask.add_argument("--tokens", type=int, default=40, help="at most so many new ones")
    ask.set_defaults(command=_ask)


def _add_export(commands) -> None:
    export = commands.add_parser("export", help="write a run as a Hugging Face Llama")
    export.add_argument("run", help="folder of a run, for instance runs/tour")
    export.add_argument("folder", help="where the Hugging Face files go")
    export.set_defaults(command=_export)


def _tour(options: argparse.Namespace) -> None:
    from minillm.school.options import options_from
    from minillm.school.tour import tour

    given = vars(options)
    tour(options_from(**given), options.out, options.fresh)


def _train(options: argparse.Namespace) -> None:
    from minillm.school.pretrain import pretrain_steps
    from minillm.training.distributed import leave_world

    given = {k: v for k, v in vars(options).items() if k != "command"}
    pretrain_steps(**given)
    leave_world()


def _load_run(folder: str):
    """Model and tokenizer of a run."""
    from minillm.data import Tokenizer
    from minillm.training import load_model

    model = load_model(Path(folder) / "checkpoint.safetensors")
    return model, Tokenizer.load(Path(folder) / "tokenizer.json")


def _generate(options: argparse.Namespace) -> None:
    import torch

    from minillm.model import Sampling, generate

    model, tokenizer = _load_run(options.run)
    sampling = Sampling(
        options.temperature,
        options.top_k,
        options.top_p,
        options.min_p,
        options.repetition_penalty,
    )
    ids = [tokenizer.eot, *tokenizer.encode(options.prompt)]
    generator = torch.Generator().manual_seed(options.seed)
    written = generate(
        model, [ids], options.tokens, sampling, tokenizer.eot, generator=generator
    )
    new = [i for i in written.completions()[0] if i != tokenizer.eot]
    print(options.prompt + tokenizer.decode(new))


def _ask(options: argparse.Namespace) -> None:
    from minillm.errors import require
    from minillm.finetuning import respond

    folder = Path(options.run)
    tuned = folder / "sft" if (folder / "sft").is_dir() else folder
    chats = tuned.name == "sft"
    remedy = "run the tour on TinyWorld first: python course.py run"
    require(chats, "run", str(folder), "a run with a fine-tuned model", remedy)
    model, tokenizer = _load_run(str(tuned))
    said = respond(model, tokenizer, options.prompts, options.tokens)
    for prompt, response in zip(options.prompts, said, strict=True):
        print(f"{prompt}\n   {response}")


def _export(options: argparse.Namespace) -> None:
    from minillm.model import export_huggingface

    model, tokenizer = _load_run(options.run)
    folder = export_huggingface(model, options.folder, tokenizer)
    print(f"written to {folder}; load it with")
    print(f"    AutoModelForCausalLM.from_pretrained({str(folder)!r})")
    print(f"    AutoTokenizer.from_pretrained({str(folder)!r})")


if __name__ == "__main__":
    sys.exit(main())
