"""The memory a reader takes for a file, in its own process: python -m tests.support.appetite READER PATH"""

from __future__ import annotations

import resource
import sys
from pathlib import Path

from kssm_mlx.weights.io.safetensors_header import read_safetensors
from kssm_mlx.weights.io.torch_archive import read_torch


def main(reader: str, path: Path) -> None:
    before = peak_resident()
    tensors, findings = {"safetensors": read_safetensors, "torch": read_torch}[reader](path)
    print(peak_resident() - before, len(tensors), findings[0].check if findings else "")


def peak_resident() -> int:
    """Of this process so far, bytes; Linux's ru_maxrss begins with what the parent had, VmHWM does not."""
    if sys.platform == "linux":
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.partition("VmHWM:")[2].split()[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
