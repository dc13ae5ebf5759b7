"""Exported segmenters: the files that stock ONNX Runtime and TensorRT-RTX take, how they are judged, and their use.

run, serve, Triton, bundles and bench get the same files as the rest, since exporting one takes seconds.
"""

import io
import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from hugging_face_segmenters import CLASSES, KINDS, QUERIES, SMALLEST, image, outputs, segmenter
from onnx import numpy_helper
from PIL import Image
from rtx_engines import build_rtx_engine
from running import running
from segmenters import colour_picture
from triton_stand_in import Models

import na_deploy
from na_deploy import export
from na_deploy.cli.main import run
from na_deploy.deployment import PackageOptions, check_repository, package
from na_deploy.errors import NaDeployError, UsageError
from na_deploy.exporter import ExportReport
from na_deploy.exporter.verify_masks import judged, verify_with_masks
from na_deploy.model_file.inspection import inspect_model
from na_deploy.models import ModelMetadata, load_model
from na_deploy.runtime.bench.worker import Worker
from na_deploy.runtime.building.build import build
from na_deploy.runtime.results.segments import Segmentation

SIZE = (64, 96)
TASKS = {"mask2former": "instance", "oneformer": "instance"}
"""Tasks that the two are exported with, not those they would get unasked."""
PROCESSORS = dict(zip(KINDS, ("Segformer", "MaskFormer", "Mask2Former", "OneFormer"), strict=True))
PROCESSOR = {"do_resize": True, "size": {"height": SIZE[0], "width": SIZE[1]}, "resample": 2}

Exports = Callable[..., ExportReport]


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Exports:
    """Export a segmenter once for every set of options."""
    root = tmp_path_factory.mktemp("segmenters")

    @cache
    def exported(kind: str, **options: Any) -> ExportReport:
        folder = root / kind
        if not folder.exists():
            more = SMALLEST if kind in ("mask2former", "oneformer") else {}
            segmenter(kind, **more).save_pretrained(folder)  # type: ignore[operator]
            processor = {"image_processor_type": f"{PROCESSORS[kind]}ImageProcessor", **PROCESSOR}
            (folder / "preprocessor_config.json").write_text(json.dumps(processor))
        name = "_".join((kind, *options.values())).replace(",", "_")
        size = f"1x3x{SIZE[0]}x{SIZE[1]}"
        return export(folder, root / f"{name}.onnx", input=size, task=TASKS.get(kind), **options)

    return exported


def folder_of(report: ExportReport, kind: str) -> Path:
    return report.path.parent / kind


