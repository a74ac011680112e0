"""How fast TinyWorld writes, and counts what it writes, token by token.

python benchmarks/world.py
"""

import time
from statistics import median

from common import write_result

from minillm.data import Tokenizer
from minillm.evaluation.floor import KnownText
from minillm.world import World

TOKENS, REPEATS = 1_000_000, 5


def write_million(tokenizer: Tokenizer, stream: str) -> tuple[int, float]:
    """Documents of a fresh world until there are a million tokens with their nats."""
    world, start, n, written = World(), time.process_time(), 0, 0
    while n < TOKENS:
        part = [world.document(i, stream) for i in range(written, written + 5000)]
        n += sum(len(a) + 1 for a in KnownText.of(part, tokenizer).accounts)
        written += 5000
    return n, time.process_time() - start


def main():
    texts = [document.text for document in World().documents(20_000)]
    tokenizer = Tokenizer.train(texts, 1024)
    runs = [write_million(tokenizer, f"benchmark {i}") for i in range(REPEATS)]
    per_million = [seconds / n * 1e6 for n, seconds in runs]
    result = {"cpu_seconds_per_million_tokens": [round(s, 3) for s in per_million]}
    print(f"{median(per_million):.2f} CPU seconds for a million tokens with nats")
    write_result("world", result | {"median_s": round(median(per_million), 3)}, "torch")


if __name__ == "__main__":
    main()
