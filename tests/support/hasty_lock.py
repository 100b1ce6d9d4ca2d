"""A lock that looks and then writes, as the precursors' did."""

import os
import time
from contextlib import contextmanager
from pathlib import Path

from kssm_mlx.errors import CheckpointError
from kssm_mlx.runs.lock import is_alive


@contextmanager
def hold(folder):
    path = Path(folder) / "hasty.lock"
    if path.exists() and is_alive(int(path.read_text())):
        raise CheckpointError("in use")
    time.sleep(0.2)  # whoever looks meanwhile sees nobody
    path.write_text(str(os.getpid()))
    yield
    path.unlink(missing_ok=True)
