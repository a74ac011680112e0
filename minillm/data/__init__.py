"""From text to tokens: corpora, the cutting of text into pieces, BPE, the tokenizer."""

from minillm.data.bpe import train_bpe
from minillm.data.tokenizer import Tokenizer

__all__ = ["Tokenizer", "train_bpe"]
