"""natten 0.21's functions and modules: what we put in their place computes the same, in PyTorch and in the file."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import natten
import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from natten import functional as natten_functional
from natten import na2d
from torch import Tensor, nn

from na_deploy import export
from na_deploy.attention.reference import reference_attention
from na_deploy.attention.schema import DOMAIN
from na_deploy.attention.windows import NeighborhoodSpec
from na_deploy.errors import UsageError
from na_deploy.exporter.natten_api import current, importable_natten, replaced_natten

CASES: list[tuple[tuple[int, ...], dict[str, Any]]] = [
    ((20,), {"kernel_size": 5}),
    ((20,), {"kernel_size": 4, "dilation": 3, "stride": 2}),
    ((20,), {"kernel_size": 6, "is_causal": True, "stride": 2}),
    ((9, 12), {"kernel_size": (3, 5), "stride": (1, 2), "dilation": (2, 1), "scale": 0.3}),
    ((9, 12), {"kernel_size": (9, 5), "stride": (1, 4)}),
    ((9, 12), {"kernel_size": 3, "is_causal": (True, False)}),
    ((4, 6, 8), {"kernel_size": (2, 3, 4), "is_causal": (True, False, False)}),
    ((4, 6, 8), {"kernel_size": (4, 3, 4), "stride": (1, 2, 4), "dilation": (1, 2, 1)}),
]


def tensors(lengths: tuple[int, ...], heads: int = 4, key_heads: int = 4, head_dim: int = 8) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(sum(lengths) + key_heads)
    shapes = [(2, *lengths, h, head_dim) for h in (heads, key_heads, key_heads)]
    return tuple(torch.randn(shape, generator=generator) for shape in shapes)


class Calling(nn.Module):
    """One call of a function of natten's, looked up as a model would."""

    def __init__(self, name: str, **arguments: Any) -> None:
        super().__init__()
        self.name, self.arguments = name, arguments

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Any:
        return getattr(natten_functional, self.name)(query, key, value, **self.arguments)


def run(path: Path, inputs: tuple[Tensor, ...]) -> list[np.ndarray]:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {v.name: t.numpy() for v, t in zip(session.get_inputs(), inputs, strict=True)})


