"""Claims of reports: what the numbers bear, with the evidence they bear it by, and nothing else."""

import json

from kssm_mlx.reports import compare, state_claims
from tests.support.report_fakes import write_run


def data(tokenizer="a1", corpus="pydoc"):
    return {"tokenizer": {"digest": tokenizer}, "corpus": {"digest": corpus}, "split": {"seed": 0}}


def run(folder, nats, seed=0, kappa=1.0, se=0.02, bytes_per_token=1.4427, **origin):
    """A run whose last evaluation is `nats`, over 64 windows of 32 tokens."""
    write_run(folder, kappa=kappa, steps=20)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    bits = nats * 1.4427 / bytes_per_token
    rows[-1] |= {"nats_per_token": nats, "se": se, "bits_per_byte": bits, "tokens": 2048}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = json.loads((folder / "recipe.json").read_text())
    recipe["train"] |= {"seed": seed, "context": 32}
    (folder / "recipe.json").write_text(json.dumps(recipe))
    (folder / "manifest.json").write_text(json.dumps({"data": data(**origin)}))
    return folder


def test_one_run_each_says_so(tmp_path):
    runs = [run(tmp_path / "on", 1.50), run(tmp_path / "off", 1.70, kappa=0.0)]
    (said,) = state_claims(runs)
    assert said.startswith("off against on, nats/token: different: +0.2 [")
    assert "Evidence: 1 run, over windows of the text: the noise of seeds is not in it" in said
    assert said.endswith("; failed or waived: C18.")


def test_seeds_are_one_arm_and_the_evidence(tmp_path):
    on = [run(tmp_path / f"on{i}", 1.50 + 0.01 * i, seed=i) for i in range(3)]
    off = [run(tmp_path / f"off{i}", 1.70 - 0.01 * i, seed=i, kappa=0.0) for i in range(3)]
    (said,) = state_claims([*on, *off])
    assert said.startswith("off0 against on0, nats/token: different: +0.18 [") and "n 3" in said
    assert "Evidence: 3 seeds; failed" in said


def test_a_difference_within_the_noise_of_seeds_is_none(tmp_path):
    on = [run(tmp_path / f"on{i}", 1.50 + 0.1 * i, seed=i) for i in range(3)]
    off = [run(tmp_path / f"off{i}", 1.52 + 0.1 * i, seed=i, kappa=0.0) for i in range(3)]
    (said,) = state_claims([*on, *off])
    assert "no difference found: +0.02 [" in said and "would have found 0." in said


def test_the_same_run_under_two_names_is_one_arm(tmp_path):
    said = state_claims([run(tmp_path / "a", 1.5), run(tmp_path / "b", 1.5)])
    assert said == ["a is one arm, of 1 run: nothing to compare it with."]


def test_two_tokenizers_are_compared_in_bits_per_byte(tmp_path):
    runs = [
        run(tmp_path / "bytes", 1.5),
        run(tmp_path / "bpe", 4.5, kappa=0.5, bytes_per_token=4.0, tokenizer="b2"),
    ]
    (said,) = state_claims(runs)
    assert said.startswith("bpe against bytes, bits/byte: ")


def test_of_two_texts_nothing_is_said(tmp_path):
    runs = [run(tmp_path / "here", 1.5), run(tmp_path / "there", 1.4, kappa=0.5, corpus="shakespeare")]
    (said,) = state_claims(runs)
    assert said.startswith("there and here: nothing can be said; cannot compare") and "of two texts" in said


def test_the_comparison_says_it_too_and_keeps_other_tokens_apart(tmp_path):
    other = {"kappa": 0.5, "bytes_per_token": 4.0, "tokenizer": "b2"}
    runs = [run(tmp_path / "bytes", 1.5), run(tmp_path / "bpe", 4.5, **other)]
    recipe = json.loads((runs[1] / "recipe.json").read_text())
    recipe["data"]["tokenizer"] = "hf:bpe"
    (runs[1] / "recipe.json").write_text(json.dumps(recipe))
    text = compare(runs, tmp_path / "both")[1].read_text()
    assert "- bpe against bytes, bits/byte: " in text and "other tokens" in text and "4.5000" not in text


