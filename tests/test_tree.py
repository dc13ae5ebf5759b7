"""The source tree is the package: links, one version, and a sentence where links are missing."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import na_deploy

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "na_deploy"
FOLDERS = sorted(path.parent.name for path in ROOT.glob("*/__init__.py"))


def test_every_python_folder_is_linked_into_the_package_and_seen_by_type_checkers():
    assert {"attention", "exporter", "runtime", "cli"} <= set(FOLDERS)
    included = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pyright"]["include"]
    for name in FOLDERS:
        assert (PACKAGE / name).readlink() == Path("../..") / name
        assert f"src/na_deploy/{name}" in included


def test_tests_run_on_the_tree():
    assert Path(na_deploy.__file__).parent == PACKAGE


def test_the_version_stands_in_one_file():
    version = re.escape(na_deploy.__version__)
    states_it = re.compile(
        rf"^__version__ = \"{version}\"|^version = \"{version}\"|project\(.*VERSION {version}", re.MULTILINE
    )
    files = [*ROOT.glob("*.*"), *ROOT.glob("cmake/*"), *ROOT.glob("*/*.py"), *PACKAGE.glob("*.py")]
    stating = [path for path in files if path.is_file() and states_it.search(path.read_text(encoding="utf-8"))]
    assert stating == [PACKAGE / "__init__.py"]


@pytest.mark.parametrize("command", ["wheel", "sdist"])
def test_a_checkout_without_symbolic_links_is_refused_in_a_sentence(tmp_path: Path, command: str):
    copy = tmp_path / "checkout"
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        copy.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, copy / name)
    shutil.copytree(ROOT / "cmake", copy / "cmake", ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "src" / "na_deploy").mkdir(parents=True)
    shutil.copy(PACKAGE / "__init__.py", copy / "src" / "na_deploy")
    (copy / "src" / "na_deploy" / "cli").write_text("../../cli")
    script = f"import checked_build; checked_build.build_{command}({str(tmp_path)!r})"
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=copy,
        env=os.environ | {"PYTHONPATH": str(copy / "cmake")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: src/na_deploy/cli is a text file, expected a symbolic link")
    assert "Traceback" not in done.stderr
