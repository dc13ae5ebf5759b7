"""The two operators in PyTorch: what models call, what the exporter turns into one ONNX node each.

Both are ``torch.library`` custom operators, opaque to tracing. In eager mode they run on tiles
(``attention/tiling.py``); :func:`use_implementation` swaps in another formulation, for verification and for benchmarks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from na_deploy.attention.shapes import check_additional_pair, check_packed, check_shapes
from na_deploy.attention.tiling import plan_tiles
from na_deploy.attention.windows import NeighborhoodSpec

MASKED = -1e30

Implementation = Callable[
    [Tensor, Tensor, Tensor, NeighborhoodSpec, float, Tensor | None, Tensor | None, Tensor | None],
    tuple[Tensor, Tensor],
]
"""query, key, value, spec, scale, rel_pos_bias, additional_key, additional_value -> output, lse.

Shapes are those of :func:`neighborhood_attention`. Query, key and value are float32 or
float64, and key and value may hold fewer heads than query.
"""


def neighborhood_attention_qkv(
    qkv: Tensor,
    rel_pos_bias: Tensor | None = None,
    *,
    kernel_size: int | Sequence[int],
    dilation: int | Sequence[int] = 1,
    stride: int | Sequence[int] = 1,
    is_causal: bool | Sequence[bool] = False,
    scale: float | None = None,
) -> Tensor:
    """Neighborhood attention over a packed ``qkv`` (B, *X, 3, H, D), as one linear layer leaves it.

    Args:
        qkv: (B, *X, 3, H, D) with 1 to 3 spatial axes X.
        rel_pos_bias: (H, 2*K0-1, …), added to the scaled scores.
        kernel_size: window size, one number or one per axis; likewise the next three.
        dilation: distance between attended positions.
        stride: how many neighbouring queries share one window.
        is_causal: attend to no later position.
        scale: factor on the scores; ``None`` or 0 means D**-0.5.

    Returns:
        (B, *X, H, D) in qkv's type; scores, softmax and accumulation are float32 (float64 for float64 input).

    Raises:
        UsageError: shapes or attributes do not fit together.
    """
    spec = NeighborhoodSpec.create(qkv.dim() - 4, kernel_size, dilation, stride, is_causal)
    causal = [int(c) for c in spec.is_causal]
    return torch.ops.na_deploy.neighborhood_attention_qkv(  # type: ignore[no-any-return]
        qkv, rel_pos_bias, spec.kernel_size, spec.dilation, spec.stride, causal, float(scale or 0.0)
    )


def neighborhood_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rel_pos_bias: Tensor | None = None,
    additional_key: Tensor | None = None,
    additional_value: Tensor | None = None,
    *,
    kernel_size: int | Sequence[int],
    dilation: int | Sequence[int] = 1,
    stride: int | Sequence[int] = 1,
    is_causal: bool | Sequence[bool] = False,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Neighborhood attention over separate tensors, heads last.

    Args:
        query: (B, *X, H, D) with 1 to 3 spatial axes X.
        key: (B, *X, Hkv, D); H must be a multiple of Hkv.
        value: (B, *X, Hkv, Dv).
        rel_pos_bias: (H, 2*K0-1, …), added to the scaled scores.
        additional_key: (B, M, Hkv, D), attended by every query; needs ``additional_value``.
        additional_value: (B, M, Hkv, Dv).
        kernel_size: window size, one number or one per axis; likewise the next three.
        dilation: distance between attended positions.
        stride: how many neighbouring queries share one window.
        is_causal: attend to no later position.
        scale: factor on the scores; ``None`` or 0 means D**-0.5.

    Returns:
        The output (B, *X, H, Dv) in query's type and the natural-log ``lse`` (B, *X, H) in float32.

    Raises:
        UsageError: shapes or attributes do not fit together.
    """
    spec = NeighborhoodSpec.create(query.dim() - 3, kernel_size, dilation, stride, is_causal)
    check_additional_pair(additional_key is not None, additional_value is not None)
    causal = [int(c) for c in spec.is_causal]
    return torch.ops.na_deploy.neighborhood_attention(  # type: ignore[no-any-return]
        query,
        key,
        value,
        rel_pos_bias,
        additional_key,
        additional_value,
        spec.kernel_size,
        spec.dilation,
        spec.stride,
        causal,
        float(scale or 0.0),
    )


