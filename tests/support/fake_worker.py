"""A worker of experiments that trains nothing: `python -m tests.support.fake_worker FOLDER < job.json`.

Its numbers are a function of arm and seed. The name of the arm says what it does: "failing" is stopped by a
check, "crashing" ends with code 3, "slow..." takes a second.
"""

import json
import sys
import time
from pathlib import Path

from kssm_mlx import files


def loss_of(arm: str, seed: int) -> float:
    noise = (hash_of(f"{arm}/{seed}") % 1000) / 1000
    return 2.0 + 0.1 * seed + (0.05 if "worse" in arm else 0.0) + 0.002 * noise


def hash_of(text: str) -> int:
    return sum((i + 1) * ord(c) * 7919 for i, c in enumerate(text))


def main(experiment: Path) -> int:
    job = json.load(sys.stdin)
    arm, seed = job["arm"], job["seed"]
    name = arm.replace(", ", "_").replace("=", "-").replace(" ", "-")
    time.sleep(1.0 if arm.startswith("slow") else 0.05)
    if arm == "crashing":
        print("kssm: no space left on device", file=sys.stderr)
        return 3
    failed = "C4 gradients: got none, expected some" if arm == "failing" else ""
    value = loss_of(arm, seed)
    row = {
        "kind": "run",
        "arm": arm,
        "seed": seed,
        "purpose": job["purpose"],
        "failed": failed,
        "metrics": {} if failed else {"nats_per_token": value, "parameters": 1000.0},
        "units": {} if failed else {"nats_per_token": [value - 0.01, value, value + 0.01]},
        "curve": [] if failed else [[1, value + 1], [2, value]],
        "checks": {"fail": ["C4"]} if failed else {"pass": ["C4"]},
        "settings": job["recipe"],
        "protocol": {"name": job["protocol"], "at": job["at"], "options": job["options"]},
        "digests": {},
        "environment": {"mlx": "0"},
    }
    part = experiment / "parts" / name / f"seed{seed}.json"
    part.parent.mkdir(parents=True, exist_ok=True)
    files.replace(part, json.dumps(row, sort_keys=True) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1])))
