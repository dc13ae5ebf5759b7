"""natten 0.20 and later: na1d, na2d, na3d, neighborhood_attention_generic, attention and merge_attentions.

Signatures are natten 0.21's. Arguments that choose among natten's kernels (backend, tiles, schedules) do not change
results and are ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from na_deploy.attention.shapes import check_additional_pair, check_shapes
from na_deploy.attention.torch_ops import neighborhood_attention
from na_deploy.attention.windows import NeighborhoodSpec
from na_deploy.errors import UsageError
from na_deploy.exporter.natten_api.calls import call_site, unsupported

Axes = int | Sequence[int]
KERNEL_CHOICES = {
    *("backend", "attention_kwargs", "torch_compile", "run_persistent_kernel", "kernel_schedule"),
    *("q_tile_shape", "kv_tile_shape", "backward_q_tile_shape", "backward_kv_tile_shape", "backward_kv_splits"),
    *("q_tile_size", "kv_tile_size", "backward_q_tile_size", "backward_kv_tile_size", "backward_use_pt_reduction"),
}
"""Arguments without influence on the result."""


def attend(
    call: str,
    rank: int,
    tensors: tuple[Tensor, Tensor, Tensor],
    attributes: dict[str, Any],
    scale: float | None,
    rel_pos_bias: Tensor | None,
    additional: tuple[Tensor | None, Tensor | None],
) -> tuple[Tensor, Tensor]:
    """Check a call's shapes where they are known and run the operator; errors say where the call stands.

    Raises:
        UsageError: names the call, its file and line, and what does not fit.
    """
    try:
        spec = NeighborhoodSpec.create(rank, **attributes)
        check_additional_pair(additional[0] is not None, additional[1] is not None)
        shapes = [_known(tensor) for tensor in (*tensors[1:], rel_pos_bias, *additional)]
        check_shapes(spec, _known(tensors[0]) or (), *shapes)
    except UsageError as error:
        raise UsageError(f"{call} at {call_site()}: {error}") from None
    return neighborhood_attention(*tensors, rel_pos_bias, *additional, scale=scale, **attributes)


def _known(tensor: Tensor | None) -> tuple[int | None, ...] | None:
    return None if tensor is None else tuple(size if isinstance(size, int) else None for size in tensor.shape)


def _run(
    call: str,
    rank: int,
    tensors: tuple[Tensor, Tensor, Tensor],
    attributes: dict[str, Any],
    scale: float | None,
    additional: tuple[Tensor | None, Tensor | None],
    return_lse: bool,
    kernel_choices: dict[str, Any],
) -> Tensor | tuple[Tensor, Tensor]:
    _refuse_unknown(call, kernel_choices)
    output, lse = attend(call, rank, tensors, attributes, scale, None, additional)
    return (output, lse) if return_lse else output


def _refuse_unknown(call: str, given: dict[str, Any]) -> None:
    for name in given.keys() - KERNEL_CHOICES:
        nearest = "natten 0.20 and later have no such argument; rel_pos_bias needs the 0.17 API (rpb=)"
        raise unsupported(call, f"unknown argument {name!r}", nearest)


def _made(name: str, rank: int | None) -> Callable[..., Any]:
    """Return one of natten's functions; without ``rank`` it takes queries of any."""

    def function(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kernel_size: Axes,
        stride: Axes = 1,
        dilation: Axes = 1,
        is_causal: bool | Sequence[bool] | None = False,
        scale: float | None = None,
        additional_keys: Tensor | None = None,
        additional_values: Tensor | None = None,
        attention_kwargs: dict[str, Any] | None = None,
        *,
        return_lse: bool = False,
        **kernel_choices: Any,
    ) -> Tensor | tuple[Tensor, Tensor]:
        attributes = {"kernel_size": kernel_size, "stride": stride, "dilation": dilation}
        attributes["is_causal"] = is_causal or False
        additional = (additional_keys, additional_values)
        axes = query.dim() - 3 if rank is None else rank
        return _run(name, axes, (query, key, value), attributes, scale, additional, return_lse, kernel_choices)

    function.__name__ = function.__qualname__ = name
    dimensions = "" if rank is None else f"{rank}-D "
    function.__doc__ = f"{dimensions}neighborhood attention over heads-last tensors; see natten's ``{name}``."
    return function


na1d, na2d, na3d = (_made(f"na{rank}d", rank) for rank in (1, 2, 3))
neighborhood_attention_generic = _made("neighborhood_attention_generic", None)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    is_causal: bool = False,
    scale: float | None = None,
    *,
    return_lse: bool = False,
    **others: Any,
) -> Tensor | tuple[Tensor, Tensor]:
    """Full attention over (B, N, H, D), with fewer key heads allowed; written with standard operators.

    Returns:
        (B, N, H, Dv) in query's type and, if asked for, the natural-log lse (B, N, H) in float32.

    Raises:
        UsageError: sequences of variable length, which have no exported form.
    """
    for name, given in others.items():
        if "seqlen" in name.lower() and given is not None:
            raise unsupported("attention", f"{name} is not supported", "pad the sequences to one length instead")
    _refuse_unknown("attention", {name: v for name, v in others.items() if "seqlen" not in name.lower()})
    repeat = query.shape[2] // key.shape[2]
    rows = query.float().transpose(1, 2) * (scale or query.shape[-1] ** -0.5)  # (B, H, N, D)
    keys, values = (t.float().repeat_interleave(repeat, dim=2).transpose(1, 2) for t in (key, value))
    scores = rows @ keys.transpose(-1, -2)  # (B, H, N, M)
    if is_causal:
        visible = torch.arange(query.shape[1]).unsqueeze(1) >= torch.arange(key.shape[1])
        scores = scores.masked_fill(~visible.to(scores.device), -1e30)
    output = (scores.softmax(-1) @ values).transpose(1, 2).to(query.dtype)
    return (output, torch.logsumexp(scores, -1).transpose(1, 2)) if return_lse else output


def merge_attentions(
    outputs: list[Tensor], lse_tensors: list[Tensor], torch_compile: bool = True, use_autograd_fix: bool = True
) -> tuple[Tensor, Tensor]:
    """Join attentions of one query over separate keys, as if the keys had been concatenated.

    Args:
        outputs: each (B, N, H, D).
        lse_tensors: the natural-log lse of each, (B, N, H).
        torch_compile: ignored.
        use_autograd_fix: ignored.
    """
    if len(outputs) < 2 or len(outputs) != len(lse_tensors):
        given = f"{len(outputs)} outputs and {len(lse_tensors)} lse tensors"
        raise unsupported("merge_attentions", given, "give at least two outputs with one lse each")
    lse = torch.stack([tensor.float() for tensor in lse_tensors])  # (S, B, N, H)
    total = torch.logsumexp(lse, 0)
    weights = torch.exp(lse - total).unsqueeze(-1)
    merged = (torch.stack([output.float() for output in outputs]) * weights).sum(0)
    return merged.to(outputs[0].dtype), total


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "na1d": na1d,
    "na2d": na2d,
    "na3d": na3d,
    "neighborhood_attention_generic": neighborhood_attention_generic,
    "attention": attention,
    "merge_attentions": merge_attentions,
}
"""Replacements of natten's functions, by name."""
