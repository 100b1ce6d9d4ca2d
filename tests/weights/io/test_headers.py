"""Headers, archives and folders that are not what they should be: one finding or one line, in linear time."""

import json
import struct
import time
import zipfile

import pytest

from kssm_mlx.errors import ConfigError, WeightMismatch
from kssm_mlx.weights.audit.findings import Finding
from kssm_mlx.weights.io.container import open_container
from kssm_mlx.weights.io.safetensors_header import LIMIT, read_safetensors
from kssm_mlx.weights.io.torch_archive import read_torch
from kssm_mlx.weights.loader import load_weights
from tests.support import weight_files


def header(path, text: str | bytes, data: bytes = b""):
    raw = text.encode() if isinstance(text, str) else text
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)
    return read_safetensors(path)


def entry(**changes) -> str:
    return json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], **changes}})


@pytest.mark.parametrize(
    ("text", "why"),
    {
        "a list as dtype": (entry(dtype=[]), r"dtype \[\] is unknown"),
        "a table as dtype": (entry(dtype={"F32": 1}), "is unknown"),
        "long dimensions": (entry().replace("[1]", f"[{'9' * 4000}]"), "not natural numbers"),
        "a dimension of 2^64": (entry(shape=[1 << 64]), "not natural numbers"),
        "a number as text": (entry(shape=["1"]), "not natural numbers"),
        "true": (entry(shape=[True]), "not natural numbers"),
        "many dimensions": (entry(shape=[1] * 1000), "1000 dimensions"),
        "no UTF-8": (b'{"\xff": 1}', "not UTF-8"),
        "depth": ("[" * 100_000, "levels deep"),
        "depth in an entry": (entry().replace("[1]", "[" * 300 + "]" * 300), "levels deep"),
        "a long name": (entry().replace('"w"', f'"{"w" * 5000}"'), "a name of 5,000 characters"),
        "many lists": ("[" + "[]," * 640_001 + "0]", "more than"),
    }.values(),
)
def test_a_header_that_does_not_add_up_is_one_finding(tmp_path, text, why):
    tensors, findings = header(tmp_path / "w.safetensors", text, b"\0" * 4)
    assert not tensors and [f.check for f in findings] == ["W1"]
    with pytest.raises(AssertionError, match=why):
        raise AssertionError(findings[0].got)
    assert len(findings[0].got) < 400


def test_a_header_beyond_the_limit_is_not_read(tmp_path):
    with open(tmp_path / "w.safetensors", "wb") as f:
        f.write(struct.pack("<Q", LIMIT + 1))
        f.truncate(LIMIT + 100)
    assert "announces a header" in read_safetensors(tmp_path / "w.safetensors")[1][0].got


def test_equal_names_cost_linear_time(tmp_path):
    def seconds(n):
        began = time.process_time()
        one = entry()[1:-1]
        _, findings = header(tmp_path / "w.safetensors", "{" + ",".join([one] * n) + "}", b"\0" * 4)
        assert "has w twice" in findings[0].got
        return time.process_time() - began

    assert seconds(50_000) < 1 + 100 * seconds(2000)


def archive(path, **fields):
    weight_files.write_torch(path, {"w": weight_files.stored([1.0])})
    return bytearray(path.read_bytes())


@pytest.mark.parametrize("offset", [(1 << 63) - 1, 1 << 63, (1 << 64) - 1, 1 << 40])
def test_offsets_beyond_the_file(tmp_path, offset):
    path = tmp_path / "w.pth"
    raw = archive(path)
    end = raw.rfind(b"PK\x05\x06")
    directory = struct.unpack_from("<I", raw, end + 16)[0]
    name, extra = struct.unpack_from("<HH", raw, directory + 28)
    field = struct.pack("<HHQ", 1, 8, offset)
    struct.pack_into("<I", raw, directory + 42, 0xFFFFFFFF)
    struct.pack_into("<H", raw, directory + 30, extra + len(field))
    raw[directory + 46 + name : directory + 46 + name] = field
    end += len(field)
    size = struct.unpack_from("<I", raw, end + 12)[0]
    struct.pack_into("<I", raw, end + 12, size + len(field))
    path.write_bytes(raw)
    tensors, findings = read_torch(path)
    assert not tensors and [f.check for f in findings] == ["W2"]


