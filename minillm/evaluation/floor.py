r"""How far is a model from the best there can be? Its excess, split in three.

In a language whose truth is known (``minillm.world``) every token has a price that the
best reader pays: -ln of its true probability, given all before it and all facts. The
model pays its loss. Over whole documents the difference is

.. math:: excess = \frac{1}{N} \sum_t \left(\ell_t - h_t\right)
          \;\to\; \frac{KL(P \,\|\, Q)}{\text{tokens}} \ge 0

and each token belongs to one kind, so it splits in three:

    predictable    it follows from the document: what the model cannot work out
    remembered     it is a fact of the world: what the model does not know
    irreducible    it is a free choice: what the model takes for likelier than it is

A token, and in a small sample a kind, may be below its floor by luck. But loss and
floor are lucky on the same tokens, so their difference has a far smaller standard error
than either. It is that of a ratio (Cochran 1977, chapter 6), with e_d of n_d tokens:

.. math:: error = \frac{1}{N} \sqrt{\frac{D}{D - 1} \sum_d (e_d - n_d \cdot excess)^2}
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from minillm.data import Tokenizer
from minillm.errors import require, require_count
from minillm.evaluation.perplexity import token_logprobs
from minillm.model import GPT
from minillm.model.layers import at_least_float32
from minillm.world.recorder import IRREDUCIBLE, KINDS, PREDICTABLE, Document
from minillm.world.tokens import ExactTokenNats, TokenNats


@torch.no_grad()
def document_logprobs(
    model: GPT, documents: Sequence[Sequence[int]], eot: int, B: int = 64
) -> list[Float[Tensor, " n+1"]]:
    """Log-probabilities of each whole document: of its tokens and of its end.

    Each is read by itself, from an end-of-text token on; documents of like length are
    read together.

    Args:
        model: the language model, left in the mode it was in.
        documents: token ids of each, without end-of-text tokens.
        eot: the token that stands before and behind every document.
        B: documents at a time.

    Raises:
        ValueError: a document longer than the context allows, a B that is no count.

    >>> from minillm.model import GPTConfig
    >>> model = GPT(GPTConfig(vocab_size=64, n_layer=1, n_head=2, n_embd=16, context=8))
    >>> [len(row) for row in document_logprobs(model, [[1, 2, 3], [4]], eot=0)]
    [4, 2]
    """
    longest, room = max(map(len, documents), default=0), model.config.context - 2
    remedy = "leave it out, or build the model with a larger context"
    require(longest <= room, "documents", longest, f"at most {room} tokens", remedy)
    require_count(B=B)
    order = sorted(range(len(documents)), key=lambda i: len(documents[i]))
    found: dict[int, Tensor] = {}
    device, was_training = model.embed_tokens.weight.device, model.training
    model.eval()
    try:
        for start in range(0, len(order), B):
            part = order[start : start + B]
            rows = [torch.tensor([eot, *documents[i], eot]) for i in part]
            # Padding on the right needs no mask: a causal model never looks there.
            tokens = torch.nn.utils.rnn.pad_sequence(rows, True, eot).to(device)
            logprobs = token_logprobs(at_least_float32(model(tokens)), tokens).cpu()
            for i, row, scored in zip(part, rows, logprobs, strict=True):
                found[i] = scored[: len(row) - 1]
    finally:
        model.train(was_training)
    return [found[i] for i in range(len(documents))]


@dataclass(frozen=True)
class Excess:
    """Loss and floor of a sample of documents, in nats per token.

    Args:
        n_tokens: scored tokens, the documents' ends included.
        loss: what the model paid.
        floor: what a reader pays who knows the world.
        parts: the excess by kind; they add up to ``loss - floor``.
        error: standard error of the excess; not a number for a single document.
    """

    n_tokens: int
    loss: float
    floor: float
    parts: dict[str, float]
    error: float

    @property
    def total(self) -> float:
        """How far the model is from the best there can be."""
        return self.loss - self.floor

    @property
    def without_facts(self) -> float:
        """The excess of what no memory helps with: predictable and irreducible."""
        return self.parts[PREDICTABLE] + self.parts[IRREDUCIBLE]


@dataclass(frozen=True)
class KnownText:
    """Documents with their tokens' true prices; made once, scored often.

    Args:
        documents: from a ``World``.
        accounts: kind and nats of each document's tokens.
        eot: the end-of-text token.

    >>> from minillm.model import GPTConfig
    >>> from minillm.world import World
    >>> bytes_only = Tokenizer(merges=())
    >>> known = KnownText.of([World().document(0)], bytes_only)
    >>> model = GPT(GPTConfig(bytes_only.vocab_size, 1, 2, n_embd=16, context=128))
    >>> abs(known.excess(model).loss - math.log(260)) < 0.2  # knows nothing
    True
    """

    documents: list[Document]
    accounts: list[list[TokenNats]]
    eot: int

    @classmethod
    def of(cls, documents: Sequence[Document], tokenizer: Tokenizer) -> "KnownText":
        """Count the nats of each token, exactly.

        Raises:
            ValueError: tokens that cross from one choice into the next.
        """
        exact = ExactTokenNats(tokenizer.encode)
        documents = list(documents)
        return cls(documents, [exact(d) for d in documents], tokenizer.eot)

    def excess(self, model: GPT) -> Excess:
        """Score a model against the truth."""
        return excess(self.accounts, self.logprobs(model))

    def logprobs(self, model: GPT) -> list[Float[Tensor, " n+1"]]:
        """What the model says of each document's tokens and of its end."""
        ids = [[token.token for token in account] for account in self.accounts]
        return document_logprobs(model, ids, self.eot)


