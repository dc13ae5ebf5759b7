"""The two functions of NATTEN 0.14 that transformers calls, in plain PyTorch; no current NATTEN has them."""

from __future__ import annotations

import torch
from torch import Tensor


def neighbours(length: int, kernel: int, dilation: int) -> Tensor:
    """Attended positions of every position on an axis, (length, kernel), as NATTEN 0.14 picks them."""
    rows = []
    for at in range(length):
        start = at - kernel // 2 * dilation
        if start < 0:
            start = at % dilation
        elif at + kernel // 2 * dilation >= length:
            last = length - 1 - (length - 1 - at % dilation) % dilation
            start = last - (kernel - 1) * dilation
        rows.append([start + step * dilation for step in range(kernel)])
    return torch.tensor(rows)


def natten2dqkrpb(query: Tensor, key: Tensor, rpb: Tensor, kernel_size: int, dilation: int) -> Tensor:
    """(B, heads, H, W, D) twice, (heads, 2K-1, 2K-1) -> (B, heads, H, W, K²)."""
    height, width = query.shape[2:4]
    rows, columns = neighbours(height, kernel_size, dilation), neighbours(width, kernel_size, dilation)
    keys = key[:, :, rows][:, :, :, :, columns]  # (B, h, H, K, W, K, D)
    scores = torch.einsum("bhijd,bhiajcd->bhijac", query, keys)
    row_bias = (rows - torch.arange(height)[:, None]) // dilation + kernel_size - 1
    column_bias = (columns - torch.arange(width)[:, None]) // dilation + kernel_size - 1
    bias = rpb[:, row_bias][:, :, :, column_bias]  # (h, H, K, W, K)
    return (scores + bias.permute(0, 1, 3, 2, 4)).flatten(-2)


def natten2dav(attention: Tensor, value: Tensor, kernel_size: int, dilation: int) -> Tensor:
    """(B, heads, H, W, K²), (B, heads, H, W, D) -> (B, heads, H, W, D)."""
    height, width = value.shape[2:4]
    rows, columns = neighbours(height, kernel_size, dilation), neighbours(width, kernel_size, dilation)
    values = value[:, :, rows][:, :, :, :, columns]
    weights = attention.unflatten(-1, (kernel_size, kernel_size))
    return torch.einsum("bhijac,bhiajcd->bhijd", weights, values)