def run_stock(path: Path, images: torch.Tensor) -> dict[str, np.ndarray[Any, Any]]:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"image": images.numpy()}), strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_the_file_gives_transformers_answers_under_agreed_names(kind: str, exports: Exports) -> None:
    report = exports(kind)
    images = image(1, *SIZE)
    found = run_stock(report.path, images)
    more = SMALLEST if kind in ("mask2former", "oneformer") else {}
    wanted = outputs(segmenter(kind, **more), kind, images, TASKS.get(kind, "semantic"))
    height, width = SIZE
    if kind == "upernet":
        assert {name: x.shape for name, x in found.items()} == {"logits": (1, CLASSES, height, width)}
    else:
        assert {name: x.shape for name, x in found.items()} == {
            "class_logits": (1, QUERIES, CLASSES + 1),
            "mask_logits": (1, QUERIES, height // 4, width // 4),
        }
    for mine, right in zip(found.values(), wanted, strict=True):
        assert np.abs(mine - right.numpy()).max() <= 1e-4 * right.abs().max()


@pytest.mark.parametrize("kind", KINDS)
def test_the_graph_has_no_operator_that_tensorrt_lacks(kind: str, exports: Exports) -> None:
    model = onnx.load(exports(kind).path)
    operators = {node.op_type for node in model.graph.node}
    assert not operators & {"NonZero", "ScatterND", "ScatterElements", "If", "Loop", "CumSum", "Einsum"}
    metadata = ModelMetadata.from_props({entry.key: entry.value for entry in model.metadata_props})
    assert metadata is not None
    assert (metadata.head, metadata.num_classes) == (kind, CLASSES)
    assert metadata.preprocessing.size == SIZE


@pytest.mark.parametrize(
    ("kind", "parts"),
    [
        ("upernet", ["backbone", "head"]),
        ("mask2former", ["backbone", "pixel decoder", "queries and masks"]),
    ],
)
def test_inspection_counts_the_work_of_every_part(kind: str, parts: list[str], exports: Exports) -> None:
    summary = inspect_model(exports(kind).path)
    assert list(summary.parts) == parts
    assert min(summary.parts.values()) > 0
    counted = summary.attention_multiply_adds + summary.other_multiply_adds
    assert (sum(summary.parts.values()), summary.uncounted) == (counted, 0)


@pytest.mark.parametrize("kind", ["upernet", pytest.param("mask2former", marks=pytest.mark.slow)])
def test_free_batch_and_sizes_follow_the_image(kind: str, exports: Exports) -> None:
    report = exports(kind, dynamic="batch,spatial")
    assert report.difference < 1e-4
    assert [case.input_shape[0] for case in report.cases] == [1, 1, 2]
    assert len({case.input_shape[2:] for case in report.cases}) == 3


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("upernet", {"dynamic": "batch,spatial"}),
        ("maskformer", {"dtype": "fp16"}),
        ("mask2former", {}),
        pytest.param("mask2former", {"dynamic": "batch,spatial"}, marks=pytest.mark.slow),
        pytest.param("oneformer", {"dtype": "fp16"}, marks=pytest.mark.slow),
    ],
)
def test_tensorrt_rtx_builds_it(kind: str, options: dict[str, str], exports: Exports) -> None:
    report = exports(kind, **options)
    free = {"image": ((1, 3, 64, 64), (1, 3, *SIZE), (2, 3, 165, 241))}
    built = build_rtx_engine(report.path, free if "dynamic" in options else None)
    assert built.report.layers > 500
    assert built.engine_bytes > 0.9 * report.size


@pytest.mark.parametrize(
    "kind", ["maskformer", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("upernet", "oneformer"))]
)
def test_half_precision_keeps_softmax_and_mask_products_in_float32(kind: str, exports: Exports) -> None:
    report = exports(kind, dtype="fp16")
    assert report.difference < 5e-3
    model = onnx.shape_inference.infer_shapes(onnx.load(report.path))
    types = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    widened = [node for node in model.graph.node if node.op_type in ("Softmax", "GridSample")]
    assert {types[node.output[0]] for node in widened} <= {onnx.TensorProto.FLOAT}
    weights = {numpy_helper.to_array(w).dtype for w in model.graph.initializer if len(w.dims) > 1}
    assert np.dtype(np.float16) in weights


def test_masks_that_fall_on_the_other_side_of_zero_are_told_and_judged_apart(exports: Exports, tmp_path: Path) -> None:
    """A bias is chosen so that a mask's own value is nearly zero; rounding may then decide it either way."""
    report = exports("mask2former")
    loaded = load_model(folder_of(report, "mask2former"))
    case = verify_with_masks(loaded.module, report.path, (1, 3, *SIZE))
    assert [difference.name for difference in case.differences][:2] == ["class_logits", "mask_logits"]
    assert case.differences[2].name.startswith("sem_seg_head.predictor.attention_masks.")
    assert case.worst < 1e-4
    assert "0 of" in case.remark
    edited = flipped(report.path, tmp_path / "flipped.onnx")
    plain = judged(loaded.module, edited, (1, 3, *SIZE), tolerance=10.0)
    assert (plain.remark, plain.worst > 1e-4) == ("", True)
    told = judged(loaded.module, edited, (1, 3, *SIZE), tolerance=1e-4)
    assert told.worst < 1e-4
    assert "of zero (relative)" in told.remark
    assert " 0 of" not in told.remark


def flipped(path: Path, target: Path) -> Path:
    """Write a copy whose first masks are cut a little beside zero: places nearest to it change sides."""
    model = onnx.load(path)
    node = next(node for node in model.graph.node if node.output[0].endswith("attention_masks.0"))
    model.graph.initializer.append(numpy_helper.from_array(np.float32(FLIP), "beside_zero"))
    node.input[1] = "beside_zero"
    onnx.save(model, target)
    return target


FLIP = 0.2


