"""Flat models: standard operators alone, the same numbers in every runtime that takes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import natten
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from onnx_runtimes import RUNTIMES, RefusedError, prepare, run
from rtx_engines import build_rtx_engine

import na_deploy
from na_deploy.errors import NaDeployError
from na_deploy.model_file.flatten import flatten, is_flat
from na_deploy.models import ModelConfig, load_model, random_checkpoint

CLASSIFIER = ModelConfig(
    family="nat",
    embed_dim=32,
    depths=(1, 1),
    heads=(1, 2),
    kernel_size=5,
    dilations=((1,), (2,)),
    mlp_ratio=2.0,
    num_classes=10,
)
NETWORKS = {"classifier": CLASSIFIER, "backbone": replace(CLASSIFIER, num_classes=0, out_indices=(0, 1))}
FREE: dict[str, tuple[str, ...]] = {"fixed": (), "batch": ("batch",), "free": ("batch", "spatial")}
SIZES = {"fixed": [(1, 3, 64, 64)], "batch": [(2, 3, 64, 64)], "free": [(1, 3, 64, 64), (2, 3, 70, 51)]}


class Attention(torch.nn.Module):
    """A module that calls natten with strides, dilation and causality."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = torch.nn.Linear(32, 96)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key, value = self.qkv(x).reshape(*x.shape[:-1], 3, 2, 16).unbind(-3)
        window = {"kernel_size": (5, 3), "dilation": (1, 2), "stride": (2, 1), "is_causal": (False, True)}
        return natten.na2d(query, key, value, **window).flatten(-2)


Flat = Callable[..., tuple[Path, Path]]


@pytest.fixture(scope="session")
def flat_file(tmp_path_factory: pytest.TempPathFactory) -> Flat:
    """Return a function that gives the exported and the flat file of a network in a form, made once."""
    folder = tmp_path_factory.mktemp("flat")
    made: dict[tuple[str, str], tuple[Path, Path]] = {}

    def make(network: str, form: str, dtype: str = "fp32") -> tuple[Path, Path]:
        key = (network, f"{form}-{dtype}")
        if key not in made:
            exported, flat = (folder / f"{'-'.join(key)}{ending}" for ending in (".onnx", "-flat.onnx"))
            if network == "module":
                torch.manual_seed(0)
                na_deploy.export(Attention().eval(), torch.randn(1, 13, 9, 32), exported)
            else:
                checkpoint = folder / f"{network}.pth"
                random_checkpoint(NETWORKS[network], seed=3, path=checkpoint)
                loaded = load_model(checkpoint, arch="dinat", dilations="1/2")
                na_deploy.export(loaded, exported, input="1x3x64x64", dynamic=FREE[form], dtype=dtype)
            onnx.save(flatten(onnx.load(exported)), flat)
            made[key] = exported, flat
        return made[key]

    return make


