"""Build backend: scikit-build-core's, which refuses a checkout whose symbolic links became text files.

``src/na_deploy`` links to the folders at the top level. Without links a build would succeed and hold no modules.
"""

from __future__ import annotations

from pathlib import Path

from scikit_build_core.build import *  # noqa: F403  (the hooks of PEP 517 and PEP 660)

PACKAGE = Path(__file__).resolve().parents[1] / "src" / "na_deploy"

for _path in sorted(PACKAGE.iterdir()):
    if _path.is_file() and not _path.suffix:
        raise SystemExit(
            f"error: src/na_deploy/{_path.name} is a text file, expected a symbolic link to that folder: this "
            "checkout was made without symbolic links; allow them (Windows: developer mode), run "
            "`git config core.symlinks true` and `git checkout -- src`, or install from a wheel or source distribution"
        )
