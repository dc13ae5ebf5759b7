"""The fastest backend: chosen by measurement within a tolerance, remembered by bundles, never by name."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import na_deploy
from na_deploy.cli.main import run
from na_deploy.errors import NaDeployError, UsageError
from na_deploy.models.metadata import ModelMetadata
from na_deploy.runtime.bench import choice
from na_deploy.runtime.bench.candidates import Candidate, all_candidates, read_candidates
from na_deploy.runtime.bench.compare import Measurement, Report, Target, measure

openvino = pytest.importorskip("openvino")

FOUND = {"onnxruntime": (3.0, 0.0), "openvino f32": (4.0, 3e-7), "openvino bf16": (2.0, 4e-3)}
"""Milliseconds and differences that a pretended machine measures."""


@pytest.fixture
def model(write_model: Callable[..., Path]) -> Path:
    return write_model("small.onnx", batch="batch", properties=ModelMetadata("nat_mini", num_classes=10).to_props())


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[float, float | None]]:
    """A machine on which every backend is there and takes the milliseconds that it says."""
    found: dict[str, tuple[float, float | None]] = dict(FOUND)

    def pretended(targets: Sequence[Target], *_: Any, **__: Any) -> Report:
        rows = [
            Measurement(each.label, 1, {"image": (1, 3, 32, 32)}, 9, ms, ms, ms, 1e3 / ms, "CPU", difference)
            for each in targets
            for ms, difference in [found[each.label]]
        ]
        return Report(tuple(rows), (), None, "pretended")

    known = [Candidate("onnxruntime"), Candidate("openvino", "f32"), Candidate("openvino", "bf16")]
    monkeypatch.setattr(choice, "measure", pretended)
    monkeypatch.setattr(choice, "all_candidates", lambda path: (known, ["tensorrt is left out: no GPU"]))
    choice._measured.cache_clear()
    return found


@pytest.mark.parametrize(
    ("tolerance", "expected"),
    [(None, "onnxruntime"), (1e-2, "openvino bf16"), (4e-3, "openvino bf16"), (3e-3, "onnxruntime")],
)
def test_the_fastest_within_the_tolerance_is_chosen(
    tolerance: float | None, expected: str, model: Path, machine: dict[str, tuple[float, float | None]]
):
    made = choice.choose(model, tolerance=tolerance)
    assert str(made.candidate) == expected
    assert made.remarks == ("tensorrt is left out: no GPU",)
    assert [row["backend"] for row in made.as_dict()["candidates"]] == list(FOUND)


def test_another_order_of_speeds_gives_another_choice(model: Path, machine: dict[str, tuple[float, float | None]]):
    machine["openvino f32"] = (1.0, 3e-7)
    assert choice.choose(model).candidate == Candidate("openvino", "f32")
    machine["openvino f32"] = (1.0, float("inf"))  # fastest, and wrong
    assert choice.choose(model).candidate == Candidate("onnxruntime")
    machine.update(dict.fromkeys(FOUND, (1.0, 0.5)))
    with pytest.raises(NaDeployError, match=r"no backend runs small\.onnx within the tolerance of 1e-04: .*5\.0e-01"):
        choice.choose(model)
    machine.update(dict.fromkeys(FOUND, (1.0, None)))  # nothing to compare with
    with pytest.raises(NaDeployError, match="no backend runs"):
        choice.choose(model)


def test_auto_measures_once_and_opens_what_was_chosen(model: Path, machine: dict[str, tuple[float, float | None]]):
    machine["openvino f32"] = (1.0, 3e-7)
    with na_deploy.load(model, backend="auto") as session:
        assert (session.backend, session.precision) == ("openvino", "f32")
    machine["openvino f32"] = (9.0, 3e-7)
    with na_deploy.load(model, backend="auto") as session:  # the file is the same
        assert session.backend == "openvino"
    with na_deploy.load(model, backend="auto", tolerance=1e-3) as session:
        assert session.backend == "onnxruntime"
    with pytest.raises(UsageError, match="tolerance is for backend 'auto'"):
        na_deploy.load(model, tolerance=1e-3)
    with pytest.raises(UsageError, match="backend 'auto' chooses the precision"):
        na_deploy.load(model, backend="auto", precision="bf16")
    with pytest.raises(UsageError, match=r"none\.onnx does not exist"):
        na_deploy.load(model.with_name("none.onnx"), backend="auto")


def test_a_bundle_remembers_the_choice_of_its_machine(
    model: Path,
    tmp_path: Path,
    machine: dict[str, tuple[float, float | None]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    machine["openvino f32"] = (1.0, 3e-7)
    bundle = tmp_path / "fast.zip"
    assert run(["build", str(model), "-o", str(bundle), "--backend", "fastest", "--batch", "1"]) == 0
    out = capsys.readouterr().out
    assert "openvino f32     1.00     3.0e-07  chosen" in out
    assert "tensorrt is left out: no GPU" in out
    monkeypatch.setattr(choice, "measure", None)
    for backend in (None, "auto"):
        with na_deploy.load(bundle, backend=backend) as session:
            assert (session.backend, session.precision) == ("openvino", "f32")
    assert run(["inspect", str(bundle), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)["bundle"]
    assert content["build"]["choice"]["tolerance"] == 1e-4
    assert content["settings"].items() >= {"precision": "f32", "measured_on": choice.machine()}.items()
    monkeypatch.setattr(choice, "machine", lambda: "another machine")  # there it is measured again
    with pytest.raises(TypeError):
        na_deploy.load(bundle, backend="auto")


def test_wrong_use_is_refused_in_a_sentence(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for options, sentence in (
        (["--tolerance", "0.1"], "--tolerance is for --backend fastest"),
        (["--backend", "fastest", "--precision", "bf16"], "chooses the precision within --tolerance"),
        (["--precision", "bf16"], "the precision of onnxruntime is the model's own"),
        (["--backend", "fastest", "--refit"], "--refit does not apply"),
        (["--backend", "fastest", "--tolerance", "-1"], "tolerance must be above 0"),
    ):
        assert run(["build", str(model), "-o", str(tmp_path / "b.zip"), "--batch", "1", *options]) == 2, options
        assert sentence in capsys.readouterr().err
    assert not (tmp_path / "b.zip").exists()


def test_backends_are_read_and_found(monkeypatch: pytest.MonkeyPatch, model: Path):
    assert [str(each) for each in read_candidates("onnxruntime, openvino,openvino:bf16")] == [
        "onnxruntime",
        "openvino f32",
        "openvino bf16",
    ]
    for text, sentence in (
        ("onnx", "there is no backend 'onnx'"),
        ("onnxruntime:bf16", "a precision is written openvino:f32"),
        ("openvino,openvino:f32", "is given twice"),
    ):
        with pytest.raises(UsageError, match=sentence):
            read_candidates(text)
    found, left_out = all_candidates(model)
    assert found[:2] == [Candidate("onnxruntime"), Candidate("openvino", "f32")]
    assert len(found) + len(left_out) == 3
    monkeypatch.setitem(sys.modules, "openvino", None)
    found, left_out = all_candidates(model)
    assert found == [Candidate("onnxruntime")]
    assert "pip install 'na-deploy[openvino]'" in left_out[0]


def test_real_backends_are_measured_and_compared_with_the_function_bodies(model: Path):
    targets = [Target(str(each), "session", model, each.options, model) for each in read_candidates("openvino:f32")]
    missing = Target("absent", "session", model.with_name("absent.onnx"), {}, None)
    report = measure([*targets, missing], [2], threads=1, duration_s=0.1, leave_out=True)
    (row,) = report.measurements
    assert row.shapes == {"image": (2, 3, 32, 32)}
    assert row.difference is not None
    assert 0 < row.difference < 1e-5
    assert "openvino CPU (f32)" in row.runs_on
    assert len(report.remarks) == 1
    assert report.remarks[0].startswith("absent is left out: ")
