"""The wire carries numbers and words, and believes nothing that it reads."""

import contextlib
import io
import json
import math
import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm.school.grading.wire import (
    DTYPES,
    LARGEST_BODY,
    Handle,
    WireError,
    pack,
    receive,
    send,
    unpack,
)

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=80, deadline=None)
@given(plain)
def test_what_is_sent_is_what_arrives(value):
    pipe = io.BytesIO()
    send(pipe, value)
    pipe.seek(0)
    assert receive(pipe) == value


@pytest.mark.parametrize("dtype", DTYPES.values())
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 3), (2, 3, 1)])
def test_arrays_of_every_type_and_shape_arrive_bit_for_bit(dtype, shape):
    array = (torch.rand(shape) * 3).to(dtype)
    arrived = unpack(*pack([array, {"x": array}]))
    for copy in (arrived[0], arrived[1]["x"]):
        assert copy.dtype == dtype and copy.shape == shape and copy.equal(array)
        assert copy.data_ptr() != array.data_ptr() or not array.numel()


def test_views_and_numpy_arrays_arrive_as_what_they_show():
    strided = torch.arange(12).reshape(3, 4).T
    assert unpack(*pack(strided)).equal(strided)
    assert unpack(*pack(np.array([1.5, math.nan])))[0] == 1.5
    assert unpack(*pack(Handle(3))) == Handle(3)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (print, "builtin_function_or_method cannot be sent"),
        ({1, 2}, "a set cannot be sent"),
        ({1: 2}, "has a int as a key"),
        (np.array(["x"], dtype=object), "a type that torch does not know"),
        (torch.zeros(1, dtype=torch.complex64), "of type complex64"),
        (torch.zeros(1, device="meta"), "device meta"),
        (torch.zeros(2, 2).to_sparse(), "sparse"),
        (torch.zeros(LARGEST_BODY // 4 + 1), "larger than 64 MB"),
    ],
)
def test_what_cannot_be_sent_is_named(value, said):
    with pytest.raises(WireError, match=said):
        pack(value)


def frame(tree, arrays=(), body=b"") -> tuple[bytes, bytes]:
    return json.dumps({"tree": tree, "arrays": list(arrays)}).encode(), body


@pytest.mark.parametrize(
    ("header", "body"),
    [
        (b"", b""),
        (b"[]", b""),
        (b"\xff\xfe", b""),
        (b"[" * 100_000, b""),
        frame({"array": 0}),
        frame({"array": -1}, [["int64", [0]]]),
        frame({"array": True}, [["int64", [0]]]),
        frame({"array": 0}, [["object", [1]]], b"12345678"),
        frame({"array": 0}, [["int64", [1]]], b"1234"),
        frame({"array": 0}, [["int64", [-1]]], b""),
        frame({"array": 0}, [["int64", [2**70]]], b""),
        frame({"array": 0}, [["int64", [1.0]]], b"12345678"),
        frame({"array": 0}, [["int64", [1] * 9]], b"12345678"),
        frame({"array": 0}, [["int64", 1]], b"12345678"),
        frame(1, [], b"left over"),
        frame({"handle": "x"}),
        frame({"code": "print()"}),
        frame({"dict": [[1, 2]]}),
        frame({"dict": 3}),
        frame({"tuple": None}),
        frame({}),
    ],
)
def test_a_damaged_frame_is_a_wire_error_and_nothing_else(header, body):
    with pytest.raises(WireError):
        unpack(header, body)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=80), st.integers(0, 79), st.integers(0, 255))
def test_noise_never_does_anything_but_fail_or_arrive(noise, place, byte):
    pipe = io.BytesIO()
    send(pipe, {"x": [torch.arange(3), "word"]})
    data = bytearray(pipe.getvalue())
    data[place % len(data)] = byte
    for stream in (noise, bytes(data)):
        with contextlib.suppress(WireError, EOFError):
            receive(io.BytesIO(stream))


def test_a_frame_that_announces_too_much_is_not_read():
    class Endless(io.RawIOBase):
        def read(self, n=-1):
            assert n <= 16, "must not ask for a body of that size"
            return struct.pack(">QQ", 2**60, 2**60)

    with pytest.raises(WireError, match="larger than is allowed"):
        receive(Endless())


def test_a_stream_that_ends_early_says_so():
    pipe = io.BytesIO()
    send(pipe, [1, 2, 3])
    for cut in (0, 5, 20):
        with pytest.raises(EOFError):
            receive(io.BytesIO(pipe.getvalue()[:cut]))
