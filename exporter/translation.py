"""Translation of our two operators by torch.onnx: one node each, with every attribute that runtimes need."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from onnxscript.values import Opset

from na_deploy.attention import torch_ops  # noqa: F401  (registers torch.ops.na_deploy)
from na_deploy.attention.schema import DOMAIN, PLUGIN_ATTRIBUTES, VERSION

_operators = Opset(DOMAIN, VERSION)


def _attributes(
    kernel_size: Sequence[int], dilation: Sequence[int], stride: Sequence[int], is_causal: Sequence[int], scale: float
) -> dict[str, Any]:
    return {
        "kernel_size": list(kernel_size),
        "dilation": list(dilation),
        "stride": list(stride),
        "is_causal": list(is_causal),
        "scale": float(scale),
        **PLUGIN_ATTRIBUTES,
    }


def _packed(
    qkv: Any,
    rel_pos_bias: Any,
    padding: Any,
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    stride: Sequence[int],
    is_causal: Sequence[int],
    scale: float,
) -> Any:
    attributes = _attributes(kernel_size, dilation, stride, is_causal, scale)
    return _operators.NeighborhoodAttentionQKV(qkv, rel_pos_bias, padding, **attributes)[0]  # [1] is lse


def _separate(
    query: Any,
    key: Any,
    value: Any,
    rel_pos_bias: Any,
    additional_key: Any,
    additional_value: Any,
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    stride: Sequence[int],
    is_causal: Sequence[int],
    scale: float,
) -> Any:
    attributes = _attributes(kernel_size, dilation, stride, is_causal, scale)
    return _operators.NeighborhoodAttention(
        query, key, value, rel_pos_bias, additional_key, additional_value, **attributes
    )


def translation_table() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Return ``custom_translation_table`` for ``torch.onnx.export``."""
    return {
        torch.ops.na_deploy.neighborhood_attention_qkv.default: _packed,
        torch.ops.na_deploy.neighborhood_attention.default: _separate,
    }