_ATTRIBUTES = "int[] kernel_size, int[] dilation, int[] stride, int[] is_causal, float scale"


@torch.library.custom_op(
    "na_deploy::neighborhood_attention_qkv",
    mutates_args=(),
    schema=f"(Tensor qkv, Tensor? rel_pos_bias, {_ATTRIBUTES}) -> Tensor",
)
def _packed_op(qkv: Tensor, rel_pos_bias: Tensor | None, kernel_size: Sequence[int], *attributes: Any) -> Tensor:
    check_packed(qkv.shape, len(kernel_size))
    query, key, value = qkv.unbind(-3)
    return _run(query, key, value, rel_pos_bias, None, None, kernel_size, *attributes)[0]


@_packed_op.register_fake
def _(qkv: Tensor, *_: Any) -> Tensor:
    return qkv.new_empty((*qkv.shape[:-3], *qkv.shape[-2:]))


@torch.library.custom_op(
    "na_deploy::neighborhood_attention",
    mutates_args=(),
    schema="(Tensor query, Tensor key, Tensor value, Tensor? rel_pos_bias, Tensor? additional_key, "
    f"Tensor? additional_value, {_ATTRIBUTES}) -> (Tensor, Tensor)",
)
def _separate_op(*arguments: Any) -> tuple[Tensor, Tensor]:
    return _run(*arguments)


@_separate_op.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    output = query.new_empty((*query.shape[:-1], value.shape[-1]))
    lse_type = torch.float64 if query.dtype == torch.float64 else torch.float32
    return output, query.new_empty(query.shape[:-1], dtype=lse_type)


