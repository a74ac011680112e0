"""The tokenizer: merges from our own trainer, special tokens, and a fast engine.

Ids are laid out in three parts:

    0 ... 255           the bytes, so that every text can be spelled
    256 ... 255 + M     the M merges in the order of learning
    256 + M ...         the special tokens

Special tokens are marks of structure, such as the end of a document, and no text
spells them: ``encode`` reads "<|im_end|>" in a user's message as ten ordinary
characters. If it did not, every user could end their own turn and speak as the system.

Padding has a token of its own. Where the end of text serves as padding too, it is
masked out of the loss, and the model never learns to stop.

The pure Python encoder in ``minillm.data.bpe`` says what encoding means. The work is
done by tiktoken with our merges, some thirty times as fast; tests prove the ids equal.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import index
from pathlib import Path
from typing import Any

import tiktoken

from minillm.data import huggingface
from minillm.data.bpe import Pair, encode_piece, token_bytes, train_bpe
from minillm.data.pieces import PATTERN, split, utf8
from minillm.errors import require
from minillm.files import atomic_write

END_OF_TEXT, PAD = "<|endoftext|>", "<|pad|>"
SPECIAL_TOKENS = (END_OF_TEXT, "<|im_start|>", "<|im_end|>", PAD)
FORMAT, VERSION = "minillm-tokenizer", 1


@dataclass(frozen=True)
class Tokenizer:
    """Text to ids and back.

    Args:
        merges: pair ``i`` becomes id ``256 + i``, as ``train_bpe`` returns them.
        special_names: names of the special tokens; their ids follow the merges.
        pattern: regular expression that cuts text into pieces.

    Raises:
        ValueError: a merge of ids that do not exist yet, a merge that can never happen
            (engines disagree about such vocabularies), a special name given twice.

    >>> tokenizer = Tokenizer(merges=((104, 101), (256, 108)))
    >>> tokenizer.encode("hello")
    [257, 108, 111]
    >>> tokenizer.decode([257, 108, 111])
    'hello'
    """

    merges: tuple[Pair, ...]
    special_names: tuple[str, ...] = SPECIAL_TOKENS
    pattern: str = PATTERN

    def __post_init__(self) -> None:
        merges = tuple((index(left), index(right)) for left, right in self.merges)
        names = tuple(self.special_names)
        object.__setattr__(self, "merges", merges)
        object.__setattr__(self, "special_names", names)
        split("", self.pattern)  # a broken pattern fails here and not in the engine
        _check_merges(merges)
        fine = all(isinstance(n, str) and n for n in names)
        require(
            fine and len(set(names)) == len(names),
            "special_names",
            names,
            "different, non-empty strings",
            "give each special token one name",
        )

    @classmethod
    def train(
        cls,
        texts: str | Iterable[str],
        vocab_size: int,
        special_tokens: Sequence[str] = SPECIAL_TOKENS,
        pattern: str = PATTERN,
        progress: bool = False,
    ) -> "Tokenizer":
        """Learn a tokenizer of ``vocab_size`` tokens, bytes and special ones included.

        >>> tokenizer = Tokenizer.train("aaabdaaabac", vocab_size=263)
        >>> tokenizer.vocab_size, tokenizer.eot
        (263, 259)
        """
        least = 256 + len(special_tokens)
        require(
            isinstance(vocab_size, int) and vocab_size >= least,
            "vocab_size",
            vocab_size,
            f"an int of at least {least} (256 bytes, {len(special_tokens)} special)",
            "choose a larger vocabulary",
        )
        merges = train_bpe(texts, vocab_size - len(special_tokens), pattern, progress)
        return cls(tuple(merges), tuple(special_tokens), pattern)

    # --- The vocabulary -------------------------------------------------------------

    @property
    def vocab_size(self) -> int:
        """Bytes, merges and special tokens together."""
        return 256 + len(self.merges) + len(self.special_names)

    @cached_property
    def special_tokens(self) -> dict[str, int]:
        """Name to id."""
        first = 256 + len(self.merges)
        return {name: first + i for i, name in enumerate(self.special_names)}

    @property
    def eot(self) -> int:
        """Id of the end of a document."""
        return self._special_id(END_OF_TEXT)

    @property
    def pad(self) -> int:
        """Id of the padding, which never is a target."""
        return self._special_id(PAD)

    def token_bytes(self, id_: int) -> bytes:
        """What one id spells; for a special token its name.

        >>> Tokenizer(merges=((32, 116),)).token_bytes(256)
        b' t'
        """
        return self.decode_bytes([id_])

    # --- Encoding and decoding ------------------------------------------------------

    def encode(self, text: str, allowed_special: str | Iterable[str] = ()) -> list[int]:
        """Text to ids.

        Args:
            text: any valid Unicode.
            allowed_special: names that count as special tokens where they stand in the
                text, or "all". By default none does. Only for text of your own making.

        Raises:
            ValueError: a lone surrogate in the text, an unknown special name.

        >>> tokenizer = Tokenizer(merges=())
        >>> tokenizer.encode("<|pad|>"), tokenizer.encode("<|pad|>", ["<|pad|>"])
        ([60, 124, 112, 97, 100, 124, 62], [259])
        """
        utf8(text)
        allowed = self._allowed(allowed_special)
        return self._engine.encode(text, allowed_special=allowed, disallowed_special=())

    def encode_batch(
        self, texts: Iterable[str], allowed_special: str | Iterable[str] = ()
    ) -> list[list[int]]:
        """Several texts to ids, each as ``encode`` would."""
        allowed = self._allowed(allowed_special)
        return [self.encode(text, allowed) for text in texts]

    def encode_bytes(self, raw: bytes) -> list[int]:
        """Bytes that need not be text to ids; they are one piece, nothing is cut."""
        return encode_piece(raw, self._ranks)

    def decode(self, ids: Iterable[int]) -> str:
        """Ids to text; bytes that are no UTF-8 (half a character) show as U+FFFD.

        >>> Tokenizer(merges=()).decode([104, 105, 240])
        'hi�'
        """
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Ids to the bytes they spell, lossless; takes lists, arrays and tensors.

        Raises:
            ValueError: an id outside the vocabulary.
        """
        ids = ids.tolist() if hasattr(ids, "tolist") else list(ids)
        inside = not ids or (min(ids) >= 0 and max(ids) < self.vocab_size)
        limits = f"in 0..{self.vocab_size - 1}"
        remedy = "decode with the tokenizer that encoded"
        require(inside, "ids", ids, limits, remedy)
        return self._engine.decode_bytes(ids)

    # --- Files ----------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write the tokenizer to one JSON file."""
        content = {
            "format": FORMAT,
            "version": VERSION,
            "pattern": self.pattern,
            "special_tokens": self.special_names,
            "merges": self.merges,
        }
        _write_json(Path(path), content)

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """Read what ``save`` wrote.

        Raises:
            FileNotFoundError: no such file.
            ValueError: the file is damaged, or is no tokenizer of ours.
        """
        content = _read_json(Path(path))
        try:
            merges = tuple((left, right) for left, right in content["merges"])
            return cls(merges, tuple(content["special_tokens"]), content["pattern"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is a damaged tokenizer: {error}") from error

    def to_huggingface(self, folder: str | Path) -> None:
        """Write the files for ``transformers.AutoTokenizer.from_pretrained(folder)``.

        It gives the same ids and texts. One difference stays: there, special tokens are
        recognised in any text unless you pass ``split_special_tokens=True``.
        """
        special = self.special_tokens
        tokens = token_bytes(self.merges)
        files = {
            "tokenizer.json": huggingface.tokenizer_json(
                tokens, self.merges, special, self.pattern
            ),
            "tokenizer_config.json": huggingface.tokenizer_config(
                special, END_OF_TEXT, PAD
            ),
        }
        for name, content in files.items():
            _write_json(Path(folder) / name, content)

    # --- Inside ---------------------------------------------------------------------

    @cached_property
    def _ranks(self) -> dict[Pair, int]:
        return {pair: 256 + i for i, pair in enumerate(self.merges)}

    @cached_property
    def _engine(self) -> tiktoken.Encoding:
        tokens = token_bytes(self.merges)
        return tiktoken.Encoding(
            "minillm",
            pat_str=self.pattern,
            mergeable_ranks={token: id_ for id_, token in enumerate(tokens)},
            special_tokens=self.special_tokens,
        )

    def _special_id(self, name: str) -> int:
        remedy = "train the tokenizer with it"
        known = self.special_names
        require(name in known, "special_tokens", known, f"with {name!r}", remedy)
        return self.special_tokens[name]

    def _allowed(self, names: str | Iterable[str]) -> set[str]:
        chosen = set(self.special_names) if names == "all" else set(names)
        require(
            chosen <= set(self.special_names),
            "allowed_special",
            names,
            f'"all" or a list of names among {list(self.special_names)}',
            "correct the names",
        )
        return chosen


def _check_merges(merges: Sequence[Pair]) -> None:
    for i, pair in enumerate(merges):
        valid = all(0 <= id_ < 256 + i for id_ in pair)
        earlier = f"a pair of ids in 0..{255 + i}"
        require(valid, f"merges[{i}]", pair, earlier, "keep the order of learning")
    ranks = {pair: 256 + i for i, pair in enumerate(merges)}
    for id_, token in enumerate(token_bytes(merges)):
        reachable = encode_piece(token, ranks) == [id_]
        name, remedy = f"merges[{id_ - 256}]", "use the merges of one training run"
        require(reachable, name, token, "reachable by the merges before it", remedy)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content) + "\n", encoding="utf-8")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{path} does not exist; train and save first"
        ) from None
    except ValueError as error:
        raise ValueError(f"{path} is no tokenizer file: {error}") from error
    ours = isinstance(content, dict) and content.get("format") == FORMAT
    if not ours:
        raise ValueError(f"{path} is no minillm tokenizer; it lacks format={FORMAT!r}")
    version = content.get("version")
    newer = "update minillm, or train again"
    require(version == VERSION, "version", version, f"{VERSION} in {path}", newer)
    return content
