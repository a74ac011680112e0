"""The tokenizer: merges and their meaning from ``bpe``, marks, and tiktoken's engine.

Ids are laid out in three parts:

    0 ... 255           the bytes, so that every text can be spelled
    256 ... 255 + M     the M merges in the order of learning
    256 + M ...         the special tokens

Special tokens are marks of structure, such as the end of a document, and no text
spells them: ``encode`` reads "<|im_end|>" in a user's message as ten ordinary
characters. If it did not, every user could end their own turn and speak as the system.

Padding has a token of its own: an end of text that serves as padding, too, is masked
out of the loss, and nobody learns to stop.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import tiktoken

from minillm.data import pieces
from minillm.data.bpe import Pair, encode_piece, token_bytes, train_bpe
from minillm.data.huggingface import chat_template, tokenizer_config, tokenizer_json
from minillm.data.templates import CHATML, IM_END, IM_START
from minillm.errors import require
from minillm.files import write_json

END_OF_TEXT, PAD = "<|endoftext|>", "<|pad|>"
SPECIAL_TOKENS = (END_OF_TEXT, IM_START, IM_END, PAD)
FORMAT = "minillm-tokenizer-1"  # another pattern would be another format


@dataclass(frozen=True)
class Tokenizer:
    """Text to ids and back.

    Args:
        merges: pair ``i`` becomes id ``256 + i``, as ``train_bpe`` returns them.
        special_names: names of the special tokens; their ids follow the merges.

    Raises:
        ValueError: a merge of ids that do not exist yet, a merge that can never happen
            (engines disagree about such vocabularies), a special name given twice, or
            none for the end of text or for padding.

    >>> tokenizer = Tokenizer(merges=((104, 101), (256, 108)))
    >>> tokenizer.encode("hello")
    [257, 108, 111]
    >>> tokenizer.decode([257, 108, 111])
    'hello'
    """

    merges: tuple[Pair, ...]
    special_names: tuple[str, ...] = SPECIAL_TOKENS

    def __post_init__(self) -> None:
        ids = {pair: id_ for id_, pair in enumerate(self.merges, 256)}
        ordered = all(max(pair) < id_ for pair, id_ in ids.items())
        require(ordered, "merges", self.merges, "in the order of learning", "sort them")
        for id_, token in enumerate(token_bytes(self.merges)):
            reachable, remedy = encode_piece(token, ids) == [id_], "train them together"
            require(reachable, "merges", token, "reachable by earlier ones", remedy)
        names = self.special_names
        fine = {END_OF_TEXT, PAD} <= set(names) and len(set(names)) == len(names)
        need = "different, with those of END_OF_TEXT and PAD"
        require(fine, "special_names", names, need, "correct the list")

    @classmethod
    def train(
        cls, texts: str | Iterable[str], vocab_size: int, progress: bool = False
    ) -> "Tokenizer":
        """Learn a tokenizer of ``vocab_size`` tokens, bytes and special ones included.

        For other special tokens: ``Tokenizer(tuple(train_bpe(...)), special_names)``.

        >>> tokenizer = Tokenizer.train("aaabdaaabac", vocab_size=263)
        >>> tokenizer.vocab_size, tokenizer.eot
        (263, 259)
        """
        n = len(SPECIAL_TOKENS)
        need = f"at least {256 + n} (256 bytes, {n} special)"
        require(vocab_size >= 256 + n, "vocab_size", vocab_size, need, "ask for more")
        return cls(tuple(train_bpe(texts, vocab_size - n, progress)))

    # --- The vocabulary -------------------------------------------------------------

    @property
    def vocab_size(self) -> int:
        """Bytes, merges and special tokens together."""
        return 256 + len(self.merges) + len(self.special_names)

    @cached_property
    def special_tokens(self) -> dict[str, int]:
        """Name to id."""
        first = 256 + len(self.merges)
        return {name: id_ for id_, name in enumerate(self.special_names, first)}

    @property
    def eot(self) -> int:
        """Id of the end of a document."""
        return self.special_tokens[END_OF_TEXT]

    @property
    def pad(self) -> int:
        """Id of the padding, which never is a target."""
        return self.special_tokens[PAD]

    # --- Encoding and decoding ------------------------------------------------------

    def encode(self, text: str, allowed_special: Iterable[str] = ()) -> list[int]:
        """Text to ids.

        Args:
            text: any valid Unicode.
            allowed_special: names that count as special tokens where they stand in the
                text. By default none does. Only for text of your own making.

        Raises:
            ValueError: a lone surrogate in the text, an unknown special name.

        >>> tokenizer = Tokenizer(merges=())
        >>> tokenizer.encode("<|pad|>"), tokenizer.encode("<|pad|>", ["<|pad|>"])
        ([60, 124, 112, 97, 100, 124, 62], [259])
        """
        pieces.utf8(text)
        allowed, need = set(allowed_special), f"names among {self.special_names}"
        known = allowed <= set(self.special_names)
        require(known, "allowed_special", allowed, need, "correct the names")
        return self._engine.encode(text, allowed_special=allowed, disallowed_special=())

    def encode_batch(self, texts: Iterable[str]) -> list[list[int]]:
        """Several texts to ids, each as ``encode`` would."""
        return [self.encode(text) for text in texts]

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
        inside = not ids or 0 <= min(ids) <= max(ids) < self.vocab_size
        limits = f"in 0..{self.vocab_size - 1}"
        require(inside, "ids", ids, limits, "use the tokenizer that encoded")
        return self._engine.decode_bytes(ids)

    # --- Files ----------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write the tokenizer to one JSON file."""
        content = {"special_tokens": self.special_names, "merges": self.merges}
        write_json(path, {FORMAT: content})

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """Read what ``save`` wrote.

        Raises:
            FileNotFoundError: no such file.
            ValueError: the file is damaged, or is no tokenizer of ours.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))[FORMAT]
            merges = tuple((left, right) for left, right in content["merges"])
            return cls(merges, tuple(content["special_tokens"]))
        except (LookupError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is no {FORMAT}, or damaged: {error!r}") from error

    def to_huggingface(self, folder: str | Path) -> None:
        """Write the files for ``transformers.AutoTokenizer.from_pretrained(folder)``.

        It gives the same ids and texts. One difference stays: there, special tokens are
        recognised in any text unless you pass ``split_special_tokens=True``.
        ``apply_chat_template`` works if the tokenizer has the marks of ChatML.
        """
        folder, special = Path(folder), self.special_tokens
        write_json(folder / "tokenizer.json", tokenizer_json(self.merges, special))
        config = tokenizer_config(special, END_OF_TEXT, PAD)
        if special.keys() >= set(CHATML.special_names):
            config["chat_template"] = chat_template(CHATML)
        write_json(folder / "tokenizer_config.json", config)

    @cached_property
    def _engine(self) -> tiktoken.Encoding:
        ranks = {token: id_ for id_, token in enumerate(token_bytes(self.merges))}
        tokens = {"mergeable_ranks": ranks, "special_tokens": self.special_tokens}
        return tiktoken.Encoding("minillm", pat_str=pieces.PATTERN, **tokens)