def _run(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rel_pos_bias: Tensor | None,
    additional_key: Tensor | None,
    additional_value: Tensor | None,
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    stride: Sequence[int],
    is_causal: Sequence[int],
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Check the tensors, widen them and attend; the arguments are those of the operators' schemas."""
    spec = NeighborhoodSpec.create(
        len(kernel_size), tuple(kernel_size), tuple(dilation), tuple(stride), [bool(c) for c in is_causal]
    )
    tensors = (query, key, value, rel_pos_bias, additional_key, additional_value)
    check_shapes(spec, query.shape, *(None if tensor is None else tensor.shape for tensor in tensors[1:]))
    wide = torch.float64 if query.dtype == torch.float64 else torch.float32

    def widen(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.to(wide)

    output, lse = _implementation(
        query.to(wide),
        key.to(wide),
        value.to(wide),
        spec,
        scale or query.shape[-1] ** -0.5,
        widen(rel_pos_bias),
        widen(additional_key),
        widen(additional_value),
    )
    return output.to(query.dtype).contiguous(), lse.contiguous()


# --------------------------------------------------------------------------- implementations


@lru_cache(maxsize=64)
def _tile_tensors(
    lengths: tuple[int, ...], spec: NeighborhoodSpec, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    plan = plan_tiles(lengths, spec)
    tables = (plan.query, plan.key, plan.bias_index, plan.home)
    query, key, bias_index, home = (torch.from_numpy(table).to(device) for table in tables)
    mask = torch.from_numpy(plan.visible).to(device).logical_not() * MASKED  # (NT, Tq, Wk)
    return query, key, bias_index, home, mask.float()


def tiled(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    spec: NeighborhoodSpec,
    scale: float,
    rel_pos_bias: Tensor | None,
    additional_key: Tensor | None,
    additional_value: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Dense attention on tiles, masked inside; the default. See :data:`Implementation`."""
    batch, *lengths, heads, _ = query.shape
    query_at, key_at, bias_index, home, mask = _tile_tensors(tuple(lengths), spec, query.device)
    repeat = heads // key.shape[-2]

    def cut(tensor: Tensor, table: Tensor) -> Tensor:  # (B, *X, h, e) -> (B, NT, h, a, e)
        rows = tensor.flatten(1, -3).index_select(1, table.flatten())
        return rows.view(batch, *table.shape, *tensor.shape[-2:]).transpose(2, 3)

    def share(tensor: Tensor) -> Tensor:  # grouped-query heads
        return tensor.repeat_interleave(repeat, dim=2) if repeat > 1 else tensor

    bias = mask.to(query.dtype).unsqueeze(1)  # (NT, 1, Tq, Wk)
    if rel_pos_bias is not None:
        bias = bias + rel_pos_bias.flatten(1).index_select(1, bias_index.flatten()).view(
            heads, *bias_index.shape
        ).transpose(0, 1)
    queries, keys, values = cut(query, query_at) * scale, share(cut(key, key_at)), share(cut(value, key_at))
    scores = torch.matmul(queries, keys.transpose(-1, -2)) + bias
    if additional_key is not None and additional_value is not None:
        extra_key = share(additional_key.transpose(1, 2).unsqueeze(1))  # (B, 1, H, M, D)
        extra_value = share(additional_value.transpose(1, 2).unsqueeze(1))
        scores = torch.cat([scores, torch.matmul(queries, extra_key.transpose(-1, -2))], dim=-1)
        values = torch.cat([values, extra_value.expand(-1, values.shape[1], -1, -1, -1)], dim=-2)

    def restore(tensor: Tensor) -> Tensor:  # (B, NT, H, Tq, e) -> (B, *X, H, e)
        rows = tensor.transpose(2, 3).flatten(1, 2).index_select(1, home)
        return rows.view(batch, *lengths, heads, tensor.shape[-1])

    output = restore(torch.matmul(scores.softmax(-1), values))
    return output, restore(torch.logsumexp(scores, -1, keepdim=True)).squeeze(-1)


def dense(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    spec: NeighborhoodSpec,
    scale: float,
    rel_pos_bias: Tensor | None,
    additional_key: Tensor | None,
    additional_value: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Full attention with a dense mask, as without a neighborhood kernel. See :data:`Implementation`."""
    batch, *lengths, heads, _ = query.shape
    visible, bias_index = _dense_tensors(tuple(lengths), spec, query.device)
    repeat = heads // key.shape[-2]

    def rows(tensor: Tensor) -> Tensor:  # (B, …, h, e) -> (B, h, N, e)
        flat = tensor.flatten(1, -3) if tensor.dim() > 4 else tensor
        return flat.transpose(1, 2)

    queries = rows(query)
    keys, values = (rows(t).repeat_interleave(repeat, dim=1) for t in (key, value))
    bias = visible.logical_not().to(query.dtype) * MASKED
    if rel_pos_bias is not None:
        bias = bias + rel_pos_bias.flatten(1).index_select(1, bias_index.flatten()).view(heads, *bias_index.shape)
    scores = scale * torch.matmul(queries, keys.transpose(-1, -2)) + bias
    if additional_key is not None and additional_value is not None:
        extra_key, extra_value = (
            t.transpose(1, 2).repeat_interleave(repeat, dim=1) for t in (additional_key, additional_value)
        )
        scores = torch.cat([scores, scale * torch.matmul(queries, extra_key.transpose(-1, -2))], dim=-1)
        values = torch.cat([values, extra_value], dim=-2)
    output = torch.matmul(scores.softmax(-1), values)
    lse = torch.logsumexp(scores, -1)
    shape = (batch, *lengths, heads)
    return output.transpose(1, 2).reshape(*shape, values.shape[-1]), lse.transpose(1, 2).reshape(shape)


@lru_cache(maxsize=8)
def _dense_tensors(lengths: tuple[int, ...], spec: NeighborhoodSpec, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return (N, N) visibility and bias index of every pair of positions."""
    plan = plan_tiles(lengths, spec)
    count = plan.home.size
    visible = torch.zeros(count, count, dtype=torch.bool)
    index = torch.zeros(count, count, dtype=torch.int64)
    query = torch.from_numpy(plan.query).unsqueeze(2)
    key = torch.from_numpy(plan.key).unsqueeze(1)
    seen = torch.from_numpy(plan.visible)
    flat = (query * count + key)[seen]
    visible.view(-1)[flat] = True
    index.view(-1)[flat] = torch.from_numpy(plan.bias_index)[seen]
    return visible.to(device), index.to(device)


_implementation: Implementation = tiled


@contextmanager
def use_implementation(implementation: Implementation) -> Iterator[None]:
    """Run the operators through ``implementation`` inside the block; affects the whole process."""
    global _implementation
    previous, _implementation = _implementation, implementation
    try:
        yield
    finally:
        _implementation = previous
