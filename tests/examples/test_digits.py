"""The trained reader of digits: right in every format and on every backend, on what it has not seen."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import na_deploy
from na_deploy.models import build_model, load_model
from na_deploy.runtime.images.prepare import prepare

DIGITS = Path(__file__).parents[2] / "examples" / "digits"
sys.path.insert(0, str(DIGITS))

import pictures  # noqa: E402

REPORTED = 0.9956
"""Accuracy that examples/digits/README.md reports."""

Exporter = Callable[[str], Path]


@pytest.fixture(scope="module")
def unseen() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return the held-out digits as the committed model takes them, and their classes."""
    preparation = load_model(DIGITS / "digits.pth").metadata.preprocessing
    drawn, digits = pictures.read("held-out")
    return np.concatenate([prepare(each, preparation) for each in drawn]), digits


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exporter:
    """Return a function that exports the committed checkpoint in one format, once."""
    folder = tmp_path_factory.mktemp("digits")

    def export(dtype: str) -> Path:
        path = folder / f"{dtype}.onnx"
        if not path.exists():
            na_deploy.export(DIGITS / "digits.pth", path, dtype=dtype, dynamic="batch")
        return path

    return export


def accuracy(scores: Any, digits: NDArray[np.int64]) -> float:
    return float(np.mean(np.asarray(scores, np.float32).argmax(1) == digits))


def test_the_checkpoint_is_small_dilated_in_part_and_names_its_classes() -> None:
    assert (DIGITS / "digits.pth").stat().st_size < 1_000_000
    metadata = load_model(DIGITS / "digits.pth").metadata
    assert tuple(metadata.labels.values()) == pictures.CLASSES
    assert metadata.preprocessing.size == (32, 32)
    assert {dilation for level in metadata.dilations for dilation in level} == {1, 2}


def test_pytorch_reads_unseen_digits(unseen: Any) -> None:
    images, digits = unseen
    with torch.inference_mode():
        scores = load_model(DIGITS / "digits.pth").module(torch.from_numpy(images))
    assert accuracy(scores, digits) == pytest.approx(REPORTED, abs=1e-4)


@pytest.mark.parametrize("operators", [True, False], ids=["library", "function bodies"])
@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_onnx_runtime_reads_unseen_digits(dtype: str, operators: bool, exported: Exporter, unseen: Any) -> None:
    images, digits = unseen
    with na_deploy.load(exported(dtype), custom_operators=operators) as session:
        scores = session.run(images.astype(session.inputs[0].dtype))["logits"]
    assert abs(accuracy(scores, digits) - REPORTED) < 0.003


@pytest.mark.skipif(find_spec("openvino") is None, reason="openvino is not installed")
def test_openvino_reads_unseen_digits(exported: Exporter, unseen: Any) -> None:
    images, digits = unseen
    with na_deploy.load(exported("fp32"), "openvino") as session:
        assert abs(accuracy(session.run(images)["logits"], digits) - REPORTED) < 0.003


def test_the_committed_picture_is_a_seven(exported: Exporter) -> None:
    with na_deploy.load(exported("fp32")) as session:
        first = session.predict(DIGITS / "seven.png").predictions[0]  # type: ignore[union-attr]
    assert first.label == "seven"
    assert first.probability > 0.97


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Compute on one thread: two that wait for each other on a busy core take ten times as long."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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
    inputs, digits = script.images("held-out")
    script.train(network, inputs[:384], digits[:384], 3)
    assert script.accuracy(network, inputs[384:], digits[384:]) > 0.3