def test_a_name_in_the_archive_that_is_no_utf_8(tmp_path):
    path = tmp_path / "w.pth"
    raw = archive(path)
    directory = raw.find(b"PK\x01\x02")
    struct.pack_into("<H", raw, directory + 8, 0x800)
    raw[directory + 46] = 0xFF
    path.write_bytes(raw)
    tensors, findings = read_torch(path)
    assert not tensors and [f.check for f in findings] == ["W2"]


def test_an_archive_without_a_pickle(tmp_path):
    with zipfile.ZipFile(tmp_path / "w.pth", "w") as z:
        z.writestr("x", b"")
    assert read_torch(tmp_path / "w.pth")[1][0].check == "W1"


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_git_lfs_pointer_is_told_as_one(tmp_path, name):
    folder = weight_files.folder(tmp_path / "m", "mamba")
    (folder / "model.safetensors").unlink()
    (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    with pytest.raises(WeightMismatch, match=r"is a Git LFS pointer.*git lfs pull"):
        load_weights(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_link_to_nothing_is_named(tmp_path, name):
    folder = weight_files.folder(tmp_path / "m", "mamba")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to("../blobs/gone")
    with pytest.raises(ConfigError, match=rf"{name} is a link to \.\./blobs/gone, which is not there"):
        open_container(folder)


def test_a_single_file_that_is_a_link_to_nothing(tmp_path):
    (tmp_path / "w.pth").symlink_to("gone")
    with pytest.raises(ConfigError, match=r"w\.pth is a link to gone"):
        open_container(tmp_path / "w.pth")


def test_a_folder_in_place_of_the_weights(tmp_path):
    folder = weight_files.folder(tmp_path / "m", "mamba")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").mkdir()
    with pytest.raises(ConfigError, match="is not a file"):
        open_container(folder)


@pytest.mark.parametrize("prefix", ["module.", "_forward_module.", "model.", "_forward_module.model."])
def test_the_prefix_of_a_wrapper_is_taken_off_and_said(tmp_path, prefix):
    model = weight_files.model("rwkv", tie_word_embeddings=False)
    tensors = weight_files.blinkdl(weight_files.tensors_of(model), "rwkv")
    weight_files.write_torch(tmp_path / "x.pth", {f"{prefix}{name}": t for name, t in tensors.items()})
    loaded = load_weights(tmp_path / "x.pth")
    assert loaded.inspection.container.layout == "blinkdl"
    assert any(f"every name began with '{prefix}'" in note for note in loaded.notes["findings"])


def test_a_prefix_that_belongs_to_the_names_stays(tmp_path):
    folder = weight_files.folder(tmp_path / "m", "rwkv7", tie_word_embeddings=True)
    assert all(name.startswith("model.") for name in open_container(folder).names)
    assert not load_weights(folder).notes["findings"]


def test_a_long_name_in_a_damaged_archive_is_quoted_in_part(tmp_path):
    """zipfile says the whole name: what a shift of a few bytes made of one was 100,000 characters."""
    path = tmp_path / "x.pth"
    tensors = weight_files.tensors_of(weight_files.model("rwkv7"))
    weight_files.write_torch(path, weight_files.blinkdl(tensors, "rwkv7"))
    raw = bytearray(path.read_bytes())
    at = raw.index(b"PK\x03\x04")
    raw[at + 26 : at + 28] = (30_000).to_bytes(2, "little")  # how long the local header's name is
    path.write_bytes(bytes(raw))
    _, findings = read_torch(path)
    assert findings and all(len(str(finding)) < 3000 for finding in findings)


@pytest.mark.parametrize("name", ["a\nb", "a\r\nb", "a\u2028b", "x" * 50_000])
def test_a_finding_is_one_line_whatever_the_name(name):
    finding = Finding("W2", f"{name} does not begin where the archive says")
    assert len(str(finding).splitlines()) == 1 and len(str(finding)) < 3000
