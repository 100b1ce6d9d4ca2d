import hashlib
import json
import shutil

import pytest
from huggingface_hub import HfApi, constants

from kssm_mlx.errors import ConfigError, WeightMismatch
from kssm_mlx.weights.hub.resolve import choose, resolve
from tests.support.fake_hub import served

COMMIT, OLDER = "c" * 40, "a" * 40
REPO = "someone/tiny-mamba"
WEIGHTS = bytes(range(256)) * 64
FILES = {
    "config.json": b'{"model_type": "mamba"}',
    "README.md": b"not needed",
    "tokenizer.json": b"{}",
    "model.safetensors": WEIGHTS,
    "pytorch_model.bin": b"the same again",
}
SHARDED = {
    "config.json": b"{}",
    "model.safetensors.index.json": json.dumps(
        {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    ).encode(),
    "model-00001-of-00002.safetensors": b"first" * 100,
    "model-00002-of-00002.safetensors": b"second" * 100,
}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    repos = {REPO: {COMMIT: FILES, OLDER: {**FILES, "config.json": b"{}"}}}
    with served(repos, tmp_path, monkeypatch) as hub:
        yield hub


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_a_path_stays_what_it_is(tmp_path):
    assert resolve(tmp_path).path == tmp_path and resolve(tmp_path).repo is None
    with pytest.raises(
        ConfigError, match=r"is a path on this machine; a revision \(main\) is of a repository"
    ):
        resolve(tmp_path, "main")


def test_a_repository_is_downloaded_once_with_its_commit_and_digests(hub):
    got = resolve(REPO)
    assert (got.repo, got.revision) == (REPO, COMMIT)
    assert contents(got.path) == {n: FILES[n] for n in ("config.json", "tokenizer.json", "model.safetensors")}
    assert got.sha256 == {"model.safetensors": hashlib.sha256(WEIGHTS).hexdigest()}
    assert resolve(REPO) == got and len(hub.downloads("model.safetensors")) == 1


def test_a_hub_that_names_no_commit_is_refused(hub, monkeypatch):
    """Without one, nobody could say later which weights these were."""
    asked = HfApi.model_info

    def nameless(*args, **options):
        info = asked(*args, **options)
        info.sha = None
        return info

    monkeypatch.setattr(HfApi, "model_info", nameless)
    with pytest.raises(ConfigError, match=f"the hub names no commit of {REPO}; give one: {REPO}@COMMIT"):
        resolve(REPO)
    assert not hub.downloads("model.safetensors")


def test_a_commit_in_the_cache_is_used_without_asking(hub):
    first = resolve(f"{REPO}@{OLDER}")
    assert first.revision == OLDER and contents(first.path)["config.json"] == b"{}"
    asked = len(hub.log)
    assert resolve(REPO, OLDER) == first and len(hub.log) == asked


def test_sharded_weights_come_with_every_shard(hub):
    hub.repos["someone/large"] = {COMMIT: SHARDED}
    got = resolve("someone/large")
    assert contents(got.path) == SHARDED
    assert set(got.sha256) == {n for n in SHARDED if n.endswith(".safetensors")}


def test_one_file_of_many(hub):
    hub.repos["blink/pile"] = {COMMIT: {"one.pth": b"1" * 99, "two.pth": b"2" * 99}}
    with pytest.raises(ConfigError, match=r"2 weight files \(one\.pth, two\.pth.*name the one you mean"):
        resolve("blink/pile")
    got = resolve("blink/pile/two.pth")
    assert got.path.read_bytes() == b"2" * 99 and not hub.downloads("one.pth")
    with pytest.raises(ConfigError, match=r"no file 'tow\.pth'; did you mean 'two\.pth'"):
        resolve("blink/pile/tow.pth")


def test_a_tokenizer_from_a_repository_without_weights(hub):
    hub.repos["someone/tokens"] = {COMMIT: {"tokenizer.json": b"[1]", "merges.txt": b"x"}}
    got = resolve("someone/tokens/tokenizer.json").path
    assert contents(got.parent) == {"tokenizer.json": b"[1]"}
    hub.stop()
    assert resolve("someone/tokens/tokenizer.json").path == got


def test_safetensors_first_then_bin_then_the_only_one():
    assert choose(["model.safetensors", "pytorch_model.bin"]) == ["model.safetensors"]
    assert choose(["config.json", "pytorch_model.bin"]) == ["config.json", "pytorch_model.bin"]
    assert choose(["x.pth", "README.md", "old/y.pth"]) == ["x.pth"]
    with pytest.raises(ConfigError, match="no weight file"):
        choose(["config.json"])


@pytest.mark.prints
def test_an_interrupted_download_goes_on_where_it_stopped(hub, monkeypatch):
    hub.cut["model.safetensors"] = 0  # every attempt of this session drops ...
    part = resolve_part(hub)
    part.parent.mkdir(parents=True)
    part.write_bytes(WEIGHTS[:1000])  # ... after an earlier one had received this much
    with pytest.raises(ConfigError, match=r"the hub cannot be reached .*connect and run again"):
        resolve(REPO)
    assert part.read_bytes() == WEIGHTS[:1000]
    hub.cut.clear()
    assert contents(resolve(REPO).path)["model.safetensors"] == WEIGHTS
    assert set(hub.downloads("model.safetensors")) == {"bytes=1000-"} and not part.exists()


@pytest.mark.prints
def test_a_dropped_connection_is_taken_up_again(hub):
    hub.cut["model.safetensors"] = 5000
    assert contents(resolve(REPO).path)["model.safetensors"] == WEIGHTS
    assert hub.downloads("model.safetensors") == [None, "bytes=5000-", "bytes=10000-", "bytes=15000-"]


def test_a_damaged_download_never_reaches_the_cache(hub):
    hub.corrupt.add("model.safetensors")
    with pytest.raises(
        WeightMismatch, match=r"model\.safetensors was received with sha256 .*damaged on its way"
    ):
        resolve(REPO)
    assert not resolve_part(hub).exists()
    hub.corrupt.clear()
    assert contents(resolve(REPO).path)["model.safetensors"] == WEIGHTS


def test_a_part_of_something_longer_is_thrown_away(hub):
    part = resolve_part(hub)
    part.parent.mkdir(parents=True)
    part.write_bytes(WEIGHTS + b"more")
    assert contents(resolve(REPO).path)["model.safetensors"] == WEIGHTS


@pytest.mark.parametrize("how", ["switch", "no hub", "hub in trouble"])
def test_offline_the_cache_is_used(hub, monkeypatch, how):
    online = resolve(REPO)
    unreachable(hub, monkeypatch, how)
    assert resolve(REPO) == online


@pytest.mark.parametrize(
    "how, reason",
    [
        ("switch", "HF_HUB_OFFLINE forbids to ask the hub"),
        ("no hub", "the hub cannot be reached"),
        ("hub in trouble", "the hub answers with status 503"),
    ],
)
def test_offline_with_nothing_in_the_cache(hub, monkeypatch, how, reason):
    unreachable(hub, monkeypatch, how)
    with pytest.raises(ConfigError, match=f"{REPO} at main is not in the cache, and {reason}.*") as e:
        resolve(REPO)
    assert "\n" not in str(e.value) and e.value.exit_code == 2


@pytest.mark.parametrize(
    "lost, named",
    [
        (["model-00002-of-00002.safetensors"], "it lacks model-00002-of-00002.safetensors, and"),
        (["config.json"], "it lacks config.json, and"),
        ([n for n in SHARDED if n != "config.json"], "it lacks the weights, and"),
    ],
)
def test_offline_what_the_cache_lacks_is_named(hub, monkeypatch, lost, named):
    hub.repos["someone/large"] = {COMMIT: SHARDED}
    folder = resolve("someone/large").path
    for name in lost:
        (folder / name).unlink()
    unreachable(hub, monkeypatch, "switch")
    with pytest.raises(ConfigError, match=named):
        resolve("someone/large")


def test_a_pinned_commit_that_is_incomplete_is_completed(hub):
    folder = resolve(f"{REPO}@{COMMIT}").path
    (folder / "model.safetensors").unlink()
    assert contents(resolve(f"{REPO}@{COMMIT}").path)["model.safetensors"] == WEIGHTS


@pytest.mark.parametrize(
    "source, message",
    [
        ("someone/absent", "no repository someone/absent on the hub; a private one needs"),
        ("state-spaces/mamba-130-hf", "did you mean 'state-spaces/mamba-130m-hf'"),
        ("someone/secret", "someone/secret is gated: accept its terms"),
        (f"{REPO}@v9", "has no revision v9; without one, the newest is used"),
        ("./nowhere", "no file or folder ./nowhere; for the hub write owner/name"),
        ("a/b/c/d", "no file or folder a/b/c/d"),
        ("mamba", "no file or folder mamba"),
    ],
)
def test_what_cannot_be_had_is_one_line(hub, source, message):
    hub.gated.add("someone/secret")
    with pytest.raises(ConfigError, match=message) as e:
        resolve(source)
    assert "\n" not in str(e.value)


def test_two_revisions_contradict(hub):
    with pytest.raises(ConfigError, match="contradict each other"):
        resolve(f"{REPO}@v1", "v2")


def test_a_refusal_by_the_hub_is_told(hub):
    hub.status = 403
    with pytest.raises(ConfigError, match=r"the hub refuses .* with status 403"):
        resolve(REPO)


def test_a_full_disk_is_told_before_and_during(hub, monkeypatch):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100))
    with pytest.raises(ConfigError, match=r"model\.safetensors needs 0\.00 GB more, .* free disk space"):
        resolve(REPO)


