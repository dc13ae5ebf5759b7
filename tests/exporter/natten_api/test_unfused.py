"""natten's separate scores and values become one node that computes what float64 says, or are refused."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
import transformers
import transformers.utils.import_utils
from torch import Tensor, nn

from na_deploy import export
from na_deploy.attention.reference import reference_attention
from na_deploy.attention.windows import NeighborhoodSpec
from na_deploy.errors import UsageError
from na_deploy.exporter.natten_api.unfused import FUNCTIONS

transformers.utils.import_utils._natten_available = False  # or it imports functions that NATTEN has no more
from transformers.models.dinat import modeling_dinat  # noqa: E402


@pytest.fixture(autouse=True)
def old_natten(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A stand-in for natten 0.17 whose functions must never run themselves."""

    def missing(name: str) -> Callable[..., Any]:
        def function(*_: Any, **__: Any) -> Any:
            raise AssertionError(f"natten's own {name} ran")

        return function

    package, functional = ModuleType("natten"), ModuleType("natten.functional")
    vars(package).update(__version__="0.17.3", functional=functional)
    vars(functional).update({name: missing(name) for name in FUNCTIONS})
    monkeypatch.setitem(sys.modules, "natten", package)
    monkeypatch.setitem(sys.modules, "natten.functional", functional)
    return functional


class Pair(nn.Module):
    """A neighborhood attention module as natten up to 0.17 wrote it: heads first, the query scaled beforehand."""

    def __init__(self, scores: str, values: str, rank: int, *tail: Any, rpb: str = "none", **options: Any) -> None:
        super().__init__()
        self.names, self.rank, self.tail, self.options = (scores, values), rank, tail, options
        self.dropout = nn.Dropout(0.1)
        kernel = options.pop("kernel_shape", None) or options.get("kernel_size", tail[0] if tail else 3)
        sizes = kernel if isinstance(kernel, tuple) else (kernel,) * rank
        self.where = rpb
        self.rpb = None if rpb == "none" else nn.Parameter(torch.randn(2, *(2 * size - 1 for size in sizes)))

    def forward(self, x: Tensor) -> Tensor:
        functional = sys.modules["natten.functional"]
        scores, values = (getattr(functional, name) for name in self.names)
        query, key, value = (x * 8**-0.5, x.roll(1, -1) * 1.3, -x.roll(2, -1))
        before = [self.rpb] if self.where == "third" else []
        given = {"rpb": self.rpb} if self.where == "keyword" else {}
        weights = scores(query, key, *before, *self.tail, **self.options, **given).softmax(dim=-1)
        return values(self.dropout(weights), value, *self.tail, **self.options)


def expected(module: Pair, x: Tensor, spec: NeighborhoodSpec) -> np.ndarray:
    last = np.moveaxis(x.double().numpy(), 1, -2)
    bias = None if module.rpb is None else module.rpb.detach().double().numpy()
    tensors = (last, np.roll(last, 1, -1) * 1.3, -np.roll(last, 2, -1))
    return np.moveaxis(reference_attention(*tensors, spec, rel_pos_bias=bias, scale=8**-0.5).output, -2, 1)


Case = tuple[Pair, tuple[int, ...], NeighborhoodSpec]
CREATE = NeighborhoodSpec.create
CASES: dict[str, Callable[[], Case]] = {
    "0.14": lambda: (Pair("natten2dqkrpb", "natten2dav", 2, 5, 2, rpb="third"), (11, 13), CREATE(2, 5, 2)),
    "0.14 one axis": lambda: (Pair("natten1dqkrpb", "natten1dav", 1, 7, 3, rpb="third"), (25,), CREATE(1, 7, 3)),
    "0.14 without bias": lambda: (Pair("natten2dqk", "natten2dav", 2, 3, 1), (6, 7), CREATE(2, 3)),
    "0.15": lambda: (Pair("na2d_qk_with_bias", "na2d_av", 2, 3, 2, rpb="third"), (8, 9), CREATE(2, 3, 2)),
    "0.15 three axes": lambda: (
        Pair("na3d_qk_with_bias", "na3d_av", 3, 2, 3, 2, 1, rpb="third", kernel_shape=(2, 3, 3)),
        (4, 5, 6),
        CREATE(3, (2, 3, 3), (2, 1, 1)),
    ),
    "0.15 three axes, no bias": lambda: (
        Pair("na3d_qk", "na3d_av", 3, 2, 3, 1, 2),
        (4, 6, 7),
        CREATE(3, (2, 3, 3), (1, 2, 2)),
    ),
    "0.14 three axes": lambda: (
        Pair("natten3dqkrpb", "natten3dav", 3, 2, 3, 2, 1, rpb="third", kernel_shape=(2, 3, 3)),
        (4, 5, 6),
        CREATE(3, (2, 3, 3), (2, 1, 1)),
    ),
    "0.17": lambda: (
        Pair("na2d_qk", "na2d_av", 2, kernel_size=(3, 5), dilation=(2, 1), is_causal=(False, True), rpb="keyword"),
        (9, 10),
        CREATE(2, (3, 5), (2, 1), 1, (False, True)),
    ),
    "0.17 three axes": lambda: (Pair("na3d_qk", "na3d_av", 3, kernel_size=(2, 3, 4)), (4, 5, 6), CREATE(3, (2, 3, 4))),
}


