"""The section on a base model of 2.77 billion: measured by its script, whose stages run at a small size."""

import re

import pytest

from benchmarks import large_host
from tests.docs.scale import PAGE

TEXT = PAGE.read_text("utf-8")


def test_the_section_has_every_stage_and_the_estimate_is_within_15_percent():
    section = TEXT[TEXT.index(large_host.TITLE) : TEXT.index(large_host.NEXT)]
    assert len(re.findall(r"^\| .* \| \d+ s \|", section, re.MULTILINE)) == 3
    (foretold,) = re.findall(r"predicts a peak of\n([\d.]+) GB", section)
    (counted,) = re.findall(r"^\| 2 steps .* ([\d.]+) GB \|$", section, re.MULTILINE)
    assert float(foretold) == pytest.approx(float(counted), rel=0.15)


def test_a_section_takes_the_place_of_the_one_before():
    once = large_host.replace_section(f"# A\n\n{large_host.NEXT}\n", f"{large_host.TITLE}\n\n1\n\n")
    twice = large_host.replace_section(once, f"{large_host.TITLE}\n\n2\n\n")
    assert once.replace("1", "2") == twice == f"# A\n\n{large_host.TITLE}\n\n2\n\n{large_host.NEXT}\n"


@pytest.mark.usefixtures("uncompiled")
def test_its_files_pass_and_speak_and_are_trained_beside(tmp_path, monkeypatch):
    monkeypatch.setattr(large_host, "VOCABULARY", 1024)
    monkeypatch.setattr(large_host, "SHARD", 100_000)
    folder = tmp_path / "weights"
    assert large_host.write(folder, 2, 64)["bytes"] > 0 and len([*folder.glob("*.safetensors")]) > 1
    assert large_host.verify(folder)["tensors"] == 22
    assert large_host.speak(folder)["tokens"] == large_host.TOKENS
    assert large_host.train(folder)["losses"][0] > 0
