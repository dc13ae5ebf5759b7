"""Draws a model's attention windows in a process of its own, so that requests do not wait for matplotlib.

Run as ``python -m na_deploy.serving.picture MODEL TARGET TITLE``; a failure is one line on stderr.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from na_deploy.errors import NaDeployError

PATIENCE = 120
"""Seconds a picture may take."""


def draw_windows(model: Path, title: str) -> bytes:
    """Return the picture of a model or bundle as a PNG file's bytes.

    Raises:
        NaDeployError: the model has no attention layers, or matplotlib is not installed; a sentence.
    """
    with tempfile.TemporaryDirectory(prefix="na-deploy-serve-") as folder:
        target = Path(folder) / "windows.png"
        command = [sys.executable, "-m", "na_deploy.serving.picture", str(model.absolute()), str(target), title]
        try:
            result = subprocess.run(
                command, capture_output=True, text=True, timeout=PATIENCE, stdin=subprocess.DEVNULL, check=False
            )
        except subprocess.TimeoutExpired:
            raise NaDeployError(f"the picture was not drawn within {PATIENCE} seconds") from None
        if result.returncode:
            lines = result.stderr.strip().splitlines()
            raise NaDeployError(lines[-1] if lines else "the picture could not be drawn")
        return target.read_bytes()


def main(model: str, target: str, title: str) -> None:
    """Draw into a file; leaves the process with 1 and a line on stderr where that fails."""
    from na_deploy.model_file.inspection import inspect_model
    from na_deploy.runtime.bundle import is_bundle, open_bundle
    from na_deploy.runtime.pictures.model import plot_model

    try:
        if is_bundle(Path(model)):
            with open_bundle(Path(model)) as bundle:
                summary = inspect_model(bundle.file("model"))
        else:
            summary = inspect_model(model)
        plot_model(summary, Path(target), title)
    except NaDeployError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main(*sys.argv[1:])