def excess(
    accounts: Sequence[Sequence[TokenNats]], logprobs: Sequence[Float[Tensor, " n+1"]]
) -> Excess:
    """Compare what a model paid for each token with what it is worth.

    Args:
        accounts: kind and true nats of each document's tokens.
        logprobs: of the same tokens, and of the end of text, which costs nothing.

    Raises:
        ValueError: no documents, or lengths that do not belong together.

    >>> account = [TokenNats(7, "irreducible", 0.5), TokenNats(8, "remembered", 2.0)]
    >>> told = excess([account], [torch.tensor([-0.5, -3.0, -0.25])])
    >>> told.n_tokens, told.floor * 3, told.parts["remembered"] * 3
    (3, 0.5, 3.0)
    """
    lengths, scored = [len(a) + 1 for a in accounts], [len(row) for row in logprobs]
    need = "for each document as many as its tokens and one more"
    remedy = "score the documents that were counted, each with its end"
    require(lengths == scored != [], "logprobs", scored[:9], need, remedy)
    parts, floor, each = defaultdict(float), 0.0, []
    for account, row in zip(accounts, logprobs, strict=True):
        paid = (-row.double()).tolist()
        worth = [t.nats if t.kind == IRREDUCIBLE else 0.0 for t in account] + [0.0]
        kinds = [t.kind for t in account] + [PREDICTABLE]
        for kind, nats, price in zip(kinds, paid, worth, strict=True):
            parts[kind] += nats - price
        floor += math.fsum(worth)
        each.append(math.fsum(paid) - math.fsum(worth))
    N, total = sum(lengths), math.fsum(each)
    split = {kind: parts[kind] / N for kind in KINDS}
    error = _standard_error(each, lengths)
    return Excess(N, (total + floor) / N, floor / N, split, error)


def _standard_error(each: Sequence[float], lengths: Sequence[int]) -> float:
    """Of the ratio of their sums; see the head of this module."""
    D, N, ratio = len(each), sum(lengths), math.fsum(each) / sum(lengths)
    rest = (e - n * ratio for e, n in zip(each, lengths, strict=True))
    squares = math.fsum(r * r for r in rest)
    return math.sqrt(D / (D - 1) * squares) / N if D > 1 else math.nan