def test_a_wrong_weight_behind_the_masks_is_still_found(exports: Exports, tmp_path: Path) -> None:
    report = exports("mask2former")
    model = onnx.load(report.path)
    weight = next(w for w in model.graph.initializer if w.name.endswith("predictor.class_embed.bias"))
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) + np.float32(0.1), weight.name))
    onnx.save(model, tmp_path / "wrong.onnx")
    loaded = load_model(folder_of(report, "mask2former"))
    case = judged(loaded.module, tmp_path / "wrong.onnx", (1, 3, *SIZE), tolerance=1e-4)
    assert case.worst > 1e-3
    assert case.worst_difference.name == "class_logits"


def test_a_file_without_named_masks_says_so(exports: Exports, tmp_path: Path) -> None:
    report = exports("mask2former")
    loaded = load_model(folder_of(report, "mask2former"))
    with pytest.raises(NaDeployError, match="names 0 attention masks, the network has 2; export it again"):
        verify_with_masks(loaded.module, exports("upernet").path, (1, 3, *SIZE))


def test_verify_compares_the_file_with_its_folder(exports: Exports, capfd: pytest.CaptureFixture[str]) -> None:
    report = exports("oneformer")
    assert run(["verify", str(folder_of(report, "oneformer")), str(report.path), "--json"]) == 0
    assert "OneFormer on dinat" in capfd.readouterr().out


