"""Links of the documentation that leave ``docs/``: checked here, and turned into links to the repository.

On the forge a link such as ``../plugins/core/window.h`` works as it is; a built site holds nothing outside ``docs/``.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

_LINK = re.compile(r"\]\((?P<target>(?:\.\./)+[^)#\s]+)(?P<anchor>#[^)\s]*)?\)")


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """Return the page with every link out of ``docs/`` made absolute.

    Raises:
        ValueError: a link names no file of the repository.
    """
    docs = Path(config.docs_dir).resolve()
    folder = Path(page.file.abs_src_path).resolve().parent

    def replace(match: re.Match[str]) -> str:
        target = (folder / match["target"]).resolve()
        if target.is_relative_to(docs):
            return match[0]
        if not target.exists():
            raise ValueError(f"{page.file.src_uri} links to {match['target']}, which does not exist")
        kind = "tree" if target.is_dir() else "blob"
        path = target.relative_to(docs.parent).as_posix()
        return f"]({config.repo_url}/{kind}/main/{path}{match['anchor'] or ''})"

    return _LINK.sub(replace, markdown)
