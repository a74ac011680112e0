"""Yardsticks that need no neural network, all in bits per byte.

A loss per token says little, for tokens differ in length from one tokenizer to the
next. Bits per byte compares everything that predicts text, and a compressor is such a
thing: an optimal code for x takes -log2 p(x) bits.

    bits per byte = -log2 p(heldout) / bytes of heldout = 8 * compressed / original

A compressor that begins with an empty memory is no match for a model that has read the
training text. So there is a primed variant, which reads the same text first:

    8 * (size(train + heldout) - size(train)) / bytes of heldout

How much it gains depends on how far it looks back: 32 kB for gzip (priming does next to
nothing), 900 kB for bz2, everything for xz. Source: Delétang et al., arXiv:2309.10668.

The third yardstick, a 5-gram, gives nats (``minillm.evaluation.ngram``), which
``bits_per_byte`` turns into the same unit.
"""

import bz2
import lzma
import zlib

from minillm.errors import require

COMPRESSORS = {
    "gzip": lambda data: zlib.compress(data, 9),
    "bz2": lambda data: bz2.compress(data, 9),
    "xz": lambda data: lzma.compress(data, preset=6, check=lzma.CHECK_NONE),
}


def compressor_bits_per_byte(
    heldout: bytes, method: str = "xz", primed_with: bytes = b""
) -> float:
    """Bits that a compressor spends on each byte of ``heldout``.

    Args:
        heldout: text to compress, in UTF-8.
        method: "gzip", "bz2" or "xz".
        primed_with: training text that the compressor reads first, free of charge.

    Raises:
        ValueError: nothing to compress, an unknown method.

    >>> compressor_bits_per_byte(b"ab" * 4000, "gzip") < 0.1
    True
    """
    require(len(heldout) > 0, "heldout", heldout, "at least one byte", "give some text")
    require(method in COMPRESSORS, "method", method, f"in {[*COMPRESSORS]}", "pick one")
    compress = COMPRESSORS[method]
    before = len(compress(primed_with)) if primed_with else 0
    return 8 * (len(compress(primed_with + heldout)) - before) / len(heldout)