def test_a_difference_just_above_the_tolerance_names_output_and_size(
    exports: Exports, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = folder_of(exports("upernet"), "upernet")
    target = tmp_path / "model.onnx"
    arguments = ["export", str(folder), "-o", str(target), "--input", "1x3x64x96", "--tolerance", "1e-9"]
    assert run(arguments) == 1
    said = " ".join(capfd.readouterr().err.split())
    assert "its output logits differs" in said
    assert "for an input of 1x3x64x96, above the tolerance of 1e-09" in said
    assert not target.exists()


def test_the_command_exports_a_backbone_alone_when_asked(
    exports: Exports, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "upernet"
    shutil.copytree(folder_of(exports("upernet"), "upernet"), folder)
    target = tmp_path / "backbone.onnx"
    arguments = ["export", str(folder), "-o", str(target), "--part", "backbone", "--input", "1x3x64x64"]
    assert run(arguments) == 0
    assert "only the backbone of upernet is loaded; its UPerNet head is not" in capfd.readouterr().err
    assert [output.name for output in onnx.load(target).graph.output] == ["stage1", "stage2", "stage3", "stage4"]


PICTURE = colour_picture(150, 110)
LOW = 0.01
"""A threshold that random networks' segments reach."""


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "picture.png"
    PICTURE.save(path)
    return path


def answer_of_pytorch(report: ExportReport, kind: str, task: str | None = None) -> Segmentation:
    with na_deploy.load(folder_of(report, kind), "torch", task=TASKS[kind]) as session:
        result = session.predict(PICTURE, thresholds={"score": LOW}, task=task)
    assert isinstance(result, Segmentation)
    return result


def assert_alike(segments: list[dict[str, Any]], wanted: Segmentation) -> None:
    """Compare COCO's results with PyTorch's; a few pixels may fall on the other side of a boundary."""
    labels = {index: f"LABEL_{index}" for index in range(CLASSES)}
    right = wanted.to_coco(labels)
    assert right
    assert [each["category"] for each in segments] == [each["category"] for each in right]
    for mine, theirs in zip(segments, right, strict=True):
        assert mine["area"] == pytest.approx(theirs["area"], abs=8)
        assert mine["score"] == pytest.approx(theirs["score"], abs=1e-3)


@pytest.mark.parametrize("kind", TASKS)
def test_run_finds_what_pytorch_finds_and_draws_it(
    kind: str, exports: Exports, picture: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    report = exports(kind)
    drawing = tmp_path / "out.png"
    given = ["run", str(report.path), str(picture), "--threshold", str(LOW), "--json"]
    assert run([*given, "-o", str(drawing)]) == 0
    (content,) = json.loads(capfd.readouterr().out)["pictures"]
    assert (content["task"], content["height"], content["width"]) == (TASKS[kind], 110, 150)
    assert_alike(content["segments"], answer_of_pytorch(report, kind))
    pixels = np.asarray(Image.open(drawing).convert("RGB"), np.int64)
    plain = np.asarray(PICTURE.resize(pixels.shape[1::-1]), np.int64)
    assert np.abs(pixels - plain).mean() > 10
    assert run([*given, "--task", "semantic"]) == 0
    (content,) = json.loads(capfd.readouterr().out)["pictures"]
    assert_alike(content["segments"], answer_of_pytorch(report, kind, "semantic"))


def test_serve_finds_what_pytorch_finds(exports: Exports, picture: Path) -> None:
    reports = {kind: exports(kind) for kind in TASKS}
    with running(*(report.path for report in reports.values()), grpc_port=None) as server:
        for kind, report in reports.items():
            address = f"/v2/models/{report.path.stem}/segment?threshold={LOW}"
            status, content = server.call(address, picture.read_bytes())
            assert (status, content["task"]) == (200, TASKS[kind])
            assert_alike(content["segments"], answer_of_pytorch(report, kind))
            status, drawing = server.call(f"{address}&format=overlay", picture.read_bytes())
            assert status == 200
            assert Image.open(io.BytesIO(drawing)).width >= 150


@pytest.mark.parametrize("kind", TASKS)
def test_the_models_that_triton_gets_find_what_a_session_finds(
    kind: str, exports: Exports, picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = exports(kind)
    repository = tmp_path / "repository"
    written = package([report.path], repository, PackageOptions(backend="python", preprocess=True, threads=1))
    assert check_repository(repository) == []
    models = Models(monkeypatch)
    for each in written:
        models.open(repository, each.name)
    network, whole = (each.name for each in written)
    found = models.ask(whole, image_bytes=np.array([picture.read_bytes()], np.object_))
    content = json.loads(found["segments"][0])
    with na_deploy.load(report.path) as session:
        result = session.predict(PICTURE)
    assert isinstance(result, Segmentation)
    assert (content["task"], content["segments"]) == (TASKS[kind], result.to_coco(session.metadata.labels))
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(found["ids"][0]))), result.ids)
    models.opened[network].finalize()


def test_a_bundle_keeps_the_task_and_is_compared_with_the_checkpoint_asked_the_same(
    exports: Exports, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    report = exports("oneformer")
    bundle = tmp_path / "model.zip"
    build(report.path, bundle)
    folder = folder_of(report, "oneformer")
    assert run(["verify", str(folder), str(bundle), "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["session"]["passed"]
    pixels = image(1, *SIZE).numpy()
    with na_deploy.load(bundle) as session:
        assert session.metadata is not None
        assert session.metadata.task == "instance"
        found = session.run(pixels)
    for task, same in (("instance", True), ("semantic", False)):
        with na_deploy.load(folder, "torch", task=task) as session:
            right = session.run(pixels)["class_logits"]
        assert bool(np.abs(found["class_logits"] - right).max() <= 1e-4 * np.abs(right).max()) == same
    for path in (bundle, report.path):
        with pytest.raises(UsageError, match="task is for checkpoints; an exported file has its own"):
            na_deploy.load(path, task="semantic")


def test_bench_times_the_file_and_asks_the_checkpoint_what_the_file_was_asked(
    exports: Exports, capfd: pytest.CaptureFixture[str]
) -> None:
    report = exports("oneformer")
    assert run(["bench", str(report.path), "--duration", "0.1", "--threads", "1", "--json"]) == 0
    (row,) = json.loads(capfd.readouterr().out)["measurements"]
    assert (row["shapes"], row["batch"]) == ({"image": [1, 3, *SIZE]}, 1)
    assert row["difference"] < 1e-4
    assert 0 < row["p50_ms"] <= row["p99_ms"]
    answers = []
    threads = torch.get_num_threads()
    for kind, path in (("torch", folder_of(report, "oneformer")), ("session", report.path)):
        worker = Worker()
        options = {"arch": None, "like": str(report.path)} if kind == "torch" else {"custom_operators": False}
        worker.load(kind, str(path), threads, options, [])
        answers.append(list(worker.call().values()))
    for mine, right in zip(*answers, strict=True):
        assert mine.shape == right.shape
        assert np.abs(mine - right).max() <= 1e-4 * np.abs(right).max()
