"""natten 0.17: the fused na1d, na2d and na3d, whose positional order differs from later versions; with ``rpb``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from na_deploy.exporter.natten_api.current import attend


def _fixed_rank(rank: int) -> Callable[..., Any]:
    name = f"na{rank}d"

    def function(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kernel_size: int | Sequence[int],
        dilation: int | Sequence[int] = 1,
        is_causal: bool | Sequence[bool] | None = False,
        rpb: Tensor | None = None,
        scale: float | None = None,
        additional_keys: Tensor | None = None,
        additional_values: Tensor | None = None,
        xformers_kwargs: dict[str, Any] | None = None,
    ) -> Tensor:
        attributes = {"kernel_size": kernel_size, "dilation": dilation, "is_causal": is_causal or False}
        additional = (additional_keys, additional_values)
        return attend(name, rank, (query, key, value), attributes, scale, rpb, additional)[0]

    function.__name__ = function.__qualname__ = name
    function.__doc__ = f"natten 0.17's fused ``{name}`` over heads-last tensors, with an optional relative bias."
    return function


FUNCTIONS: dict[str, Callable[..., Any]] = {f"na{rank}d": _fixed_rank(rank) for rank in (1, 2, 3)}
"""Replacements of natten's functions, by name."""
