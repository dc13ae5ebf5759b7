"""NeighborhoodAttention1D, 2D and 3D for machines without natten: natten 0.21's parameters, names and layout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from na_deploy.exporter.natten_api.current import neighborhood_attention_generic


class _NeighborhoodAttention(nn.Module):
    """Projections around neighborhood attention over (B, *X, C); weights are named as natten names them."""

    rank: int

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        dilation: int | Sequence[int] = 1,
        is_causal: bool | Sequence[bool] = False,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attributes: dict[str, Any] = {
            "kernel_size": kernel_size,
            "stride": stride,
            "dilation": dilation,
            "is_causal": is_causal,
            "scale": qk_scale,
        }
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim, bias=qkv_bias)
        self.proj = nn.Linear(embed_dim, embed_dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        """Attend over (B, *X, C)."""
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = qkv.unbind(-3)
        output = neighborhood_attention_generic(query, key, value, **self.attributes)
        assert isinstance(output, Tensor)
        return self.proj_drop(self.proj(output.flatten(-2)))  # type: ignore[no-any-return]


class NeighborhoodAttention1D(_NeighborhoodAttention):
    """Over (B, X, C)."""

    rank = 1


class NeighborhoodAttention2D(_NeighborhoodAttention):
    """Over (B, X, Y, C)."""

    rank = 2


class NeighborhoodAttention3D(_NeighborhoodAttention):
    """Over (B, X, Y, Z, C)."""

    rank = 3