def test_a_write_that_fails_is_told(hub, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("huggingface_hub.file_download.http_get", full)
    with pytest.raises(ConfigError, match="the disk is full; free space, or set HF_HOME"):
        resolve(REPO)


def test_a_shipped_revision_is_what_is_asked_for(hub, monkeypatch):
    from kssm_mlx.weights.audit.shipped_manifests import shipped_manifests

    pinned = shipped_manifests()["state-spaces/mamba-130m-hf"].revision
    hub.repos["state-spaces/mamba-130m-hf"] = {COMMIT: FILES, pinned: FILES}
    assert resolve("state-spaces/mamba-130m-hf").revision == pinned


def unreachable(hub, monkeypatch, how):
    if how == "switch":  # HF_HUB_OFFLINE=1, which the library reads when it is imported
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    elif how == "no hub":
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    else:
        hub.status = 503


def resolve_part(hub):
    from kssm_mlx.weights.hub.resolve import _storage

    return _storage(REPO) / "blobs" / f"{hashlib.sha256(WEIGHTS).hexdigest()}.part"


BESIDE = {
    "generation_config.json": b'{"eos_token_id": 3}',
    "tokenizer_config.json": b"{}",
    "chat_template.jinja": b"x",
    "rwkv_vocab_v20230424.txt": b"1 'a' 1",
}


def test_the_side_files_of_a_model_come_with_it(tmp_path, monkeypatch):
    with served({REPO: {COMMIT: FILES | BESIDE}}, tmp_path, monkeypatch):
        got = contents(resolve(REPO).path)
    assert {name: got.get(name) for name in BESIDE} == BESIDE and "README.md" not in got


@pytest.mark.parametrize(
    ("written", "found"),
    [("{}\n", True), (" {}\r\n", True), ("../../{}", False), ("\xff", False), ("", False)],
)
def test_what_the_cache_says_of_a_branch(hub, written, found):
    folder = resolve(REPO).path
    ref = folder.parents[1] / "refs/main"
    ref.write_bytes(written.format(COMMIT).encode("latin-1"))
    hub.status = 503
    if found:
        assert resolve(REPO).path == folder
    else:
        with pytest.raises(ConfigError, match="is not in the cache"):
            resolve(REPO)
