r"""Packing: several examples in a row, and none of them the wiser.

Padded to the longest, a batch of examples of unequal lengths is mostly padding, and
padding is computed like text. Packing puts examples one after the other until a row is
full. Three things must then stay as if each stood alone:

- *attention*: a token sees its own example only. The mask is block-diagonal,
  :math:`seen_{t,s} = [s \le t] \cdot [doc_t = doc_s]`;
- *position*: each example begins at 0 again. (With RoPE alone this changes no score, as
  only distances count; with learned positions it does.)
- *targets*: the first token of an example is predicted by nobody. Its neighbour on the
  left belongs to another.

Then every logit is that of the example alone; a test proves it. Without the first, the
model learns that answers may depend on whoever happened to stand before.

Which examples go together is bin packing. Longest first, each into the fullest row that
it still fits, is close to the best and takes no time.

Source: Krell et al. 2021 (arXiv:2107.02027), sections 3.1 and 3.2. Differs from TRL: of
an example that is longer than a row, its "bfd" keeps the beginning, and here it is
refused; its "wrapped" cuts wherever a row is full, and lets neighbours be heard.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from minillm.data.chat import Encoded
from minillm.errors import require, require_count
from minillm.model import GPT


class Packed(NamedTuple):
    """Rows of several examples each.

    ``document`` numbers the examples of a row from 0; padding is -1.
    """

    tokens: Int[Tensor, "B T"]
    mask: Bool[Tensor, "B T"]
    document: Int[Tensor, "B T"]

    @property
    def filled(self) -> float:
        """The part of the positions that is no padding."""
        return (self.document >= 0).float().mean().item()


def plan_rows(lengths: Sequence[int], T: int) -> list[list[int]]:
    """Which examples share a row of T: best fit, longest first.

    Args:
        lengths: of the examples, in tokens.
        T: of a row.

    Returns:
        places in ``lengths``, row by row.

    Raises:
        ValueError: an empty example, or one that is longer than a row.

    >>> plan_rows([3, 8, 2, 5], T=8)
    [[1], [3, 0], [2]]
    """
    require_count(T=T)
    rows: list[list[int]] = []
    room: list[int] = []
    for place in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        n, remedy = lengths[place], "leave it out, shorten it or enlarge T"
        require(0 < n <= T, "length of an example", n, f"in 1..{T}", remedy)
        fits = [row for row, left in enumerate(room) if left >= n]
        row = min(fits, key=room.__getitem__, default=len(rows))
        if row == len(rows):
            rows.append([])
            room.append(T)
        rows[row].append(place)
        room[row] -= n
    return rows


def pack(examples: Sequence[Encoded], T: int, pad: int = 0) -> Packed:
    """Put examples into as few rows of T as ``plan_rows`` finds.

    Args:
        examples: ids and mask of each.
        T: tokens in a row.
        pad: the id that fills rows up.

    Raises:
        ValueError: no example, no target in any of them; as ``plan_rows``.

    >>> one, two = Encoded([5, 6], [False, True]), Encoded([7, 8, 9], [True] * 3)
    >>> packed = pack([one, two], T=6)
    >>> packed.tokens, packed.mask.int(), packed.document
    (tensor([[7, 8, 9, 5, 6, 0]]), tensor([[0, 1, 1, 0, 1, 0]], ...),
     tensor([[ 0,  0,  0,  1,  1, -1]]))
    """
    require(len(examples) > 0, "examples", 0, "at least one", "give some to pack")
    rows = plan_rows([len(example.ids) for example in examples], T)
    tokens = torch.full((len(rows), T), pad)
    mask, document = (
        torch.zeros_like(tokens, dtype=torch.bool),
        tokens.new_full(tokens.shape, -1),
    )
    for r, places in enumerate(rows):
        at = 0
        for number, place in enumerate(places):
            ids, targets = examples[place]
            end = at + len(ids)
            tokens[r, at:end] = torch.tensor(ids)
            # whatever was said of it: nobody predicts the first token
            mask[r, at + 1 : end] = torch.tensor(targets[1:], dtype=torch.bool)
            document[r, at:end] = number
            at = end
    remedy = "leave out what teaches nothing"
    require(bool(mask.any()), "targets", 0, "at least 1 in all examples", remedy)
    return Packed(tokens, mask, document)


def packed_positions(document: Int[Tensor, "B T"]) -> Int[Tensor, "B T"]:
    """Positions that begin at 0 with each example.

    >>> packed_positions(torch.tensor([[0, 0, 1, 1, 1, -1]]))
    tensor([[0, 1, 0, 1, 2, 0]])
    """
    places = torch.arange(document.shape[1], device=document.device)
    first = torch.ones_like(document, dtype=torch.bool)
    first[:, 1:] = document.diff(dim=1) != 0
    return places - torch.where(first, places, 0).cummax(dim=1).values


def packed_logits(
    model: GPT, tokens: Int[Tensor, "B T"], document: Int[Tensor, "B T"]
) -> Float[Tensor, "B T V"]:
    """What the model says of each example, as if it stood alone.

    Args:
        model: causal.
        tokens: packed rows.
        document: of ``Packed``.

    Raises:
        ValueError: an encoder, rows longer than the context, numbers of another shape.

    >>> from minillm.model import GPTConfig
    >>> model = GPT(GPTConfig(vocab_size=64, n_layer=1, n_head=2, n_embd=16))
    >>> tokens, document = torch.tensor([[5, 6, 7]]), torch.tensor([[0, 0, 1]])
    >>> alone = model(torch.tensor([[7]]))
    >>> bool(torch.allclose(packed_logits(model, tokens, document)[:, 2], alone[:, 0]))
    True
    """
    model.config.require_causal()
    T, room = tokens.shape[1], model.config.context
    require(room >= T, "T", T, f"in 1..{room}, the context", "pack shorter rows")
    same, need = tokens.shape == document.shape, f"of shape {tuple(tokens.shape)}"
    require(same, "document", document, need, "give that of pack(...)")
    own = document[:, :, None] == document[:, None, :]
    seen = (own & torch.ones(T, T, dtype=torch.bool, device=own.device).tril())[:, None]
    model.rotations = model.rotations.to(tokens.device)
    rotations = model.rotations[packed_positions(document)]
    x = model.embed_tokens(tokens)
    for block in model.layers:
        x = block(x, rotations, seen, None)
    return model.lm_head(model.norm(x))
