"""What may pass between grader and student: numbers, words, arrays; never code.

Pickle runs what it reads, so it has no place here. A frame is two lengths and

    8 bytes | 8 bytes | header, JSON | raw bytes of its arrays, one after the other

What is read is checked before it is believed: lengths against a cap, types against a
whitelist, shapes against the bytes. All else is a ``WireError``.
"""

import json
import math
import struct
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, BinaryIO

import torch

NAMES = ["bool", "uint8", "int32", "int64", "float16", "float32", "float64"]
DTYPES = {name: getattr(torch, name) for name in NAMES}
LARGEST_HEADER, LARGEST_BODY = 2**20, 2**26
LENGTHS = struct.Struct(">QQ")


class WireError(ValueError):
    """Something that cannot be sent, or that should not have been received."""


@dataclass(frozen=True)
class Handle:
    """Stands for an object that stays where it was made."""

    number: int


def pack(value: Any) -> tuple[bytes, bytes]:
    """Header and body of a frame.

    Tensors and numpy arrays become arrays, dataclasses dictionaries of their fields.

    Raises:
        WireError: something else than None, bool, number, word, array, or a list,
            tuple or dictionary of those; or too much of it.

    >>> pack([1, torch.zeros(2, dtype=torch.uint8)])[1]
    b'\\x00\\x00'
    """
    arrays: list[torch.Tensor] = []
    try:
        tree = _plain(value, arrays)
        body = b"".join(array.numpy().tobytes() for array in arrays)
        kinds = [[str(a.dtype).removeprefix("torch."), list(a.shape)] for a in arrays]
        header = json.dumps({"tree": tree, "arrays": kinds}).encode()
    except RecursionError:
        raise WireError("a value that contains itself cannot be sent") from None
    if len(header) > LARGEST_HEADER or len(body) > LARGEST_BODY:
        raise WireError(f"the value is larger than {LARGEST_BODY >> 20} MB")
    return header, body


def unpack(header: bytes, body: bytes) -> Any:
    """The value of a frame; arrays come as tensors.

    Raises:
        WireError: whatever is wrong with it.

    >>> unpack(*pack((1, {"x": [None, "word"]})))
    (1, {'x': [None, 'word']})
    """
    try:
        frame = json.loads(header)
        arrays = _arrays(frame["arrays"], body)
        return _value(frame["tree"], arrays)
    except WireError:
        raise
    except (ArithmeticError, AttributeError, LookupError, RecursionError) as error:
        raise WireError(f"a frame is damaged ({type(error).__name__})") from None
    except (TypeError, ValueError) as error:
        raise WireError(f"a frame is damaged ({type(error).__name__})") from None


def send(stream: BinaryIO, value: Any) -> None:
    """Write one frame.

    Raises:
        WireError: see ``pack``; nothing is written then.
    """
    header, body = pack(value)
    stream.write(LENGTHS.pack(len(header), len(body)) + header + body)
    stream.flush()


def receive(stream: BinaryIO) -> Any:
    """Read one frame.

    Raises:
        EOFError: the other side is gone.
        WireError: the frame is damaged or too large.

    >>> import io
    >>> pipe = io.BytesIO(); send(pipe, {"x": 1.5}); _ = pipe.seek(0); receive(pipe)
    {'x': 1.5}
    """
    n_header, n_body = LENGTHS.unpack(_exactly(stream, LENGTHS.size))
    if n_header > LARGEST_HEADER or n_body > LARGEST_BODY:
        raise WireError("a frame is larger than is allowed")
    header = _exactly(stream, n_header)
    return unpack(header, _exactly(stream, n_body))


def _exactly(stream: BinaryIO, n: int) -> bytes:
    data = stream.read(n)
    if len(data) < n:
        raise EOFError("the stream ended within a frame")
    return data


def _plain(value: Any, arrays: list[torch.Tensor]) -> Any:
    """A tree for JSON; containers other than lists are tagged, arrays set aside."""
    if value is None or isinstance(value, bool | str | int | float):
        return value
    if isinstance(value, list):
        return [_plain(item, arrays) for item in value]
    if isinstance(value, tuple):
        return {"tuple": [_plain(item, arrays) for item in value]}
    if isinstance(value, Handle):
        return {"handle": value.number}
    if is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, dict):
        pairs = [[_word(key), _plain(item, arrays)] for key, item in value.items()]
        return {"dict": pairs}
    arrays.append(_array(value))
    return {"array": len(arrays) - 1}


def _word(key: Any) -> str:
    if not isinstance(key, str):
        raise WireError(f"a dictionary has a {type(key).__name__} as a key, not a word")
    return key


def _array(value: Any) -> torch.Tensor:
    """A tensor as it can be sent: on the CPU, dense, of a known type."""
    if not isinstance(value, torch.Tensor):
        if not hasattr(value, "__array__"):
            raise WireError(
                f"a {type(value).__name__} cannot be sent, only numbers can"
            )
        try:
            value = torch.as_tensor(value.__array__())
        except (TypeError, ValueError):
            raise WireError("an array has a type that torch does not know") from None
    name = str(value.dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise WireError(f"a tensor is of type {name}; use float32 or int64")
    if value.device.type == "meta" or value.layout != torch.strided:
        raise WireError(f"a tensor is on device {value.device}, or sparse: no numbers")
    return value.detach().cpu().resolve_neg().contiguous()


def _arrays(kinds: list, body: bytes) -> list[torch.Tensor]:
    arrays, start = [], 0
    for name, shape in kinds:
        if name not in DTYPES or not _is_shape(shape):
            raise WireError("an array has an unknown type or an impossible shape")
        dtype = DTYPES[name]
        stop = start + math.prod(shape) * dtype.itemsize
        if stop > len(body):
            raise WireError("an array is longer than its bytes")
        # frombuffer wants a writable buffer, and one that is not empty
        flat = torch.empty(0, dtype=dtype)
        if stop > start:
            flat = torch.frombuffer(bytearray(body[start:stop]), dtype=torch.uint8)
            flat = (flat != 0) if name == "bool" else flat.view(dtype)
        arrays.append(flat.reshape(shape))
        start = stop
    if start != len(body):
        raise WireError("a frame has bytes that belong to no array")
    return arrays


def _is_shape(shape: Any) -> bool:
    ints = isinstance(shape, list) and all(type(n) is int and n >= 0 for n in shape)
    return ints and len(shape) <= 8 and all(n <= LARGEST_BODY for n in shape)


def _value(tree: Any, arrays: list[torch.Tensor]) -> Any:
    if tree is None or isinstance(tree, bool | str | int | float):
        return tree
    if isinstance(tree, list):
        return [_value(item, arrays) for item in tree]
    ((tag, content),) = tree.items()
    if tag == "tuple":
        return tuple(_value(item, arrays) for item in content)
    if tag == "dict":
        return {_word(key): _value(item, arrays) for key, item in content}
    if type(content) is not int or content < 0 or tag not in ("array", "handle"):
        raise WireError("a frame has a part of an unknown kind")
    return arrays[content] if tag == "array" else Handle(content)
