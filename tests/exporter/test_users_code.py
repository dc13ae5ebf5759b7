"""Errors of the user's code are named as theirs, with their line; what cannot be exported is named for what it is."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from na_deploy import export
from na_deploy.attention.torch_ops import neighborhood_attention
from na_deploy.errors import NaDeployError, UsageError, VerificationError
from na_deploy.exporter.factory import build_module
from na_deploy.exporter.tracing import quiet

SOURCE = """
import torch
from torch import nn

def wrong_type():
    return nn.Linear("three", 4)

def wrong_value():
    raise ValueError("no such size\\nand more")

def wrong_key():
    return {}["missing"]

def leaves():
    raise SystemExit("usage: train.py")

def late_import():
    import not_installed_anywhere

def old_natten():
    from natten import NeighborhoodAttention2D
    return NeighborhoodAttention2D(dim=32, num_heads=4, kernel_size=3)

def needs(width):
    return nn.Linear(width, 4)

def text():
    return "a model"

value = 3
"""

FACTORIES = {
    "wrong_type": r"fails in your factory: TypeError: .* at .*users_code\.py:6$",
    "wrong_value": r"fails in your factory: ValueError: no such size at .*users_code\.py:9$",
    "wrong_key": r"fails in your factory: KeyError: 'missing' at .*users_code\.py:12$",
    "leaves": r"fails in your factory: SystemExit: usage: train\.py at .*users_code\.py:15$",
    "late_import": r"fails in your factory: ModuleNotFoundError: No module named 'not_installed_anywhere' at .*:18$",
    "old_natten": r"fails in your factory: TypeError: .*'dim'.* at .*:22; .* give --natten 0\.14, 0\.15 or 0\.17$",
    "needs": r"must be callable without arguments: missing a required argument: 'width'; write a function",
    "text": r"gave str; it must give a torch\.nn\.Module",
    "value": r"is int; it must be a function or a torch\.nn\.Module",
    "nothing": r"users_code has no attribute 'nothing'; it has wrong_type, wrong_value",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "users_code.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "users_code", raising=False)
    return tmp_path


@pytest.mark.parametrize("name", FACTORIES)
def test_errors_of_a_factory_are_its_own(name: str, folder: Path):
    with pytest.raises(UsageError, match=FACTORIES[name]) as caught:
        build_module(f"users_code:{name}")
    assert "\n" not in str(caught.value)


def test_an_older_natten_asked_for_takes_the_place_of_an_installed_one(folder: Path):
    module = build_module("users_code:old_natten", "0.17")
    assert export(module, torch.randn(1, 6, 7, 32), folder / "model.onnx", natten="0.17").attention_layers == 1


def test_a_later_interface_than_the_one_asked_for_is_advised(folder: Path):
    (folder / "users_code.py").write_text(SOURCE.replace("dim=32", "embed_dim=32"))
    with pytest.raises(UsageError, match=r"written for natten 0\.20 or later: remove --natten, or give 0\.21$"):
        build_module("users_code:old_natten", "0.17")


IMPORTS = {
    "import not_installed_anywhere": r"importing broken fails in it: ModuleNotFoundError.* at .*broken\.py:1; install",
    "def f(:\n    pass": r"importing broken fails in it: SyntaxError: .* at .*broken\.py:1$",
    "x = 1 / 0": r"importing broken fails in it: ZeroDivisionError: division by zero at .*broken\.py:1$",
    "from natten.functional import no_such_name": r"importing broken fails in it: ImportError.*; .*give --natten",
}


@pytest.mark.parametrize("source", IMPORTS)
def test_errors_of_an_imported_file_are_its_own(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "broken.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=IMPORTS[source]):
        build_module("broken:build")


def test_a_file_that_is_not_there_cannot_be_imported():
    with pytest.raises(UsageError, match=r"cannot import 'nowhere\.at_all': there is no Python module 'nowhere'"):
        build_module("nowhere.at_all:build")


class Fails(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x @ x  # lengths that do not fit


def test_a_forward_that_fails_in_pytorch_is_said_to(tmp_path: Path):
    pattern = r"the forward of Fails fails in PyTorch on inputs of x 2x3: RuntimeError: .* at .*test_users_code\.py:\d+"
    with pytest.raises(NaDeployError, match=pattern):
        export(Fails(), torch.randn(2, 3), tmp_path / "model.onnx")


class Rotary(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        turned = torch.view_as_complex(x.unflatten(-1, (-1, 2))) * torch.polar(torch.ones(4), torch.arange(4.0))
        q = torch.view_as_real(turned).flatten(-2)
        return neighborhood_attention(q, q, x, kernel_size=3)[0]


def test_complex_rotary_embedding_is_named_where_it_cannot_be_traced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    x = torch.randn(1, 5, 6, 2, 8)
    assert export(Rotary(), x, tmp_path / "model.onnx").difference < 1e-5  # the tracer writes these as pairs

    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("No ONNX function found")

    monkeypatch.setattr(torch.onnx, "export", refuse)
    pattern = r"Rotary computes with complex numbers at .*test_users_code\.py:\d+, .* cosines and sines of real numbers"
    with pytest.raises(NaDeployError, match=pattern):
        export(Rotary(), x, tmp_path / "model.onnx")


@dataclasses.dataclass
class Inner:
    maps: list[Tensor]
    note: str = "text"


@dataclasses.dataclass
class Outputs:
    scores: Tensor
    inner: Inner
    nothing: Tensor | None = None


class Named(NamedTuple):
    first: Tensor
    second: Tensor


class Structured(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.layer = kind, nn.Linear(4, 4)

    def forward(self, x: Tensor, scale: Tensor) -> Any:
        y = self.layer(x) * scale
        if self.kind == "dataclass":
            return Outputs(y, Inner([y + 1, y + 2]))
        return {"dict": {"a": y, "b": [y + 1]}, "named tuple": Named(y, y + 1), "list": [y, (y + 1,)]}[self.kind]


@pytest.mark.parametrize(("kind", "count"), [("dataclass", 3), ("dict", 2), ("named tuple", 2), ("list", 2)])
def test_structured_outputs_become_outputs_in_order(kind: str, count: int, tmp_path: Path):
    import onnx

    inputs = {"x": torch.randn(2, 4), "scale": torch.randn(1)}
    report = export(Structured(kind), inputs, tmp_path / "model.onnx", dynamic={"x": {0: "batch"}})
    graph = onnx.load(report.path).graph
    assert [value.name for value in graph.output] == [f"output_{number}" for number in range(count)]
    assert [value.name for value in graph.input] == ["x", "scale"]
    assert any(tensor.name.startswith("layer.") or "val" in tensor.name for tensor in graph.initializer)


def test_a_module_that_is_not_finite_itself_is_said_to_be(tmp_path: Path):
    class Logarithm(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.log()

    with pytest.raises(NaDeployError, match="Logarithm itself returns NaN or infinity in PyTorch for these example"):
        export(Logarithm(), torch.tensor([1.0, -1.0]), tmp_path / "model.onnx")


def test_a_module_without_tensors_to_return_is_refused(tmp_path: Path):
    class Text(nn.Module):
        def forward(self, x: Tensor) -> str:
            return "done"

    with pytest.raises(UsageError, match="Text returns no tensor, got str"):
        export(Text(), torch.randn(2), tmp_path / "model.onnx")


def test_a_refusal_names_output_sizes_difference_and_option(tmp_path: Path):
    inputs = {"x": torch.randn(2, 4), "scale": torch.randn(1)}
    pattern = (
        r"model\.onnx is not kept: its output output_0 differs from PyTorch by [\d.e-]+ \(relative; [\d.e-]+ at most\) "
        r"for an input of x 2x4, scale 1, above the tolerance of 1e-15; --tolerance accepts more"
    )
    module = Structured("dict")
    module.layer = nn.Sequential(nn.Linear(4, 64), nn.GELU(), nn.Linear(64, 4))  # type: ignore[assignment]
    with pytest.raises(VerificationError, match=pattern):
        export(module, inputs, tmp_path / "model.onnx", tolerance=1e-15)


def test_stray_log_lines_of_pytorch_do_not_reach_the_user(caplog: pytest.LogCaptureFixture):
    before = logging.getLogger("torch.fx.experimental.symbolic_shapes").level
    with quiet():
        for name in ("torch.onnx", "torch.export", "torch.fx.experimental.symbolic_shapes", "onnxscript"):
            logging.getLogger(name).warning("something about internals")
    assert caplog.records == []
    assert logging.getLogger("torch.fx.experimental.symbolic_shapes").level == before
