"""natten up to 0.17: the unfused pairs, which have no exported form yet; each call says so and what to use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from na_deploy.exporter.natten_api.calls import unsupported

_PAIRS = [(f"natten{rank}dqk", f"natten{rank}dav", rank) for rank in (1, 2, 3)]
_PAIRS += [(f"natten{rank}dqkrpb", f"natten{rank}dav", rank) for rank in (1, 2, 3)]
_PAIRS += [(f"na{rank}d_qk", f"na{rank}d_av", rank) for rank in (1, 2, 3)]
_PAIRS += [(f"na{rank}d_qk_with_bias", f"na{rank}d_av", rank) for rank in (1, 2, 3)]


def _refusing(name: str, rank: int) -> Callable[..., Any]:
    def function(*_: Any, **__: Any) -> Any:
        nearest = f"use na{rank}d(query, key, value, kernel_size, …) of natten 0.17 (with rpb=) or later instead"
        raise unsupported(name, "scores and values in separate calls are not exported yet", nearest)

    function.__name__ = function.__qualname__ = name
    return function


FUNCTIONS: dict[str, Callable[..., Any]] = {
    name: _refusing(name, rank) for scores, values, rank in _PAIRS for name in (scores, values)
}
"""What replaces natten's functions, by their names."""
