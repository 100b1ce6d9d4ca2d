"""What docs/results says of an experiment is made of its results.jsonl by one command, byte for byte."""

import re

import pytest
from matplotlib.figure import Figure

from kssm_mlx.experiments.summary import summarize
from kssm_mlx.reports.experiment import write_report
from tests.support.pages import ROOT

FOLDERS = sorted(path.parent for path in (ROOT / "docs/results").glob("*/results.jsonl"))
ABSOLUTE = re.compile(r'[":]/[A-Za-z]')
PICTURE = re.compile(r"data:image/png;base64,[\w+/=]+")  # of another matplotlib they may differ


def test_there_are_some():
    assert len(FOLDERS) >= 3


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_a_report_is_made_again(folder, tmp_path):
    summary = summarize(folder)
    write_report(summary, tmp_path)
    assert (tmp_path / "report.md").read_text() == (folder / "report.md").read_text()
    ours, theirs = (PICTURE.sub("", (at / "report.html").read_text()) for at in (tmp_path, folder))
    assert ours == theirs
    assert not summary.smoke and all((folder / path.name).is_file() for path in tmp_path.iterdir())


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_it_names_no_machine(folder):
    text = (folder / "results.jsonl").read_text()
    assert not ABSOLUTE.search(text)


def test_a_folder_of_a_machine_is_seen():
    assert ABSOLUTE.search('"source": "file:/data/x.txt"') and ABSOLUTE.search('"/data/x"')
    assert not ABSOLUTE.search('"source": "file:x.txt", "unit": "nats/token"')


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_the_pages_say_what_was_decided(folder):
    page = (ROOT / "docs/experiments.md").read_text()
    said = page.split(f"- [{folder.name}](results/{folder.name}/report.md)")[1].split("\n- [")[0]
    for claim in summarize(folder).claims:
        assert f"**{claim.word}" in said, claim.sentence


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_no_word_of_its_pictures_is_cut_off(folder, tmp_path, monkeypatch):
    """A long verdict beside an interval that ends far to the right once was; so were claims without a run."""
    cut_off, save = [], Figure.savefig

    def measure(figure, *args, **options):
        figure.draw_without_rendering()
        for ax, text in ((each, text) for each in figure.axes for text in each.texts):
            box, edge = text.get_window_extent(), figure.bbox
            if box.x0 < edge.x0 or box.x1 > edge.x1 or not ax.bbox.y0 < box.y0 < box.y1 < ax.bbox.y1:
                cut_off.append(text.get_text())
        save(figure, *args, **options)

    monkeypatch.setattr(Figure, "savefig", measure)
    write_report(summarize(folder), tmp_path)
    assert cut_off == []
