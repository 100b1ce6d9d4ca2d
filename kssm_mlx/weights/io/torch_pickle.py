"""The pickle inside a torch file, read without executing it.

A pickle is a program. Python's own `pickle` runs it; here it is read by a machine that builds dicts, lists,
tuples and descriptions of tensors, and for which every other instruction and every other name is an error.
Nothing that the file names is ever imported or called.

Source: torch/serialization.py, torch/_utils.py (what torch writes); CPython's pickletools (the instructions).
"""

from __future__ import annotations

import pickletools
import re
import struct
from typing import Any, NamedTuple

from kssm_mlx.weights.io.tensors import MOST_DIMENSIONS

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
# Numbers that torch stores and that no model here has: FloatStorage's relatives, and dtypes without storage.
_OTHER_NUMBERS = re.compile(
    r"torch\.?\w* (Complex\w*Storage|Q\w*Storage|UntypedStorage|(float|u?int|complex|q?u?int|bits)\d\w*)"
)
TENSOR, TENSOR_OF_DTYPE = "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_tensor_v3"
PARAMETER, TABLE = "torch._utils _rebuild_parameter", "collections OrderedDict"
CALLS = (TENSOR, TENSOR_OF_DTYPE, PARAMETER, TABLE)
CONSTANTS = {
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
}
LITERALS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}

# A state dict of 60,000 tensors has 1.6 million instructions, a third of which make something.
MOST_INSTRUCTIONS = 1_800_000
MOST_OBJECTS = 700_000
LONGEST_NAME = 1000  # characters


class Refused(Exception):
    """The pickle does something that a file of tensors does not do; the message names it."""


class Damaged(Exception):
    """The pickle or the archive is not whole; the message says where."""


