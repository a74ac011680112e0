"""From text to tokens: corpora, the cutting of text into pieces, BPE, the tokenizer."""
