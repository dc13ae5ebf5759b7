"""TensorRT-RTX's own parser and builder take our kind of ONNX files, and say what is wrong with others."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from rtx_engines import build_rtx_engine

from na_deploy.errors import MissingDependencyError, NaDeployError
from na_deploy.runtime.tensorrt import api

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


def test_an_engine_is_built_from_standard_operators_and_a_local_function(tmp_path: Path) -> None:
    built = build_rtx_engine(_saved(tmp_path, _model()))
    assert built.report.layers >= 8  # every node above became at least one layer
    assert built.engine_bytes > 10_000


def test_weights_in_an_external_file_are_found(tmp_path: Path) -> None:
    options = {"save_as_external_data": True, "location": "model.onnx.data", "size_threshold": 0}
    model = _saved(tmp_path, _model(), **options)
    assert build_rtx_engine(model).engine_bytes > 10_000
    (tmp_path / "model.onnx.data").unlink()
    with pytest.raises(NaDeployError, match=r"model\.onnx"):
        build_rtx_engine(model)


def test_a_dynamic_input_is_built_for_the_shapes_of_its_profile(tmp_path: Path) -> None:
    model = _saved(tmp_path, _model(batch="n"))
    small = build_rtx_engine(model, {"x": ((1, 6, 16), (4, 6, 16), (32, 6, 16))})
    large = build_rtx_engine(model, {"x": ((1, 6, 16), (4, 6, 16), (32_000, 6, 16))})
    assert small.engine_bytes > 10_000
    assert large.report.activation_bytes >= small.report.activation_bytes + 32_000 * 6 * 16  # the largest shape counts


def test_an_unknown_operator_is_reported_by_node_and_leaves_no_engine(tmp_path: Path) -> None:
    model = _model(operator="Unheard")
    model.graph.node[-1].name = "level0/attention"
    with pytest.raises(NaDeployError, match=r"level0/attention.*Unheard") as caught:
        build_rtx_engine(_saved(tmp_path, model))
    assert caught.value.exit_code == 1
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_a_fault_inside_a_local_function_names_the_function(tmp_path: Path) -> None:
    model = _model()
    model.functions[0].node[3].op_type = "Unheard"
    with pytest.raises(NaDeployError, match=r"Unheard.* in .*ScaleInGroups"):
        build_rtx_engine(_saved(tmp_path, model))


def test_a_file_that_is_not_onnx_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(np.random.default_rng(3).bytes(4096))
    with pytest.raises(NaDeployError, match="ONNX parser refused the model"):
        build_rtx_engine(path)


def test_a_build_that_takes_too_long_is_given_up(tmp_path: Path) -> None:
    with pytest.raises(NaDeployError, match=r"within 0\.01 s"):
        build_rtx_engine(_saved(tmp_path, _model()), timeout_s=0.01)


def test_a_native_crash_becomes_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crash = tmp_path / "python"
    crash.write_text("#!/bin/sh\nkill -SEGV $$\n")
    crash.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(crash))
    with pytest.raises(NaDeployError, match=r"crashed while starting \(SIGSEGV\)"):
        build_rtx_engine(_saved(tmp_path, _model()))


def _stand_in(folder: Path, version: str) -> None:
    (folder / "a_module_nobody_has.py").write_text(f"__version__ = {version!r}\n")


@pytest.mark.parametrize(("version", "taken"), [("1.7.1.116", True), ("1.9.0.4", True), ("2.0.0.1", False)])
def test_versions_with_the_same_interface_are_taken(
    version: str, taken: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _stand_in(tmp_path, version)
    monkeypatch.syspath_prepend(str(tmp_path))
    flavor, load_module = replace(api.RTX, modules=("a_module_nobody_has",)), api.load_module.__wrapped__
    try:
        if taken:
            assert load_module(flavor).__version__ == version
        else:
            with pytest.raises(MissingDependencyError, match=r"TensorRT-RTX 2\.0\.0\.1 is installed.*works with 1"):
                load_module(flavor)
    finally:
        sys.modules.pop("a_module_nobody_has", None)


def test_without_the_wheels_the_error_says_what_to_install(tmp_path: Path) -> None:
    absent = replace(api.RTX, modules=("a_module_nobody_has",))
    with pytest.raises(MissingDependencyError, match=r"pip install 'na-deploy\[tensorrt-rtx\]'"):
        api.load_module(absent)
