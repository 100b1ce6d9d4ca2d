"""What the site needs beyond its pages: links out of docs/, to code, and to folders are code and no links.

The pages are read in the repository too, where such links lead somewhere.
"""

from __future__ import annotations

import posixpath
import re

LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?!https?:|#|mailto:)([^)\s#]+)(#[^)\s]*)?\)")


def on_page_markdown(markdown: str, page, **_) -> str:
    """The page's text with its outward links as code."""
    folder = posixpath.dirname(page.file.src_uri)

    def inside(match: re.Match) -> str:
        target = posixpath.normpath(posixpath.join(folder, match[2]))
        text = match[1]
        folder_of_files = "." not in posixpath.basename(target)
        if not target.startswith("..") and not folder_of_files:
            return match[0]
        return text if text.startswith("`") else f"`{text}`"

    return LINK.sub(inside, markdown)
