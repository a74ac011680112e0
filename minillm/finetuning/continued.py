r"""Continued pre-training: more words, a rate that rises again, and old text among new.

A model that has been pre-trained reads on, in text of another kind. Three things help:

- **A larger vocabulary.** The tokenizer spells the new text with many short pieces, so
  merges are learned on top of the old ones, which stay a prefix: bytes and old merges
  keep their ids, special tokens move behind the new merges. A new token's row, in the
  embedding and in the head, is the mean of the rows of the pieces that spelled it:

  .. math:: E_{new} = A E, \qquad z_{new} = A z, \qquad
            A_{ji} = \text{share of piece } i \text{ in new token } j

  So a text without new tokens is read as before, bit for bit, and the logits of old
  tokens stay (to the rounding of a larger product). New tokens take probability from
  all of them by one common factor: the loss rises by :math:`\ln(1 + G)` a token, where

  .. math:: G = \sum_j e^{z_j} / Z = \sum_j \prod_i p_i^{A_{ji}}
            \le \sum_j \sum_i A_{ji} \, p_i \le \max_i \sum_j A_{ji}

  (a geometric mean is at most the arithmetic one). Rows drawn at random have no bound:
  where all logits of old tokens are far below 0, a new row with z = 0 takes everything.
- **Re-warming.** A rate that has decayed to 0 teaches nothing, so it rises again.
- **Replay** of old text: ``forgetting.Replay``. Encode the old text anew: where it can
  be spelled by new tokens it will be, and that the model has yet to learn. Compare
  losses before and after in nats a character, since a token is no longer the same.

Source: Hewitt 2021, "Initializing New Word Embeddings for Pretrained Language Models",
for the mean and its bound (1 + K / V for K new tokens); Gupta et al. 2023
(arXiv:2308.04014) for re-warming, Ibrahim et al. 2024 (2403.08763) for all of it.
Differs from Hewitt: he takes the mean of all rows; ours is of a token's own pieces.
"""

import copy
from bisect import bisect
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import accumulate

import torch
from jaxtyping import Float
from torch import Tensor, nn

from minillm.data.bpe import PairCounts, count_pieces, encode_piece, token_bytes
from minillm.data.tokenizer import Tokenizer
from minillm.errors import require, require_count
from minillm.model import GPT
from minillm.training.schedules import cosine


def extend_tokenizer(
    tokenizer: Tokenizer, texts: str | Iterable[str], vocab_size: int
) -> Tokenizer:
    """Learn further merges on new text; those that there are come first.

    On the tokenizer's own text it continues as if it had never stopped.

    Args:
        tokenizer: stays as it is.
        texts: of the new kind.
        vocab_size: of the result, special tokens included.

    Raises:
        ValueError: fewer tokens than there are, no text, or too little of it.

    >>> old = Tokenizer(merges=((97, 97),))
    >>> new = extend_tokenizer(old, "aaabdaaabac", vocab_size=old.vocab_size + 1)
    >>> new.merges, old.eot, new.eot
    (((97, 97), (97, 98)), 257, 258)
    """
    n, merges = tokenizer.vocab_size, list(tokenizer.merges)
    require(vocab_size >= n, "vocab_size", vocab_size, f"at least {n}", "ask for more")
    ranks, counts = _ranks(tokenizer), count_pieces(texts)
    pairs = PairCounts({tuple(encode_piece(p, ranks)): m for p, m in counts.items()})
    for new_id in range(256 + len(merges), 256 + len(merges) + vocab_size - n):
        pair, need = pairs.most_frequent(), f"with pairs for {vocab_size} tokens"
        remedy = "give more text or ask for fewer tokens"
        require(pair is not None, "texts", f"pairs for {new_id} ids", need, remedy)
        pairs.merge(pair, new_id)
        merges.append(pair)
    return replace(tokenizer, merges=tuple(merges))


