"""The picture of a text that was traced."""

import matplotlib.image
import pytest

from kssm_mlx.reports.written import COLUMNS, MOST_LINES, lay_out, plot_written


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
def test_the_picture_is_drawn_also_of_odd_texts(tmp_path, names):
    path = plot_written(rows(["The ", "$x$ ", "", "é\n"]), names, tmp_path / "t.png", "a\x1b run")
    image = matplotlib.image.imread(path)
    assert image.shape[1] == 1350 and image.std() > 0.05


def test_equal_values_and_a_text_of_nothing_have_a_picture(tmp_path):
    for name in ("R", "omega"):
        assert plot_written(rows([""]), (name,), tmp_path / "t.png", "run").is_file()
