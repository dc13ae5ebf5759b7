"""Neighborhood attention by definition, in float64: the yardstick for every other path.

Materialises the dense scores, so it is for tests and verification of small problems, never for speed.
"""

from __future__ import annotations

from functools import reduce
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from na_deploy.attention.shapes import check_additional_pair, check_packed, check_shapes
from na_deploy.attention.windows import IntArray, NeighborhoodSpec, axis_mask

FloatArray = NDArray[np.float64]


class AttentionResult(NamedTuple):
    """The operator's outputs: ``output`` (B, *X, H, Dv) and natural-log ``lse`` (B, *X, H)."""

    output: FloatArray
    lse: FloatArray


def reference_attention(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    spec: NeighborhoodSpec,
    *,
    scale: float | None = None,
    rel_pos_bias: ArrayLike | None = None,
    additional_key: ArrayLike | None = None,
    additional_value: ArrayLike | None = None,
) -> AttentionResult:
    """Return neighborhood attention computed in float64 from the definition.

    Args:
        query: (B, *X, H, D) with 1 to 3 spatial axes X.
        key: (B, *X, Hkv, D); H must be a multiple of Hkv.
        value: (B, *X, Hkv, Dv).
        spec: window attributes, one value per spatial axis.
        scale: factor on the scores; ``None`` or 0 means D**-0.5 (as in NATTEN).
        rel_pos_bias: (H, 2*K0-1, …), added to the scaled score at (key - query)/dilation + K - 1 on each axis.
        additional_key: (B, M, Hkv, D), attended by every query.
        additional_value: (B, M, Hkv, Dv).

    Raises:
        UsageError: shapes or attributes do not fit together.
    """
    q, k, v = (np.asarray(array, dtype=np.float64) for array in (query, key, value))
    optional = (rel_pos_bias, additional_key, additional_value)
    check_additional_pair(additional_key is not None, additional_value is not None)
    shapes = (None if array is None else np.shape(array) for array in optional)
    check_shapes(spec, q.shape, k.shape, v.shape, *shapes)
    batch, *lengths, heads, head_dim = q.shape
    groups = heads // k.shape[-2]
    tokens = int(np.prod(lengths))

    def rows(array: FloatArray, repeat: int) -> FloatArray:  # (B, …, h, d) -> (B, H, N, d)
        flat = array.reshape(batch, -1, array.shape[-2], array.shape[-1])
        return np.repeat(flat, repeat, axis=2).transpose(0, 2, 1, 3)

    with np.errstate(invalid="ignore"):
        scores = (scale or head_dim**-0.5) * rows(q, 1) @ rows(k, groups).transpose(0, 1, 3, 2)  # (B, H, N, N)
    if rel_pos_bias is not None:
        scores = scores + _dense_bias(np.asarray(rel_pos_bias, dtype=np.float64), lengths, spec)
    visible = _dense_mask(lengths, spec)
    scores = np.where(visible, scores, -np.inf)
    values = rows(v, groups)
    if additional_key is not None and additional_value is not None:
        extra_key, extra_value = (
            rows(np.asarray(array, dtype=np.float64), groups) for array in (additional_key, additional_value)
        )
        extra_scores = (scale or head_dim**-0.5) * rows(q, 1) @ extra_key.transpose(0, 1, 3, 2)
        scores = np.concatenate([scores, extra_scores], axis=-1)
        values = np.concatenate([values, extra_value], axis=-2)
        visible = np.concatenate([visible, np.ones((tokens, extra_value.shape[-2]), np.bool_)], axis=-1)

    with np.errstate(invalid="ignore", divide="ignore"):  # what is not finite is computed with like any number
        peak = scores.max(axis=-1, keepdims=True)
        peak = np.where(np.isneginf(peak), 0.0, peak)  # no key weighs anything
        weights = np.exp(scores - peak)
        total = weights.sum(axis=-1, keepdims=True)
        output = _weighted(weights / total, values, visible)  # (B, H, N, Dv)
        lse = (peak + np.log(total))[..., 0]  # (B, H, N)
    assert output.shape[2] == tokens
    return AttentionResult(
        output.transpose(0, 2, 1, 3).reshape(batch, *lengths, heads, values.shape[-1]),
        lse.transpose(0, 2, 1).reshape(batch, *lengths, heads),
    )


def reference_attention_qkv(
    qkv: ArrayLike,
    spec: NeighborhoodSpec,
    *,
    scale: float | None = None,
    rel_pos_bias: ArrayLike | None = None,
    padding: ArrayLike | None = None,
) -> AttentionResult:
    """Return :func:`reference_attention` of a packed ``qkv`` (B, *X, 3, H, D), as one linear layer leaves it.

    ``padding`` (3, H, D) is query, key and value of every position behind a map that is too small for its windows: the
    map is filled up with it to :meth:`NeighborhoodSpec.padded_lengths`, and the result is cropped.
    """
    packed = np.asarray(qkv, dtype=np.float64)
    shapes = (None if array is None else np.shape(array) for array in (rel_pos_bias, padding))
    check_packed(spec, packed.shape, *shapes, padded=padding is not None)
    inside = (slice(None), *map(slice, packed.shape[1:-3]))
    if padding is not None:
        row = np.asarray(padding, dtype=np.float64)
        lengths = spec.padded_lengths(packed.shape[1:-3])
        whole = np.broadcast_to(row, (packed.shape[0], *lengths, *row.shape)).copy()
        whole[inside] = packed
        packed = whole
    query, key, value = (packed[..., part, :, :] for part in range(3))
    output, lse = reference_attention(query, key, value, spec, scale=scale, rel_pos_bias=rel_pos_bias)
    return AttentionResult(output[inside], lse[inside])


def _weighted(weights: FloatArray, values: FloatArray, visible: NDArray[np.bool_]) -> FloatArray:
    """Return ``weights @ values``, without the products of zero and infinity of keys that are not seen."""
    if np.isfinite(values).all():
        return weights @ values
    sums = [weights[..., at : at + 1, seen] @ values[..., seen, :] for at, seen in enumerate(visible)]
    return np.concatenate(sums, axis=-2)


def _dense_mask(lengths: list[int], spec: NeighborhoodSpec) -> NDArray[np.bool_]:
    """Return (N, N) booleans over flattened positions, the product of the axes' masks."""
    per_axis = (
        axis_mask(*arguments)
        for arguments in zip(lengths, spec.kernel_size, spec.dilation, spec.stride, spec.is_causal, strict=True)
    )
    return reduce(lambda left, right: np.kron(left, right), per_axis)


def _dense_bias(bias: FloatArray, lengths: list[int], spec: NeighborhoodSpec) -> FloatArray:
    """Return (H, N, N): the relative position bias of every pair; pairs outside the window hold no meaning."""
    expected = tuple(2 * kernel - 1 for kernel in spec.kernel_size)
    rank = spec.rank
    indices: list[IntArray] = []
    for axis, (length, kernel, step) in enumerate(zip(lengths, spec.kernel_size, spec.dilation, strict=True)):
        position = np.arange(length, dtype=np.int64)
        distance = (position[None, :] - position[:, None]) // step + kernel - 1
        shape = [1] * (2 * rank)
        shape[axis], shape[rank + axis] = length, length
        indices.append(np.clip(distance, 0, 2 * kernel - 2).reshape(shape))
    tokens = int(np.prod(lengths))
    flat = np.ravel_multi_index(tuple(np.broadcast_arrays(*indices)), expected)
    return bias.reshape(bias.shape[0], -1)[:, flat].reshape(bias.shape[0], tokens, tokens)