def piece_shares(old: Tokenizer, new: Tokenizer) -> Float[Tensor, "K V"]:
    """A: the share of each old token in the old spelling of each new one; sums to 1.

    The loss on text without new tokens rises at most by ``A.sum(0).max().log1p()``.

    Args:
        old: of V tokens.
        new: of ``extend_tokenizer``, with K more.

    Raises:
        ValueError: a tokenizer that is no extension of the old one.

    >>> old = Tokenizer(merges=())
    >>> A = piece_shares(old, Tokenizer(merges=((97, 98), (256, 97))))
    >>> A.shape, A[:, 97].tolist()
    (torch.Size([2, 260]), [0.5, 0.6666666865348816])
    """
    M, ranks = len(old.merges), _ranks(old)
    same = new.merges[:M] == old.merges and new.special_names == old.special_names
    need, remedy = "an extension of the old tokenizer", "use extend_tokenizer"
    require(same, "new", f"{len(new.merges)} merges", need, remedy)
    A = torch.zeros(len(new.merges) - M, old.vocab_size)
    for row, token in zip(A, token_bytes(new.merges)[256 + M :], strict=True):
        spelled = encode_piece(token, ranks)
        for id_, n in Counter(spelled).items():
            row[id_] = n / len(spelled)
    return A


@torch.no_grad()
def grow_vocabulary(model: GPT, old: Tokenizer, new: Tokenizer) -> GPT:
    """A copy of the model for the larger tokenizer; the model itself is unchanged.

    New tokens that were spelled by the same pieces get the same row ("ab" and "ba"),
    and training tells them apart; where the embedding stays frozen, nothing would.

    Args:
        model: of the old vocabulary, head tied or not.
        old, new: as for ``piece_shares``.

    Raises:
        ValueError: a model of another vocabulary, or as ``piece_shares``.

    >>> from minillm.model import GPTConfig
    >>> old, new = Tokenizer(merges=()), Tokenizer(merges=((97, 98),))
    >>> model = GPT(GPTConfig(old.vocab_size, n_layer=1, n_head=2, n_embd=16))
    >>> grow_vocabulary(model, old, new)(torch.tensor([[256]])).shape
    torch.Size([1, 1, 261])
    """
    V, need = model.config.vocab_size, f"of {old.vocab_size} tokens"
    remedy = "give the tokenizer that it was trained with"
    require(old.vocab_size == V, "model", f"one of {V} tokens", need, remedy)
    A, plain = piece_shares(old, new), V - len(old.special_names)
    grown = copy.deepcopy(model)
    grown.config = replace(model.config, vocab_size=new.vocab_size)
    grown.embed_tokens.num_embeddings = grown.lm_head.out_features = new.vocab_size
    for table in (grown.embed_tokens, grown.lm_head):
        rows, trained = table.weight, table.weight.requires_grad
        parts = [rows[:plain], A.to(rows) @ rows, rows[plain:]]
        table.weight = nn.Parameter(torch.cat(parts), trained)
    if model.config.tied:
        grown.lm_head.weight = grown.embed_tokens.weight
    return grown


def rewarmed(
    step: int,
    runs: Sequence[int],
    warmup: int,
    floor: float = 0.0,
    plan: Callable[..., float] = cosine,
) -> float:
    """The factor of the learning rate over several runs, each warmed up by itself.

    Schedules count a run's own steps, so a second ``Trainer`` on the grown model does
    just this, with moments that begin at zero; here it is as one curve.

    Args:
        step: counted from the beginning of the first run.
        runs: steps of each.
        warmup, floor: of each, as in ``plan``.
        plan: of ``training.schedules``.

    Raises:
        ValueError: no run, one without steps, a step before the first.

    >>> [round(rewarmed(step, [5, 5], warmup=2), 2) for step in range(10)]
    [0.5, 1.0, 1.0, 0.5, 0.0, 0.5, 1.0, 1.0, 0.5, 0.0]
    """
    require(len(runs) > 0, "runs", runs, "at least one", "give the steps of each run")
    require_count(**{f"runs[{i}]": steps for i, steps in enumerate(runs)})
    starts = [0, *accumulate(runs[:-1])]
    i = max(bisect(starts, step) - 1, 0)
    return plan(step - starts[i], runs[i], warmup, floor)


def _ranks(tokenizer: Tokenizer) -> dict[tuple[int, int], int]:
    return {pair: id_ for id_, pair in enumerate(tokenizer.merges, 256)}
