"""TensorRT-RTX's own parser and builder take our kind of ONNX files, and say what is wrong with others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from na_deploy.errors import MissingDependencyError, NaDeployError, UsageError
from na_deploy.runtime import tensorrt_rtx, tensorrt_rtx_library
from na_deploy.runtime.tensorrt_rtx import build_engine


def _wheel_problem() -> str | None:
    try:
        tensorrt_rtx_library.find_libraries()
    except MissingDependencyError as error:
        return str(error)
    return None


needs_wheel = pytest.mark.skipif(_wheel_problem() is not None, reason=str(_wheel_problem()))

# A block's operators, then a node as the exporter writes them: a model-local function in domain na_deploy
# whose body refers to the node's attributes, and the two STRING attributes that TensorRT's plugin lookup
# asks for.
_GRAPH = """
<ir_version: 10, opset_import: ["": 20, "na_deploy": 1]>
block (float[{batch}, 6, 16] x, float[16, 16] w, float[16] gain, float[16] shift) => (float[{batch}, 6, 16] y)
{{
  projected = MatMul(x, w)
  normalized = LayerNormalization <axis = -1> (projected, gain, shift)
  activated = Gelu(normalized)
  shares = Softmax <axis = -1> (activated)
  y = na_deploy.{operator} <
    plugin_version = "1", plugin_namespace = "na_deploy", sizes = [-1, 3, 2, 16], factor = 2.0
  > (shares)
}}
<domain: "na_deploy", opset_import: ["": 20]>
ScaleInGroups <plugin_version, plugin_namespace, sizes, factor> (x) => (y)
{{
  grouped_shape = Constant <value_ints: ints = @sizes> ()
  scale = Constant <value_float: float = @factor> ()
  grouped = Reshape (x, grouped_shape)
  scaled = Mul (grouped, scale)
  shape = Shape (x)
  y = Reshape (scaled, shape)
}}
"""


def _model(*, batch: int | str = 2, operator: str = "ScaleInGroups") -> onnx.ModelProto:
    model: onnx.ModelProto = onnx.parser.parse_model(_GRAPH.format(batch=batch, operator=operator))
    rng = np.random.default_rng(5)
    for name, shape in (("w", (16, 16)), ("gain", (16,)), ("shift", (16,))):
        values = rng.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    return model


def _saved(folder: Path, model: onnx.ModelProto, **options: object) -> Path:
    path = folder / "model.onnx"
    onnx.save(model, path, **options)
    return path


@needs_wheel
def test_an_engine_is_built_from_standard_operators_and_a_local_function(tmp_path: Path) -> None:
    engine = tmp_path / "model.engine"
    report = build_engine(_saved(tmp_path, _model()), output=engine)
    assert report.layers >= 8  # every node above became at least one layer
    assert engine.stat().st_size == report.engine_bytes > 10_000


@needs_wheel
def test_weights_in_an_external_file_are_found(tmp_path: Path) -> None:
    options = {"save_as_external_data": True, "location": "model.onnx.data", "size_threshold": 0}
    model = _saved(tmp_path, _model(), **options)
    assert build_engine(model).engine_bytes > 10_000
    (tmp_path / "model.onnx.data").unlink()
    with pytest.raises(NaDeployError, match=r"model\.onnx"):
        build_engine(model)


@needs_wheel
def test_a_dynamic_input_is_built_for_the_shapes_of_its_profile(tmp_path: Path) -> None:
    model = _saved(tmp_path, _model(batch="n"))
    small = build_engine(model, profiles={"x": ((1, 6, 16), (4, 6, 16), (32, 6, 16))})
    large = build_engine(model, profiles={"x": ((1, 6, 16), (4, 6, 16), (32_000, 6, 16))})
    assert small.engine_bytes > 10_000
    assert large.activation_bytes >= small.activation_bytes + 32_000 * 6 * 16  # the largest shape counts


@needs_wheel
@pytest.mark.parametrize(
    ("shapes", "problem"),
    [
        ({}, "dynamic shape .x6x16"),
        ({"y": ((1,), (1,), (1,))}, "profile for 'y'"),
        ({"x": ((1, 6), (1, 6), (1, 6))}, "1x6 .* does not fit"),
        ({"x": ((1, 7, 16), (2, 7, 16), (4, 7, 16))}, "1x7x16 .* does not fit"),
        ({"x": ((4, 6, 16), (2, 6, 16), (1, 6, 16))}, "must grow"),
    ],
)
def test_a_profile_that_does_not_fit_the_model_is_refused(
    tmp_path: Path, shapes: tensorrt_rtx.Profiles, problem: str
) -> None:
    with pytest.raises(UsageError, match=problem):
        build_engine(_saved(tmp_path, _model(batch="n")), profiles=shapes)


@needs_wheel
def test_an_unknown_operator_is_reported_by_node_and_leaves_no_engine(tmp_path: Path) -> None:
    model = _model(operator="Unheard")
    model.graph.node[-1].name = "level0/attention"
    with pytest.raises(NaDeployError, match=r"level0/attention.*Unheard") as caught:
        build_engine(_saved(tmp_path, model), output=tmp_path / "model.engine")
    assert caught.value.exit_code == 1
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


@needs_wheel
def test_a_fault_inside_a_local_function_names_the_function(tmp_path: Path) -> None:
    model = _model()
    model.functions[0].node[3].op_type = "Unheard"
    with pytest.raises(NaDeployError, match=r"Unheard.* in .*ScaleInGroups"):
        build_engine(_saved(tmp_path, model))


@needs_wheel
def test_a_file_that_is_not_onnx_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(np.random.default_rng(3).bytes(4096))
    with pytest.raises(NaDeployError, match="not an ONNX file"):
        build_engine(path)
    with pytest.raises(NaDeployError, match="does not exist"):
        build_engine(tmp_path / "absent.onnx")


@needs_wheel
def test_a_build_that_takes_too_long_is_given_up(tmp_path: Path) -> None:
    with pytest.raises(NaDeployError, match=r"within 0\.01 s"):
        build_engine(_saved(tmp_path, _model()), timeout_s=0.01)


@needs_wheel
def test_a_native_crash_becomes_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crash = tmp_path / "python"
    crash.write_text("#!/bin/sh\nkill -SEGV $$\n")
    crash.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(crash))
    with pytest.raises(NaDeployError, match=r"crashed while parsing \(SIGSEGV\)"):
        build_engine(_saved(tmp_path, _model()))


@pytest.mark.parametrize("version", [(1, 7, 1, 117), (1, 8, 0, 116), (10, 16, 0, 72)])
def test_a_library_of_an_unchecked_version_is_refused(version: tuple[int, int, int, int]) -> None:
    with pytest.raises(MissingDependencyError, match=r"checked only for 1\.7\.1\.116"):
        tensorrt_rtx_library.check_version(version, tensorrt_rtx_library.CHECKED_PARSER_VERSION)


def test_without_the_wheel_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tensorrt_rtx_library, "PACKAGE", "a_package_nobody_has")
    with pytest.raises(MissingDependencyError, match="pip install"):
        build_engine(_saved(tmp_path, _model()))
