"""Looking at a model while it learns: how well it predicts, and what it writes.

A loss curve says that something happens; a text says what. First the model finds out
which letters there are, then words, then what a sentence looks like.
"""

import torch

from minillm.data import Tokenizer
from minillm.evaluation import score_stream
from minillm.model import GPT, Sampling, generate
from minillm.training import MetricsLog, Trainer

SAMPLING = Sampling(temperature=0.8, top_p=0.95)
PARTS = (0.01, 0.04, 0.12, 0.3, 0.6, 1.0)  # of all steps; most happens early


class Look:
    """Now and then during training: how well does it predict, what does it write?

    Both are recorded beside the metrics. Nothing is drawn from the global generators,
    so a run that is watched trains exactly like one that is not.
    """

    def __init__(self, run, text, trainer: Trainer):
        self.text, self.seed = text, run.settings["seed"]
        self.prompt = run.settings["prompt"] or first_words(text.heldout)
        self.part = text.heldout_stream[:8192]  # enough for a curve
        self.log = MetricsLog(run.folder / "looks.jsonl", before=trainer.step + 1)

    def __call__(self, trainer: Trainer) -> None:
        """Look, if it is time to."""
        steps = trainer.config.steps  # it may have been planned anew
        if trainer.step not in {max(round(part * steps), 1) for part in PARTS}:
            return
        nats = -score_stream(trainer.model, self.part).mean().item()
        tokens = sum(trainer.metrics.column("tokens"))
        written = write_sample(
            trainer.model, self.text.tokenizer, self.prompt, self.seed
        )
        record = {"step": trainer.step, "tokens": tokens, "heldout_loss": nats}
        self.log.append(record | {"prompt": self.prompt, "sample": written})


def first_words(documents: list[str], n: int = 5) -> str:
    """The beginning of the first line that reads like prose, to be continued.

    >>> first_words(["*** 3.14", "The quick brown fox, jumping over dogs"], n=3)
    'The quick brown'
    """
    for line in (line for document in documents for line in document.splitlines()):
        words = line.split()
        if len(words) > n and all(w.strip(".,;:").isalpha() for w in words):
            return " ".join(words[:n])
    return " ".join(documents[0].split()[:n])


def write_sample(
    model: GPT, tokenizer: Tokenizer, prompt: str, seed: int, n: int = 90
) -> str:
    """Continue a prompt with ``SAMPLING``; the same seed writes the same text."""
    ids = [tokenizer.eot, *tokenizer.encode(prompt)]
    ids = ids[-(model.config.context // 2) :]
    n = min(n, model.config.context - len(ids))
    generator = torch.Generator().manual_seed(seed)
    written = generate(model, [ids], n, SAMPLING, tokenizer.eot, generator=generator)
    return tokenizer.decode(i for i in written.completions()[0] if i != tokenizer.eot)
