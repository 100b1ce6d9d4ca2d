"""What the site needs beyond its pages: links out of docs/, to code, and to folders are code and no links.

The pages are read in the repository too, where such links lead somewhere. The checks, one table there, have a
page each here, and the names of api.md all that their docstrings say.
"""

from __future__ import annotations

import posixpath
import re

from mkdocs.structure.files import File

from kssm_mlx.checks.document import list_own_entries, render_entry

LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?!https?:|#|mailto:)([^)\s#]+)(#[^)\s]*)?\)")


FENCE = re.compile(r"^(```\w+) no-test$", re.M)  # a word for the tests, with which it would be no block here
ROW = re.compile(r"^\| ([A-Z]+\d+) \|", re.M)
NAMES = re.compile(r"^From `([\w.]+)`:\n\n((?:\|.*\n)+)", re.M)


def on_config(config):
    """The navigation with the pages of the checks below their table."""
    pages = [{f"{e.id}: {e.title}": f"checks/{e.id}.md"} for e in list_own_entries()]
    for part in config.nav or ():
        for entries in part.values() if isinstance(part, dict) else ():
            if isinstance(entries, list) and {"Checks": "checks.md"} in entries:
                entries[entries.index({"Checks": "checks.md"})] = {"Checks": ["checks.md", *pages]}
    return config


def on_files(files, config):
    if files.get_file_from_path("checks.md"):
        for entry in list_own_entries():
            files.append(File.generated(config, f"checks/{entry.id}.md", content=render_entry(entry)))
    return files


def on_page_markdown(markdown: str, page, **_) -> str:
    """The page's text with its outward links as code; in the table of checks with links to their pages."""
    if page.file.src_uri == "checks.md":
        markdown = ROW.sub(r"| [\1](checks/\1.md) |", markdown)
    if page.file.src_uri == "api.md":
        markdown = NAMES.sub(_add_docstrings, markdown)
    markdown = FENCE.sub(r"\1", markdown)
    folder = posixpath.dirname(page.file.src_uri)

    def inside(match: re.Match) -> str:
        target = posixpath.normpath(posixpath.join(folder, match[2]))
        text = match[1]
        folder_of_files = "." not in posixpath.basename(target)
        if not target.startswith("..") and not folder_of_files:
            return match[0]
        return text if text.startswith("`") else f"`{text}`"

    return LINK.sub(inside, markdown)


def _add_docstrings(table: re.Match) -> str:
    """The table of a module's names, and below it each name in full, by mkdocstrings."""
    names = re.findall(r"^\| `(\w+)", table[2], re.M)
    return table[0] + "".join(f"\n::: {table[1]}.{name}\n" for name in names)
