"""Packed equals unpacked: logits, loss and gradients."""

import pytest
import torch

from minillm.data.chat import Encoded
from minillm.finetuning.packing import (
    pack,
    packed_logits,
    packed_positions,
    plan_rows,
)
from minillm.model import GPT, GPTConfig
from minillm.training import next_token_loss

SHAPE = GPTConfig(40, n_layer=2, n_head=4, n_kv_head=2, n_embd=16, context=24)
LENGTHS = (3, 8, 2, 5, 12, 1, 7)


def examples():
    dice = torch.Generator().manual_seed(0)
    found = []
    for n in LENGTHS:
        ids = torch.randint(1, 40, (n,), generator=dice).tolist()
        found.append(Encoded(ids, [i >= n // 2 for i in range(n)]))
    return found


def model():
    torch.manual_seed(0)
    return GPT(SHAPE).double()


def where(packed, example):
    """Row and first column of an example, found by its tokens."""
    n = len(example.ids)
    for row in range(len(packed.tokens)):
        for at in range(packed.tokens.shape[1] - n + 1):
            same = packed.tokens[row, at : at + n].tolist() == example.ids
            if same and packed.document[row, at : at + n].unique().numel() == 1:
                return row, at
    raise AssertionError("an example was lost")


@pytest.mark.parametrize("T", [12, 16, 24])
def test_every_logit_is_that_of_the_example_alone(T):
    net, packed = model(), pack(examples(), T)
    logits = packed_logits(net, packed.tokens, packed.document)
    for example in examples():
        row, at = where(packed, example)
        alone = net(torch.tensor([example.ids]))[0]
        found = logits[row, at : at + len(example.ids)]
        torch.testing.assert_close(found, alone, rtol=1e-5, atol=1e-6)


def test_loss_and_gradients_are_those_of_the_padded_batch():
    net, packed, given = model(), pack(examples(), 24), examples()
    padded = torch.zeros(len(given), 12, dtype=torch.long)
    mask = torch.zeros(len(given), 12, dtype=torch.bool)
    for i, example in enumerate(given):
        padded[i, : len(example.ids)] = torch.tensor(example.ids)
        mask[i, 1 : len(example.ids)] = torch.tensor(example.mask[1:]).bool()
    plain = next_token_loss(net(padded), padded, mask)
    plain.backward()
    grads = {n: p.grad.clone() for n, p in net.named_parameters()}
    net.zero_grad()
    logits = packed_logits(net, packed.tokens, packed.document)
    loss = next_token_loss(logits, packed.tokens, packed.mask)
    loss.backward()
    torch.testing.assert_close(loss, plain, rtol=1e-6, atol=0)
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(parameter.grad, grads[name], rtol=1e-4, atol=1e-8)


def test_without_the_block_diagonal_a_neighbour_is_heard():
    net, packed = model(), pack(examples(), 24)
    right = packed_logits(net, packed.tokens, packed.document)
    plain = net(packed.tokens)
    first = packed.document == 0
    torch.testing.assert_close(plain[first], right[first], rtol=1e-5, atol=1e-6)
    assert (plain - right)[packed.document > 0].abs().max() > 1e-3


def test_positions_begin_again_and_with_rope_only_distances_count():
    packed = pack(examples(), 24)
    positions = packed_positions(packed.document)
    for example in examples():
        row, at = where(packed, example)
        n = len(example.ids)
        assert positions[row, at : at + n].tolist() == list(range(n))


def test_no_example_is_scored_across_a_border():
    packed = pack(examples(), 24)
    first = packed_positions(packed.document) == 0
    assert not packed.mask[first].any()
    targets = sum(sum(example.mask[1:]) for example in examples())
    assert packed.mask.sum() == targets


def test_all_tokens_are_there_once_and_rows_are_full():
    packed = pack(examples(), 12)
    assert (packed.document >= 0).sum() == sum(LENGTHS)
    assert len(packed.tokens) == 4  # 38 tokens in rows of 12
    assert packed.filled == pytest.approx(38 / 48)
    padded = sum(LENGTHS) / (len(LENGTHS) * max(LENGTHS))
    assert packed.filled > 1.5 * padded


def test_rows_are_planned_longest_first_into_the_fullest_that_fits():
    assert plan_rows([4, 4, 4], 8) == [[0, 1], [2]]
    assert plan_rows([6, 5, 3, 2], 8) == [[0, 3], [1, 2]]
    assert plan_rows([], 8) == []


@pytest.mark.parametrize(
    ("lengths", "T", "words"),
    [([9], 8, "in 1..8"), ([0], 8, "in 1..8"), ([1], 0, "at least 1")],
)
def test_what_fits_no_row_is_refused(lengths, T, words):
    with pytest.raises(ValueError, match=words):
        plan_rows(lengths, T)


def test_bad_rows_are_refused():
    with pytest.raises(ValueError, match="at least one"):
        pack([], 8)
    packed = pack(examples(), 24)
    with pytest.raises(ValueError, match="document"):
        packed_logits(model(), packed.tokens, packed.document[:, :-1])
    long = torch.zeros(1, 25, dtype=torch.long)
    with pytest.raises(ValueError, match="the context"):
        packed_logits(model(), long, long)
    encoder = GPT(GPTConfig(40, n_layer=1, n_head=2, n_embd=16, causal=False))
    with pytest.raises(ValueError, match="causal"):
        packed_logits(encoder, packed.tokens, packed.document)
