"""Stand-ins where natten is not installed: each version's names, defaults, layout and results."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

import na_deploy
from na_deploy import export
from na_deploy.attention.reference import reference_attention_qkv
from na_deploy.attention.windows import NeighborhoodSpec
from na_deploy.errors import UsageError
from na_deploy.exporter.natten_api import importable_natten


@pytest.fixture(autouse=True)
def _no_natten(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "natten"]:
        monkeypatch.delitem(sys.modules, name)
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "natten" else find(name, *more)
    )


def build(version: str, rank: int, *arguments: Any, **named: Any) -> nn.Module:
    with importable_natten(version) as stand_in:
        assert stand_in
        natten = importlib.import_module("natten")
        assert natten.__version__.startswith(version)
        module: nn.Module = getattr(natten, f"NeighborhoodAttention{rank}D")(*arguments, **named)
    if getattr(module, "rpb", None) is not None:
        nn.init.normal_(module.rpb)
    return module.eval()


def expected(module: nn.Module, x: Tensor, spec: NeighborhoodSpec, padding: tuple[int, ...]) -> np.ndarray:
    weights = {name: tensor.double() for name, tensor in module.state_dict().items()}
    padded = np.pad(x.double().numpy(), [(0, 0), *((0, size) for size in padding), (0, 0)])
    qkv = padded @ weights["qkv.weight"].numpy().T + weights["qkv.bias"].numpy()
    bias = weights["rpb"].numpy() if "rpb" in weights else None
    attended = reference_attention_qkv(qkv.reshape(*padded.shape[:-1], 3, 4, -1), spec, rel_pos_bias=bias).output
    inside = (slice(None), *(slice(0, size) for size in x.shape[1:-1]))
    merged = attended[inside].reshape(x.shape)
    return merged @ weights["proj.weight"].numpy().T + weights["proj.bias"].numpy()


CASES: list[tuple[str, int, tuple[Any, ...], dict[str, Any], tuple[int, ...], NeighborhoodSpec, tuple[int, ...]]] = [
    # 0.14 and 0.15: bias by default, dilation fourth, small maps padded
    ("0.14", 2, (32, 4, 5, 2), {}, (8, 12), NeighborhoodSpec.create(2, 5, 2), (2, 0)),
    ("0.15", 1, (32, 4, 7), {"bias": False}, (20,), NeighborhoodSpec.create(1, 7), (0,)),
    ("0.14", 3, (32, 4, 3), {"kernel_size_d": 2}, (2, 4, 5), NeighborhoodSpec.create(3, (2, 3, 3)), (0, 0, 0)),
    # 0.17: no bias by default, causality fifth, sizes per axis
    (
        "0.17",
        2,
        (32, 4, (3, 5), 1, (True, False)),
        {},
        (6, 7),
        NeighborhoodSpec.create(2, (3, 5), 1, 1, (True, False)),
        (0, 0),
    ),
    ("0.17", 2, (32, 4, 3), {"rel_pos_bias": True}, (6, 7), NeighborhoodSpec.create(2, 3), (0, 0)),
    # 0.21: stride fourth
    ("0.21", 2, (32, 4, 4, 2), {}, (6, 7), NeighborhoodSpec.create(2, 4, 1, 2), (0, 0)),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]} {case[1]}-D")
def test_modules_of_each_version(case: Any, tmp_path: Path):
    version, rank, arguments, named, lengths, spec, padding = case
    torch.manual_seed(rank)
    module, x = build(version, rank, *arguments, **named), torch.randn(2, *lengths, 32)
    path = export(module, x, tmp_path / "model.onnx").path
    found = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"x": x.numpy()})[0]
    reference = expected(module, x, spec, padding)
    assert np.abs(found - reference).max() < 1e-5 * np.abs(reference).max()


@pytest.mark.parametrize("version", ["0.14", "0.15", "0.17", "0.21"])
def test_the_separate_functions_are_there_in_any_version(version: str):
    with importable_natten(version):
        functional = importlib.import_module("natten.functional")
        names = ("natten1dqkrpb", "natten2dqkrpb", "natten2dav", "na2d_qk", "na2d_av", "na2d_qk_with_bias", "na3d")
        assert all(callable(getattr(functional, name)) for name in names)
    assert "natten" not in sys.modules


def test_only_known_versions_can_be_asked_for():
    with (
        pytest.raises(UsageError, match=r"no stand-in for natten 0\.12; choose one of 0\.14, 0\.15, 0\.17, 0\.21"),
        importable_natten("0.12"),
    ):
        pass


def test_a_module_is_built_and_exported_from_python_on_a_machine_without_natten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "their_network.py").write_text(
        "import torch\n"
        "from natten.functional import na2d\n"
        "class Layer(torch.nn.Module):\n"
        "    def forward(self, x):\n"
        "        from natten.functional import na2d as late\n"  # imported where it is used
        "        return na2d(x, x, x, kernel_size=3) + late(x, x, x, 3, 2)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "natten", None)  # as where it is not installed
    with pytest.raises(ModuleNotFoundError, match="natten"):
        importlib.import_module("their_network")
    with na_deploy.importable_natten("0.17"):  # in 0.17 the fifth argument is the dilation, in 0.21 the stride
        module = importlib.import_module("their_network").Layer()
    assert sys.modules["natten"] is None
    report = na_deploy.export(module, torch.randn(1, 7, 9, 2, 8), tmp_path / "layer.onnx", natten="0.17")
    assert report.attention_layers == 2
    model = onnx.load(tmp_path / "layer.onnx")
    dilations = [list(a.ints) for node in model.graph.node for a in node.attribute if a.name == "dilation"]
    assert sorted(dilations) == [[1, 1], [2, 2]]