def expected(path: Path, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return session.run(None, inputs)


def inputs_of(path: Path, size: tuple[int, ...]) -> dict[str, np.ndarray]:
    name = onnx.load(path, load_external_data=False).graph.input[0].name
    return {name: np.random.default_rng(5).standard_normal(size).astype(np.float32)}


CASES = [*((network, form) for network in NETWORKS for form in FREE), ("module", "fixed")]


@pytest.mark.parametrize(("network", "form"), CASES)
def test_a_flat_file_holds_standard_operators_alone_and_computes_the_same(flat_file: Flat, network: str, form: str):
    exported, flat = flat_file(network, form)
    before, after = onnx.load(exported), onnx.load(flat)
    onnx.checker.check_model(after, full_check=True)
    assert {node.domain for node in after.graph.node} == {""}
    assert not after.functions
    assert [opset.domain for opset in after.opset_import] == [""]
    assert [str(value.type) for value in [*after.graph.input, *after.graph.output]] == [
        str(value.type) for value in [*before.graph.input, *before.graph.output]
    ]
    for size in [(1, 13, 9, 32)] if network == "module" else SIZES[form]:
        inputs = inputs_of(exported, size)
        for ours, theirs in zip(expected(flat, inputs), expected(exported, inputs), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-6 * np.abs(theirs).max())


PLANNING = {"Range", "Where", "Min", "Div", "Cast", "CastLike", "Identity", "GreaterOrEqual", "Slice"}


@pytest.mark.parametrize(("form", "left"), [("fixed", {"Shape", "ConstantOfShape"}), ("batch", set())])
def test_with_known_sizes_no_planning_is_left(flat_file: Flat, form: str, left: set[str]):
    kinds = {node.op_type for node in onnx.load(flat_file("classifier", form)[1]).graph.node}
    assert not kinds & (PLANNING | left)


def test_the_metadata_stays(flat_file: Flat):
    exported, flat = flat_file("classifier", "fixed")
    before, after = ({entry.key: entry.value for entry in onnx.load(path).metadata_props} for path in (exported, flat))
    assert is_flat(onnx.load(flat))
    assert not is_flat(onnx.load(exported))
    assert before.items() < after.items()


@pytest.mark.parametrize("form", ["batch", "free"])
def test_half_precision_gets_no_casts_around_its_nodes(flat_file: Flat, form: str):
    exported, flat = flat_file("classifier", form, "fp16")
    casts = sum(node.op_type == "Cast" for node in onnx.load(flat).graph.node)
    attention = 3 * len([node for node in onnx.load(exported).graph.node if node.domain == "na_deploy"])
    assert casts <= 4 + 2 * attention  # scores and sums of attention are float32
    inputs = inputs_of(exported, SIZES[form][0])
    (ours,), (theirs,) = expected(flat, inputs), expected(exported, inputs)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-3 * np.abs(theirs).max())


def test_bfloat16_is_flattened_too(flat_file: Flat):
    after = onnx.load(flat_file("classifier", "batch", "bf16")[1])
    onnx.checker.check_model(after, full_check=True)
    assert {node.domain for node in after.graph.node} == {""}
    assert "Range" not in {node.op_type for node in after.graph.node}


def test_an_operator_from_elsewhere_is_named():
    node = helper.make_node("FusedGelu", ["x"], ["y"], domain="com.example")
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xy"]
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.example", 1)]
    model = helper.make_model(helper.make_graph([node], "g", value[:1], value[1:]), opset_imports=opsets)
    with pytest.raises(NaDeployError, match=r"com\.example\.FusedGelu is no standard operator"):
        flatten(model)


def cases_of_runtimes() -> list[Any]:
    """Return every case of every runtime; quick are classifiers with a free batch in quick runtimes."""
    cases = []
    for name, runtime in RUNTIMES.items():
        for network, form in (CASES[1], CASES[-1]) if runtime.slow else CASES:
            quick = (network, form) == ("classifier", "batch") and not runtime.slow
            cases.append(pytest.param(name, network, form, marks=[] if quick else [pytest.mark.slow]))
    return cases


@pytest.mark.parametrize(("name", "network", "form"), cases_of_runtimes())
def test_runtimes_agree_with_onnx_runtime_on_flat_files(
    flat_file: Flat, tmp_path: Path, name: str, network: str, form: str
):
    runtime = RUNTIMES[name]
    folder = prepare(name)
    exported, flat = flat_file(network, form)
    model = tmp_path / "model.onnx"
    model.write_bytes(flat.read_bytes())
    taken = runtime.free or form != "free"
    for size in [(1, 13, 9, 32)] if network == "module" else SIZES[form]:
        inputs = inputs_of(exported, size)
        if not taken:
            with pytest.raises(RefusedError):
                run(name, folder, model, inputs, tmp_path)
            continue
        found = run(name, folder, model, inputs, tmp_path)
        for ours, theirs in zip(found, expected(exported, inputs), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=3e-6 * np.abs(theirs).max())


def test_tensorrt_rtx_builds_flat_files_with_free_sizes(flat_file: Flat):
    profile = {"image": ((1, 3, 64, 64), (1, 3, 64, 64), (2, 3, 96, 96))}
    assert build_rtx_engine(flat_file("classifier", "free")[1], profile).engine_bytes > 400_000  # weights and code
