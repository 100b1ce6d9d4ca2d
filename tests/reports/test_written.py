"""The picture of a text that was traced."""

from contextlib import contextmanager

import matplotlib.image
import numpy as np
import pytest

from kssm_mlx.reports import written
from kssm_mlx.reports.written import COLUMNS, LEAST_SPAN, MOST_LINES, find_span, lay_out, plot_written


@pytest.fixture
def figures(monkeypatch):
    """The figures that were drawn."""
    drawn = []

    @contextmanager
    def kept(*arguments):
        with picture(*arguments) as figure:
            yield figure
        drawn.append(figure)

    picture = written.picture
    monkeypatch.setattr(written, "picture", kept)
    return drawn


def rows(pieces):
    R = [0.1 + 0.8 * i / len(pieces) for i in range(len(pieces))]
    blocks = [{"mean": r, "blocks": [r - 0.05, r + 0.05]} for r in R]
    told = [{"text": t, "R": b, "psi": b, "omega": b, "U": 0.5} for t, b in zip(pieces, blocks, strict=True)]
    told[0]["omega"] = {"mean": None, "blocks": [None, None]}
    return told


def test_every_character_has_its_place_and_its_token():
    assert list(lay_out(["a", "", "b\n", "\tc"])) == [
        (0, 0, 0, "a"),
        (2, 0, 1, "b"),
        (2, 0, 2, "\u21b5"),
        (3, 1, 0, " "),
        (3, 1, 1, "c"),
    ]
    assert list(lay_out(["x" * COLUMNS, "y"]))[-1] == (1, 1, 0, "y")
    assert max(line for _, line, *_ in lay_out(["\n"] * 100)) == MOST_LINES - 1
    assert "".join(c for *_, c in lay_out(["\x1b[2J"])) == "\\x1b[2J"


@pytest.mark.parametrize("names", [("R", "psi", "U"), ("psi",), ("U",), ("omega",)])
def test_the_picture_is_drawn_also_of_odd_texts(tmp_path, names, fine_pictures):
    path = plot_written(rows(["The ", "$x$ ", "", "é\n"]), names, tmp_path / "t.png", "a\x1b run")
    image = matplotlib.image.imread(path)
    assert image.shape[1] == 1350 and image.std() > 0.05


def test_equal_values_and_a_text_of_nothing_have_a_picture(tmp_path):
    for name in ("R", "omega"):
        assert plot_written(rows([""]), (name,), tmp_path / "t.png", "run").is_file()


def test_noise_of_what_is_held_is_not_drawn_as_signal(tmp_path, figures):
    held = [row | {"R": {"mean": 0.5 + 3e-9 * i, "blocks": [0.5]}} for i, row in enumerate(rows(["a"] * 9))]
    plot_written(held, ("R", "U"), tmp_path / "t.png", "run", {"R": 0.5})
    text, R, U, bar = figures[0].axes
    assert R.get_title(loc="left").endswith("R, held at 0.5") and "held" not in U.get_title(loc="left")
    colours = text.collections[0].get_facecolor()
    assert np.ptp(colours, axis=0).max() < 0.01
    for ax in (R, U, bar):
        assert np.ptp(ax.get_ylim()) >= 0.999 * LEAST_SPAN and not ax.yaxis.get_offset_text().get_text()
    assert [label.get_text() for label in bar.get_yticklabels()] == ["0.495", "0.500", "0.505"]


def test_what_moves_keeps_its_span():
    assert find_span(np.array([np.nan, 0.2, 0.9])) == (0.2, 0.9)
    assert find_span(np.array([0.5])) == pytest.approx((0.495, 0.505))
    assert find_span(np.array([np.nan])) == pytest.approx((-0.005, 0.005))


@pytest.mark.parametrize("pieces", [["a"] * 3, ["a\n"] * 30])
def test_panels_have_the_same_whole_tokens_and_the_colours_a_bar_that_can_be_read(tmp_path, figures, pieces):
    plot_written(rows(pieces), ("omega", "R", "psi"), tmp_path / "t.png", "run")
    _, *panels, bar = figures[0].axes
    assert {ax.get_xlim() for ax in panels} == {(-0.5, len(pieces) - 0.5)}
    assert all(tick == round(tick) for ax in panels for tick in ax.get_xticks())
    assert len(bar.get_yticks()) == 3 and bar.get_ylabel() == "omega"
    assert bar.get_window_extent().height > 3 * 1.2 * 10 * figures[0].dpi / 72  # three lines of ten points
