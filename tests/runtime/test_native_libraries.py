"""Places where the operator library is looked for, and messages where it is missing or does not load."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from na_deploy.cli.main import run
from na_deploy.errors import UsageError
from na_deploy.runtime import native_libraries as native
from na_deploy.runtime.environment import OPERATOR_LIBRARY

VARIABLE = native.ONNXRUNTIME_LIBRARY_VARIABLE


@pytest.fixture
def installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder lib/ of an installation that has nothing compiled."""
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(native, "package_folders", lambda: [tmp_path / "elsewhere", tmp_path])
    (tmp_path / "lib").mkdir()
    return tmp_path / "lib"


def native_finding(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    assert run(["doctor", "--json"]) == 0
    findings = json.loads(capsys.readouterr().out)["findings"]
    (found,) = (finding for finding in findings if finding["name"] == OPERATOR_LIBRARY)
    return found


def test_the_installed_library_is_found(installation: Path):
    assert native.onnxruntime_library() is None
    library = installation / native.ONNXRUNTIME_LIBRARY
    library.touch()
    assert native.onnxruntime_library() == library


def test_the_variable_names_another_library_or_none(
    installation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (installation / native.ONNXRUNTIME_LIBRARY).touch()
    other = tmp_path / "other.so"
    other.touch()
    monkeypatch.setenv(VARIABLE, str(other))
    assert native.onnxruntime_library() == other
    monkeypatch.setenv(VARIABLE, "")
    assert native.onnxruntime_library() is None
    assert VARIABLE in native.why_missing()
    monkeypatch.setenv(VARIABLE, str(tmp_path / "absent.so"))
    with pytest.raises(UsageError, match=r"absent\.so, which does not exist"):
        native.onnxruntime_library()


def test_doctor_says_why_nothing_was_compiled(installation: Path, capsys: pytest.CaptureFixture[str]):
    (installation / native.BUILD_NOTE).write_text("there is no C++ compiler; install one\n")
    found = native_finding(capsys)
    assert found["status"] == "missing"
    assert found["detail"] == "not compiled: there is no C++ compiler; install one"
    assert "docs/build.md" in found["remedy"]


def test_doctor_finds_a_library_that_does_not_load(installation: Path, capsys: pytest.CaptureFixture[str]):
    (installation / native.ONNXRUNTIME_LIBRARY).write_bytes(b"not a library")
    found = native_finding(capsys)
    assert found["status"] == "broken"
    assert str(installation) in found["detail"]
    assert "ONNXRuntimeError" not in found["detail"]


def test_the_command_line_warns_in_one_line_and_runs(write_model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    library = tmp_path / "libbroken.so"
    library.write_bytes(b"not a library")
    monkeypatch.setenv(VARIABLE, str(library))
    image = tmp_path / "image.npy"
    script = (
        "import sys, numpy; numpy.save(sys.argv[2], numpy.ones((1, 3, 32, 32), 'float32'));"
        "from na_deploy.cli.main import run; sys.exit(run(['run', sys.argv[1], sys.argv[2]]))"
    )
    command = [sys.executable, "-c", script, str(write_model()), str(image)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("warning: onnxruntime refuses the operator library")
    assert "runs on its embedded function bodies" in done.stderr