def rewritten(folder, context, tokens):
    recipe = json.loads((folder / "recipe.json").read_text())
    recipe["train"]["context"] = context
    (folder / "recipe.json").write_text(json.dumps(recipe))
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rows[-1]["tokens"] = tokens
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_other_held_out_tokens_are_said_and_once(tmp_path):
    long = rewritten(run(tmp_path / "long", 1.5), 128, 8192)
    others = [rewritten(run(tmp_path / f"{i}", 1.6, kappa=float(i)), 32, 256) for i in (2, 3)]
    said, *claims = state_claims([long, *others])
    assert said == "Scored on different held-out tokens: 8,192 of context 128 against 256 of context 32."
    assert len(claims) == 2
    fewer = rewritten(run(tmp_path / "fewer", 1.5, kappa=0.0), 128, 4096)
    assert "8,192 of context 128 against 4,096 of context 128" in state_claims([long, fewer])[0]
    assert f"- {said}\n" in compare([long, *others], tmp_path / "both")[1].read_text()
    assert len(state_claims(others)) == 1


def test_without_an_evaluation_nothing_can_be_said(tmp_path):
    runs = [run(tmp_path / "a", 1.5), run(tmp_path / "b", 1.5, kappa=0.0)]
    for folder in runs:
        (folder / "metrics.jsonl").write_text(json.dumps({"kind": "train", "step": 1, "loss": 2.0}) + "\n")
    assert state_claims(runs) == [
        "a is left out: it has no evaluation.",
        "b is left out: it has no evaluation.",
        "None of the runs has an evaluation: nothing can be said.",
    ]


def test_p_is_corrected_for_the_number_of_arms(tmp_path):
    base, small, large = (run(tmp_path / f"k{i}", 1.5 + 0.04 * i, kappa=float(i)) for i in range(3))
    alone, (_, both) = state_claims([base, large])[0], state_claims([base, small, large])
    p = [float(said.split(", p ")[1].split(",")[0]) for said in (alone, both)]
    assert p[0] > 0 and 1.8 < p[1] / p[0] < 2.2  # the smaller of two is doubled


def of_task(folder, nats, rows=64, scored=8, **more):
    """A run of a task: each of its rows of 32 tokens has `scored` targets."""
    run(folder, nats, **more)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["data"] |= {"task": {"name": "modular"}, "splits": {"validation": {"documents": rows}}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    lines[-1]["tokens"] = rows * scored
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    recipe = json.loads((folder / "recipe.json").read_text())
    recipe["eval"] = {"tokens": 1 << 16}
    (folder / "recipe.json").write_text(json.dumps(recipe))
    return folder


def test_the_units_of_a_task_are_its_rows(tmp_path):
    """Not its scored targets by the length of a row, which would be 16 of these 64."""
    (said,) = state_claims([of_task(tmp_path / "a", 1.5), of_task(tmp_path / "b", 1.6, kappa=0.0)])
    assert ", n 64, " in said


def test_a_run_that_wrote_down_its_windows_is_believed(tmp_path):
    folders = [of_task(tmp_path / "a", 1.5), of_task(tmp_path / "b", 1.6, kappa=0.0)]
    for folder in folders:
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        lines[-1]["windows"] = 48
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    assert ", n 48, " in state_claims(folders)[0]


def test_a_loss_of_exactly_zero_is_a_number(tmp_path):
    runs = [run(tmp_path / "a", 0.0, se=0.0), run(tmp_path / "b", 0.5, kappa=0.0)]
    assert "n 64" in state_claims(runs)[0]
    runs = [run(tmp_path / "c", 0.0, se=0.0), run(tmp_path / "d", 0.0, se=0.0, kappa=0.0)]
    assert "undetermined" in state_claims(runs)[0]


def test_what_is_left_out_is_said(tmp_path):
    good, broken = run(tmp_path / "good", 1.5), run(tmp_path / "broken", 1.6, kappa=0.0)
    lines = [json.loads(line) for line in (broken / "metrics.jsonl").read_text().splitlines()]
    lines[-1]["nats_per_token"] = None
    (broken / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    assert state_claims([good, broken]) == [
        "broken is left out: the loss of its last evaluation is not a number.",
        "good is one arm, of 1 run: nothing to compare it with.",
    ]
