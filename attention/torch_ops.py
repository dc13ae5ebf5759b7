"""The two operators in PyTorch, which models call and the exporter turns into one ONNX node each.

Both are ``torch.library`` custom operators, opaque to tracing. In eager mode they run on tiles
(``attention/tiling.py``); :func:`use_implementation` selects another formulation, for verification and for benchmarks.
Gradients always run on tiles, as operators of their own, so that compiled training steps see one node too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from na_deploy.attention.shapes import check_additional_pair, check_packed, check_shapes
from na_deploy.attention.torch_gradients import tiled_gradients
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
        stride: number of neighbouring queries that share one window.
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
        stride: number of neighbouring queries that share one window.
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


def _register_gradients() -> None:
    """Give both operators their derivatives, once."""

    def keep_packed(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:3])
        ctx.attributes = inputs[3:]

    def packed(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        found = torch.ops.na_deploy.neighborhood_attention_qkv_gradients(grad, *ctx.saved_tensors, *ctx.attributes)
        return (*_given(ctx.saved_tensors, found), None, None, None, None, None)

    def keep_separate(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs[:6])
        ctx.attributes = inputs[6:]

    def separate(ctx: Any, grad: Tensor, grad_lse: Tensor) -> tuple[Tensor | None, ...]:
        found = torch.ops.na_deploy.neighborhood_attention_gradients(
            grad, grad_lse, *ctx.saved_tensors, *ctx.attributes
        )
        return (*_given(ctx.saved_tensors, found), None, None, None, None, None)

    _packed_op.register_autograd(packed, setup_context=keep_packed)
    _separate_op.register_autograd(separate, setup_context=keep_separate)


def _given(tensors: Sequence[Tensor | None], gradients: Sequence[Tensor]) -> list[Tensor | None]:
    return [None if tensor is None else own for tensor, own in zip(tensors, gradients, strict=True)]


@torch.library.custom_op(
    "na_deploy::neighborhood_attention_qkv_gradients",
    mutates_args=(),
    schema=f"(Tensor grad, Tensor qkv, Tensor? rel_pos_bias, Tensor? padding, {_ATTRIBUTES}) "
    "-> (Tensor, Tensor, Tensor)",
)
def _packed_gradients(
    grad: Tensor, qkv: Tensor, rel_pos_bias: Tensor | None, padding: Tensor | None, *attributes: Any
) -> tuple[Tensor, ...]:
    """Return the gradients of qkv, rel_pos_bias and padding; an empty tensor for each that was not given."""
    *of_window, scale = attributes
    spec = _spec(*of_window)
    query, key, value = qkv.unbind(-3)
    if padding is not None:
        key, value = (_filled_up(tensor, row, spec) for tensor, row in ((key, padding[1]), (value, padding[2])))
    d_query, d_key, d_value, d_bias, *_ = _gradients(
        spec, scale, grad, None, (query, key, value, rel_pos_bias, None, None)
    )
    own = (slice(None), *map(slice, query.shape[1:-2]))
    d_qkv = torch.stack([d_query, d_key[own], d_value[own]], dim=-3)
    if padding is None:
        return d_qkv, d_bias, qkv.new_empty(0)
    # A padding row stands at every position behind the map: its gradient is the sum over them. Its query is not used.
    beyond = [whole.flatten(0, -3).sum(0) - whole[own].flatten(0, -3).sum(0) for whole in (d_key, d_value)]
    d_padding = torch.stack([torch.zeros_like(beyond[0]), *beyond]).to(padding.dtype)
    return d_qkv, d_bias, d_padding


@torch.library.custom_op(
    "na_deploy::neighborhood_attention_gradients",
    mutates_args=(),
    schema="(Tensor grad, Tensor grad_lse, Tensor query, Tensor key, Tensor value, Tensor? rel_pos_bias, "
    f"Tensor? additional_key, Tensor? additional_value, {_ATTRIBUTES}) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _separate_gradients(grad: Tensor, grad_lse: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    """Return the gradients of the six tensors; an empty tensor for each that was not given."""
    return tuple(_gradients(_spec(*arguments[6:10]), arguments[10], grad, grad_lse, arguments[:6]))


def _fake_gradients(like: Tensor, tensors: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
    return tuple(
        like.new_empty(0) if tensor is None else torch.empty_like(tensor, memory_format=torch.contiguous_format)
        for tensor in tensors
    )


@_packed_gradients.register_fake
def _(grad: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    return _fake_gradients(grad, arguments[:3])


@_separate_gradients.register_fake
def _(grad: Tensor, grad_lse: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    return _fake_gradients(grad, arguments[:6])


def _gradients(
    spec: NeighborhoodSpec, scale: float, grad: Tensor, grad_lse: Tensor | None, tensors: Sequence[Tensor | None]
) -> list[Tensor]:
    """Widen, differentiate and narrow each gradient to its tensor's type."""
    query = tensors[0]
    assert query is not None
    wide = torch.float64 if query.dtype == torch.float64 else torch.float32
    first, second, third, *others = (None if tensor is None else tensor.to(wide) for tensor in tensors)
    assert first is not None and second is not None and third is not None  # noqa: PT018  # for the type checker
    found = tiled_gradients(
        grad.to(wide),
        None if grad_lse is None else grad_lse.to(wide),
        first,
        second,
        third,
        spec,
        scale or query.shape[-1] ** -0.5,
        others[0],
        others[1],
        others[2],
    )
    return [
        grad.new_empty(0) if tensor is None or own is None else own.to(tensor.dtype).contiguous()
        for tensor, own in zip(tensors, found, strict=True)
    ]


_register_gradients()


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
