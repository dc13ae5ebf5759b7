"""Gradients of the PyTorch operators against float64: of densely masked attention, and of finite differences."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from na_deploy.attention import NeighborhoodSpec, torch_gradients, torch_tiles
from na_deploy.attention.torch_ops import neighborhood_attention, neighborhood_attention_qkv
from na_deploy.models import ModelConfig, build_model

LIMIT = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
PROBLEMS: list[tuple[tuple[int, ...], dict[str, Any]]] = [
    ((31,), {"kernel_size": 7, "dilation": 3, "stride": 2}),
    ((40,), {"kernel_size": 9, "is_causal": True, "stride": 4}),
    ((13, 17), {"kernel_size": (5, 7), "dilation": (2, 2)}),
    ((14, 14), {"kernel_size": 7, "dilation": 2}),
    ((9, 11), {"kernel_size": (4, 3), "stride": (3, 2), "is_causal": (False, True)}),
    ((7, 7), {"kernel_size": 7}),
    ((5, 6, 7), {"kernel_size": (3, 2, 3), "dilation": (1, 3, 2), "is_causal": (True, False, False)}),
]


def draws(seed: int, dtype: torch.dtype, *shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    drawn = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return [tensor.to(dtype).requires_grad_() for tensor in drawn]


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm().clamp(min=1e-30))


@pytest.mark.parametrize("pairs", [torch_tiles.LARGE_SCORES, 2000])
@pytest.mark.parametrize("dtype", LIMIT)
@pytest.mark.parametrize(("lengths", "attributes"), PROBLEMS)
def test_every_gradient_agrees_with_dense_attention_in_float64(
    lengths: tuple[int, ...], attributes: dict[str, Any], dtype: torch.dtype, pairs: int, monkeypatch
):
    monkeypatch.setattr(torch_gradients, "LARGE_SCORES", pairs)
    spec = NeighborhoodSpec.create(len(lengths), **attributes)
    query, key, value, bias, extra_key, extra_value = draws(
        sum(lengths),
        dtype,
        (2, *lengths, 4, 16),
        (2, *lengths, 2, 16),
        (2, *lengths, 2, 12),
        (4, *(2 * kernel - 1 for kernel in spec.kernel_size)),
        (2, 5, 2, 16),
        (2, 5, 2, 12),
    )
    given = (query, key, value, bias, extra_key, extra_value)
    output, lse = neighborhood_attention(*given, scale=0.3, **attributes)
    weights = [torch.randn(tensor.shape, dtype=torch.float64) for tensor in (output, lse)]
    found = torch.autograd.grad([output, lse], given, [weights[0].to(output), weights[1].to(lse)])
    wide = [tensor.detach().double().requires_grad_() for tensor in given]
    reference = torch_tiles.dense(wide[0], wide[1], wide[2], spec, 0.3, *wide[3:])
    expected = torch.autograd.grad(reference, wide, weights)
    for own, its, tensor in zip(found, expected, given, strict=True):
        assert own.dtype == tensor.dtype
        assert own.shape == tensor.shape
        assert relative(own, its) < LIMIT[dtype]


@pytest.mark.parametrize("lengths", [(9, 10), (4, 3), (6, 2)])
@pytest.mark.parametrize("batch", [0, 1, 3])
def test_padded_maps_share_their_gradient_with_the_padding(lengths: tuple[int, int], batch: int):
    """Padding by hand, as the model's authors do it, is the reference."""
    qkv, padding, bias = draws(3, torch.float64, (batch, *lengths, 3, 2, 8), (3, 2, 8), (2, 5, 5))
    attributes = {"kernel_size": 3, "dilation": 2}
    output = neighborhood_attention_qkv(qkv, bias, padding, **attributes)
    weight = torch.randn(output.shape, dtype=torch.float64)
    found = torch.autograd.grad(output, (qkv, padding, bias), weight)
    missing = [max(6 - length, 0) for length in lengths]
    around = functional.pad(torch.zeros(lengths), (0, missing[1], 0, missing[0]), value=1.0).bool()
    whole = functional.pad(qkv, (0, 0, 0, 0, 0, 0, 0, missing[1], 0, missing[0]))
    whole = torch.where(around[None, :, :, None, None, None], padding, whole)
    spec = NeighborhoodSpec.create(2, **attributes)
    query, key, value = whole.unbind(-3)
    reference = torch_tiles.dense(query, key, value, spec, 8**-0.5, bias, None, None)[0]
    expected = torch.autograd.grad(reference[:, : lengths[0], : lengths[1]], (qkv, padding, bias), weight)
    torch.testing.assert_close(output, reference[:, : lengths[0], : lengths[1]])
    for own, its in zip(found, expected, strict=True):
        torch.testing.assert_close(own, its, rtol=1e-12, atol=1e-13)


def test_finite_differences_agree():
    qkv, bias = draws(0, torch.float64, (1, 6, 5, 3, 1, 3), (1, 5, 5))
    assert torch.autograd.gradcheck(lambda q, b: neighborhood_attention_qkv(q, b, kernel_size=3), (qkv, bias))


def test_the_operators_pass_pytorch_s_own_check():
    qkv, bias, padding = draws(1, torch.float32, (1, 4, 6, 3, 2, 4), (2, 5, 5), (3, 2, 4))
    window = ([3, 3], [2, 1], [1, 1], [0, 0], 0.0)
    torch.library.opcheck(torch.ops.na_deploy.neighborhood_attention_qkv.default, (qkv, bias, padding, *window))
    query, key = draws(2, torch.float32, (1, 6, 6, 2, 4), (1, 6, 6, 1, 4))
    given = (query, key, key, bias, None, None, *window)
    torch.library.opcheck(torch.ops.na_deploy.neighborhood_attention.default, given)


def test_a_network_trains():
    """Every weight gets a gradient, and a few steps fit random labels."""
    torch.manual_seed(0)
    config = ModelConfig("nat", 16, (1, 2), (2, 4), 3, ((1,), (1, 3)), 2.0, num_classes=4)
    network = build_model(config).train()
    images, labels = torch.randn(4, 3, 24, 32), torch.arange(4)
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-2)
    losses = []
    for _ in range(6):
        loss = functional.cross_entropy(network(images), labels)
        optimiser.zero_grad()
        loss.backward()
        assert all(own.grad is not None and own.grad.abs().max() > 0 for own in network.parameters())
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.3 * losses[0]
