"""The PyTorch operators against the float64 reference, in every precision and formulation."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from na_deploy.attention import (
    NeighborhoodSpec,
    attended_positions,
    reference_attention,
    reference_attention_qkv,
    torch_ops,
    torch_tiles,
)
from na_deploy.attention.torch_ops import neighborhood_attention, neighborhood_attention_qkv, use_implementation
from na_deploy.errors import UsageError

LIMIT = {torch.float64: 1e-13, torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
PROBLEMS: list[tuple[tuple[int, ...], dict[str, Any]]] = [
    ((31,), {"kernel_size": 7, "dilation": 3, "stride": 2}),
    ((40,), {"kernel_size": 9, "is_causal": True, "stride": 4}),
    ((13, 17), {"kernel_size": (5, 7), "dilation": (2, 2)}),
    ((14, 14), {"kernel_size": 7, "dilation": 2}),
    ((9, 11), {"kernel_size": (4, 3), "stride": (3, 2), "is_causal": (False, True)}),
    ((7, 7), {"kernel_size": 7}),
    ((5, 6, 7), {"kernel_size": (3, 2, 3), "dilation": (1, 3, 2), "is_causal": (True, False, False)}),
]


def relative(found: torch.Tensor, expected: np.ndarray) -> float:
    difference = np.linalg.norm(found.double().numpy() - expected)
    return float(difference / np.linalg.norm(expected))


@pytest.mark.parametrize("implementation", [torch_tiles.tiled, torch_tiles.dense])
@pytest.mark.parametrize("dtype", LIMIT)
@pytest.mark.parametrize(("lengths", "attributes"), PROBLEMS)
def test_separate_tensors_with_everything(
    lengths: tuple[int, ...],
    attributes: dict[str, Any],
    dtype: torch.dtype,
    implementation: torch_ops.Implementation,
):
    generator = torch.Generator().manual_seed(sum(lengths))
    spec = NeighborhoodSpec.create(len(lengths), **attributes)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    query, key, value = normal(2, *lengths, 4, 16), normal(2, *lengths, 2, 16), normal(2, *lengths, 2, 12)
    bias = normal(4, *(2 * kernel - 1 for kernel in spec.kernel_size))
    extra = normal(2, 5, 2, 16), normal(2, 5, 2, 12)
    with use_implementation(implementation):
        output, lse = neighborhood_attention(query, key, value, bias, *extra, scale=0.3, **attributes)
    expected = reference_attention(
        *(tensor.double() for tensor in (query, key, value)),
        spec,
        scale=0.3,
        rel_pos_bias=bias.double(),
        additional_key=extra[0].double(),
        additional_value=extra[1].double(),
    )
    assert output.dtype == dtype
    assert relative(output, expected.output) < LIMIT[dtype]
    assert relative(lse, expected.lse) < LIMIT[torch.float64 if dtype == torch.float64 else torch.float32]


def random_problem(seed: int) -> tuple[tuple[int, ...], dict[str, Any]]:
    """Draw sizes and attributes: dilations that do not divide, windows as long as the axis, every rank."""
    random = np.random.default_rng(seed)
    rank = seed % 3 + 1
    longest = {1: 50, 2: 14, 3: 8}[rank]
    lengths = [int(random.integers(2, longest + 1)) for _ in range(rank)]
    kernels = [int(random.integers(1, min(length, 9) + 1)) for length in lengths]
    pairs = list(zip(lengths, kernels, strict=True))
    return tuple(lengths), {
        "kernel_size": kernels,
        "dilation": [int(random.integers(1, length // kernel + 1)) for length, kernel in pairs],
        "stride": [int(random.integers(1, kernel + 1)) for kernel in kernels],
        "is_causal": [bool(causal) for causal in random.random(rank) < 0.3],
    }


@pytest.mark.parametrize("implementation", [torch_tiles.tiled, torch_tiles.dense])
@pytest.mark.parametrize("seed", range(60))
def test_random_problems(seed: int, implementation: torch_ops.Implementation):
    lengths, attributes = random_problem(seed)
    random = np.random.default_rng(1000 + seed)
    spec = NeighborhoodSpec.create(len(lengths), **attributes)
    batch, key_heads, groups = (int(random.integers(1, 4)) for _ in range(3))
    heads = key_heads * groups

    def normal(*shape: int) -> torch.Tensor:
        return torch.from_numpy(random.standard_normal(shape).astype(np.float32))

    query, key = normal(batch, *lengths, heads, 8), normal(batch, *lengths, key_heads, 8)
    value = normal(batch, *lengths, key_heads, int(random.integers(1, 12)))
    more: dict[str, torch.Tensor] = {}
    if seed // 3 % 2:
        more["rel_pos_bias"] = normal(heads, *(2 * kernel - 1 for kernel in spec.kernel_size))
    if seed // 6 % 2:
        more["additional_key"] = normal(batch, 4, key_heads, 8)
        more["additional_value"] = normal(batch, 4, key_heads, value.shape[-1])
    scale = None if seed // 12 % 2 else float(random.uniform(0.1, 1.0))
    with use_implementation(implementation):
        output, lse = neighborhood_attention(query, key, value, **more, scale=scale, **attributes)
    expected = reference_attention(query, key, value, spec, scale=scale, **more)
    assert relative(output, expected.output) < LIMIT[torch.float32]
    np.testing.assert_allclose(lse, expected.lse, atol=1e-5)
    # Promises of the fake operators to a trace.
    assert output.is_contiguous()
    assert lse.is_contiguous()


@pytest.mark.parametrize("implementation", [torch_tiles.tiled, torch_tiles.dense])
def test_no_image_gives_no_output(implementation: torch_ops.Implementation):
    tensors = {name: torch.randn(0, *shape[1:]) for name, shape in FITTING.items() if name != "rel_pos_bias"}
    with use_implementation(implementation):
        output, lse = neighborhood_attention(**tensors, rel_pos_bias=torch.randn(4, 5, 5), kernel_size=3)
    assert output.shape == (0, 6, 8, 4, 5)
    assert lse.shape == (0, 6, 8, 4)


def test_a_scale_of_zero_and_none_at_all_are_the_inverse_root_of_head_dim():
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(1, 9, 9, 3, 2, 16, generator=generator)
    expected = neighborhood_attention_qkv(qkv, kernel_size=3, scale=0.25)
    assert torch.equal(neighborhood_attention_qkv(qkv, kernel_size=3), expected)
    assert torch.equal(neighborhood_attention_qkv(qkv, kernel_size=3, scale=0.0), expected)
    assert not torch.allclose(neighborhood_attention_qkv(qkv, kernel_size=3, scale=0.5), expected)


@pytest.mark.parametrize("batch", [0, 1, 3])
@pytest.mark.parametrize(("lengths", "attributes"), PROBLEMS)
def test_packed_tensors_of_any_batch(lengths: tuple[int, ...], attributes: dict[str, Any], batch: int):
    qkv = torch.randn(batch, *lengths, 3, 2, 8, generator=torch.Generator().manual_seed(batch))
    spec = NeighborhoodSpec.create(len(lengths), **attributes)
    output = neighborhood_attention_qkv(qkv, **attributes)
    assert output.shape == (batch, *lengths, 2, 8)
    if batch:
        assert relative(output, reference_attention_qkv(qkv, spec).output) < 2e-6


def small_map(seed: int) -> tuple[tuple[int, ...], dict[str, Any]]:
    """Draw sizes of which some are too small for their window, down to one position and less than the dilation."""
    lengths, attributes = random_problem(seed)
    random = np.random.default_rng(2000 + seed)
    reach = [kernel * step for kernel, step in zip(attributes["kernel_size"], attributes["dilation"], strict=True)]
    short = [
        int(random.integers(1, size + 1)) if random.random() < 0.7 else length
        for length, size in zip(lengths, reach, strict=True)
    ]
    return tuple(short), attributes


def by_definition(
    qkv: np.ndarray, padding: np.ndarray, bias: np.ndarray, spec: NeighborhoodSpec
) -> tuple[np.ndarray, np.ndarray]:
    """Attend query by query, looking keys up in the map or, behind it, in the padding."""
    batch, *lengths = qkv.shape[: 1 + spec.rank]
    heads, head_dim = qkv.shape[-2:]
    output, lse = np.empty((batch, *lengths, heads, head_dim)), np.empty((batch, *lengths, heads))
    axes = list(zip(lengths, spec.kernel_size, spec.dilation, spec.stride, spec.is_causal, strict=True))
    for image, *at in np.ndindex(batch, *lengths):
        seen = [
            attended_positions(position, max(length, kernel * step), kernel, step, hop, causal)
            for position, (length, kernel, step, hop, causal) in zip(at, axes, strict=True)
        ]
        rows, biases = [], []
        for key in itertools.product(*seen):
            outside = any(position >= length for position, length in zip(key, lengths, strict=True))
            rows.append(padding if outside else qkv[(image, *key)])
            distance = [
                (there - here) // step + kernel - 1
                for there, here, (_, kernel, step, *_) in zip(key, at, axes, strict=True)
            ]
            biases.append(bias[(slice(None), *distance)])
        keys, values = np.stack(rows)[:, 1], np.stack(rows)[:, 2]  # (keys, H, D)
        scores = np.einsum("hd,khd->hk", qkv[(image, *at)][0], keys) * head_dim**-0.5 + np.stack(biases, 1)
        lse[(image, *at)] = np.log(np.exp(scores).sum(1))
        weights = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
        output[(image, *at)] = np.einsum("hk,khd->hd", weights, values)
    return output, lse


@pytest.mark.parametrize("seed", range(36))
def test_windows_reach_behind_small_maps_onto_padding(seed: int):
    lengths, attributes = small_map(seed)
    spec = NeighborhoodSpec.create(len(lengths), **attributes)
    random = np.random.default_rng(3000 + seed)
    qkv, padding = random.standard_normal((2, *lengths, 3, 2, 4)), random.standard_normal((3, 2, 4))
    bias = random.standard_normal((2, *(2 * kernel - 1 for kernel in spec.kernel_size)))
    output, lse = by_definition(qkv, padding, bias, spec)
    expected = reference_attention_qkv(qkv, spec, rel_pos_bias=bias, padding=padding)
    np.testing.assert_allclose(expected.output, output, atol=1e-12)
    np.testing.assert_allclose(expected.lse, lse, atol=1e-12)
    arguments = [torch.from_numpy(array) for array in (qkv, bias, padding)]
    for implementation in (torch_tiles.tiled, torch_tiles.dense):
        with use_implementation(implementation):
            found = neighborhood_attention_qkv(*arguments, **attributes)
        assert found.is_contiguous()
        np.testing.assert_allclose(found, output, atol=1e-12)


@pytest.mark.parametrize("dtype", LIMIT)
def test_padding_agrees_with_padding_before_and_cropping_after(dtype: torch.dtype):
    generator = torch.Generator().manual_seed(0)
    x, projection = torch.randn(2, 5, 9, 16, generator=generator), torch.nn.Linear(16, 48)
    bias = torch.randn(2, 13, 13, generator=generator)
    x, projection, bias = x.to(dtype), projection.to(dtype), bias.to(dtype)
    with torch.inference_mode():
        padded = torch.nn.functional.pad(x, (0, 0, 0, 12, 0, 2))  # to 7 and 21
        padded = projection(padded).unflatten(-1, (3, 2, 8))
        expected = neighborhood_attention_qkv(padded, bias, kernel_size=7, dilation=(1, 3))[:, :5, :9]
        qkv, row = projection(x).unflatten(-1, (3, 2, 8)), projection.bias.view(3, 2, 8)
        found = neighborhood_attention_qkv(qkv, bias, row, kernel_size=7, dilation=(1, 3))
    assert found.dtype == dtype
    assert relative(found, expected.double().numpy()) < LIMIT[dtype]


def test_padding_changes_nothing_on_maps_that_are_large_enough():
    generator = torch.Generator().manual_seed(0)
    qkv, padding = torch.randn(2, 9, 8, 3, 2, 8, generator=generator), torch.randn(3, 2, 8, generator=generator)
    attributes = {"kernel_size": (3, 4), "dilation": (3, 2)}
    assert torch.equal(
        neighborhood_attention_qkv(qkv, None, padding, **attributes), neighborhood_attention_qkv(qkv, **attributes)
    )
    assert neighborhood_attention_qkv(qkv[:0, :2], None, padding, **attributes).shape == (0, 2, 8, 2, 8)


def test_the_operators_keep_pytorchs_rules():
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(2, 9, 8, 3, 2, 8, generator=generator)
    query, key, value = (torch.randn(2, 9, 8, 2, 8, generator=generator) for _ in range(3))
    bias = torch.randn(2, 5, 5, generator=generator)
    attributes = ([3, 3], [2, 1], [1, 2], [0, 1], 0.0)
    utilities = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    padding = torch.randn(3, 2, 8, generator=generator)
    for arguments in (
        (qkv, bias, None, *attributes),
        (qkv, None, None, *attributes),
        (qkv[:, :2].clone(), bias, padding, *attributes),
    ):
        torch.library.opcheck(torch.ops.na_deploy.neighborhood_attention_qkv, arguments, test_utils=utilities)
    extra = (torch.randn(2, 3, 2, 8, generator=generator), torch.randn(2, 3, 2, 5, generator=generator))
    narrow = torch.randn(2, 9, 8, 2, 5, generator=generator)
    for arguments in (
        (query, key, value, bias, None, None, *attributes),
        (query, key, narrow, None, *extra, *attributes),
        (query.half(), key.half(), value.half(), None, None, None, *attributes),
    ):
        torch.library.opcheck(torch.ops.na_deploy.neighborhood_attention, arguments, test_utils=utilities)


def test_misfits_of_packed_tensors_are_told_apart():
    qkv = torch.randn(1, 8, 8, 3, 2, 8)
    with pytest.raises(UsageError, match=r"9\*1 = 9 exceeds the length 8"):
        neighborhood_attention_qkv(qkv, kernel_size=9)
    with pytest.raises(UsageError, match=r"rel_pos_bias must have shape \(2, 5, 5\) .* got \(2, 7, 7\)"):
        neighborhood_attention_qkv(qkv, torch.randn(2, 7, 7), kernel_size=3)
    with pytest.raises(UsageError, match=r"qkv must be \(B, 2 spatial axes, 3, H, D\) .* got \(1, 8, 8, 4, 2, 8\)"):
        neighborhood_attention_qkv(torch.randn(1, 8, 8, 4, 2, 8), kernel_size=3)
    with pytest.raises(UsageError, match=r"padding must have shape \(3, 2, 8\) for this qkv, got \(2, 8\)"):
        neighborhood_attention_qkv(qkv, None, torch.randn(2, 8), kernel_size=9)
    with pytest.raises(UsageError, match="spatial axis 1 must have at least one position, got 0"):
        neighborhood_attention_qkv(qkv[:, :, :0], None, torch.randn(3, 2, 8), kernel_size=9)
    with pytest.raises(UsageError, match="1 to 3 spatial axes, got 0"):
        neighborhood_attention_qkv(torch.randn(1, 3, 2, 8), kernel_size=3)


FITTING = {
    "query": (2, 6, 8, 4, 8),
    "key": (2, 6, 8, 2, 8),
    "value": (2, 6, 8, 2, 5),
    "rel_pos_bias": (4, 5, 5),
    "additional_key": (2, 3, 2, 8),
    "additional_value": (2, 3, 2, 5),
}


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"query": (2, 6, 8, 3, 8)}, "3 heads, which is not a multiple of key's 2"),
        ({"key": (2, 8, 6, 2, 8)}, r"key must have shape \(2, 6, 8, Hkv, 8\) .* got \(2, 8, 6, 2, 8\)"),
        ({"key": (2, 9, 9, 2, 8)}, r"key must have shape \(2, 6, 8, Hkv, 8\)"),
        ({"key": (2, 48, 2, 8)}, r"key must have shape \(2, 6, 8, Hkv, 8\)"),
        ({"key": (1, 6, 8, 2, 8)}, r"key must have shape \(2, 6, 8, Hkv, 8\)"),
        ({"key": (2, 6, 8, 2, 4)}, r"key must have shape \(2, 6, 8, Hkv, 8\)"),
        ({"value": (2, 6, 8, 1, 5)}, r"value must have shape \(2, 6, 8, 2, Dv\)"),
        ({"value": (2, 9, 9, 2, 5)}, r"value must have shape \(2, 6, 8, 2, Dv\)"),
        ({"rel_pos_bias": (1, 5, 5)}, r"rel_pos_bias must have shape \(4, 5, 5\)"),
        ({"additional_key": (2, 3, 1, 8)}, r"additional_key must have shape \(2, M, 2, 8\)"),
        ({"additional_key": (1, 3, 2, 8)}, r"additional_key must have shape \(2, M, 2, 8\)"),
        ({"additional_value": (2, 4, 2, 5)}, r"additional_value must have shape \(2, 3, 2, 5\)"),
        ({"additional_value": None}, "give both or neither"),
        ({"additional_key": None}, "give both or neither"),
    ],
)
def test_misfits_of_separate_tensors_are_told_apart(changed: dict[str, tuple[int, ...] | None], sentence: str):
    tensors = {name: None if shape is None else torch.randn(shape) for name, shape in {**FITTING, **changed}.items()}
    with pytest.raises(UsageError, match=sentence):
        neighborhood_attention(**tensors, kernel_size=3)
    query, key, value = (tensors.pop(name) for name in ("query", "key", "value"))
    with pytest.raises(UsageError, match=sentence):
        reference_attention(query, key, value, NeighborhoodSpec.create(2, 3), **tensors)


@pytest.mark.parametrize(("lengths", "attributes"), PROBLEMS)
def test_a_few_tiles_at_a_time_give_the_same(
    lengths: tuple[int, ...], attributes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    random = np.random.default_rng(sum(lengths))
    spec = NeighborhoodSpec.create(len(lengths), **attributes)
    qkv = torch.from_numpy(random.standard_normal((2, *lengths, 3, 2, 8)))
    bias = torch.from_numpy(random.standard_normal((2, *(2 * kernel - 1 for kernel in spec.kernel_size))))
    whole = neighborhood_attention_qkv(qkv, bias, **attributes)
    monkeypatch.setattr(torch_tiles, "LARGE_SCORES", 64)
    np.testing.assert_allclose(neighborhood_attention_qkv(qkv, bias, **attributes), whole, atol=1e-12)
