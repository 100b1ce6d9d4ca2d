"""L0 to L3 over good weights: what is measured, what is remembered, what it costs."""

import json
import tracemalloc

import mlx.core as mx
import numpy as np
import pytest

from kssm_mlx import models
from kssm_mlx.checks import suite
from kssm_mlx.digest import root_digest, stored_digest, tensor_digest
from kssm_mlx.errors import ConfigError, WeightMismatch
from kssm_mlx.weights.audit import verified
from kssm_mlx.weights.audit.findings import CHECKS, LAYERS
from kssm_mlx.weights.audit.inspect import inspect
from kssm_mlx.weights.audit.manifest import Manifest, read_manifest, write_manifest
from kssm_mlx.weights.audit.tensor_stats import SQUARE, summarise
from kssm_mlx.weights.export import export
from kssm_mlx.weights.io.container import open_container
from kssm_mlx.weights.io.tensors import TensorInfo
from kssm_mlx.weights.loader import load_weights
from kssm_mlx.weights.naming.keymaps import TRANSFORMS
from kssm_mlx.weights.quantize import quantize
from tests.support import weight_files
from tests.support.weight_files import failed

FAMILIES = sorted(weight_files.CONFIGS)


def verdicts(found):
    return [check for layer in LAYERS for check in suite.run_level(layer, found)]


@pytest.fixture
def folder(tmp_path):
    return weight_files.folder(tmp_path / "m", "mamba")


def warnings(found):
    return {f.check for f in found.findings if f.warning}


def test_digests_are_those_of_the_arrays_whatever_the_shards(folder):
    found = inspect(folder)
    arrays = mx.load(str(folder / "model.safetensors"))
    digests = {name: tensor_digest(array) for name, array in arrays.items()}
    assert found.digests == digests and found.root == root_digest(digests)
    assert inspect(weight_files.shard(folder)).root == found.root


def test_bfloat16_has_the_digest_of_the_array(folder):
    x = mx.array([[1.5, -2.0], [0.25, 3.0]]).astype(mx.bfloat16)
    mx.save_safetensors(str(folder / "x.safetensors"), {"x": x})
    found = open_container(folder / "x.safetensors")
    assert found.info("x").dtype == "bfloat16" and mx.array_equal(found.read("x"), x)
    stored = found.info("x").map()
    assert stored_digest("bfloat16", x.shape, stored.tobytes()) == tensor_digest(x)


TABLES = {
    (layout, name): table
    for name, family in models.FAMILIES.items()
    for layout, table in family.key_maps.items()
}


@pytest.mark.parametrize("source", TABLES, ids=lambda s: "-".join(s))
def test_key_maps_are_one_to_one(source):
    """Every name of ours from one name of the file, the old name of Mamba's embedding apart."""
    targets = [ours for name, (ours, _) in TABLES[source].items() if name != "backbone.embedding.weight"]
    assert len(targets) == len(set(targets))
    assert {how for _, how in TABLES[source].values()} <= TRANSFORMS.keys()


@pytest.mark.parametrize("family", FAMILIES)
def test_quantised_folders_are_understood(tmp_path, family):
    wide = {"d_model": 64, "mlp_hidden": 64} if family == "kssm" else {"hidden_size": 64}
    model = weight_files.model(family, **wide)
    quantize(model, bits=4, group_size=32)
    export(model, tmp_path / "q")
    loaded = load_weights(tmp_path / "q")
    tokens = mx.array([[1, 2, 3, 4]])
    assert mx.array_equal(loaded.model(tokens), model(tokens))
    tensors = weight_files.read(tmp_path / "q")
    scales = next(n for n in sorted(tensors) if n.endswith("scales"))
    for damage, check in [
        ({n: t for n, t in tensors.items() if n != scales.replace("scales", "weight")}, "W7"),
        (tensors | {scales: weight_files.stored(0 * tensors[scales].values)}, "W14"),
    ]:
        weight_files.write(tmp_path / "q" / "model.safetensors", damage)
        assert failed(inspect(tmp_path / "q")) == {check}


def test_a_manifest_goes_to_a_file_and_back(folder, tmp_path):
    made = inspect(folder).manifest().model_copy(update={"repo": "o/n", "domain": 'bytes of "C" code'})
    write_manifest(tmp_path / "m.toml", made)
    assert read_manifest(tmp_path / "m.toml") == made
    assert failed(inspect(folder, expected=made.digests)) == set()


