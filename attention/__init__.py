"""Neighborhood attention: windows, reference, tiling, ONNX schema, cost. Only ``torch_*`` files need PyTorch."""

from na_deploy.attention.reference import AttentionResult, reference_attention, reference_attention_qkv
from na_deploy.attention.windows import NeighborhoodSpec, attended_positions, axis_mask, window_bounds

__all__ = [
    "AttentionResult",
    "NeighborhoodSpec",
    "attended_positions",
    "axis_mask",
    "reference_attention",
    "reference_attention_qkv",
    "window_bounds",
]
