"""What is tested of every architecture; `python -m tests.weights.table` writes docs/results/base-models.md
from it.

A cell is what it says and the tests that say so; test_table.py asserts that pytest collects each of them.
Parity errors are those that `make parity` measured.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from kssm_mlx import files

RESULTS = Path(__file__).parents[2] / "docs" / "results"
FAMILIES = {
    "Mamba": "mamba",
    "FalconMamba": "falcon_mamba",
    "Mamba-2": "mamba2",
    "RWKV-4": "rwkv",
    "RWKV-7": "rwkv7",
    "K-SSM": "kssm",
}
COLUMNS = ("", "reads", "parity error", "state round trip", "batch = solo", "mlx-lm", "quantised")
INTRODUCTION = """# Weights from elsewhere, by architecture

Made by `python -m tests.weights.table`; below the table, the tests behind each cell; they run on tiny
checkpoints. Parity is the largest difference of fp32 logits from the architecture's own library
([parity.md](parity.md)); K-SSM has no other. *hf* is a folder with safetensors in one file or in shards,
or a torch file.

"""


class Cell(NamedTuple):
    """text: what holds; tests: node ids of pytest, none only where the text is a dash."""

    text: str
    tests: tuple[str, ...] = ()


def rows() -> dict[str, list[Cell]]:
    """The cells of every architecture, in the order of `COLUMNS`."""
    return {name: [_reads(f), _parity(f), *_promises(f)] for name, f in FAMILIES.items()}


def render() -> str:
    """The Markdown of docs/results/base-models.md."""
    table = rows()
    return f"{INTRODUCTION}{_table(table)}" + "".join(_backing(name, cells) for name, cells in table.items())


def _reads(family: str) -> Cell:
    base = "tests/weights/io/test_container.py::"
    cell = Cell("hf", (f"{base}test_a_folder_shards_and_a_torch_file_are_the_same_model[{family}]",))
    if family in ("mamba", "mamba2"):
        return Cell("hf, state-spaces", (*cell.tests, f"{base}test_the_layout_of_state_spaces[{family}]"))
    if family in ("rwkv", "rwkv7"):
        pth = f"{base}test_blinkdl_files_need_no_configuration[{family}-"
        return Cell("hf, BlinkDL", (*cell.tests, f"{pth}.pth]", f"{pth}.safetensors]"))
    return cell


def _parity(family: str) -> Cell:
    """The worst of the family's checkpoints, from docs/results/parity.md."""
    lines = [line.strip("| \n").split(" | ") for line in (RESULTS / "parity.md").read_text().splitlines()]
    errors = {cells[0]: float(cells[2]) for cells in lines[6:] if cells[0].split("-")[0] == family}
    if not errors:
        return Cell("-")
    tests = (f"tests/parity/test_parity.py::test_frozen_logits[{name}]" for name in errors)
    return Cell(f"{max(errors.values()):.1e}", tuple(tests))


def _promises(family: str) -> list[Cell]:
    generation, mlx_lm = "tests/generation/test_every_family.py::", "tests/integrations/test_mlx_lm.py::"
    backing = (
        (f"{generation}test_going_on_from_a_file_is_going_on",),
        (f"{generation}test_each_row_of_a_batch_is_its_solo_run",),
        (
            f"{mlx_lm}test_same_greedy_tokens_alone",
            f"{mlx_lm}test_prompts_of_unequal_length_in_one_batch",
            f"{mlx_lm}test_the_lora_command_trains_and_its_adapter_is_used",
        ),
        (
            "tests/weights/test_quantize.py::test_a_folder_gives_back_the_quantised_bits",
            "tests/weights/audit/test_inspect.py::test_quantised_folders_are_understood",
            f"{mlx_lm}test_the_convert_command_quantises_what_our_predicate_allows",
        ),
    )
    return [Cell("yes", tuple(f"{test}[{family}]" for test in tests)) for tests in backing]


def _table(table: dict[str, list[Cell]]) -> str:
    lines = [COLUMNS, ["---"] * len(COLUMNS)]
    lines += [(name, *(cell.text for cell in cells)) for name, cells in table.items()]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _backing(name: str, cells: list[Cell]) -> str:
    tests = "".join(
        f"- {column}: {', '.join(f'`{test}`' for test in cell.tests)}\n"
        for column, cell in zip(COLUMNS[1:], cells, strict=True)
        if cell.tests
    )
    return f"\n## {name}\n\n{tests}"


if __name__ == "__main__":
    files.replace(RESULTS / "base-models.md", render())
