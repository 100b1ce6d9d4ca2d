"""Pickles of torch: what torch writes is read or refused by name; depth, copies and length cost nothing."""

import struct
import time

import numpy as np
import pytest

from kssm_mlx.weights.io import torch_pickle
from kssm_mlx.weights.io.torch_archive import read_torch
from kssm_mlx.weights.io.torch_pickle import Damaged, Refused, Unreadable, run
from tests.support import weight_files

STORAGE = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ"
TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n"
TABLE = b"ccollections\nOrderedDict\n"


def tensor(metadata: bytes = b"", hooks: bytes = TABLE + b")R", storage: bytes = STORAGE) -> bytes:
    return b"\x80\x02" + TENSOR + b"(" + storage + b"K\x00K\x04\x85K\x01\x85\x89" + hooks + metadata + b"tR."


def text(word: str) -> bytes:
    return b"X" + struct.pack("<I", len(word)) + word.encode()


def test_a_tensor():
    described = run(tensor())
    assert (described.shape, described.strides, described.offset) == ((4,), (1,), 0)
    assert run(tensor(b"}")) == run(tensor(b"N")) == run(tensor(b"}" + text("neg") + b"\x89s")) == described


@pytest.mark.parametrize(
    ("pickle", "error", "message"),
    {
        "the negative bit": (tensor(b"}" + text("neg") + b"\x88s"), Unreadable, "metadata .neg., such as"),
        "the conjugate bit": (tensor(b"}" + text("conj") + b"\x88s"), Unreadable, "metadata .conj."),
        "metadata of another kind": (tensor(text("neg")), Unreadable, "metadata .of another kind"),
        "metadata that nobody knows": (tensor(b"}" + text("twist") + b"K\x01s"), Unreadable, "twist"),
        "hooks": (tensor(hooks=b"}K\x01K\x01s"), Refused, "hooks"),
        "an eighth argument": (tensor(b"NN"), Refused, "_rebuild_tensor_v2 with 8 arguments"),
        "five arguments": (tensor(hooks=b""), Refused, "_rebuild_tensor_v2 with 5 arguments"),
        "a negative stride": (
            tensor().replace(b"K\x01\x85\x89", b"J\xff\xff\xff\xff\x85\x89"),
            Refused,
            "nat",
        ),
        "a complex storage": (
            tensor(storage=STORAGE.replace(b"FloatStorage", b"ComplexFloatStorage")),
            Unreadable,
            r"torch\.ComplexFloatStorage",
        ),
        "an unknown storage": (
            tensor(storage=STORAGE.replace(b"FloatStorage", b"Strange")),
            Refused,
            "Strange",
        ),
        "a storage of six": (tensor(storage=STORAGE.replace(b"tQ", b"NtQ")), Refused, "not a storage"),
        "a parameter of two": (b"\x80\x02ctorch._utils\n_rebuild_parameter\nNN\x86R.", Refused, "with 2 arg"),
        "a table with items": (b"\x80\x02" + TABLE + b"}\x85R.", Refused, "OrderedDict with 1 arguments"),
        "an older function": (b"\x80\x02ctorch._utils\n_rebuild_tensor\n.", Refused, "_rebuild_tensor"),
        "a tuple as a key": (b"\x80\x02})Ns.", Refused, "has a tuple as a key"),
        "a tensor as a key": (b"\x80\x02}" + tensor()[2:-1] + b"Ns.", Refused, "has a Tensor as a key"),
        "no mark": (b"\x80\x02t.", Damaged, "a mark is missing"),
        "no mark for items": (b"\x80\x02]e.", Damaged, "a mark is missing"),
        "too few for a tuple": (b"\x80\x02N\x87.", Damaged, "more than there is"),
        "nothing": (b"\x80\x02.", Damaged, "add up"),
        "a name from the stack": (b"\x80\x02))\x93.", Refused, "whose name is a tuple"),
        "two values": (b"\x80\x02NN.", Damaged, "add up"),
    }.values(),
)
def test_what_is_not_understood_is_refused_by_name(pickle, error, message):
    with pytest.raises(error, match=message):
        run(pickle)


