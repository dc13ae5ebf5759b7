"""Bundles for OpenVINO: the compiled model in them is used where it fits, and the model compiled again where not."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

import na_deploy
from na_deploy.errors import NaDeployError, UsageError
from na_deploy.runtime.building.build import build
from na_deploy.runtime.building.options import BuildOptions
from na_deploy.runtime.bundle import open_bundle
from na_deploy.runtime.bundle.archive import write_bundle
from na_deploy.runtime.native_libraries import OPENVINO_LIBRARY, openvino_library, why_missing
from na_deploy.runtime.openvino import compiled, session
from na_deploy.runtime.precision_difference import precision_difference

openvino = pytest.importorskip("openvino")

IMAGES = np.random.default_rng(3).standard_normal((2, 3, 32, 32), dtype=np.float32)
HAS_BF16 = "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


@pytest.fixture(scope="module")
def bundles(
    tmp_path_factory: pytest.TempPathFactory, small_model_maker: Callable[..., onnx.ModelProto]
) -> dict[str, Path]:
    """The model, and bundles of it in every precision that this processor has; attention in standard operators."""
    folder = tmp_path_factory.mktemp("bundles")
    onnx.save(small_model_maker(batch="batch"), folder / "small.onnx")
    paths = {"model": folder / "small.onnx"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NA_DEPLOY_OPENVINO_LIBRARY", "")
        for precision in ("f32", "bf16") if HAS_BF16 else ("f32",):
            paths[precision] = folder / f"{precision}.bundle"
            build(paths["model"], paths[precision], BuildOptions("openvino", precision, batch=(1, 2, 4)))
    return paths


@pytest.fixture(autouse=True)
def _standard_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NA_DEPLOY_OPENVINO_LIBRARY", "")


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def changed(bundle: Path, target: Path, blob: bytes | None = None, **requires: str) -> Path:
    """Write a bundle like another, with another compiled model or other requirements."""
    with open_bundle(bundle) as opened:
        files = {member.name: (member.role, opened.place(member)) for member in opened.manifest.members}
        if blob is not None:
            (target.parent / "other.blob").write_bytes(blob)
            files[compiled.NAME] = ("compiled", target.parent / "other.blob")
        needs = {**opened.manifest.requires, **requires}
        write_bundle(target, files, lambda members: replace(opened.manifest, members=members, requires=needs))
    return target


@pytest.fixture
def no_compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise AssertionError("the model was read and compiled")

    monkeypatch.setattr(session, "read_graph", refused)


def test_the_compiled_model_runs_without_compiling(bundles: dict[str, Path], no_compiling: None):
    with na_deploy.load(bundles["model"]) as one, na_deploy.load(bundles["f32"], threads=1) as other:
        assert (other.backend, other.precision) == ("openvino", "f32")
        assert relative(other.run(IMAGES)["logits"], one.run(IMAGES)["logits"]) < 1e-5
        assert [str(spec) for spec in other.inputs] == ["image: float32 batch×3×32×32"]
        assert other.usual_shapes == {"image": (2, 3, 32, 32)}


@pytest.mark.parametrize("differs", [compiled.VERSION, compiled.PROCESSOR])
def test_another_version_or_processor_compiles_the_model_again(differs: str, bundles: dict[str, Path], tmp_path: Path):
    elsewhere = changed(bundles["f32"], tmp_path / "elsewhere.zip", **{differs: "something else"})
    with na_deploy.load(bundles["f32"]) as one:
        expected = one.run(IMAGES)["logits"]
    with (
        pytest.warns(RuntimeWarning, match="something else, here is .*; the model is compiled again"),
        na_deploy.load(elsewhere) as other,
    ):
        np.testing.assert_array_equal(other.run(IMAGES)["logits"], expected)


def test_a_compiled_model_that_openvino_refuses_is_compiled_again(bundles: dict[str, Path], tmp_path: Path):
    other = changed(bundles["f32"], tmp_path / "other.bundle", blob=b"no compiled model")
    with pytest.warns(RuntimeWarning, match="the model is compiled again"), na_deploy.load(other) as found:
        assert found.run(IMAGES)["logits"].shape == (2, 10)


def test_a_changed_compiled_model_is_refused(bundles: dict[str, Path], tmp_path: Path):
    other = changed(bundles["f32"], tmp_path / "other.bundle")
    blob = other / compiled.NAME
    blob.write_bytes(blob.read_bytes()[:-1] + b"x")
    with pytest.raises(NaDeployError, match=r"model\.blob is not the file that manifest\.json describes"):
        na_deploy.load(other)


def test_the_model_of_the_bundle_runs_on_any_other_backend(bundles: dict[str, Path]):
    with na_deploy.load(bundles["f32"], backend="onnxruntime") as found:
        assert found.backend == "onnxruntime"
        assert found.run(IMAGES)["logits"].shape == (2, 10)
    with pytest.raises(UsageError, match="precision is for the openvino backend, not for onnxruntime"):
        na_deploy.load(bundles["f32"], backend="onnxruntime", precision="f32")


@pytest.mark.skipif(not HAS_BF16, reason="this processor has no bfloat16 products")
def test_a_bundle_remembers_its_precision_and_the_difference(bundles: dict[str, Path], no_compiling: None):
    manifest = json.loads((bundles["bf16"] / "manifest.json").read_text())
    assert manifest["settings"] == {"precision": "bf16", "attention": "function bodies"}
    with na_deploy.load(bundles["bf16"]) as found, na_deploy.load(bundles["f32"]) as exact:
        assert (found.precision, exact.precision) == ("bf16", "f32")
        assert 1e-4 < relative(found.run(IMAGES)["logits"], exact.run(IMAGES)["logits"]) < 5e-2
        assert precision_difference(found) == manifest["build"]["difference"]
        assert 1e-4 < manifest["build"]["difference"] < 5e-2
        assert precision_difference(exact) is None


@pytest.mark.skipif(not HAS_BF16, reason="this processor has no bfloat16 products")
def test_another_precision_than_the_bundle_s_is_compiled_in_silence(bundles: dict[str, Path]):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with na_deploy.load(bundles["bf16"], precision="f32") as found, na_deploy.load(bundles["f32"]) as exact:
            assert relative(found.run(IMAGES)["logits"], exact.run(IMAGES)["logits"]) < 1e-5


def test_a_bundle_for_bfloat16_runs_in_float32_on_a_processor_without(
    bundles: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def without(precision: str, core: object) -> str:
        if precision == "bf16":
            raise UsageError("this processor has no bfloat16 products (avx512_bf16 or AMX); use precision f32")
        return precision

    monkeypatch.setattr(session, "check_precision", without)
    target = tmp_path / "bf16.bundle"
    with open_bundle(bundles["f32"]) as opened:
        manifest = replace(opened.manifest, settings={"precision": "bf16"})
        files = {member.name: (member.role, opened.place(member)) for member in manifest.members}
        write_bundle(target, files, lambda members: replace(manifest, members=members))
    with pytest.warns(RuntimeWarning, match="built for bf16 and runs in f32"), na_deploy.load(target) as found:
        assert found.precision == "f32"
    with pytest.raises(UsageError, match="no bfloat16 products"):
        na_deploy.load(target, precision="bf16")


def test_asynchronous_calls_of_more_callers_than_streams_get_their_own_answers(bundles: dict[str, Path]):
    batches = [np.roll(IMAGES, shift, axis=-1) for shift in range(24)]
    with na_deploy.load(bundles["f32"], threads=2, streams=2) as found:
        alone = [found.run(batch)["logits"] for batch in batches]
        futures = [found.run_async(batch) for batch in batches]
        for future, expected in zip(futures, alone, strict=True):
            np.testing.assert_array_equal(future.result()["logits"], expected)


def test_int8_files_run_and_agree_with_onnx_runtime(bundles: dict[str, Path], tmp_path: Path):
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

    class Images(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = [IMAGES, -IMAGES]

        def get_next(self) -> dict[str, np.ndarray] | None:  # type: ignore[override]
            return {"image": self.left.pop()} if self.left else None

    quantize_static(
        str(bundles["model"]),
        str(tmp_path / "int8.onnx"),
        Images(),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["Conv", "MatMul", "Gemm"],
    )
    kinds = {node.op_type for node in onnx.load(tmp_path / "int8.onnx").graph.node}
    assert "QuantizeLinear" in kinds
    with na_deploy.load(tmp_path / "int8.onnx") as one, na_deploy.load(tmp_path / "int8.onnx", "openvino") as other:
        expected = one.run(IMAGES)["logits"]
        assert relative(other.run(IMAGES)["logits"], expected) < 2e-2
    with na_deploy.load(bundles["model"]) as exact:
        assert relative(expected, exact.run(IMAGES)["logits"]) > 1e-4


def test_a_compiled_model_holds_the_operators_of_the_library(
    bundles: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("NA_DEPLOY_OPENVINO_LIBRARY")
    if openvino_library() is None:
        assert os.environ.get("NA_DEPLOY_NATIVE") != "ON", why_missing(OPENVINO_LIBRARY)
        pytest.skip(f"the operator library for OpenVINO is {why_missing(OPENVINO_LIBRARY)}")
    target = tmp_path / "library.zip"
    assert (
        build(bundles["model"], target, BuildOptions("openvino", batch=(1, 2, 4))).attention_runs == "operator library"
    )
    with na_deploy.load(bundles["model"]) as one:
        expected = one.run(IMAGES)["logits"]
    with monkeypatch.context() as inside:
        inside.setattr(session, "read_graph", None)  # neither read nor compiled
        for _ in range(2):
            with na_deploy.load(target, threads=1) as found:
                assert found.attention == "operator library"
                assert relative(found.run(IMAGES)["logits"], expected) < 1e-5
    with na_deploy.load(target, custom_operators=False) as found:
        assert found.attention == "function bodies"
        assert relative(found.run(IMAGES)["logits"], expected) < 1e-5
    monkeypatch.setenv("NA_DEPLOY_OPENVINO_LIBRARY", "")
    with pytest.warns(RuntimeWarning, match="which is not installed; the model is compiled again"):
        na_deploy.load(target).close()