@pytest.mark.parametrize("name", CASES)
def test_a_pair_is_one_node_that_computes_what_float64_says(name: str, tmp_path: Path):
    torch.manual_seed(len(name))
    module, lengths, spec = CASES[name]()
    x = torch.randn(2, 2, *lengths, 8)
    path = export(module.eval(), x, tmp_path / "model.onnx").path
    nodes = [node.op_type for node in onnx.load(path).graph.node]
    assert nodes.count("NeighborhoodAttention") == 1
    assert not {"WindowScores", "WindowValues", "Softmax"} & set(nodes)
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found = session.run(None, {"x": x.numpy()})[0]
    reference = expected(module, x, spec)
    assert np.abs(found - reference).max() < 1e-5 * np.abs(reference).max()


def test_before_0_14_5_kernel_size_was_not_an_argument(tmp_path: Path):
    module = Pair("natten2dqkrpb", "natten2dav", 2, 2, rpb="third")  # the 2 is the dilation
    module.rpb = nn.Parameter(torch.randn(2, 5, 5))
    x = torch.randn(1, 2, 7, 8, 8)
    path = export(module.eval(), x, tmp_path / "model.onnx").path
    found = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"x": x.numpy()})[0]
    np.testing.assert_allclose(found, expected(module, x, CREATE(2, 3, 2)), rtol=1e-4, atol=1e-5)


