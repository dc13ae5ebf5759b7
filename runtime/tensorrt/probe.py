"""Trying an engine of unknown origin in a process of its own, because a damaged one can end the process that loads it.

Engines of bundles need no such trial: their SHA-256 is known.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from na_deploy.errors import NaDeployError
from na_deploy.runtime.tensorrt.api import FLAVORS, Flavor, load_module

_TIMEOUT_S = 600.0


def probe_engine(path: Path, flavor: Flavor, device: int, library: Path | None) -> None:
    """Load an engine in a child process, and refuse it if that fails in any way.

    Raises:
        NaDeployError: the library refuses it, ends the process over it, or does not finish.
    """
    request = {
        "path": str(path.resolve()),
        "flavor": flavor.backend,
        "device": device,
        "library": None if library is None else str(library),
    }
    command = [sys.executable, "-m", __name__, json.dumps(request)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_TIMEOUT_S, check=False, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        raise NaDeployError(f"{flavor.title} did not finish loading {path} within {_TIMEOUT_S:g} s") from None
    answer = _answer(done.stdout)
    if done.returncode == 0 and answer.get("loaded"):
        return
    if "error" in answer:
        raise NaDeployError(answer["error"])
    how = f"exit code {done.returncode}"
    if done.returncode < 0:
        how = signal.Signals(-done.returncode).name
    raise NaDeployError(f"{flavor.title} crashed ({how}) while loading {path}: it is damaged or no engine")


def _answer(output: bytes) -> dict[str, Any]:
    """Return the last line of the output that is an answer; libraries may print too."""
    for line in reversed(output.decode(errors="replace").splitlines()):
        try:
            answer = json.loads(line)
        except ValueError:
            continue
        if isinstance(answer, dict):
            return answer
    return {}


def _main(request: dict[str, Any]) -> None:
    from na_deploy.runtime.tensorrt.cuda import load_cuda
    from na_deploy.runtime.tensorrt.engine import load_engine

    flavor = FLAVORS[request["flavor"]]
    library = request["library"]
    try:
        load_cuda().use_device(request["device"])
        engine = load_engine(
            Path(request["path"]), load_module(flavor), flavor, library=None if library is None else Path(library)
        )
        answer: dict[str, Any] = {"loaded": bool(engine.inputs)}
    except NaDeployError as error:
        answer = {"error": str(error)}
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    _main(json.loads(sys.argv[1]))
    sys.stdout.flush()
    os._exit(0)  # the library's exit handlers could crash
