"""natten up to 0.17: scores and values in separate calls, heads first. One order of arguments per generation.

0.14: ``natten*dqkrpb``, ``natten*dav`` (before 0.14.5 without kernel_size); 0.15: ``na*d_qk``, ``na*d_qk_with_bias``,
``na*d_av``; 0.17: ``na*d_qk`` and ``na*d_av`` with is_causal and rpb. Additional keys are (B, heads, M, head_dim).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from na_deploy.exporter.natten_api import window_ops  # noqa: F401  (registers the operators)
from na_deploy.exporter.natten_api.calls import unsupported

Axes = int | Sequence[int]


def _each(value: Any, rank: int) -> list[int]:
    return [int(v) for v in value] if isinstance(value, Sequence) else [int(value)] * rank


def _root(count: int, rank: int) -> int:
    side: int = round(float(count) ** (1 / rank))
    return side


def _scores(
    call: str,
    rank: int,
    query: Tensor,
    key: Tensor,
    bias: Tensor | None,
    kernel: Axes,
    dilation: Axes,
    causal: Any = False,
    more: Tensor | None = None,
) -> Tensor:
    if query.dim() != rank + 3:
        raise unsupported(
            call, f"query has {query.dim()} dimensions", f"give (B, heads, {rank} spatial axes, head_dim)"
        )
    sizes = (_each(kernel, rank), _each(dilation, rank), _each(causal or False, rank))
    return torch.ops.na_deploy.window_scores(query, key, bias, more, *sizes)  # type: ignore[no-any-return]


def _values(
    rank: int,
    weights: Tensor,
    value: Tensor,
    kernel: Axes,
    dilation: Axes,
    causal: Any = False,
    more: Tensor | None = None,
) -> Tensor:
    sizes = (_each(kernel, rank), _each(dilation, rank), _each(causal or False, rank))
    return torch.ops.na_deploy.window_values(weights, value, more, *sizes)  # type: ignore[no-any-return]


def _qk(rank: int) -> Callable[..., Tensor]:
    call = f"na{rank}d_qk"

    def function(
        query: Tensor,
        key: Tensor,
        kernel_size: Axes,
        dilation: Axes = 1,
        additional_keys: Tensor | None = None,
        is_causal: Any = False,
        rpb: Tensor | None = None,
    ) -> Tensor:
        return _scores(call, rank, query, key, rpb, kernel_size, dilation, is_causal, additional_keys)

    return function


def _qk_with_bias(rank: int) -> Callable[..., Tensor]:
    call = f"na{rank}d_qk_with_bias"

    def function(
        query: Tensor,
        key: Tensor,
        bias: Tensor | None,
        kernel_size: Axes,
        dilation: Axes = 1,
        additional_keys: Tensor | None = None,
    ) -> Tensor:
        return _scores(call, rank, query, key, bias, kernel_size, dilation, False, additional_keys)

    return function


def _av(rank: int) -> Callable[..., Tensor]:
    def function(
        attn: Tensor,
        value: Tensor,
        kernel_size: Axes,
        dilation: Axes = 1,
        additional_values: Tensor | None = None,
        is_causal: Any = False,
    ) -> Tensor:
        return _values(rank, attn, value, kernel_size, dilation, is_causal, additional_values)

    return function


def _by_depth(current: Callable[..., Tensor], before: int) -> Callable[..., Tensor]:
    """Return a 3-D function that also takes 0.15's sizes: (kernel_size_d, kernel_size, dilation_d, dilation, …).

    ``before`` tensors stand in front of the sizes. In 0.17 the third argument after them is a tensor, or a flag.
    """
    names = ("kernel_size_d", "kernel_size", "dilation_d", "dilation")

    def function(*arguments: Any, **named: Any) -> Tensor:
        tensors, rest = arguments[:before], arguments[before:]
        depth = "kernel_size_d" in named or (len(rest) > 2 and type(rest[2]) is int)
        if not depth:
            return current(*arguments, **named)
        given = dict(zip(names, rest, strict=False)) | {name: named.pop(name) for name in names if name in named}
        kernel = (given["kernel_size_d"], given["kernel_size"], given["kernel_size"])
        steps = (given["dilation_d"], given["dilation"], given["dilation"])
        return current(*tensors, kernel, steps, *rest[4:], **named)

    return function


def _old_qkrpb(rank: int) -> Callable[..., Tensor]:
    call = f"natten{rank}dqkrpb"

    def function(query: Tensor, key: Tensor, rpb: Tensor, kernel_size: int, dilation: int | None = None) -> Tensor:
        if dilation is None:  # before 0.14.5: (query, key, rpb, dilation)
            kernel_size, dilation = (rpb.shape[1] + 1) // 2, kernel_size
        return _scores(call, rank, query, key, rpb, kernel_size, dilation)

    return function


def _old_qk(rank: int) -> Callable[..., Tensor]:
    def function(query: Tensor, key: Tensor, kernel_size: int, dilation: int) -> Tensor:
        return _scores(f"natten{rank}dqk", rank, query, key, None, kernel_size, dilation)

    return function


def _old_av(rank: int) -> Callable[..., Tensor]:
    def function(attn: Tensor, value: Tensor, kernel_size: int, dilation: int | None = None) -> Tensor:
        if dilation is None:  # before 0.14.5: (attn, value, dilation)
            kernel_size, dilation = _root(attn.shape[-1], rank), kernel_size
        return _values(rank, attn, value, kernel_size, dilation)

    return function


def _natten3dqkrpb(
    query: Tensor, key: Tensor, rpb: Tensor | None, kernel_size_d: int, kernel_size: int, dilation_d: int, dilation: int
) -> Tensor:
    kernel, steps = (kernel_size_d, kernel_size, kernel_size), (dilation_d, dilation, dilation)
    return _scores("natten3dqkrpb", 3, query, key, rpb, kernel, steps)


def _natten3dqk(
    query: Tensor, key: Tensor, kernel_size_d: int, kernel_size: int, dilation_d: int, dilation: int
) -> Tensor:
    return _natten3dqkrpb(query, key, None, kernel_size_d, kernel_size, dilation_d, dilation)


def _natten3dav(
    attn: Tensor, value: Tensor, kernel_size_d: int, kernel_size: int, dilation_d: int, dilation: int
) -> Tensor:
    kernel, steps = (kernel_size_d, kernel_size, kernel_size), (dilation_d, dilation, dilation)
    return _values(3, attn, value, kernel, steps)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{f"na{rank}d_qk": _qk(rank) for rank in (1, 2)},
    **{f"na{rank}d_qk_with_bias": _qk_with_bias(rank) for rank in (1, 2)},
    **{f"na{rank}d_av": _av(rank) for rank in (1, 2)},
    "na3d_qk": _by_depth(_qk(3), 2),
    "na3d_qk_with_bias": _by_depth(_qk_with_bias(3), 3),
    "na3d_av": _by_depth(_av(3), 2),
    **{f"natten{rank}dqkrpb": _old_qkrpb(rank) for rank in (1, 2)},
    **{f"natten{rank}dqk": _old_qk(rank) for rank in (1, 2)},
    **{f"natten{rank}dav": _old_av(rank) for rank in (1, 2)},
    "natten3dqkrpb": _natten3dqkrpb,
    "natten3dqk": _natten3dqk,
    "natten3dav": _natten3dav,
}
"""Replacements of natten's functions, by name."""
for _name, _function in FUNCTIONS.items():
    _function.__name__ = _function.__qualname__ = _name