class Between(nn.Module):
    """Something between scores and values."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        functional = sys.modules["natten.functional"]
        weights = self.change(functional.na2d_qk(x, x, 3, 1))
        result: Tensor = functional.na2d_av(weights, x, 3, 1)
        return result


def gathered(module: nn.Module, x: Tensor, folder: Path, match: str, nodes: int = 0) -> onnx.ModelProto:
    """Export a model that cannot be fused: exact, of standard operators, and the user is told why."""
    report = export(module.eval(), x, folder / "model.onnx")
    assert report.difference < 1e-5
    assert report.attention_layers == nodes
    assert any(re.search(match, notice) for notice in report.notices), report.notices
    model = onnx.load(report.path)
    assert not {"WindowScores", "WindowValues"} & {node.op_type for node in model.graph.node}
    return model


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda scores: scores, "is not a softmax over the window"),
        (lambda scores: scores.softmax(-2), "is not a softmax over the window"),
        (lambda scores: (scores * scores).softmax(-1), "Mul .* changes the scores before the softmax"),
        (lambda scores: scores.softmax(-1) * 2, "Mul .* is not a softmax"),
    ],
)
def test_what_cannot_be_fused_is_gathered_and_the_reason_told(
    change: Callable[[Tensor], Tensor], message: str, tmp_path: Path
):
    gathered(Between(change), torch.randn(1, 2, 6, 6, 8), tmp_path, message)


@pytest.mark.parametrize("change", [lambda scores: (0.3 * scores).softmax(-1), lambda scores: (scores / 3).softmax(-1)])
def test_a_constant_factor_becomes_the_scale(change: Callable[[Tensor], Tensor], tmp_path: Path):
    report = export(Between(change).eval(), torch.randn(1, 2, 6, 6, 8), tmp_path / "model.onnx")
    assert (report.attention_layers, report.notices) == (1, ())


class Everything(nn.Module):
    """Bias, causality, dilation and additional keys between changed scores."""

    def __init__(self) -> None:
        super().__init__()
        self.rpb, self.more = nn.Parameter(torch.randn(2, 5, 5)), nn.Parameter(torch.randn(1, 2, 4, 8))

    def forward(self, x: Tensor) -> Tensor:
        functional = sys.modules["natten.functional"]
        more = self.more.expand(x.shape[0], -1, -1, -1)
        scores = functional.na2d_qk(x, x, 3, (2, 1), more, (True, False), self.rpb)
        result: Tensor = functional.na2d_av((scores * 2).softmax(-1).half().float(), x, 3, (2, 1), more, (True, False))
        return result


def test_a_gathered_pair_keeps_bias_causality_and_additional_keys(tmp_path: Path):
    gathered(Everything(), torch.randn(2, 2, 6, 7, 8), tmp_path, "scaled after a bias")


def test_scores_used_elsewhere_are_gathered_beside_the_node(tmp_path: Path):
    class Returned(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            functional = sys.modules["natten.functional"]
            scores = functional.na2d_qk(x, x, 3, 1)
            return functional.na2d_av(scores.softmax(-1), x, 3, 1), scores.mean(-1)

    gathered(Returned(), torch.randn(1, 2, 6, 6, 8), tmp_path, "used for more than a softmax", nodes=1)


def test_gathering_needs_sizes(tmp_path: Path):
    free = {"x": {0: "batch", 2: "height", 3: "width"}}
    with pytest.raises(UsageError, match="need fixed spatial sizes"):
        export(Between(lambda scores: scores), torch.randn(1, 2, 6, 7, 8), tmp_path / "model.onnx", dynamic=free)
    assert list(tmp_path.iterdir()) == []
    batch = export(
        Between(lambda scores: scores), torch.randn(1, 2, 6, 7, 8), tmp_path / "a.onnx", dynamic={"x": {0: "batch"}}
    )
    session = ort.InferenceSession(str(batch.path), providers=["CPUExecutionProvider"])
    assert session.run(None, {"x": np.ones((3, 2, 6, 7, 8), np.float32)})[0].shape == (3, 2, 6, 7, 8)


def test_additional_keys_of_both_calls_join_the_node(tmp_path: Path):
    class Additional(nn.Module):
        def forward(self, x: Tensor, more: Tensor) -> Tensor:
            functional = sys.modules["natten.functional"]
            weights = functional.na2d_qk(x, x, 3, 1, more).softmax(-1)
            result: Tensor = functional.na2d_av(weights, -x, 3, 1, more * 2)
            return result

    x, more = torch.randn(2, 2, 6, 7, 8), torch.randn(2, 2, 5, 8)
    report = export(Additional(), (x, more), tmp_path / "model.onnx")
    assert (report.attention_layers, report.notices) == (1, ())
    session = ort.InferenceSession(str(report.path), providers=["CPUExecutionProvider"])
    found = session.run(None, {"x": x.numpy(), "more": more.numpy()})[0]
    last, extra = np.moveaxis(x.double().numpy(), 1, -2), np.moveaxis(more.double().numpy(), 1, -2)
    reference = reference_attention(
        last, last, -last, CREATE(2, 3), scale=1.0, additional_key=extra, additional_value=extra * 2
    )
    np.testing.assert_allclose(found, np.moveaxis(reference.output, -2, 1), atol=1e-5)


def test_hugging_faces_own_dinat_exports_unedited(
    monkeypatch: pytest.MonkeyPatch, old_natten: ModuleType, tmp_path: Path
):
    # What its import of natten 0.14's functions would have bound.
    for name in ("natten2dqkrpb", "natten2dav"):
        monkeypatch.setattr(modeling_dinat, name, getattr(old_natten, name))
    monkeypatch.setattr(modeling_dinat, "requires_backends", lambda *_: None)
    torch.manual_seed(0)
    config = transformers.DinatConfig(
        embed_dim=32, depths=[2, 2], num_heads=[2, 4], kernel_size=3, dilations=[[1, 2], [1, 2]], num_labels=7
    )

    class Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = modeling_dinat.DinatForImageClassification(config)

        def forward(self, image: Tensor) -> Tensor:
            logits: Tensor = self.model(image, return_dict=False)[0]
            return logits

    report = export(Logits(), torch.randn(1, 3, 64, 64), tmp_path / "dinat.onnx")
    assert report.attention_layers == 4
    assert report.difference < 1e-5
