"""Several processes train one run: the same as one process, through MLX's ring on this machine."""

import signal
import subprocess
import sys

import numpy as np
import pytest

from kssm_mlx.errors import CheckFailed, ConfigError, DataError, KssmError
from kssm_mlx.training.parallel import ranks
from kssm_mlx.training.parallel.ranks import RankLost, Ranks, Settled
from kssm_mlx.training.recipe_sections import Train
from kssm_mlx.training.step import require_shares
from tests.support.launched import ROOT, launch, said
from tests.support.tiny_run import command, rows, saved, tiny_model, tiny_run

STEPS = {"steps": 8}


def ran(count, folder, **options):
    done = launch(count, command(folder, **options))
    assert "exited with code" not in done.stderr, done.stderr
    return done


def tensors(folder):
    loaded = saved(folder).snapshot
    return {f"{stem}.{n}": np.array(a) for stem, arrays in loaded.tensors.items() for n, a in arrays.items()}


def require_equal(a, b):
    assert a.keys() == b.keys()
    assert [name for name in a if not np.array_equal(a[name], b[name])] == []


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A run of two processes, of which one was killed before its step 7 and both were started again."""
    folder = tmp_path_factory.mktemp("two") / "run"
    died = launch(2, command(folder, train=STEPS, of_rank={1: {"fault": "before a batch"}}))
    ran(2, folder, train=STEPS, resume=True)
    return folder, died


def test_two_processes_with_a_death_are_one_with_two_pieces(two, tmp_path):
    """Bitwise, since the same shapes are computed and a sum of two has one order: but for the norm, whose
    squares lie in another order in memory and which clips nothing here. Checkpoints have the same names and
    identity. Of one process with the whole batch at once, the losses are the same up to rounding.
    """
    folder, _ = two
    pieces, whole = tmp_path / "pieces" / "run", tmp_path / "whole" / "run"
    tiny_run(pieces, train={**STEPS, "accumulation": 2})
    tiny_run(whole, train=STEPS)
    require_equal(tensors(folder), tensors(pieces))
    ours, theirs = (rows(f, "train", "eval") for f in (folder, pieces))
    norms = [[row.pop("grad_norm", 0.0) for row in found] for found in (ours, theirs)]
    assert ours == theirs and np.allclose(*norms, rtol=1e-6, atol=0) and np.max(norms) < 1
    ours, theirs = saved(folder), saved(whole)
    assert ours.path.name == theirs.path.name
    assert sorted(p.name for p in ours.path.iterdir()) == sorted(p.name for p in theirs.path.iterdir())
    assert set(tensors(folder)) == set(tensors(whole))
    assert ours.snapshot.state["environment"]["processes"] == 2
    then, now = (s.snapshot.state["identity"]["config"] for s in (ours, theirs))
    assert {k for k in now if then[k] != now[k]} == {"data.source"}  # another temporary folder
    losses = [[row["loss"] for row in rows(f, "train")] for f in (folder, whole)]
    # fp32: a mean of 64 losses in another order, after 8 updates; measured 2e-7.
    assert np.abs(np.subtract(*losses)).max() < 2e-6


def test_a_death_ends_all_with_one_message_and_the_last_checkpoint(two):
    _, died = two
    (line,) = said(died)
    assert line.endswith("a process of this run is gone; what there is: step_00000004")
    assert "Node with rank 1 exited with code -9" in died.stderr


def heard(stderr: str) -> list[str]:
    return said(subprocess.CompletedProcess([], 0, stderr=stderr))


def test_what_mlx_adds_is_told_from_what_we_say_however_the_two_are_cut():
    head, tail = "\x1b[33m[WARN]", " Node with rank 0 exited with code 1 \x1b[0m\n"
    ours = "a process of this run is gone; what there is: step_00000004\n"
    one, many = "[ring] Socket 3", "[ring] Too many send/recv errors. Failing pending tasks...\n"
    closed = " was closed by the peer\n"
    ring = f"{one}{closed}{many}"
    for text in (
        head + tail + ring + ours,
        one + head + tail + closed + ours,
        ours + ring,
        head + ring + ours + tail + head + tail,
    ):
        assert heard(text) == [ours.strip()]
    assert ours.strip() in heard(f"[ring] {one}Socket 13{ours}{closed}\n")
    assert heard(f"{ring}more\n{ours}") == ["more", ours.strip()]


def test_four_go_on_where_one_was_with_a_state_that_is_handed_on(tmp_path):
    """Rows of a state go to their ranks, and come back into the checkpoint."""
    folder, pieces = tmp_path / "a" / "run", tmp_path / "b" / "run"
    train = {"hand_off": True, "accumulation": 4, "batch_size": 8}
    tiny_run(folder, train={**train, "steps": 4})
    changes = ran(4, folder, train={**train, "steps": 6}, resume=True, allow=True).stdout
    assert "processes was 1, is now 4" in changes
    tiny_run(pieces, train={**train, "steps": 4})
    tiny_run(pieces, train={**train, "steps": 6}, resume=True, allow=True)
    ours, theirs = tensors(folder), tensors(pieces)
    assert any(name.startswith("optimizer.carry") for name in ours)
    assert {n: a.shape for n, a in ours.items()} == {n: a.shape for n, a in theirs.items()}
    # Four are summed in another order on a ring: fp32, two updates.
    assert max(np.abs(ours[n].astype(float) - theirs[n]).max() for n in ours) < 2e-6


def test_what_ranks_do_not_have_alike_is_named_once(tmp_path):
    options = {"train": STEPS, "of_rank": {1: {"train": {"steps": 9}}}}
    done = launch(2, command(tmp_path / "run", **options))
    assert said(done) == ["rank 1 has another run than rank 0: train.steps is 9, not 8"]
    assert "Node with rank 0 exited with code 2" in done.stderr


def test_another_seed_is_named_and_not_the_parameters_that_it_gives(tmp_path):
    done = launch(2, command(tmp_path / "run", train=STEPS, of_rank={1: {"train": {**STEPS, "seed": 1}}}))
    assert said(done) == ["rank 1 has another run than rank 0: train.seed is 1, not 0"]


class Otherwise(Ranks):
    """A rank beside one that drew other first parameters from the same recipe."""

    def in_turn(self, act):
        return act()

    def gather(self, value):
        drawn = isinstance(value, dict) and any(name.startswith("parameter ") for name in value)
        return [value, dict.fromkeys(value, 7) if drawn else value]


def test_other_first_parameters_are_named_where_nothing_else_is(tmp_path):
    with pytest.raises(KssmError, match=r"rank 1 has another run than rank 0: parameter \S+ is 7, not \d+; "):
        tiny_run(tmp_path / "run", ranks=Otherwise(0, 2))


class Gone(Ranks):
    """A rank whose neighbour is found to be gone in the training loop."""

    def in_turn(self, act):  # before the loop
        return act()

    def gather(self, value):
        raise RuntimeError("[ring] Too many send/recv errors. Failing pending tasks...")


@pytest.mark.parametrize("where", ["in the loop", "outside of it"])
def test_who_hears_of_a_death_is_not_ended_before_it_says_so(where, tmp_path):
    """The loop puts SIGTERM back as it was when it ends, which is before the message."""
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        if where == "in the loop":
            with pytest.raises(RuntimeError, match="Too many send"):
                tiny_run(tmp_path / "run", ranks=Gone(0, 2))
        else:
            lost = pytest.raises(RankLost, match="gone; what there is: nothing")
            with lost, Gone(0, 2).explain_lost_rank(lambda: "what there is: nothing"):
                Gone(0, 2).gather(1)
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


class Beside(Ranks):
    """A rank beside rank 0 and one that has no text."""

    def gather(self, value):
        said = [None, ["text.txt does not exist", 2]]
        return [value, said[1]] if self.first else [said[0], value]


def test_a_failed_check_ends_all_with_its_exit_code_and_is_said_once(tmp_path):
    """Rank 0 asks before step 1; the others wait for its verdict and end with it."""
    kssm = [sys.executable, "-m", "kssm_mlx"]
    # Few and short rows: MLX's ring polls, so that a rank that waits for the checks costs a core.
    fewer = {"data.task.train_rows": 64, "data.task.validation_rows": 16, "data.task.vocab": 64}
    fewer |= {"data.task.length": 16, "train.context": 16}
    changes = [part for key, value in fewer.items() for part in ("--set", f"{key}={value}")]
    done = launch(2, [*kssm, "train", "failures/random-sequence", "--out", str(tmp_path / "run"), *changes])
    assert sum(line.startswith("kssm: ") for line in said(done)) == 1, done.stderr
    assert "G1" in done.stderr and "rank 0 exited with code 1" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_the_error_of_another_rank_is_said_by_rank_0(monkeypatch):
    monkeypatch.setattr(ranks, "BEHIND_RANK_0", 0.0)
    with pytest.raises(KssmError) as error, Beside(0, 2).end_together():
        pass
    assert (str(error.value), error.value.exit_code) == ("rank 1: text.txt does not exist", 2)
    with pytest.raises(Settled) as ended, Beside(1, 2).end_together():
        raise DataError("text.txt does not exist")
    assert ended.value.exit_code == 2


def test_what_all_find_alike_is_said_by_rank_0(monkeypatch):
    monkeypatch.setattr(ranks, "BEHIND_RANK_0", 0.0)
    for rank, kind in ((0, CheckFailed), (1, Settled)):
        with pytest.raises(kind) as ended, Ranks(rank, 2).explain_lost_rank(str):
            raise CheckFailed("the gradient was not finite")
        assert ended.value.exit_code == 1


def test_only_a_lost_rank_is_taken_for_one():
    with pytest.raises(RuntimeError, match="shapes"), Ranks(0, 2).explain_lost_rank(str):
        raise RuntimeError("shapes do not match")


def test_a_process_that_waits_for_nobody_ends_by_sigterm(tmp_path):
    """What is left of a ring may wait for ever in C++, which a Python handler does not end."""
    code = (
        "import kssm_mlx, signal, time\n"
        "from kssm_mlx.training.parallel import waits\n"
        "waits.PATIENCE = 0.1\n"
        "signal.signal(signal.SIGTERM, lambda *_: None)\n"
        "waiting = waits.Waits()\n"
        "with waits.ended_by_sigterm(waiting, lambda: print('said', flush=True)):\n"
        "    signal.raise_signal(signal.SIGTERM)\n"
        "    time.sleep(0.3)\n"
        "    print('still there while it computes', flush=True)\n"
        "    waiting.since = time.monotonic()\n"
        "    while True: time.sleep(60)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout) == (1, "still there while it computes\nsaid\n"), done.stderr


def test_a_batch_that_ranks_do_not_divide_is_refused():
    def require(batch_size, accumulation, size):
        train = Train(batch_size=batch_size, accumulation=accumulation)
        require_shares(model, train, Ranks(0, size))

    model = tiny_model()
    require(8, 4, 2)
    require(5, 5, 1)
    with pytest.raises(ConfigError, match="batch_size 6 cannot be divided among 4 processes"):
        require(6, 1, 4)
    with pytest.raises(ConfigError, match="among 2 processes, in 2 pieces each; make it a multiple of 4"):
        require(6, 3, 2)
    model.buffers = ("core.memory",)
    with pytest.raises(ConfigError, match=r"tiny keeps core.memory, .*; train it in one process"):
        require(8, 1, 2)


class Apart(Ranks):
    """Rank 0 beside one that says the same, but that its parameters have moved otherwise."""

    def gather(self, value):
        moved = isinstance(value, dict) and "head.bias" in value
        return [value, {**value, "head.bias": 0} if moved else value]

    def sum(self, tree):
        return tree

    def largest(self, value):
        return value


def test_ranks_that_have_come_apart_write_nothing(tmp_path):
    with pytest.raises(CheckFailed, match="after step 4 rank 1 has other parameters than rank 0"):
        tiny_run(tmp_path / "run", ranks=Apart(0, 2))
    assert saved(tmp_path / "run") is None