@pytest.mark.parametrize(
    "text, complaint",
    [
        ("format = 1", "format: input should be 'kssm-manifest/1'"),
        ('colour = "red"', "colour: extra inputs"),
        ("= 3", "is not TOML"),
        ('[tensors]\na = { dtype = "float32", shape = [1], sha256 = "x" }', r"tensors\.a\.sha256"),
    ],
)
def test_a_manifest_that_cannot_be_read_names_the_field(tmp_path, text, complaint):
    (tmp_path / "m.toml").write_text(text)
    with pytest.raises(ConfigError, match=complaint):
        read_manifest(tmp_path / "m.toml")
    with pytest.raises(ConfigError, match="cannot read the manifest"):
        read_manifest(tmp_path / "no.toml")


def test_a_manifest_names_what_differs(folder):
    expected = inspect(folder).digests
    name = next(iter(expected))
    (finding,) = inspect(folder, expected={**expected, name: "0" * 64, "gone": "1" * 64}).findings
    assert finding.check == "W11" and f"1 differ: {name}; 1 missing: gone" in finding.got


def test_verdicts_of_good_weights(folder):
    checks = verdicts(inspect(folder))
    assert [c.id for c in checks] == [id for ids in LAYERS.values() for id in ids] == list(CHECKS)
    assert all(c.ok and c.expected for c in checks)
    nothing = {c.id for c in checks if c.verdict == "not measurable"}
    assert nothing == {"W4", "W5", "W10", "W11", "W12"}


def test_a_failed_layer_ends_the_inspection(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "hidden_size": 24}))
    by_id = {c.id: c for c in verdicts(inspect(folder))}
    assert by_id["W8"].verdict == "fail" and "config.json" in by_id["W8"].fix
    assert by_id["W2"].verdict == "pass"
    assert by_id["W13"].verdict == "not measurable" and "W8 failed first" in by_id["W13"].got


def test_a_misspelt_name_is_found_on_both_sides(folder):
    tensors = weight_files.read(folder)
    wrong = {n.replace("layers.1.mixer.x_proj", "layers.1.mixer.x_porj"): t for n, t in tensors.items()}
    weight_files.write(folder / "model.safetensors", wrong)
    missing, unused = inspect(folder).findings
    assert "without a tensor: backbone.layers.1.mixer.x_proj.weight; did you mean" in missing.got
    assert "nothing takes: backbone.layers.1.mixer.x_porj.weight; did you mean" in unused.got


def test_fresh_weights_are_a_warning(tmp_path):
    """A model as `build` makes it: every vector as initialised, every matrix with a random one's spectrum."""
    built = models.build(models.configure("mamba", "xs", vocab_size=256))
    export(built, tmp_path / "m")
    found = inspect(tmp_path / "m")
    assert failed(found) == set() and "W19" in warnings(found)
    texts = " ".join(f.got for f in found.findings)
    assert "matrices have the spectrum of a random one" in texts
    assert "kinds of vector have their initial value in every block" in texts


def info(x):
    return TensorInfo("float32", x.shape, None, 0, x.nbytes)


@pytest.mark.parametrize("shape", [(64, 64), (64, 300), (600, 700)])
def test_learned_directions_stand_out_of_random_matrices(shape):
    rng = np.random.default_rng(0)
    x = rng.standard_normal(shape).astype(np.float32)
    random = summarise(info(x), x).edge
    m, n = (min(s, SQUARE) for s in shape)
    corner = np.linalg.norm(x[:m, :n], 2) / (x[:m, :n].std() * (m**0.5 + n**0.5))
    assert abs(random - corner) < 0.03 and random < 1.05
    learned = x + 0.3 * np.outer(rng.standard_normal(shape[0]), rng.standard_normal(shape[1]))
    assert summarise(info(x), learned.astype(np.float32)).edge > 1.2


def test_summaries_are_exact_in_blocks(monkeypatch):
    monkeypatch.setattr("kssm_mlx.weights.audit.tensor_stats.BLOCK", 100)
    x = np.random.default_rng(0).standard_normal((37, 11)).astype(np.float32)
    s = summarise(info(x), x, embedding=True)
    assert (s.low, s.high) == (x.min(), x.max())
    assert np.isclose(s.rms, np.sqrt(np.square(x).mean())) and s.rows.shape == (37,)
    x[3, 4], x[5, 6], x[7, 7] = np.nan, np.inf, 1e30
    s = summarise(info(x), x)
    assert (s.nans, s.infinities, s.high) == (1, 1, np.float32(1e30)) and s.edge is None


