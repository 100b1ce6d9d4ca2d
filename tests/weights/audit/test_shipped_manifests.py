import pytest

from kssm_mlx.errors import ConfigError
from kssm_mlx.weights.audit.shipped_manifests import parse_shipped, shipped_manifests

MAMBA = "state-spaces/mamba-130m-hf"
SOUND = """
format = "kssm-manifest/1"
repo = "owner/name"
[model]
model_type = "mamba"
vocab_size = 50280
hidden_size = 768
num_hidden_layers = 24
[tokenizer]
name = "gpt-neox-20b"
vocab_size = 50277
"""


def test_the_base_models_of_the_issue_are_there():
    mamba = [f"state-spaces/mamba-{size}-hf" for size in ("130m", "370m", "790m", "1.4b", "2.8b")]
    mamba2 = [f"state-spaces/mamba2-{size}" for size in ("130m", "2.7b")]
    rwkv = [f"RWKV/rwkv-4-{size}-pile" for size in ("169m", "430m", "1b5", "3b")]
    assert set(shipped_manifests()) == {*mamba, *mamba2, *rwkv}


@pytest.mark.parametrize("manifest", shipped_manifests().values(), ids=lambda m: m.repo)
def test_a_shipped_manifest_makes_sense(manifest):
    assert manifest.model.vocab_size >= manifest.tokenizer.vocab_size
    assert manifest.published.source and manifest.published.lambada_perplexity > 1
    figures = manifest.published.pile_perplexity, manifest.published.pile_nats_per_token
    assert sum(f is not None for f in figures) == 1


def test_larger_models_of_a_family_predict_better():
    """A typing error in one figure or size would break an order that holds for the published ones."""
    families = {}
    for m in shipped_manifests().values():
        families.setdefault(m.model.model_type, []).append(m)
    for members in families.values():
        size = [m.model.hidden_size**2 * m.model.num_hidden_layers for m in members]
        loss = [m.published.pile_perplexity or m.published.pile_nats_per_token for m in members]
        lambada = [m.published.lambada_perplexity for m in members]
        order = sorted(range(len(members)), key=size.__getitem__)
        for figures in (loss, lambada):
            assert [figures[i] for i in order] == sorted(figures, reverse=True)


def test_what_cannot_be_known_is_absent():
    revisions = {m.repo: m.revision for m in shipped_manifests().values()}
    assert {repo for repo, revision in revisions.items() if revision} == {MAMBA}


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("hidden_size = 768", "hidden_size = -1", "x.toml, model.hidden_size: .* greater than 0, got -1"),
        ("hidden_size = 768", "hiden_size = 768", "x.toml, model.hidden_size: field required"),
        ('"mamba"', '"mambo"', "x.toml, model.model_type: .* got 'mambo'"),
        ("owner/name", "owner", "x.toml, repo: "),
        ('repo = "owner/name"', 'repo = "owner/name"\nrevision = "main"', "x.toml, revision: .* got 'main'"),
        ("[model]", "[model", "x.toml is not TOML"),
        ('"mamba"', '"mamba3"', "did you mean 'mamba'"),
        ("[model]", "colour = 1\n[model]", "x.toml, colour: extra inputs are not permitted"),
    ],
)
def test_a_broken_manifest_is_refused(old, new, message):
    assert parse_shipped(SOUND, "x.toml").published is None
    with pytest.raises(ConfigError, match=message):
        parse_shipped(SOUND.replace(old, new), "x.toml")
