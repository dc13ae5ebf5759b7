"""The trained reader of digits: right in every format and on every backend, on what it has not seen."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import digits
import numpy as np
import pytest
import torch
from digits import DIGITS
from numpy.typing import NDArray

import na_deploy
from na_deploy.models import build_model, load_model
from na_deploy.runtime.quantization.choices import METHODS
from na_deploy.runtime.quantization.quantize import QuantizationOptions, quantize

REPORTED = 0.9956
"""Accuracy that examples/digits/README.md reports."""

Exporter = Callable[[str], Path]


@pytest.fixture(scope="module")
def unseen() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return the held-out digits as the committed model takes them, and their classes."""
    return digits.inputs("held-out"), digits.read("held-out")[1]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exporter:
    """Return a function that exports the committed checkpoint in one format, once."""
    return lambda dtype: digits.exported(tmp_path_factory, dtype)


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file of 40 digits of the training part."""
    path = tmp_path_factory.mktemp("samples") / "x.npz"
    np.savez(path, image=digits.inputs("training")[::13][:40])
    return path


def accuracy(scores: Any, wanted: NDArray[np.int64]) -> float:
    return float(np.mean(np.asarray(scores, np.float32).argmax(1) == wanted))


def test_the_checkpoint_is_small_dilated_in_part_and_names_its_classes() -> None:
    assert (DIGITS / "digits.pth").stat().st_size < 1_000_000
    metadata = load_model(DIGITS / "digits.pth").metadata
    assert tuple(metadata.labels.values()) == digits.CLASSES
    assert metadata.preprocessing.size == (32, 32)
    assert {dilation for level in metadata.dilations for dilation in level} == {1, 2}


def test_pytorch_reads_unseen_digits(unseen: Any) -> None:
    images, wanted = unseen
    with torch.inference_mode():
        scores = load_model(DIGITS / "digits.pth").module(torch.from_numpy(images))
    assert accuracy(scores, wanted) == pytest.approx(REPORTED, abs=1e-4)


@pytest.mark.parametrize("operators", [True, False], ids=["library", "function bodies"])
@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_onnx_runtime_reads_unseen_digits(dtype: str, operators: bool, exported: Exporter, unseen: Any) -> None:
    images, wanted = unseen
    with na_deploy.load(exported(dtype), custom_operators=operators) as session:
        scores = session.run(images.astype(session.inputs[0].dtype))["logits"]
    assert abs(accuracy(scores, wanted) - REPORTED) < 0.003


@pytest.mark.skipif(find_spec("openvino") is None, reason="openvino is not installed")
def test_openvino_reads_unseen_digits(exported: Exporter, unseen: Any) -> None:
    images, wanted = unseen
    with na_deploy.load(exported("fp32"), "openvino") as session:
        assert abs(accuracy(session.run(images)["logits"], wanted) - REPORTED) < 0.003


@pytest.mark.parametrize("calibration", METHODS)
def test_int8_reads_unseen_digits_by_every_calibration(
    calibration: str, exported: Exporter, samples: Path, unseen: Any, tmp_path: Path
) -> None:
    images, wanted = unseen
    options = QuantizationOptions(calibration=calibration)
    quantize(exported("fp32"), tmp_path / "int8.onnx", options, data=samples)
    for custom_operators in (True, False):
        with na_deploy.load(tmp_path / "int8.onnx", custom_operators=custom_operators) as session:
            assert accuracy(session.run(images)["logits"], wanted) > REPORTED - 0.006


@pytest.mark.parametrize(
    ("dtype", "kind", "target"),
    [("fp32", "int8", "cpu"), ("fp16", "int8", "any"), ("fp32", "fp8", "tensorrt")],
)
def test_every_form_reads_unseen_digits(
    dtype: str, kind: str, target: str, exported: Exporter, samples: Path, unseen: Any, tmp_path: Path
) -> None:
    images, wanted = unseen
    report = quantize(exported(dtype), tmp_path / "x.onnx", QuantizationOptions(kind, target), data=samples)
    assert report.bytes_after < (0.6 if dtype == "fp32" else 0.75) * report.bytes_before
    with na_deploy.load(tmp_path / "x.onnx") as session:
        scores = session.run(images.astype(session.inputs[0].dtype))["logits"]
    assert accuracy(scores, wanted) > REPORTED - 0.006


@pytest.mark.skipif(find_spec("openvino") is None, reason="openvino is not installed")
def test_openvino_reads_unseen_digits_in_int8(exported: Exporter, samples: Path, unseen: Any, tmp_path: Path) -> None:
    images, wanted = unseen
    quantize(exported("fp32"), tmp_path / "int8.onnx", data=samples)
    with na_deploy.load(tmp_path / "int8.onnx", "openvino") as session:
        assert accuracy(session.run(images)["logits"], wanted) > REPORTED - 0.006


def test_the_committed_picture_is_a_seven(exported: Exporter) -> None:
    with na_deploy.load(exported("fp32")) as session:
        first = session.predict(DIGITS / "seven.png").predictions[0]  # type: ignore[union-attr]
    assert first.label == "seven"
    assert first.probability > 0.97


@pytest.mark.usefixtures("one_thread")
def test_training_learns() -> None:
    """Three epochs of the very script on held-out digits raise the accuracy of an untrained network."""
    found = spec_from_file_location("train_digits", DIGITS / "train.py")  # the shapes' script is called train, too
    assert found is not None
    assert found.loader is not None
    script = module_from_spec(found)
    found.loader.exec_module(script)
    torch.manual_seed(0)
    network: Any = build_model(script.NETWORK).train()
    inputs, wanted = script.images("held-out")
    script.train(network, inputs[:384], wanted[:384], 3)
    assert script.accuracy(network, inputs[384:], wanted[384:]) > 0.3