class Unreadable(Exception):
    """A tensor has a dtype, or a form, that is not read; the message names it."""


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

    Nothing here looks into a value of unknown depth (hashes, compares or prints it), so depth costs nothing.

    Raises: Refused for an instruction or a name that is not on the list; Unreadable for a tensor that is not
    read; Damaged for a pickle that ends early, is longer than any table of tensors, or whose stack does not
    add up.
    """
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    objects = 0
    try:
        for number, (opcode, argument, _) in enumerate(pickletools.genops(pickle)):
            objects += opcode.name in _MAKERS
            if number >= MOST_INSTRUCTIONS or objects > MOST_OBJECTS:
                raise Damaged(
                    f"its pickle has more than {MOST_INSTRUCTIONS:,} instructions or {MOST_OBJECTS:,} objects"
                )
            _step(opcode.name, argument, stack, memo)
        (value,) = stack
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as e:
        raise Damaged(f"its pickle does not add up: {_shorten_text(str(e))}") from None
    except (struct.error, StopIteration, RecursionError, MemoryError) as e:
        raise Damaged(f"its pickle does not add up: {_shorten_text(str(e)) or 'a mark is missing'}") from None
    return value


_MAKERS = {*EMPTY, "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "REDUCE", "GLOBAL", "STACK_GLOBAL", "BINPERSID"}


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
            if len(stack) < n:
                raise IndexError("a tuple of more than there is")
            stack[-n:] = [tuple(stack[-n:])]
        case "APPEND":
            item = stack.pop()
            stack[-1].append(item)
        case "APPENDS":
            items = _to_mark(stack)
            stack[-1].extend(items)
        case "SETITEM":
            value, key = stack.pop(), stack.pop()
            stack[-1][_key(key)] = value
        case "SETITEMS":
            items = _to_mark(stack)
            stack[-1].update(zip(map(_key, items[::2]), items[1::2], strict=True))
        case "BINPUT" | "LONG_BINPUT":
            memo[argument] = stack[-1]
        case "MEMOIZE":
            memo[len(memo)] = stack[-1]
        case "BINGET" | "LONG_BINGET":
            stack.append(memo[argument])
        case "GLOBAL":
            stack.append(_global(argument))
        case "STACK_GLOBAL":
            attribute, module = _text(stack.pop()), _text(stack.pop())
            stack.append(_global(f"{module} {attribute}"))
        case "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            stack.append(_call(function, arguments))
        case "BINPERSID":
            stack.append(_storage(stack.pop()))
        case "BUILD":  # the attributes of an OrderedDict, where torch keeps module versions
            stack.pop()
            if type(stack[-1]) is not dict:
                raise Refused("sets attributes on something that is not a dict")
        case _:
            raise Refused(f"has the instruction {name}, which a file of tensors does not need")


def _to_mark(stack: list[Any]) -> list[Any]:
    """What lies above the last mark, taken off together with it."""
    at = len(stack) - 1
    while at >= 0 and stack[at] is not _MARK:
        at -= 1
    if at < 0:
        raise IndexError("a mark is missing")
    items = stack[at + 1 :]
    del stack[at:]
    return items


def _key(key: Any) -> str | int:
    """A key of a dict, unless it is something that would have to be hashed through all its depths."""
    if type(key) is not str and type(key) is not int:
        raise Refused(f"has a {type(key).__name__} as a key, where a file of tensors has names")
    if type(key) is str and len(key) > LONGEST_NAME:
        raise Refused(f"has a name of {len(key):,} characters")
    return key


def _text(value: Any) -> str:
    if type(value) is not str:
        raise Refused(f"imports something whose name is a {type(value).__name__}")
    return value


def _global(name: str) -> _Global:
    if name not in CALLS and name not in STORAGES and not _OTHER_NUMBERS.fullmatch(name):
        raise Refused(
            f"imports {_shorten_text(name.replace(' ', '.'))}, which a file of tensors does not need"
        )
    return _Global(name)


def _call(function: Any, arguments: Any) -> Any:
    """What the known functions would return, as a description."""
    if not isinstance(function, _Global) or function.name not in CALLS:
        shown = function.name.replace(" ", ".") if isinstance(function, _Global) else type(function).__name__
        raise Refused(f"calls {shown}, which a file of tensors does not need")
    if type(arguments) is not tuple or len(arguments) not in _ARGUMENTS[function.name]:
        got = len(arguments) if type(arguments) is tuple else type(arguments).__name__
        raise Refused(
            f"calls {function.name.replace(' ', '.')} with {got} arguments, which is not understood"
        )
    return _MAKE[function.name](*arguments)


def _tensor(
    storage: Any, offset: Any, shape: Any, strides: Any, gradient: Any, hooks: Any, metadata: Any = None
) -> Tensor:
    """torch._utils._rebuild_tensor_v2. What would change the numbers, such as a lazy sign, is refused."""
    del gradient
    if not isinstance(storage, Storage) or not all(type(v) is tuple for v in (shape, strides)):
        raise Refused("builds a tensor from something that is not a storage, a shape and strides")
    if max(len(shape), len(strides)) > MOST_DIMENSIONS:
        raise Damaged(f"a tensor in it has {len(shape)} dimensions and {len(strides)} strides")
    if not _is_shape((offset, *shape, *strides)):
        raise Refused("builds a tensor from something that is not a storage and natural numbers")
    if hooks:
        raise Refused("gives a tensor hooks, which are functions")
    if metadata and not (type(metadata) is dict and all(value is False for value in metadata.values())):
        named = (
            ", ".join(map(_shorten_text, map(str, metadata))) if type(metadata) is dict else "of another kind"
        )
        raise Unreadable(
            f"a tensor with metadata ({named}), such as a lazy sign or conjugation, which changes its numbers"
        )
    return Tensor(storage, offset, shape, strides)


def _tensor_of_dtype(*arguments: Any) -> Tensor:
    """torch._utils._rebuild_tensor_v3, which torch uses for dtypes that have no storage class."""
    dtype = arguments[6]
    if not isinstance(dtype, _Global):
        raise Refused("builds a tensor whose dtype is not one")
    raise Unreadable(f"a tensor of {dtype.name.replace(' ', '.')}")


_MAKE = {
    TENSOR: _tensor,
    TENSOR_OF_DTYPE: _tensor_of_dtype,
    PARAMETER: lambda tensor, gradient, hooks: tensor,
    TABLE: dict,
}
_ARGUMENTS = {TENSOR: (6, 7), TENSOR_OF_DTYPE: (7, 8), PARAMETER: (3,), TABLE: (0,)}


def _storage(identifier: Any) -> Storage | None:
    if type(identifier) is not tuple or len(identifier) != 5 or identifier[0] != "storage":
        raise Refused("refers to something outside that is not a storage")
    _, storage, key, _, elements = identifier
    if not isinstance(storage, _Global) or not (
        storage.name in STORAGES or _OTHER_NUMBERS.fullmatch(storage.name)
    ):
        raise Refused(f"refers to a {type(storage).__name__}, which is not a storage of numbers")
    if not _is_shape((elements,)) or type(key) is not str or len(key) > LONGEST_NAME:
        raise Refused("refers to a storage without a name or a size")
    if storage.name not in STORAGES and not storage.name.endswith("UntypedStorage"):
        raise Unreadable(f"a tensor of {storage.name.replace(' ', '.')}")
    return Storage(STORAGES.get(storage.name, "uint8"), key, elements)


def _is_shape(numbers: tuple) -> bool:
    return all(type(n) is int and 0 <= n < 1 << 63 for n in numbers)


def _shorten_text(text: str) -> str:
    return text if len(text) <= 120 else f"{text[:120]}..."
