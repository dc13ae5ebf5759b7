"""The file that is kept is the file that was verified: valid with its types as they are, in every mixture of types."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto
from torch import Tensor, nn

from na_deploy import export
from na_deploy.attention.torch_ops import neighborhood_attention
from na_deploy.errors import NaDeployError
from na_deploy.exporter import file_check
from na_deploy.exporter.file_check import check_file


class Block(nn.Module):
    """A convolution, norms and an attention; ``low`` says where autocast is on, and in which type."""

    def __init__(self, low: str, dtype: torch.dtype) -> None:
        super().__init__()
        self.low, self.dtype = low, dtype
        self.stem = nn.Conv2d(3, 16, 2, 2)
        self.group = nn.GroupNorm(4, 16)
        self.norm = nn.LayerNorm(16)
        self.qkv = nn.Linear(16, 48)
        self.scale = nn.Parameter(torch.ones(16))

    def on(self, part: str) -> Any:
        return torch.autocast("cpu", dtype=self.dtype) if part in self.low else contextlib.nullcontext()

    def forward(self, x: Tensor) -> Tensor:
        with self.on("all"):
            with self.on("conv"):
                x = self.stem(x)
            with self.on("norm"):
                x = self.group(x.to(self.dtype) if "norm" in self.low else x).permute(0, 2, 3, 1)
            x = x if "all" in self.low else x.float()
            with self.on("attention"):
                q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, 2, 8)).unbind(-3)
                if "rope" in self.low:  # rotated in float32, as many do, beside narrow values
                    q, k = q.float() * 1.5, k.float() * 0.5
                x = x + neighborhood_attention(q, k, v, kernel_size=3)[0].flatten(-2) * self.scale
        return torch.where(x > 0, x, x * 0.1).mean((1, 2)).float()


def block(low: str, dtype: torch.dtype) -> Block:
    torch.manual_seed(2)
    return Block(low, dtype).eval()


X = torch.randn(1, 3, 14, 18, generator=torch.Generator().manual_seed(1))


PLACES = ["all", "conv", "norm", "attention", "all rope", "attention rope"]
QUICK = [(place, torch.bfloat16, 20 + 2 * (i % 2)) for i, place in enumerate(PLACES)]
QUICK += [("all", torch.float16, 20), ("conv", torch.float16, 22)]


def autocasts() -> list[Any]:
    """Return every place, type and opset; each is met in the cases that are not slow."""
    cases = itertools.product(PLACES, (torch.bfloat16, torch.float16), (20, 22))
    return [pytest.param(*case, marks=[] if case in QUICK else [pytest.mark.slow]) for case in cases]


@pytest.mark.parametrize(("low", "dtype", "opset"), autocasts())
def test_autocast_anywhere_gives_a_valid_file(low: str, dtype: torch.dtype, opset: int, tmp_path: Path):
    report = export(block(low, dtype), X, tmp_path / "model.onnx", opset=opset)
    assert report.difference <= report.tolerance
    onnx.checker.check_model(str(report.path), full_check=True)
    assert report.tolerance == (1e-1 if dtype == torch.bfloat16 else 2e-2)
    told = [notice for notice in report.notices if "has no bfloat16 kernels on CPUs" in notice]
    if told:  # for lack of a kernel; of a wrong file it would say that the graph is invalid
        with pytest.raises(Exception, match="NOT_IMPLEMENTED"):
            ort.InferenceSession(str(report.path), providers=["CPUExecutionProvider"])
        assert "needs a runtime that has them, such as TensorRT" in told[0]
    else:
        ort.InferenceSession(str(report.path), providers=["CPUExecutionProvider"])


def test_modules_of_mixed_weights_give_a_valid_file(tmp_path: Path):
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.narrow, self.wide = nn.Linear(8, 8).bfloat16(), nn.LayerNorm(8)

        def forward(self, x: Tensor) -> Tensor:
            return self.wide(self.narrow(x.bfloat16())).float()  # type: ignore[no-any-return]

    report = export(Mixed(), torch.randn(2, 8), tmp_path / "model.onnx")
    onnx.checker.check_model(str(report.path), full_check=True)
    assert report.notices


def test_narrow_values_without_narrow_weights_are_seen(tmp_path: Path):
    class Rounded(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x.bfloat16() + x.bfloat16().sin()).float()

    report = export(Rounded(), torch.randn(4, 8), tmp_path / "model.onnx")
    assert report.difference < 1e-2
    assert "bfloat16" in report.notices[-1]


def changed(path: Path, change: Callable[[onnx.ModelProto], None]) -> Path:
    model = onnx.load(path)
    change(model)
    onnx.save(model, path)
    return path


def test_a_file_that_is_not_what_it_says_is_refused(tmp_path: Path):
    report = export(nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8)), torch.randn(2, 8), tmp_path / "model.onnx")
    assert check_file(report.path) is None

    def narrow_scale(model: onnx.ModelProto) -> None:
        (tensor,) = [t for t in model.graph.initializer if t.name == "0.weight"]
        values = onnx.numpy_helper.to_array(tensor).astype("float16")
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))

    with pytest.raises(NaDeployError, match="is not valid ONNX, so it was not kept"):
        check_file(changed(report.path, narrow_scale))

    def missing(model: onnx.ModelProto) -> None:
        model.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT16

    report = export(nn.Linear(8, 8), torch.randn(2, 8), tmp_path / "model.onnx")
    with pytest.raises(NaDeployError, match=r"is not valid ONNX|refuses model"):
        check_file(changed(report.path, missing))


def test_the_written_file_is_checked_before_it_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(model: str, full_check: bool) -> None:
        assert full_check
        raise onnx.checker.ValidationError("Nodes in a graph must be\ntopologically sorted")

    monkeypatch.setattr(file_check.onnx.checker, "check_model", refuse)
    with pytest.raises(NaDeployError, match="not valid ONNX, so it was not kept: Nodes in a graph must be topolog"):
        export(nn.Linear(8, 8), torch.randn(2, 8), tmp_path / "model.onnx")
    assert json.dumps([path.name for path in tmp_path.iterdir()]) == "[]"
