"""Number formats: every pattern of bits beside torch's own reading of it."""

import pytest
import torch

from minillm.training.number_formats import FORMATS, decode

every = pytest.mark.parametrize("name", FORMATS)
VIEWS = {8: torch.uint8, 16: torch.int16, 32: torch.int32}


def patterns(name: str) -> torch.Tensor:
    """All patterns of the short formats; a hundred thousand of the long one's."""
    bits = FORMATS[name].bits
    if bits < 32:
        return torch.arange(2**bits)
    edges = [0, 1, 0x7FFFFF, 0x800000, 0x7F7FFFFF, 0x7F800000, 0x7F800001, 0x80000000]
    drawn = torch.randint(2**32, (100_000,), generator=torch.Generator().manual_seed(0))
    return torch.cat([torch.tensor(edges), drawn])


@every
def test_each_pattern_means_what_torch_takes_it_for(name):
    kind, bits = FORMATS[name], patterns(name)
    signed = torch.where(bits >= 2 ** (kind.bits - 1), bits - 2**kind.bits, bits)
    stored = (bits if kind.bits == 8 else signed).to(VIEWS[kind.bits])
    theirs, ours = stored.view(getattr(torch, name)).double(), decode(bits, kind)
    assert ours.isnan().equal(theirs.isnan())
    known = ~ours.isnan()
    assert ours[known].equal(theirs[known])
    assert ours[known].signbit().equal(theirs[known].signbit())  # -0 is not 0


@every
def test_range_and_precision_are_torchs(name):
    kind, theirs = FORMATS[name], torch.finfo(getattr(torch, name))
    assert (kind.bits, kind.epsilon, kind.largest) == (
        theirs.bits,
        theirs.eps,
        theirs.max,
    )
    assert (kind.smallest_normal, kind.smallest) == (
        theirs.smallest_normal,
        theirs.smallest_subnormal
        if hasattr(theirs, "smallest_subnormal")
        else kind.smallest,
    )
    finite = decode(patterns(name), kind)
    finite = finite[finite.isfinite()]
    assert finite.max() == kind.largest
    assert finite[finite > 0].min() == kind.smallest


@every
def test_one_and_half_an_epsilon_are_one_and_a_little_more_is_not(name):
    kind, dtype = FORMATS[name], getattr(torch, name)
    half = torch.tensor([kind.epsilon / 2, kind.epsilon * 0.51], dtype=torch.float64)
    lost, kept = (1 + half).to(dtype).double().tolist()
    assert lost == 1 and kept == 1 + kind.epsilon


def test_a_bfloat16_weight_of_one_ignores_updates_that_float32_keeps():
    for dtype, after in ((torch.bfloat16, 1.0), (torch.float32, 1.3)):
        w = torch.ones((), dtype=dtype)
        for _ in range(100):
            w += 0.003
        assert w.item() == pytest.approx(after, rel=1e-4)


def test_patterns_that_do_not_fit_are_refused_and_any_shape_is_kept():
    kind = FORMATS["float8_e4m3fn"]
    for bad in (-1, 256):
        with pytest.raises(ValueError, match=r"bits must be in 0\.\.2\^8 - 1"):
            decode(torch.tensor([bad]), kind)
    assert decode(torch.zeros(2, 0, 3, dtype=torch.uint8), kind).shape == (2, 0, 3)
    assert decode(torch.tensor(0x7E), kind).item() == 448
