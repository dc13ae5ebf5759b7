"""One server with small models, shared by the tests that leave it as it is."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import onnx
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from detectors import detector
from running import Running, running
from segmenters import segmenter, squared
from served_models import save, scaling_model, slow_model, table_model, types_model

from na_deploy.models.metadata import ModelMetadata
from na_deploy.models.preprocessing import Preprocessing

LABELS = {index: f"kind <{index}>" for index in range(10)}


@pytest.fixture(scope="session")
def classifier(small_model_maker: Callable[..., onnx.ModelProto]) -> onnx.ModelProto:
    """Return a tiny network with neighborhood attention, for images of 32×32, with class names."""
    metadata = ModelMetadata(
        "nat_mini", num_classes=10, preprocessing=Preprocessing(size=(32, 32), resize=36), labels=LABELS
    )
    return small_model_maker(batch="batch", properties=metadata.to_props())


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory, classifier: onnx.ModelProto) -> Path:
    """Return a folder of models: files, and one with two versions."""
    folder = tmp_path_factory.mktemp("models")
    save(classifier, folder / "small.onnx")
    save(types_model(), folder / "types.onnx")
    save(types_model(half=False), folder / "numbers.onnx")
    save(table_model(), folder / "table.onnx")
    save(slow_model(), folder / "slow.onnx")
    save(scaling_model(2.0), folder / "scaling" / "1" / "model.onnx")
    save(scaling_model(3.0), folder / "scaling" / "2" / "model.onnx")
    return folder


@pytest.fixture(scope="session")
def server(repository: Path) -> Iterator[Running]:
    """Return a server over :func:`repository` with two versions of every model."""
    with running(repository, versions=2) as started:
        yield started


@pytest.fixture(scope="session")
def segmenters(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Return a server with segmenters and detectors: of free sizes, of a fixed square in batches, of boxes alone."""
    folder = tmp_path_factory.mktemp("segmenters")
    save(detector("batch", 64, 64, preprocessing=squared(64)), folder / "things.onnx")
    save(detector(masks=False), folder / "things_boxed.onnx")
    save(segmenter("semantic"), folder / "semantic.onnx")
    save(segmenter("panoptic", "batch", 64, 64, preprocessing=squared(64)), folder / "panoptic.onnx")
    with running(folder) as started:
        yield started
