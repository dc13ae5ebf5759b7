"""The modules of natten by version: functions, classes and the questions about its build that models ask.

Sources: natten's repository at 0.14.6, 0.15.1, 0.17.1, 0.17.5 and 0.21.6.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from na_deploy.exporter.natten_api import current, fused_017, modules, unfused
from na_deploy.exporter.natten_api.old_modules import old_modules

RELEASES = {"0.14": "0.14.6", "0.15": "0.15.1", "0.17": "0.17.5", "0.21": "0.21.7"}
"""Interfaces that can be offered, with the release whose version is told."""

MARK = "__na_deploy__"
"""An attribute of modules that stand in for natten's."""

_FUSED = ("has_fused_na", "has_fna")
_QUESTION = re.compile(r"(has|is|are)_[a-z]")
_SWITCH = re.compile(r"(use|enable|disable|set|allow|force)_[a-z]")
_OLD_PACKAGES = ("natten1d", "natten2d", "natten3d", "na1d", "na2d", "na3d", "experimental")


def interface_of(version: str) -> str:
    """Return the interface, one of :data:`RELEASES`, that a release of natten has."""
    parts = [int(part) for part in re.findall(r"\d+", version)[:2]]
    return "0.21" if parts >= [0, 20] else next((f"0.{m}" for m in (17, 15) if parts >= [0, m]), "0.14")


def question(name: str) -> Callable[..., Any]:
    """Return a function in the place of one that asks about natten's kernels or chooses among them.

    None of them changes results: natten's kernels never run.

    Raises:
        AttributeError: natten has no such functions.
    """
    if name in _FUSED:
        return lambda *_, **__: True
    if _QUESTION.match(name):
        return lambda *_, **__: False
    if _SWITCH.match(name):
        return lambda *_, **__: None
    if name.startswith("get_"):
        return lambda *_, **__: []
    raise AttributeError(f"module 'natten' has no attribute {name!r}")


def _type(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    return Any


def functions(version: str) -> dict[str, Callable[..., Any]]:
    """Return an interface's functions by name; the separate ones of 0.14 to 0.17 are in each."""
    fused = current.FUNCTIONS if version == "0.21" else fused_017.FUNCTIONS
    return {**unfused.FUNCTIONS, **fused}


def classes(version: str) -> dict[str, type[nn.Module]]:
    """Return an interface's modules by name."""
    if version == "0.21":
        return {name: getattr(modules, name) for name in (f"NeighborhoodAttention{rank}D" for rank in (1, 2, 3))}
    return old_modules(pads=version != "0.17")


def contents(version: str) -> dict[str, dict[str, Any]]:
    """Return the names of each module of natten, by the module's full name."""
    calls, layers = functions(version), classes(version)
    shared = {**calls, **layers, **AUTOGRAD}
    asked = {"__getattr__": question}
    return {
        "natten": {**calls, **layers, **asked, "HAS_LIBNATTEN": True, "__version__": RELEASES[version]},
        "natten.functional": {**calls, **AUTOGRAD, **asked},
        "natten.modules": dict(layers),
        "natten.context": dict(asked),
        "natten.types": {"__getattr__": _type},
        "natten.attn_merge": {"merge_attentions": calls.get("merge_attentions", current.merge_attentions)},
        "natten.version": {"__version__": RELEASES[version]},
        **{f"natten.{name}": {**shared, **asked} for name in _OLD_PACKAGES},
    }


# The classes of torch.autograd.Function that some models call directly.


def _scores(rank: int) -> Callable[..., Any]:
    def apply(query: Tensor, key: Tensor, bias: Any, additional_keys: Any, *sizes: Any) -> Any:
        if rank == 3 and len(sizes) == 4:  # 0.15: kernel_size_d, kernel_size, dilation_d, dilation
            return call_with_bias(query, key, bias, *sizes, additional_keys)
        kernel_size, dilation, *causal = sizes
        return call(query, key, kernel_size, dilation, additional_keys, *(causal or [False]), bias)

    call, call_with_bias = unfused.FUNCTIONS[f"na{rank}d_qk"], unfused.FUNCTIONS[f"na{rank}d_qk_with_bias"]
    return apply


def _values(rank: int) -> Callable[..., Any]:
    def apply(weights: Tensor, value: Tensor, additional_values: Any, *sizes: Any) -> Any:
        if rank == 3 and len(sizes) == 4:
            return call(weights, value, *sizes, additional_values)
        kernel_size, dilation, *causal = sizes
        return call(weights, value, kernel_size, dilation, additional_values, *causal)

    call = unfused.FUNCTIONS[f"na{rank}d_av"]
    return apply


def _fused(rank: int) -> Callable[..., Any]:
    def apply(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bias: Any,
        kernel_size: Any,
        dilation: Any,
        is_causal: Any,
        scale: float,
        *_: Any,
    ) -> Any:
        return call(query, key, value, kernel_size, dilation, is_causal, bias, scale)

    call = fused_017.FUNCTIONS[f"na{rank}d"]
    return apply


def _autograd() -> dict[str, type]:
    calls: dict[str, Callable[..., Any]] = {}
    for rank in (1, 2, 3):
        calls[f"NATTEN{rank}DQKRPBFunction"] = unfused.FUNCTIONS[f"natten{rank}dqkrpb"]
        calls[f"NATTEN{rank}DAVFunction"] = unfused.FUNCTIONS[f"natten{rank}dav"]
        calls[f"NeighborhoodAttention{rank}DQKAutogradFunction"] = _scores(rank)
        calls[f"NeighborhoodAttention{rank}DAVAutogradFunction"] = _values(rank)
        calls[f"FusedNeighborhoodAttention{rank}D"] = _fused(rank)
    return {name: type(name, (), {"apply": staticmethod(call)}) for name, call in calls.items()}


AUTOGRAD: dict[str, type] = _autograd()
"""Stand-ins for natten's autograd classes by name; only ``apply`` is there."""
