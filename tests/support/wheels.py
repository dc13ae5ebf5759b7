"""Wheels that tests look into or import in processes of their own, each in a folder that is kept between runs."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from filelock import FileLock

FOLDER = Path(os.environ.get("NA_DEPLOY_TEST_WHEELS", Path(sys.prefix) / "share" / "na-deploy-test-wheels"))


def is_complete(name: str) -> bool:
    """Return whether a folder holds what was installed into it."""
    return (FOLDER / name / "complete").is_file()


def install(name: str, requirements: Sequence[str]) -> Path:
    """Return the folder with the requirements, installed if they are not there; skip the test where that fails.

    Their dependencies are not installed.
    """
    folder = FOLDER / name
    FOLDER.mkdir(parents=True, exist_ok=True)
    with FileLock(FOLDER / f"{name}.lock"):  # tests run in several processes
        if not is_complete(name):
            _install(folder, requirements)
    return folder


def _install(folder: Path, requirements: Sequence[str]) -> None:
    if importlib.util.find_spec("pip") is None:
        pytest.skip(f"{requirements[0]} is not in {folder}, and this environment has no pip to install it")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder)]
    done = subprocess.run([*command, *requirements], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"{requirements[0]} cannot be installed: {done.stderr.strip().splitlines()[-1:]}")
    (folder / "complete").touch()
