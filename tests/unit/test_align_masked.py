"""Masked means and whitening: padding counts nowhere, whatever it holds."""

import pytest
import torch

from minillm.alignment.masked import masked_mean, masked_sum, masked_whiten

ROWS = torch.tensor([[1.0, 2.0, 3.0, 0.0, 0.0], [0.0, 5.0, 9.0, 4.0, 0.0]]).double()
MASK = torch.tensor([[1, 1, 1, 0, 0], [0, 1, 1, 1, 0]]).bool()


def test_the_mean_is_over_what_the_mask_keeps():
    # M31: 2.0, where a mean over all columns is 1.2.
    assert masked_mean(ROWS[0], MASK[0]).item() == 2.0
    assert ROWS[0].mean().item() == pytest.approx(1.2)
    torch.testing.assert_close(masked_mean(ROWS, MASK), ROWS[MASK].mean())


def test_a_mean_for_each_row_and_the_mean_of_all_are_two_numbers():
    x = torch.tensor([[4.0, 0.0], [1.0, 1.0]])
    mask = torch.tensor([[True, False], [True, True]])
    assert masked_mean(x, mask, dim=1).tolist() == [4.0, 1.0]
    assert masked_mean(x, mask, dim=1).mean().item() == 2.5
    assert masked_mean(x, mask).item() == 2.0


@pytest.mark.parametrize("junk", [1e30, torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("f", [masked_sum, masked_mean, masked_whiten])
def test_what_stands_in_padding_changes_neither_value_nor_gradient(f, junk):
    weights = torch.tensor([1.0, -2.0, 3.0]).double()  # else whitening has gradient 0
    results = []
    for padding in (0.0, junk):
        x = ROWS.masked_fill(~MASK, padding).requires_grad_()
        out = f(x, MASK)
        loss = (out[:, 1:4] * weights).sum() if out.dim() else out
        loss.backward()
        results.append((out.detach(), x.grad))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-12, atol=0)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-12, atol=0)
    assert results[1][1].abs().sum() > 0


@pytest.mark.parametrize(("left", "right"), [(0, 4), (3, 0), (2, 5)])
def test_more_padding_on_either_side_changes_nothing(left, right):
    x = torch.nn.functional.pad(ROWS, (left, right), value=7.0)
    mask = torch.nn.functional.pad(MASK, (left, right), value=False)
    assert masked_mean(x, mask).equal(masked_mean(ROWS, MASK))
    columns = slice(left, left + 5)
    torch.testing.assert_close(
        masked_whiten(x, mask)[:, columns], masked_whiten(ROWS, MASK)
    )


def test_of_nothing_the_mean_is_zero_and_so_is_its_gradient():
    x = torch.full((2, 3), torch.nan, requires_grad=True)
    nothing = torch.zeros(2, 3).bool()
    out = masked_mean(x, nothing) + masked_mean(x, nothing, dim=1).sum()
    (out + masked_whiten(x, nothing).sum()).backward()
    assert out.item() == 0.0 and x.grad.equal(torch.zeros(2, 3))


def test_an_empty_row_has_mean_zero_beside_one_that_is_not():
    mask = torch.tensor([[False, False], [True, False]])
    assert masked_mean(torch.ones(2, 2), mask, dim=1).tolist() == [0.0, 1.0]


def test_white_values_have_mean_zero_variance_one_and_padding_stays_zero():
    white = masked_whiten(ROWS, MASK)
    assert white[MASK].mean().item() == pytest.approx(0.0, abs=1e-12)
    assert white[MASK].var().item() == pytest.approx(1.0, rel=1e-8)  # of a sample
    # M31c: shifted together with the rest, padding would be -mean / std
    assert white[~MASK].equal(torch.zeros(4).double())


def test_without_a_shift_the_mean_stays_and_the_variance_is_one():
    white = masked_whiten(ROWS, MASK, shift_mean=False)
    assert white[MASK].mean().item() == pytest.approx(ROWS[MASK].mean().item())
    assert white[MASK].var().item() == pytest.approx(1.0, rel=1e-8)
    assert white[~MASK].equal(torch.zeros(4).double())


@pytest.mark.parametrize("value", [0.1, 1e6, -3.3])
def test_equal_values_are_exactly_zero_when_whitened(value):
    x = torch.full((3, 7), value)  # float32: their mean is not exactly the value
    mask = torch.arange(7) < torch.tensor([[7], [3], [1]])
    assert masked_whiten(x, mask).equal(torch.zeros(3, 7))


def test_a_single_value_is_zero_and_no_division_by_nothing():
    x, mask = torch.tensor([[5.0, 8.0]]), torch.tensor([[True, False]])
    assert masked_whiten(x, mask).tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize("f", [masked_sum, masked_mean, masked_whiten])
@pytest.mark.parametrize("mask", [torch.ones(2, 5), torch.ones(2, 4).bool()])
def test_masks_of_numbers_and_of_other_shapes_are_refused(f, mask):
    with pytest.raises(ValueError, match="mask must be a bool tensor of shape"):
        f(ROWS, mask)
