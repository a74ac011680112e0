"""What the user of the main job may choose, and the models that the sizes stand for."""

from dataclasses import dataclass, fields

from minillm.data import Tokenizer
from minillm.errors import require, require_one_of
from minillm.model import GPTConfig

# name -> layers, heads, width; the vocabulary stays small, or it would be the model
SIZES = {
    "tiny": (2, 4, 64),
    "small": (3, 3, 96),
    "medium": (4, 4, 128),
    "large": (6, 6, 192),
}

TINYWORLD = "tinyworld"
# Rates for pre-training on it: studies/01 compares them. Its text never repeats, so
# there is nothing to regularise.
TRAINING = {"lr": 1e-2, "matrix_lr": 1e-2, "weight_decay": 0.0}


@dataclass(frozen=True)
class TourOptions:
    """What the user of the main job may choose.

    Args:
        data: "tinyworld", or real text as in ``load_corpus``.
        minutes: of pre-training; the rest takes about a minute.
        size: one of ``SIZES``.
        vocab_size: tokens of the vocabulary.
        context: tokens that the model sees at once.
        batch: rows in a batch.
        seed: of weights, data order and samples.
        prompt: what the samples continue; ``None`` takes the first words of a held-out
            document.

    Raises:
        ValueError: a value out of its range.
    """

    data: str = TINYWORLD
    minutes: float = 1.25
    size: str = "tiny"
    vocab_size: int = 1024
    context: int = 128
    batch: int = 16
    seed: int = 0
    prompt: str | None = None

    def __post_init__(self) -> None:
        m = self.minutes
        require(0 < m <= 10_000, "minutes", m, "positive", "try 1.25")
        require_one_of(SIZES, size=self.size)


REAL_TEXT = {"minutes": 1.75, "size": "small"}  # defaults; it has more to learn


def options_from(**given) -> TourOptions:
    """Options from the command line, where ``None`` means not given.

    >>> options_from(data="book.txt", minutes=None).minutes
    1.75
    """
    known = [field.name for field in fields(TourOptions)]
    chosen = {name: v for name, v in given.items() if name in known and v is not None}
    real = chosen.get("data", TINYWORLD) != TINYWORLD
    return TourOptions(**((REAL_TEXT if real else {}) | chosen))


def model_config(options: TourOptions, tokenizer: Tokenizer) -> GPTConfig:
    """The shape of the model that the options ask for."""
    n_layer, n_head, n_embd = SIZES[options.size]
    return GPTConfig(
        tokenizer.vocab_size,
        n_layer=n_layer,
        n_head=n_head,
        n_embd=n_embd,
        context=options.context,
    )
