"""Next-token loss: shifted once, averaged over targets, blind to everything else."""

import math

import pytest
import torch
import torch.nn.functional as F

from minillm.training.losses import (
    IGNORE,
    count_targets,
    next_token_loss,
    shift_targets,
)


def by_definition(logits, tokens, mask) -> torch.Tensor:
    """Sum -ln p over targets, one at a time, over their number."""
    B, T = tokens.shape
    nats = [
        -logits[b, t].log_softmax(-1)[tokens[b, t + 1]]
        for b in range(B)
        for t in range(T - 1)
        if mask[b, t + 1]
    ]
    return torch.stack(nats).sum() / len(nats)


def ladder() -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens 1..6 and logits of 9 for the next one, -9 elsewhere; V = 11 (M01)."""
    tokens = torch.arange(1, 7)[None]
    logits = torch.full((1, 6, 11), -9.0, dtype=torch.float64)
    logits[0, torch.arange(6), tokens[0] + 1] = 9.0
    return logits, tokens


def test_the_shift_happens_exactly_once():
    logits, tokens = ladder()
    assert next_token_loss(logits, tokens).item() < 1e-6
    # M01a, no shift: every target is one short of the prediction. A uniform rest of
    # ten tokens costs 18 + ln(1 + 10 e^-18) each.
    unshifted = F.cross_entropy(logits.flatten(0, 1), tokens.flatten()).item()
    assert unshifted == pytest.approx(18.0, abs=1e-6)
    # M01b, twice: the collator has shifted already
    assert next_token_loss(logits[:, :-1], tokens[:, 1:]).item() == pytest.approx(
        18.0, abs=1e-6
    )


def test_a_model_that_copies_its_input_is_not_rewarded():
    tokens = torch.arange(1, 7)[None]
    copy = torch.full((1, 6, 11), -9.0, dtype=torch.float64)
    copy[0, torch.arange(6), tokens[0]] = 9.0
    assert next_token_loss(copy, tokens).item() == pytest.approx(18.0, abs=1e-6)


def test_the_first_token_is_never_a_target_and_the_last_logits_never_count():
    logits, tokens = torch.randn(2, 5, 7), torch.randint(7, (2, 5))
    expected = next_token_loss(logits, tokens)
    changed_tokens, changed_logits = tokens.clone(), logits.clone()
    changed_tokens[:, 0] = (tokens[:, 0] + 1) % 7
    changed_logits[:, -1] += 5 * torch.randn(2, 7)
    assert next_token_loss(changed_logits, changed_tokens).equal(expected)


def test_logits_go_in_raw():
    # M02: softmax first gives 0.55995 and can never go below ln(1 + 2/e) - 0.
    logits = torch.tensor([[[5.0, 0.0, 0.0], [0.0, 0.0, 0.0]]], dtype=torch.float64)
    tokens = torch.tensor([[0, 0]])
    assert next_token_loss(logits, tokens).item() == pytest.approx(0.01339, abs=1e-5)
    wrong = next_token_loss(logits.softmax(-1), tokens).item()
    assert wrong == pytest.approx(0.55995, abs=1e-5)


def test_uniform_logits_cost_the_logarithm_of_the_vocabulary():
    tokens = torch.randint(50, (3, 8))
    for level in (0.0, 1e4, -1e4):
        loss = next_token_loss(torch.full((3, 8, 50), level), tokens)
        assert loss.item() == pytest.approx(math.log(50), rel=1e-6)


MASKS = {
    "all": [[1, 1, 1, 1, 1], [1, 1, 1, 1, 1], [1, 1, 1, 1, 1]],
    "right padding": [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 1, 0]],
    "left padding": [[1, 1, 1, 1, 1], [0, 0, 0, 1, 1], [0, 1, 1, 1, 1]],
    "answers only": [[0, 0, 1, 1, 1], [0, 0, 0, 0, 1], [0, 1, 0, 1, 0]],
    "a row without": [[0, 0, 0, 0, 0], [1, 0, 0, 0, 0], [0, 0, 1, 1, 0]],
    "one target": [[0, 0, 0, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 1]],
}
every_mask = pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS.keys())


@every_mask
def test_loss_and_gradient_equal_the_sum_over_targets_written_as_a_loop(mask):
    mask = torch.tensor(mask).bool()
    tokens = torch.randint(7, (3, 5))
    logits = 3 * torch.randn(3, 5, 7, dtype=torch.float64)
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    loss, expected = (
        next_token_loss(ours, tokens, mask),
        by_definition(theirs, tokens, mask),
    )
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-12, atol=1e-14)


@every_mask
def test_the_gradient_is_softmax_minus_one_hot_at_targets_and_zero_elsewhere(mask):
    mask = torch.tensor(mask).bool()
    tokens = torch.randint(7, (3, 5))
    logits = torch.randn(3, 5, 7, dtype=torch.float64, requires_grad=True)
    next_token_loss(logits, tokens, mask).backward()
    n = count_targets(tokens, mask)
    expected = logits.detach().softmax(-1)
    expected = expected - F.one_hot(tokens.roll(-1, 1), 7)
    scored = mask.roll(-1, 1)
    scored[:, -1] = False
    assert int(scored.sum()) == n
    torch.testing.assert_close(logits.grad, expected * scored[..., None] / n)


@every_mask
def test_padding_never_enters_the_loss(mask):
    mask = torch.tensor(mask).bool()
    tokens, logits = torch.randint(7, (3, 5)), torch.randn(3, 5, 7)
    expected = next_token_loss(logits, tokens, mask)
    others = torch.where(mask, tokens, torch.randint(7, (3, 5)))
    assert next_token_loss(logits, others, mask).equal(expected)


def test_short_rows_weigh_by_their_tokens_and_not_as_rows():
    # M03a: one token of loss 4 and three of loss 2 average to 2.5, not to 3.
    tokens = torch.zeros(2, 4, dtype=torch.long)
    mask = torch.tensor([[0, 1, 0, 0], [0, 1, 1, 1]]).bool()
    logits = torch.zeros(2, 4, 2, dtype=torch.float64)
    for row, nats in enumerate((4.0, 2.0)):
        logits[row, :, 1] = math.log(math.expm1(nats))  # -ln p(0) = nats
    assert next_token_loss(logits, tokens, mask).item() == pytest.approx(2.5)


def test_extreme_logits_give_a_finite_loss_and_gradient():
    tokens = torch.tensor([[0, 1, 0]])
    logits = torch.zeros(1, 3, 2)
    logits[0, 0, 0], logits[0, 1, 0] = 1e4, 1e4
    logits.requires_grad_()
    loss = next_token_loss(logits, tokens)
    loss.backward()
    assert loss.item() == pytest.approx(5000.0)
    assert logits.grad.isfinite().all()


def test_targets_are_the_next_tokens_and_inputs_are_left_alone():
    tokens = torch.tensor([[1, 2, 3], [4, 5, 6]])
    mask = torch.tensor([[True, True, False], [False, False, True]])
    assert shift_targets(tokens).tolist() == [[2, 3, IGNORE], [5, 6, IGNORE]]
    expected = [[2, IGNORE, IGNORE], [IGNORE, 6, IGNORE]]
    assert shift_targets(tokens, mask).tolist() == expected
    assert tokens.tolist() == [[1, 2, 3], [4, 5, 6]] and mask.sum() == 3


def test_the_number_of_targets_leaves_out_first_tokens_even_where_the_mask_has_them():
    tokens = torch.zeros(2, 4, dtype=torch.long)
    assert count_targets(tokens, None) == 6
    assert count_targets(tokens, torch.ones(2, 4, dtype=torch.bool)) == 6
    assert count_targets(tokens, torch.tensor([[1, 0, 0, 1], [1, 0, 0, 0]]).bool()) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask": torch.zeros(2, 4).bool()}, "targets must be at least 1, got 0"),
        ({"mask": torch.eye(4)[[0, 0]].bool()}, "targets must be at least 1"),
        ({"logits": torch.zeros(2, 3, 5)}, "logits must be of shape"),
        ({"logits": torch.zeros(8, 5)}, "logits must be of shape"),
        ({"mask": torch.ones(2, 3).bool()}, "mask must be a bool tensor of shape"),
        ({"mask": torch.ones(2, 4).long()}, "mask must be a bool tensor of shape"),
        ({"mask": torch.ones(2, 4)}, "mask must be a bool tensor of shape"),
    ],
    ids=[
        "no target",
        "first only",
        "shifted",
        "flat",
        "shifted mask",
        "ints",
        "floats",
    ],
)
def test_what_does_not_belong_together_is_refused(change, message):
    batch = {
        "logits": torch.zeros(2, 4, 5),
        "tokens": torch.zeros(2, 4, dtype=torch.long),
        "mask": torch.ones(2, 4, dtype=torch.bool),
    }
    with pytest.raises(ValueError, match=message):
        next_token_loss(**(batch | change))


def test_a_row_of_a_single_token_has_no_target():
    with pytest.raises(ValueError, match="targets must be at least 1"):
        next_token_loss(torch.zeros(2, 1, 5), torch.zeros(2, 1, dtype=torch.long))
