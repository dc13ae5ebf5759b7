"""The two operators in PyTorch: what models call, what the exporter turns into one ONNX node each.

Both are ``torch.library`` custom operators, opaque to tracing. In eager mode they run on tiles
(``attention/tiling.py``); :func:`use_implementation` swaps in another formulation, for verification and for benchmarks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from na_deploy.attention.shapes import check_additional_pair, check_packed, check_shapes
from na_deploy.attention.torch_tiles import Implementation, tiled
from na_deploy.attention.windows import NeighborhoodSpec


def neighborhood_attention_qkv(
    qkv: Tensor,
    rel_pos_bias: Tensor | None = None,
    padding: Tensor | None = None,
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
        padding: (3, H, D), query, key and value of the positions behind a map that is too small for its windows;
            without it such maps are refused.
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
        qkv, rel_pos_bias, padding, spec.kernel_size, spec.dilation, spec.stride, causal, float(scale or 0.0)
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
    schema=f"(Tensor qkv, Tensor? rel_pos_bias, Tensor? padding, {_ATTRIBUTES}) -> Tensor",
)
def _packed_op(qkv: Tensor, rel_pos_bias: Tensor | None, padding: Tensor | None, *attributes: Any) -> Tensor:
    *of_window, scale = attributes
    spec = _spec(*of_window)
    shapes = (None if tensor is None else tensor.shape for tensor in (rel_pos_bias, padding))
    check_packed(spec, qkv.shape, *shapes, padded=padding is not None)
    query, key, value = qkv.unbind(-3)
    if padding is not None:
        key, value = (_filled_up(tensor, row, spec) for tensor, row in ((key, padding[1]), (value, padding[2])))
    return _attend(spec, scale, query, key, value, rel_pos_bias)[0]


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
    tensors, of_window, scale = arguments[:6], arguments[6:10], arguments[10]
    spec = _spec(*of_window)
    query, *others = tensors
    check_shapes(spec, query.shape, *(None if tensor is None else tensor.shape for tensor in others))
    return _attend(spec, scale, *tensors)


@_separate_op.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    output = query.new_empty((*query.shape[:-1], value.shape[-1]))
    lse_type = torch.float64 if query.dtype == torch.float64 else torch.float32
    return output, query.new_empty(query.shape[:-1], dtype=lse_type)


def _spec(
    kernel_size: Sequence[int], dilation: Sequence[int], stride: Sequence[int], is_causal: Sequence[int]
) -> NeighborhoodSpec:
    causal = [bool(c) for c in is_causal]
    return NeighborhoodSpec.create(len(kernel_size), tuple(kernel_size), tuple(dilation), tuple(stride), causal)


def _filled_up(tensor: Tensor, row: Tensor, spec: NeighborhoodSpec) -> Tensor:
    """Return keys or values (B, *X, H, D) with ``row`` (H, D) behind the map as far as windows reach."""
    lengths = tensor.shape[1:-2]
    padded = spec.padded_lengths(lengths)
    if padded == tuple(lengths):
        return tensor
    whole = row.to(tensor.dtype).expand(tensor.shape[0], *padded, *row.shape).clone()
    whole[(slice(None), *map(slice, lengths))] = tensor
    return whole


def _attend(
    spec: NeighborhoodSpec,
    scale: float,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rel_pos_bias: Tensor | None = None,
    additional_key: Tensor | None = None,
    additional_value: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Widen checked tensors and attend."""
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
