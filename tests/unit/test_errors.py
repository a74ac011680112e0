"""The sentences that doors say, and what they let pass."""

import math

import pytest
import torch

from minillm.errors import (
    require,
    require_count,
    require_file,
    require_mask,
    require_one_of,
    require_positive,
)
from minillm.files import load_tensors, save_tensors


def test_what_is_right_passes_without_a_word(tmp_path):
    require_count(steps=1, B=10**9)
    require_positive(lr=1e-9, clip=math.inf)
    require_one_of(("a", "b"), first="a", second="b")
    require_mask(None, (2, 3))
    require_mask(torch.ones(2, 3).bool(), (2, 3))
    (tmp_path / "file").touch()
    require_file(tmp_path / "file", "none needed")


@pytest.mark.parametrize("bad", [0, -1, 1.0, True, "1", None])
def test_the_one_value_that_is_no_count_is_named(bad):
    with pytest.raises(ValueError, match=r"^B must be an int of at least 1"):
        require_count(T=1, B=bad)


@pytest.mark.parametrize("bad", [0.0, -1e-9, math.nan, -math.inf])
def test_zero_and_nan_are_not_positive(bad):
    with pytest.raises(ValueError, match=r"^lr must be positive"):
        require_positive(clip=1.0, lr=bad)


@pytest.mark.parametrize(
    "bad", [torch.ones(2, 3), torch.ones(2, 3).long(), torch.ones(3, 2).bool()]
)
def test_masks_of_numbers_or_of_another_shape_are_refused(bad):
    with pytest.raises(ValueError, match="mask must be a bool tensor of shape"):
        require_mask(bad, (2, 3))


def test_a_tensor_is_shown_by_its_shape_and_a_long_value_shortened():
    with pytest.raises(ValueError, match=r"got \(1000, 1000\) of torch.int64; change"):
        require(False, "x", torch.zeros(1000, 1000).long(), "small", "change it")
    with pytest.raises(ValueError, match="x must be short") as refused:
        require(False, "x", "a" * 10_000, "short", "change it")
    assert len(str(refused.value)) < 200


def test_tensors_and_their_header_come_back_bit_equal(tmp_path):
    path = tmp_path / "some.safetensors"
    tensors = {"a": torch.randn(3, 4).T, "b": torch.tensor(2, dtype=torch.int32)}
    save_tensors(path, tensors, {"step": "3"})
    found, header = load_tensors(path, "none needed")
    assert header == {"step": "3"} and found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].equal(tensor) and found[name].dtype == tensor.dtype
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"path must be an intact .*got .*some.safe"):
        load_tensors(path, "save it again")
