"""A run on a mixture: tokens of each source in its rows, and the same run after a stop."""

import pytest

from kssm_mlx.errors import Interrupted
from kssm_mlx.training.loop import Callbacks
from tests.support.tiny_run import rows, tiny_run


@pytest.fixture
def sources(tmp_path):
    for name, letters in (("a.txt", "abcd e"), ("b.txt", "dcba e")):
        (tmp_path / name).write_text(letters * 150)
    mixed = [{"source": f"file:{tmp_path / 'a.txt'}", "weight": 3}, {"source": f"file:{tmp_path / 'b.txt'}"}]
    return {"source": "pydoc", "sources": mixed}


def test_rows_count_the_tokens_of_each_source_and_resume_exactly(sources, tmp_path):
    folder, stopped = tmp_path / "whole", tmp_path / "stopped"
    tiny_run(folder, data=sources)
    found = rows(folder, "train")
    assert all(row["tokens:a.txt"] + row["tokens:b.txt"] == row["tokens"] == 64 for row in found)
    assert sum(row["tokens:a.txt"] for row in found) > sum(row["tokens:b.txt"] for row in found) > 0
    assert all(row["bits_per_byte:b.txt"] > 0 for row in rows(folder, "eval"))

    def stop(step, row):
        if step == 6:
            raise Interrupted("stopped")

    with pytest.raises(Interrupted):
        tiny_run(stopped, data=sources, hooks=Callbacks(on_step=stop))
    tiny_run(stopped, data=sources, resume=True)
    assert rows(stopped, "train", "eval") == rows(folder, "train", "eval")