def test_passing_is_remembered_until_a_file_is_touched(folder):
    assert verified.is_verified(folder) is None
    loaded = load_weights(folder)
    assert verified.is_verified(folder)["root"] == loaded.digest
    assert verified.is_verified(folder, "L5") is None
    verified.remember(loaded.inspection, "L5")
    load_weights(folder)  # knows less, and does not take back what is known
    assert verified.is_verified(folder, "L5")["root"] == loaded.digest
    (folder / "config.json").write_bytes((folder / "config.json").read_bytes() + b" ")
    assert verified.is_verified(folder) is None


def test_failing_is_not_remembered_and_a_broken_memory_is_empty(folder):
    tensors = weight_files.read(folder)
    name = next(n for n in tensors if n.endswith("in_proj.weight"))
    weight_files.write(
        folder / "model.safetensors", tensors | {name: weight_files.stored(0 * tensors[name].values)}
    )
    verified.remember(inspect(folder), "L3")
    assert verified.is_verified(folder) is None
    verified.store().write_text("{")
    assert verified.is_verified(folder) is None


def test_without_verification_what_was_found_is_noted(folder):
    tensors = weight_files.read(folder)
    name = next(n for n in tensors if n.endswith("in_proj.weight"))
    weight_files.write(
        folder / "model.safetensors", tensors | {name: weight_files.stored(0 * tensors[name].values)}
    )
    with pytest.raises(WeightMismatch, match=f"W14 .* 1 all zero: {name}; expected .* Fix: "):
        load_weights(folder)
    loaded = load_weights(folder, verify=False)
    assert loaded.notes["verified"] is None and "W14" in loaded.notes["findings"][0]
    assert verified.is_verified(folder) is None
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(WeightMismatch, match="W1 "):
        load_weights(folder, verify=False)


def test_inspection_holds_one_tensor_at_a_time(tmp_path, repeatable_peak):
    """Eight blocks; what is allocated stays below two tensors and the working space, in Python and in MLX."""
    path = weight_files.folder(tmp_path / "m", "mamba", hidden_size=320, num_hidden_layers=8)
    total = sum(len(t.data) for t in weight_files.read(path).values())
    largest = max(len(t.data) for t in weight_files.read(path).values())
    mx.clear_cache()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    tracemalloc.start()
    seen = Counted()
    inspect(path, meter=seen)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seen.total == seen.read == total
    assert peak < 2 * largest + 12e6 < total
    assert mx.get_peak_memory() - before < largest


class Counted:
    """A meter that remembers."""

    def __init__(self):
        self.total = self.read = 0

    def start(self, total):
        self.total = total

    def advance(self, n):
        self.read += n


def test_manifests_without_tensors_compare_nothing(folder):
    assert Manifest().digests == {}
    assert "W11" not in inspect(folder, expected=Manifest().digests).ran


def run_folder(path, family, tensors, configuration):
    """What `kssm train` leaves behind, as far as a loader looks at it."""
    step = path / "checkpoints" / "step_00000002"
    step.mkdir(parents=True)
    (path / "recipe.json").write_text(json.dumps({"configuration": configuration}))
    weight_files.write(step / "model.safetensors", tensors)
    digests = inspect(weight_files.folder(path / "twin", family)).digests
    (step / "manifest.json").write_text(json.dumps({"tensors": {"model": digests}}))
    (path / "checkpoints" / "LATEST").write_text(step.name)
    return path


@pytest.mark.parametrize("family", FAMILIES)
def test_a_run_is_compared_with_its_own_manifest(tmp_path, family):
    model = weight_files.model(family)
    tensors = weight_files.tensors_of(model)
    path = run_folder(tmp_path / "run", family, tensors, models.config_to_dict(model.args))
    for source in (path, path / "checkpoints" / "step_00000002"):
        found = inspect(source)
        assert found.ok and "W11" in found.ran and found.container.layout == "run"
    name = next(n for n in sorted(tensors) if n.endswith("weight"))
    spoilt = tensors | {name: weight_files.stored(1.01 * tensors[name].values)}
    weight_files.write(path / "checkpoints" / "step_00000002" / "model.safetensors", spoilt)
    (finding,) = inspect(path).findings
    assert finding.check == "W11" and name in finding.got


def test_zeros_in_a_run_are_a_warning(tmp_path):
    """Some matrices begin at zero; the manifest of a run vouches that this is what training left."""
    model = weight_files.model("mamba")
    tensors = weight_files.tensors_of(model)
    name = next(n for n in tensors if n.endswith("in_proj.weight"))
    tensors[name] = weight_files.stored(0 * tensors[name].values)
    path = run_folder(tmp_path / "run", "mamba", tensors, models.config_to_dict(model.args))
    found = inspect(path, expected=inspect(path).digests)
    assert failed(found) == set() and "W14" in warnings(found)
