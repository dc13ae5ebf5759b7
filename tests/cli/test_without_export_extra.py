"""Without the export libraries: running works, exporting says what to install. Imports are blocked in a new process."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

BLOCKED = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "onnxscript", "onnx_ir", "safetensors"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
from na_deploy.cli.main import main
main(sys.argv[1:])
"""


def call(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", BLOCKED, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_running_and_inspecting_need_none_of_them(write_model: Callable[..., Path], tmp_path: Path):
    model = write_model()
    np.save(tmp_path / "image.npy", np.random.default_rng(0).standard_normal((1, 3, 32, 32)).astype(np.float32))
    for arguments in (("run", model, tmp_path / "image.npy"), ("inspect", model), ("models",)):
        result = call(*arguments)
        assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("command", ["export", "verify"])
def test_exporting_and_verifying_say_what_to_install(command: str, tmp_path: Path):
    checkpoint = tmp_path / "model.pth"
    checkpoint.write_bytes(b"any")
    result = call(command, checkpoint, *([checkpoint] if command == "verify" else []))
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.endswith("pip install 'na-deploy[export]'\n")
    assert result.stderr.count("\n") == 1