DEEP = b")" + b"\x85" * 200_000


@pytest.mark.parametrize(
    "pickle",
    [
        b"\x80\x02}" + DEEP + b"K\x01s.",
        b"\x80\x02}(" + DEEP + b"K\x01u.",
        b"\x80\x02" + DEEP + b"Q.",
        b"\x80\x02" + DEEP + DEEP + b"\x93.",
        b"\x80\x02" + DEEP + b")R.",
        b"\x80\x02" + TENSOR + DEEP + b"R.",
        tensor(storage=DEEP),
        tensor(b"}" + text("neg") + DEEP + b"s"),
        b"\x80\x02" + b"(X\x07\x00\x00\x00storage" + DEEP + DEEP + DEEP + b"K\x04tQ.",
    ],
)
def test_depth_is_no_danger(pickle):
    """A tuple that is 200,000 deep ends the process where it is hashed, compared or printed."""
    with pytest.raises((Refused, Damaged, Unreadable)) as refused:
        run(pickle)
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize("body", [b"]" * 1_100_000, b"}" * 1_100_000, b"N" * 3_100_000])
def test_a_pickle_that_is_longer_than_any_table_is_refused(body):
    with pytest.raises(Damaged, match="more than"):
        run(b"\x80\x02" + body + b".")


def test_time_goes_with_the_length():
    def seconds(n):
        table = b"}(" + b"".join(text(f"k{i}") + b"N" for i in range(200)) + b"u"
        pickle = b"\x80\x02" + table + b"q\x00" + b"".join(b"(h\x00K\x01t0" for _ in range(n)) + b"."
        began = time.process_time()
        with pytest.raises(Refused, match="instruction POP"):
            run(pickle)
        return time.process_time() - began

    assert seconds(100_000) < 1 + 100 * seconds(1000)


def test_copies_of_a_table_are_not_made():
    """152 KB of these made 1.2 GB: each call copies what it is given."""
    table = b"}(" + b"".join(text(f"k{i}") + b"N" for i in range(1000)) + b"u"
    with pytest.raises(Refused, match="OrderedDict with 1 arguments"):
        run(b"\x80\x02" + table + b"q\x00" + (TABLE + b"h\x00\x85R") * 1000 + b".")


def test_the_limits_leave_room_for_every_model():
    """60,000 tensors, as many as the largest models of these families have many times over."""
    pickle = weight_files.torch_pickle(
        {f"layers.{i}.weight": weight_files.stored(np.ones(1)) for i in range(100)}
    )
    instructions = sum(1 for _ in torch_pickle.pickletools.genops(pickle))
    assert instructions / 100 * 60_000 < torch_pickle.MOST_INSTRUCTIONS


@pytest.mark.parametrize(
    "how", ["neg", "conj", "float8_e4m3fn", "uint16", "complex64", "bfloat16", "parameter"]
)
def test_what_torch_writes_is_read_or_refused_for_what_it_is(tmp_path, how):
    torch = pytest.importorskip("torch", reason="torch writes the file")
    x = torch.tensor([1.0, 2.0, 3.0])
    saved = {
        "neg": lambda: torch._neg_view(x.neg()),
        "conj": lambda: torch.complex(x, x).conj(),
        "parameter": lambda: torch.nn.Parameter(x),
    }.get(how, lambda: x.to(getattr(torch, how)))()
    torch.save({"w": saved}, tmp_path / "w.pth")
    tensors, findings = read_torch(tmp_path / "w.pth")
    if how in ("bfloat16", "parameter"):
        assert not findings and tensors["w"].shape == (3,)
        return
    assert not tensors and [f.check for f in findings] == ["W1"]
    assert "do not open" not in findings[0].fix
    assert {"neg": "metadata (neg)", "conj": "Complex", "complex64": "ComplexFloatStorage"}.get(
        how, f"torch.{how}"
    ) in findings[0].got
