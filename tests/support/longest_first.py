"""Files whose single tests take longest run first, so that no worker is left alone with one at the end."""

from __future__ import annotations

import pytest

# Of `make slowest`: files with tests of more than about six seconds.
LONGEST = tuple(
    f"tests/{name}.py"
    for name in (
        *(
            "recipes/test_smoke",
            "cli/test_experiment_command",
            "ops/test_proof",
            "experiments/test_detection",
        ),
        *("cli/test_on_a_terminal", "docs/test_examples", "models/grafts/test_graft"),
    )
)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    """After the order has been drawn, which stays as it is within both parts."""
    items.sort(key=lambda item: not item.nodeid.startswith(LONGEST))
