"""The pickle inside a torch file, read without executing it.

A pickle is a program. Python's own `pickle` runs it; here it is read by a machine that builds dicts, lists,
tuples and descriptions of tensors, and for which every other instruction and every other name is an error.
Nothing that the file names is ever imported or called.

Source: torch/serialization.py, torch/_utils.py (what torch writes); CPython's pickletools (the instructions).
"""

from __future__ import annotations

import pickletools
import struct
from typing import Any, NamedTuple

STORAGES = {
    "torch FloatStorage": "float32",
    "torch HalfStorage": "float16",
    "torch BFloat16Storage": "bfloat16",
    "torch DoubleStorage": "float64",
    "torch LongStorage": "int64",
    "torch IntStorage": "int32",
    "torch ShortStorage": "int16",
    "torch CharStorage": "int8",
    "torch ByteStorage": "uint8",
    "torch BoolStorage": "bool_",
}
CALLS = ("torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter", "collections OrderedDict")
CONSTANTS = {
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
}
LITERALS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}


class Refused(Exception):
    """The pickle does something that a file of tensors does not do; the message names it."""


class Damaged(Exception):
    """The pickle or the archive is not whole; the message says where."""


class _Global(NamedTuple):
    name: str  # "module attribute"


class Storage(NamedTuple):
    dtype: str
    key: str
    elements: int


class Tensor(NamedTuple):
    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


_MARK = object()


def run(pickle: bytes) -> Any:
    """The value a pickle describes, tensors as descriptions of tensors.

    Raises: Refused for an instruction or a name that is not on the list; Damaged for a pickle that ends early
    or whose stack does not add up.
    """
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    try:
        for opcode, argument, _ in pickletools.genops(pickle):
            _step(opcode.name, argument, stack, memo)
        (value,) = stack
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, UnicodeError, struct.error) as e:
        raise Damaged(f"its pickle does not add up: {e}") from None
    return value


def _step(name: str, argument: Any, stack: list[Any], memo: dict[int, Any]) -> None:
    """One instruction."""
    match name:
        case "PROTO" | "FRAME" | "STOP":
            pass
        case _ if name in CONSTANTS:
            stack.append(argument)
        case _ if name in LITERALS:
            stack.append(LITERALS[name])
        case _ if name in EMPTY:
            stack.append(EMPTY[name]())
        case "MARK":
            stack.append(_MARK)
        case "TUPLE":
            stack.append(tuple(_to_mark(stack)))
        case "TUPLE1" | "TUPLE2" | "TUPLE3":
            n = int(name[-1])
            stack[-n:] = [tuple(stack[len(stack) - n :])]
        case "APPEND":
            item = stack.pop()
            stack[-1].append(item)
        case "APPENDS":
            items = _to_mark(stack)
            stack[-1].extend(items)
        case "SETITEM":
            value, key = stack.pop(), stack.pop()
            stack[-1][key] = value
        case "SETITEMS":
            items = _to_mark(stack)
            stack[-1].update(zip(items[::2], items[1::2], strict=True))
        case "BINPUT" | "LONG_BINPUT":
            memo[argument] = stack[-1]
        case "MEMOIZE":
            memo[len(memo)] = stack[-1]
        case "BINGET" | "LONG_BINGET":
            stack.append(memo[argument])
        case "GLOBAL":
            stack.append(_global(argument))
        case "STACK_GLOBAL":
            attribute, module = stack.pop(), stack.pop()
            stack.append(_global(f"{module} {attribute}"))
        case "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            stack.append(_call(function, arguments))
        case "BINPERSID":
            stack.append(_storage(stack.pop()))
        case "BUILD":  # the attributes of an OrderedDict, where torch keeps module versions
            stack.pop()
            if not isinstance(stack[-1], dict):
                raise Refused("sets attributes on something that is not a dict")
        case _:
            raise Refused(f"has the instruction {name}, which a file of tensors does not need")


def _to_mark(stack: list[Any]) -> list[Any]:
    """What lies above the last mark, taken off together with it."""
    at = len(stack) - 1 - next(i for i, item in enumerate(reversed(stack)) if item is _MARK)
    items = stack[at + 1 :]
    del stack[at:]
    return items


def _global(name: str) -> _Global:
    if name not in CALLS and name not in STORAGES:
        raise Refused(f"imports {name.replace(' ', '.')}, which a file of tensors does not need")
    return _Global(name)


def _call(function: Any, arguments: tuple) -> Any:
    """What the three known functions would return, as a description."""
    match function:
        case _Global("torch._utils _rebuild_tensor_v2"):
            storage, offset, shape, strides = arguments[:4]
            if not isinstance(storage, Storage) or not _whole((offset, *shape, *strides)):
                raise Refused("builds a tensor from something that is not a storage and natural numbers")
            return Tensor(storage, offset, tuple(shape), tuple(strides))
        case _Global("torch._utils _rebuild_parameter"):
            return arguments[0]
        case _Global("collections OrderedDict"):
            return dict(*arguments)
    shown = function.name.replace(" ", ".") if isinstance(function, _Global) else type(function).__name__
    raise Refused(f"calls {shown}, which a file of tensors does not need")


def _storage(identifier: tuple) -> Storage:
    kind, storage, key, _, elements = identifier
    if kind != "storage" or not isinstance(storage, _Global) or storage.name not in STORAGES:
        raise Refused(f"refers to {storage!r}, which is not a storage of numbers")
    if not _whole((elements,)) or not isinstance(key, str):
        raise Refused("refers to a storage without a name or a size")
    return Storage(STORAGES[storage.name], key, elements)


def _whole(numbers: tuple) -> bool:
    return all(type(n) is int and n >= 0 for n in numbers)
