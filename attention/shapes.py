"""The rules of shapes: one statement for the reference, the PyTorch operators and ONNX shape inference.

Sizes may be unknown (a symbol, or ``None``): a rule is broken only by sizes that are known.
"""

from __future__ import annotations

from collections.abc import Sequence

from na_deploy.attention.windows import NeighborhoodSpec
from na_deploy.errors import UsageError

Shape = Sequence[int | str | None]
"""Sizes: a number, a symbol, or unknown."""


def check_packed(
    spec: NeighborhoodSpec,
    qkv: Shape,
    rel_pos_bias: Shape | None = None,
    padding: Shape | None = None,
    *,
    padded: bool = False,
) -> None:
    """Raise unless ``qkv`` is (B, *X, 3, H, D), the others fit it and every window fits its axis.

    ``padded`` states that there is a padding, of known shape or not; windows may then be longer than their axis.

    Raises:
        UsageError: says what was expected and what was given.
    """
    if len(qkv) != spec.rank + 4 or not _may_be(qkv[-3], 3):
        raise UsageError(
            f"qkv must be (B, {spec.rank} spatial axes, 3, H, D) for this kernel_size, got {shape_text(qkv)}"
        )
    check_shapes(spec, [*qkv[:-3], *qkv[-2:]], rel_pos_bias=rel_pos_bias, padded=padded)
    _check("padding", padding, [3, *qkv[-2:]], "qkv")


def check_shapes(
    spec: NeighborhoodSpec,
    query: Shape,
    key: Shape | None = None,
    value: Shape | None = None,
    rel_pos_bias: Shape | None = None,
    additional_key: Shape | None = None,
    additional_value: Shape | None = None,
    *,
    padded: bool = False,
) -> None:
    """Raise unless the tensors fit each other and every window fits its axis; ``None`` is absent or unknown.

    ``padded`` says that windows may be longer than their axis: :func:`check_packed` knows why.

    Raises:
        UsageError: names the tensor, the shape it should have and the shape it has.
    """
    if len(query) != spec.rank + 3:
        raise UsageError(
            f"query must be (B, {spec.rank} spatial axes, H, D) for this kernel_size, got {shape_text(query)}"
        )
    batch, *lengths, heads, head_dim = query
    if padded:
        _check_not_empty(lengths)
    else:
        # An axis of unknown length is taken to be just long enough.
        spec.check_lengths(
            [
                length if isinstance(length, int) else kernel * step
                for length, kernel, step in zip(lengths, spec.kernel_size, spec.dilation, strict=True)
            ]
        )
    _check("key", key, [batch, *lengths, "Hkv", head_dim], "query")
    key_heads = "Hkv" if key is None else key[-2]
    if isinstance(heads, int) and isinstance(key_heads, int) and (key_heads == 0 or heads % key_heads):
        raise UsageError(f"query has {heads} heads, which is not a multiple of key's {key_heads}")
    _check("value", value, [batch, *lengths, key_heads, "Dv"], "key")
    _check("rel_pos_bias", rel_pos_bias, [heads, *(2 * kernel - 1 for kernel in spec.kernel_size)], "window")
    _check("additional_key", additional_key, [batch, "M", key_heads, head_dim], "key")
    count = "M" if additional_key is None else additional_key[1]
    width = "Dv" if value is None else value[-1]
    _check("additional_value", additional_value, [batch, count, key_heads, width], "value")


def _check_not_empty(lengths: Shape) -> None:
    for axis, length in enumerate(lengths):
        if length == 0:
            raise UsageError(f"spatial axis {axis} must have at least one position, got 0")


def check_additional_pair(key_given: bool, value_given: bool) -> None:
    """Raise unless additional keys come with their values.

    Raises:
        UsageError: one is there without the other.
    """
    if key_given != value_given:
        raise UsageError("additional_key and additional_value go together: give both or neither")


def shape_text(shape: Shape) -> str:
    """Return a shape as people write it; unknown sizes are question marks."""
    return f"({', '.join('?' if size is None else str(size) for size in shape)})"


def _check(name: str, found: Shape | None, expected: Shape, fitting: str) -> None:
    if found is not None and (len(found) != len(expected) or not all(map(_may_be, found, expected))):
        raise UsageError(f"{name} must have shape {shape_text(expected)} for this {fitting}, got {shape_text(found)}")


def _may_be(found: int | str | None, expected: int | str | None) -> bool:
    """Return whether two sizes can be the same."""
    return found == expected or not (isinstance(found, int) and isinstance(expected, int))
