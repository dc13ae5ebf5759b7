"""Full attention turned into windows at export: exact against the reference, compared with the original, or refused."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from na_deploy import export
from na_deploy.attention.reference import reference_attention
from na_deploy.attention.windows import NeighborhoodSpec
from na_deploy.errors import UsageError
from na_deploy.exporter import SetWindow


class Attention(nn.Module):
    """Self-attention of a diffusion transformer; by hand, so that scores can be followed."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads, self.qkv = heads, nn.Linear(dim, 3 * dim)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(-2)


class Joint(nn.Module):
    """Text and image tokens in one sequence, as in FLUX: text first."""

    def __init__(self, blocks: int = 2, dim: int = 32) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.LayerNorm(dim), Attention(dim, 4)) for _ in range(blocks))

    def forward(self, tokens: Tensor) -> Tensor:
        for block in self.blocks:
            tokens = tokens + block(tokens)
        return tokens


def model() -> Joint:
    torch.manual_seed(3)
    return Joint().eval()


def run(path: Path, *inputs: Tensor) -> np.ndarray:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    feed = {v.name: t.numpy() for v, t in zip(session.get_inputs(), inputs, strict=True)}
    return session.run(None, feed)[0]


def attention_nodes(path: Path) -> list[str]:
    return [node.name for node in onnx.load(path).graph.node if node.op_type == "NeighborhoodAttention"]


def by_hand(module: Attention, x: Tensor, grid: Sequence[int], spec: NeighborhoodSpec, text: int) -> np.ndarray:
    """Image tokens attend to their window and to text, text tokens to all; text stands first; float64."""
    qkv = module.double().qkv(x.double()).detach().unflatten(-1, (3, module.heads, -1)).numpy()
    query, key, value = (qkv[:, :, part] for part in range(3))
    image = [tensor[:, text:].reshape(1, *grid, module.heads, -1) for tensor in (query, key, value)]
    more = [tensor[:, :text] for tensor in (key, value)]
    attended = reference_attention(*image, spec, additional_key=more[0], additional_value=more[1]).output
    full = NeighborhoodSpec.create(1, x.shape[1])
    words = reference_attention(query, key, value, full).output[:, :text]
    module.float()
    count = math.prod(grid)
    return np.concatenate([words.reshape(1, text, -1), attended.reshape(1, count, -1)], axis=1)


def test_a_window_with_text_tokens_computes_what_float64_says(tmp_path: Path):
    torch.manual_seed(1)
    module, x = Attention(32, 4).eval(), torch.randn(1, 5 + 4 * 6, 32)
    window = SetWindow("model", (3, -1), grid=(4, 6), stride=(2, 1), text="first")
    report = export(module, x, tmp_path / "model.onnx", windows=[window])
    expected = by_hand(module, x, (4, 6), NeighborhoodSpec.create(2, (3, 6), 1, (2, 1)), 5)
    found = run(report.path, x)
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()
    assert report.attention_layers == 1


def test_named_layers_change_and_the_change_is_measured(tmp_path: Path):
    module, x = model(), torch.randn(2, 30, 32)
    original = module(x).detach()
    windows = [SetWindow("blocks.1.*", (3, 3), grid=(5, 6))]
    report = export(module, x, tmp_path / "model.onnx", windows=windows, dynamic={"tokens": {0: "batch"}})
    assert attention_nodes(report.path) == ["blocks.1.1"]
    assert report.window_errors is not None
    (layer,) = report.window_errors.layers
    assert (layer.layer, layer.grid, layer.spec.kernel_size) == ("blocks.1.1", (5, 6), (3, 3))
    assert layer.share == pytest.approx(9 / 30)
    difference = torch.from_numpy(run(report.path, x)) - original
    assert report.window_errors.outputs == pytest.approx([float(difference.norm() / original.norm())], rel=1e-3)
    assert 1e-3 < report.window_errors.outputs[0] < 1
    torch.testing.assert_close(module(x), original)  # the user's module is as it was
    assert F.scaled_dot_product_attention is scaled_dot_product_attention


def test_a_dilated_window_of_a_whole_axis_holds_what_every_dilation_group_has():
    _, spec = SetWindow("*", (-1, 3), grid=(9, 6), dilation=(2, 1)).resolve("model", 54)
    assert spec.kernel_size == (4, 3)


def test_windows_of_whole_axes_change_nothing(tmp_path: Path):
    windows = [SetWindow("*", (-1, -1), grid=(5, 6))]
    report = export(model(), torch.randn(1, 30, 32), tmp_path / "model.onnx", windows=windows)
    assert report.window_errors is not None
    assert [layer.share for layer in report.window_errors.layers] == [1, 1]
    assert max(report.window_errors.outputs) < 1e-6


def test_pytorchs_own_multihead_attention_is_found(tmp_path: Path):
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.layer(x)
            return result

    window = SetWindow("layer.self_attn", (5,), is_causal=True)
    report = export(Encoder().eval(), torch.randn(1, 20, 32), tmp_path / "model.onnx", windows=[window])
    assert attention_nodes(report.path) == ["layer.self_attn"]


def test_two_attentions_of_one_layer_are_told_apart(tmp_path: Path):
    class Twice(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(F.scaled_dot_product_attention(x, x, x), x, x)

    report = export(
        Twice().eval(), torch.randn(1, 2, 16, 8), tmp_path / "model.onnx", windows=[SetWindow("model#2", (3, 3))]
    )
    assert report.window_errors is not None
    assert [layer.layer for layer in report.window_errors.layers] == ["model#2"]


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"layer": "decoder.*"}, r"no layer 'decoder\.\*' .* blocks\.0\.1 \(30 tokens\), blocks\.1\.1 \(30 tokens\)"),
    ({"grid": None}, r"blocks\.0\.1 attends over 30 tokens, and the window has 2 axes; give the grid's sizes"),
    ({"grid": (5, 5)}, r"the grid 5×5 has 25; .* text=first or text=last"),
    ({"kernel_size": (7, 3)}, r"7\*1 = 7 exceeds the length 5 of spatial axis 0"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED)
def test_what_does_not_fit_is_refused(change: dict[str, Any], message: str, tmp_path: Path):
    window = SetWindow(**{"layer": "*", "kernel_size": (3, 3), "grid": (5, 6), **change})
    with pytest.raises(UsageError, match=message):
        export(model(), torch.randn(1, 30, 32), tmp_path / "model.onnx", windows=[window])
    assert list(tmp_path.iterdir()) == []


def test_attention_with_a_mask_is_refused_by_name_and_place(tmp_path: Path):
    class Masked(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(x, x, x, attn_mask=torch.ones(16, 16).tril())

    with pytest.raises(UsageError, match=r"model at .*test_rewindow\.py:\d+ attends with a mask"):
        export(Masked().eval(), torch.randn(1, 2, 16, 8), tmp_path / "m.onnx", windows=[SetWindow("*", (3, 3))])
