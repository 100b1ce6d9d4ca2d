"""`make detect`: measure the matrix and write it; exit code 1 where a row slips or a control is failed."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from kssm_mlx import files
from kssm_mlx.checks import document
from kssm_mlx.experiments.detection import report
from kssm_mlx.experiments.detection.detect import detect


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="kssm-detect-") as home:
        found = detect(Path(home), say=lambda line: print(line, flush=True))
    files.replace(report.RESULT, json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    files.replace(report.PAGE, report.render_page(found))
    files.replace(report.README, report.into_readme(report.README.read_text("utf-8"), found))
    document.main()  # whose table counts the controls
    if wrong := report.slips(found):
        print("\n".join(wrong))
        sys.exit(1)


if __name__ == "__main__":
    main()
