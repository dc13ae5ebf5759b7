"""NeighborhoodAttention1D, 2D and 3D as natten 0.14 to 0.17 had them, for machines without natten.

Up to 0.15 (``bias``) maps smaller than a window are attended to as if padded right and bottom with zeros before the
projection; 0.17 (``rel_pos_bias``, off by default) refuses them. Weights are named as natten names them: ``qkv``,
``rpb``, ``proj``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from na_deploy.attention.torch_ops import neighborhood_attention_qkv
from na_deploy.attention.torch_padding import projected_zeros


class _OldNeighborhoodAttention(nn.Module):
    rank: int
    pads: bool

    def __init__(
        self,
        dim: int,
        num_heads: int,
        kernel_size: int | Sequence[int],
        dilation: int | Sequence[int] = 1,
        is_causal: bool | Sequence[bool] = False,
        rel_pos_bias: bool = False,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.kernel_size = _each(kernel_size, self.rank)
        self.dilation = _each(dilation or 1, self.rank)
        self.is_causal, self.scale = is_causal, qk_scale
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        shape = [num_heads, *(2 * size - 1 for size in self.kernel_size)]
        self.rpb = nn.Parameter(torch.zeros(shape)) if rel_pos_bias else None
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        """Attend over (B, *X, C)."""
        reach = [kernel * dilation for kernel, dilation in zip(self.kernel_size, self.dilation, strict=True)]
        padding = projected_zeros(self.qkv, self.num_heads, x.shape[1:-1], reach) if self.pads else None
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))
        output = neighborhood_attention_qkv(
            qkv,
            self.rpb,
            padding,
            kernel_size=self.kernel_size,
            dilation=self.dilation,
            is_causal=self.is_causal,
            scale=self.scale,
        )
        return self.proj_drop(self.proj(output.flatten(-2)))  # type: ignore[no-any-return]


def _each(value: int | Sequence[int], rank: int) -> tuple[int, ...]:
    return (value,) * rank if isinstance(value, int) else tuple(value)


class _Padding(_OldNeighborhoodAttention):
    """0.14 and 0.15: a bias by default, and the order of arguments of the time."""

    pads = True

    def __init__(
        self,
        dim: int,
        num_heads: int,
        kernel_size: int,
        dilation: int = 1,
        bias: bool = True,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__(dim, num_heads, kernel_size, dilation, False, bias, qkv_bias, qk_scale, attn_drop, proj_drop)


class _Padding3D(_Padding):
    """0.14 and 0.15's third axis had sizes of its own."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        kernel_size: int,
        kernel_size_d: int | None = None,
        dilation: int = 1,
        dilation_d: int | None = None,
        **options: Any,
    ) -> None:
        sizes: Any = (kernel_size if kernel_size_d is None else kernel_size_d, kernel_size, kernel_size)
        steps: Any = (dilation if dilation_d is None else dilation_d, dilation, dilation)
        super().__init__(dim, num_heads, sizes, steps, **options)


def old_modules(pads: bool) -> dict[str, type[nn.Module]]:
    """Return the three classes: of 0.14 and 0.15, which pad, or of 0.17."""

    def made(rank: int) -> type[nn.Module]:
        base = (_Padding3D if rank == 3 else _Padding) if pads else _OldNeighborhoodAttention
        return type(f"NeighborhoodAttention{rank}D", (base,), {"rank": rank, "pads": pads})

    return {f"NeighborhoodAttention{rank}D": made(rank) for rank in (1, 2, 3)}
