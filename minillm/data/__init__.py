"""From text to tokens: corpora, the cutting of text into pieces, BPE, the tokenizer."""

from minillm.data.bpe import train_bpe
from minillm.data.corpora import Corpus, load_corpus, train_heldout_split
from minillm.data.overlap import overlap
from minillm.data.tokenizer import Tokenizer
