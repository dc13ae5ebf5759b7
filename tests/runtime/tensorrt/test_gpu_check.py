"""The one command that tries everything on a GPU: it runs here on the fakes, and knows every case that docs list."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest

from na_deploy.cli.gpu_cases import CASES
from na_deploy.cli.gpu_check import run_cases
from na_deploy.cli.main import run
from na_deploy.errors import NaDeployError
from na_deploy.runtime.tensorrt.example import compile_example, find_cuda

ROOT = Path(__file__).parents[3]


def test_every_case_runs_on_a_pretended_gpu(machine, plugin_library, monkeypatch):
    monkeypatch.setattr("na_deploy.cli.gpu_cases._FUZZED", 4)
    monkeypatch.setattr("na_deploy.cli.gpu_cases._TIMED_S", 0.01)
    monkeypatch.delenv("TENSORRT_ROOT", raising=False)
    cases = CASES
    if os.environ["FAKE_TENSORRT"] == "10":  # the others are the same there, and take their time
        cases = {
            name: CASES[name] for name in ("plugin in TensorRT", "CUDA graphs", "arrays on the GPU", "C++ example")
        }
    outcomes = {outcome.name: outcome for outcome in run_cases(cases, 0, lambda _: None)}
    assert list(outcomes) == list(cases)
    not_passed = {name: outcome.detail for name, outcome in outcomes.items() if outcome.status != "passed"}
    own = {"arrays on the GPU", "C++ example", "CUDA graphs in ONNX Runtime"}  # they need a GPU's own libraries
    assert set(not_passed) == own & set(cases), not_passed
    assert all(outcome.status != "failed" for outcome in outcomes.values())
    assert "tactics pluginv3_kernel" in outcomes["plugin in TensorRT"].detail
    assert "recorded, launched" in outcomes["CUDA graphs"].detail


def test_without_a_gpu_the_command_says_what_is_missing(machine, capsys, monkeypatch):
    machine.set(FAKE_CUDA_DEVICES=-1)
    monkeypatch.setattr("na_deploy.cli.gpu_cases.CASES", {name: CASES[name] for name in ("machine", "CUDA graphs")})
    assert run(["doctor", "--gpu"]) == 1
    out, err = capsys.readouterr()
    assert err == ""
    assert "engines run on an NVIDIA GPU with its driver" in " ".join(out.split())
    assert run(["doctor", "--gpu", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert [case["status"] for case in report["cases"]] == ["failed", "failed"]


def test_a_wrong_result_is_found(machine, monkeypatch):
    monkeypatch.setitem(os.environ, "NA_DEPLOY_TRT_LIBRARY", "")
    monkeypatch.setattr("na_deploy.cli.gpu_check.Bench.expected", lambda self, array: array.mean((2, 3))[:, :10])
    (outcome,) = run_cases({"float16": CASES["float16"]}, 0, lambda _: None)
    assert outcome.status == "failed"
    assert "differs from ONNX Runtime by" in outcome.detail


def test_the_documentation_lists_the_cases_by_name():
    text = (ROOT / "docs" / "engines.md").read_text(encoding="utf-8")
    section = text[text.index("## On a GPU") :]
    listed = re.findall(r"^\| ([^|]+?) \| [^|]+ \|$", section, flags=re.MULTILINE)
    assert [name for name in listed if name not in ("case", "---")] == list(CASES)


@pytest.mark.skipif("TENSORRT_ROOT" not in os.environ, reason="TENSORRT_ROOT does not name TensorRT's headers")
def test_the_cpp_example_compiles_against_tensorrts_headers(tmp_path: Path):
    cuda, compiler = find_cuda(), shutil.which("c++") or shutil.which("g++")
    if cuda is None or compiler is None:
        pytest.skip("there is no CUDA toolkit, or no C++ compiler")
    source = ROOT / "examples" / "cpp" / "run_engine.cpp"
    root = Path(os.environ["TENSORRT_ROOT"])
    assert compile_example(source, root, cuda, tmp_path / "example.o", compiler, link=False).stat().st_size > 1000
    broken = tmp_path / "broken.cpp"
    broken.write_text(source.read_text().replace("enqueueV3", "enqueueV9"))
    with pytest.raises(NaDeployError, match=r"does not compile: .*enqueueV9"):
        compile_example(broken, root, cuda, tmp_path / "broken.o", compiler, link=False)


def test_missing_headers_are_named(tmp_path: Path):
    with pytest.raises(NaDeployError, match=r"holds no NvInfer\.h; set TENSORRT_ROOT"):
        compile_example(ROOT / "examples" / "cpp" / "run_engine.cpp", tmp_path, tmp_path, tmp_path / "x", "c++")
