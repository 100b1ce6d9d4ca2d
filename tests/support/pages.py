"""The pages of the repository, the headings that can be linked, and the links between them."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")
CITED = re.compile(r"docs/[\w/.-]+\.md(?:#[\w-]+)?")


def anchors(page: Path) -> set[str]:
    """What `page.md#...` can name: its headings in small letters, with hyphens, as GitHub makes them."""
    return {anchor(heading) for heading in HEADING.findall(page.read_text("utf-8"))}


def anchor(heading: str) -> str:
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def fault(target: str, folder: Path = ROOT) -> str | None:
    """Why `path#anchor`, seen from a folder, leads nowhere; None where it leads somewhere."""
    path, _, name = target.partition("#")
    page = (folder / path).resolve()
    if not page.exists():
        return f"{target}: no such file"
    return f"{target}: no such heading" if name and name not in anchors(page) else None
