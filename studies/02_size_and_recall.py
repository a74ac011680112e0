"""Which facts does a larger model know? Recall against frequency, for four widths.

The k-th most frequent person is mentioned in proportion to 1/k. So a model sees the
head of the list thousands of times and the tail a few dozen times, and recall can be
drawn against the number of mentions. All models read the same tokens in the same order;
only their width differs. The truth is 1: each fact stands in the training text.
"""

from functools import cache

import torch

from minillm.data.packed import Rows
from minillm.evaluation.asking import accuracy, ask
from minillm.model import GPT, GPTConfig, count_parameters
from minillm.school.studies import run_study
from minillm.school.tinytext import TinyText, tiny_text
from minillm.training import TrainConfig, Trainer
from minillm.world.questions import fact_questions

QUESTION = "Which facts does a larger model know, by how often they are mentioned?"
STEPS, B = 1000, 16
WIDTHS = {f"{C} wide": {"C": C} for C in (16, 32, 64, 128)}
RANKS = ((1, 10), (11, 30), (31, 100), (101, 200), (201, 400))


@cache
def text() -> TinyText:
    """The same for all runs."""
    return tiny_text()


def run(seed: int, C: int) -> dict:
    """Train one model and ask it for every fact of everybody."""
    known = text()
    torch.manual_seed(seed)
    T, V = known.rows.shape[1], known.tokenizer.vocab_size
    model = GPT(GPTConfig(V, n_layer=2, n_head=C // 16, n_embd=C, context=T))
    config = TrainConfig(STEPS, lr=1e-2, matrix_lr=1e-2, weight_decay=0.0)
    Trainer(model, Rows(known.rows, B, seed), config, progress=False).fit()
    answers = ask(model, known.tokenizer, list(fact_questions(known.world.lore)), 16)
    by_rank = {
        f"{low}-{high}": [a for a in answers if low <= a.question.rank <= high]
        for low, high in RANKS
    }
    return {
        "parameters": count_parameters(model.config)["total"],
        "remembered": round(known.test.excess(model).parts["remembered"], 5),
        "recall": round(accuracy(answers), 4),
        "recall by rank": {r: round(accuracy(a), 4) for r, a in by_rank.items()},
    }


if __name__ == "__main__":
    text()  # made here, or the first run would pay for it
    run_study(__file__, QUESTION, WIDTHS, seeds=(0, 1, 2), run=run)