@pytest.mark.parametrize(("lengths", "arguments"), CASES)
def test_every_argument_gives_what_natten_gives(lengths: tuple[int, ...], arguments: dict[str, Any], tmp_path: Path):
    name = f"na{len(lengths)}d"
    inputs = tensors(lengths)
    expected = getattr(natten, name)(*inputs, **arguments, return_lse=True)
    path = export(Calling(name, **arguments, return_lse=True), inputs, tmp_path / "model.onnx").path
    assert [node.domain for node in onnx.load(path).graph.node].count(DOMAIN) == 1
    for ours, found, theirs in zip(
        current.FUNCTIONS[name](*inputs, **arguments, return_lse=True), run(path, inputs), expected, strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
        np.testing.assert_allclose(found, theirs.numpy(), atol=1e-5, rtol=1e-5)


def test_fewer_key_heads_and_additional_keys_give_what_natten_gives(tmp_path: Path):
    inputs = tensors((9, 12), key_heads=2)
    extra = torch.randn(2, 2, 5, 2, 8, generator=torch.Generator().manual_seed(5))
    arguments = {"kernel_size": 3, "additional_keys": extra[0], "additional_values": extra[1]}
    expected = natten.na2d(*inputs, **arguments)
    path = export(Calling("neighborhood_attention_generic", **arguments), inputs, tmp_path / "model.onnx").path
    np.testing.assert_allclose(run(path, inputs)[0], expected.numpy(), atol=1e-5, rtol=1e-5)


def test_heads_natten_refuses_on_a_cpu_follow_the_reference(tmp_path: Path):
    query, key, _ = tensors((9, 12), head_dim=24)
    value = torch.randn(2, 9, 12, 4, 12, generator=torch.Generator().manual_seed(6))
    path = export(Calling("na2d", kernel_size=5, stride=3), (query, key, value), tmp_path / "model.onnx").path
    spec = NeighborhoodSpec.create(2, 5, stride=3)
    expected = reference_attention(query.numpy(), key.numpy(), value.numpy(), spec)
    np.testing.assert_allclose(run(path, (query, key, value))[0], expected.output, atol=1e-5)


def test_full_attention_gives_what_natten_gives(tmp_path: Path):
    inputs = tensors((24,))
    expected = natten.attention(*inputs, return_lse=True)
    path = export(Calling("attention", return_lse=True), inputs, tmp_path / "model.onnx").path
    for found, theirs in zip(run(path, inputs), expected, strict=True):
        np.testing.assert_allclose(found, theirs.numpy(), atol=1e-5, rtol=1e-5)


def test_causal_full_attention_which_natten_lacks_on_a_cpu_follows_the_reference(tmp_path: Path):
    inputs = tensors((24,), key_heads=2)
    path = export(Calling("attention", is_causal=True, return_lse=True), inputs, tmp_path / "model.onnx").path
    spec = NeighborhoodSpec.create(1, 24, is_causal=True)
    for found, theirs in zip(run(path, inputs), reference_attention(*(t.numpy() for t in inputs), spec), strict=True):
        np.testing.assert_allclose(found, theirs, atol=1e-5)


def test_merged_attentions_give_what_natten_gives():
    query, key, value = tensors((24,))
    parts = [natten.attention(query, key[:, s], value[:, s], return_lse=True) for s in (slice(8), slice(8, 24))]
    outputs, lse = ([part[i] for part in parts] for i in (0, 1))
    for ours, theirs in zip(
        current.merge_attentions(outputs, lse), natten.merge_attentions(outputs, lse, torch_compile=False), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_modules_export_and_compute_what_natten_computes(rank: int, tmp_path: Path):
    torch.manual_seed(rank)
    module = getattr(natten, f"NeighborhoodAttention{rank}D")(32, 4, kernel_size=3, stride=2).eval()
    x = torch.randn(2, *(6, 7, 8)[:rank], 32)
    with torch.no_grad():  # natten's CPU path refuses gradients
        expected = module(x).numpy()
    path = export(module, x, tmp_path / "model.onnx", dynamic={"x": {0: "batch"}}).path
    np.testing.assert_allclose(run(path, (x,))[0], expected, atol=1e-5)
    assert run(path, (torch.cat([x, x, x]),))[0].shape[0] == 6


class Split(nn.Module):
    """Functions kept in the ways models keep them: a name, an attribute, a partial."""

    def __init__(self) -> None:
        super().__init__()
        self.attend = na2d
        self.dilated = partial(natten.na2d, kernel_size=3, dilation=2)

    def forward(self, x: Tensor) -> Tensor:
        parts = na2d(x, x, x, kernel_size=3), self.attend(x, x, x, kernel_size=5), self.dilated(x, x, x)
        return torch.cat(parts, -1)


def test_functions_are_found_wherever_models_keep_them_and_put_back(tmp_path: Path):
    model, originals = Split().eval(), (na2d, natten.na2d, natten_functional.na2d)
    x = tensors((9, 12))[0]
    expected = model(x).numpy()
    report = export(model, x, tmp_path / "model.onnx")
    assert report.attention_layers == 3
    np.testing.assert_allclose(run(report.path, (x,))[0], expected, atol=1e-5)
    assert (na2d, natten.na2d, natten_functional.na2d) == originals
    assert model.attend is na2d


def test_functions_are_put_back_after_an_error():
    original = natten.na2d
    with pytest.raises(ZeroDivisionError), replaced_natten():
        _ = 1 / (natten.na2d is original)  # False inside the block
    assert natten.na2d is original


def test_an_unsupported_call_is_named_with_its_place_and_a_way_out(tmp_path: Path):
    x = tensors((9, 12))[0]
    with pytest.raises(UsageError, match=r"na2d at .*test_current\.py:\d+: .*kernel_size"):
        export(Calling("na2d", kernel_size=11), (x, x, x), tmp_path / "model.onnx")
    with pytest.raises(UsageError, match=r"na2d at .*test_current\.py:\d+: unknown argument 'rpb'; .*0\.17"):
        export(Calling("na2d", kernel_size=3, rpb=None), (x, x, x), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_a_natten_module_that_does_not_fit_is_named_in_natten_itself(tmp_path: Path):
    module = natten.NeighborhoodAttention2D(32, 4, kernel_size=7)
    with pytest.raises(UsageError, match=r"neighborhood_attention_generic at .*natten/modules\.py:\d+: .*length 5"):
        export(module, torch.randn(1, 5, 5, 32), tmp_path / "model.onnx")


def test_outputs_have_plain_names(tmp_path: Path):
    inputs = tensors((20,))
    for more, names in (({}, ["output"]), ({"return_lse": True}, ["output_0", "output_1"])):
        path = export(Calling("na1d", kernel_size=3, **more), inputs, tmp_path / "model.onnx").path
        assert [value.name for value in onnx.load(path).graph.output] == names


def test_an_installed_natten_is_never_shadowed():
    with importable_natten() as stand_in:
        assert not stand_in
        assert sys.modules["natten"] is natten


def test_without_natten_its_names_can_be_imported_and_loaded_weights_fit(tmp_path: Path):
    program = """
import importlib.util, sys
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "natten" else real(name, *rest)
from na_deploy.exporter.natten_api import importable_natten
import torch
with importable_natten() as stand_in:
    assert stand_in
    from natten import NeighborhoodAttention2D
    from natten.functional import na2d
    model = NeighborhoodAttention2D(32, 4, kernel_size=3)
assert "natten" not in sys.modules
import na_deploy
print(sorted(model.state_dict()), na_deploy.export(model, torch.randn(1, 6, 6, 32), sys.argv[1]).attention_layers)
"""
    command = [sys.executable, "-c", program, str(tmp_path / "model.onnx")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "['proj.bias', 'proj.weight', 'qkv.bias', 'qkv.weight'] 1", done.stderr


@pytest.mark.parametrize(
    ("size", "kernel_size", "free", "loops"),
    [
        (64, 16, {}, 1),  # 9 million scores
        (32, 7, {}, 0),
        (32, 24, {"x": {0: "batch", 1: "height", 2: "width"}}, 1),  # a window of 576 on a map of any size
        (32, 7, {"x": {0: "batch", 1: "height", 2: "width"}}, 0),
    ],
)
def test_large_windows_go_through_a_few_tiles_at_a_time(
    size: int, kernel_size: int, free: Any, loops: int, tmp_path: Path
):
    class Windows(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return natten.na2d(x, 0.5 * x, -x, kernel_size=kernel_size)

    x = torch.randn(1, size, size, 4, 8, generator=torch.Generator().manual_seed(size))
    report = export(Windows(), x, tmp_path / "model.onnx", dynamic=free)
    assert report.difference < 1e-5
    (body,) = onnx.load(report.path).functions
    assert [node.op_type for node in body.node].count("Loop") == loops
