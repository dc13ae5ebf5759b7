"""Parts that all families share: the block and the padding rule. Maps are channels-last (B, H, W, C)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.nn import functional

from na_deploy.attention.torch_ops import neighborhood_attention_qkv
from na_deploy.attention.torch_padding import projected_zeros
from na_deploy.errors import UsageError


class AttentionFunction(Protocol):
    """The function that attention modules call: packed qkv (B, H, W, 3, heads, D) in, (B, H, W, heads, D) out."""

    def __call__(
        self,
        qkv: Tensor,
        rel_pos_bias: Tensor | None = None,
        padding: Tensor | None = None,
        *,
        kernel_size: int | Sequence[int],
        dilation: int | Sequence[int] = 1,
    ) -> Tensor:
        """Attend."""
        ...


class NeighborhoodAttention2D(nn.Module):
    """qkv projection, neighborhood attention with relative positional bias, output projection.

    ``attention`` is the function that attends; assign another one to verify or to benchmark a formulation.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        kernel_size: int,
        dilation: int = 1,
        *,
        qkv_bias: bool = True,
        fixed_map: bool = False,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.kernel_size = kernel_size
        self.dilation = dilation
        self.fixed_map = fixed_map
        self.attention: AttentionFunction = neighborhood_attention_qkv
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.rpb = nn.Parameter(torch.zeros(heads, 2 * kernel_size - 1, 2 * kernel_size - 1))
        nn.init.trunc_normal_(self.rpb, std=0.02)
        if fixed_map:  # carried by ViT-rpb files; the window rule gives the same indices
            self.register_buffer("relative_position_index", relative_position_index(kernel_size))
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Attend over (B, H, W, C).

        A map smaller than the dilated window is attended to as if padded with zeros right and bottom *before* the
        projection, so that padding is attended to with the projection's bias, and cropped after (NATTEN up to 0.15,
        Hugging Face).
        """
        _, height, width, _ = x.shape
        if self.fixed_map and (height != self.kernel_size or width != self.kernel_size):
            raise UsageError(
                f"this ViT-rpb model attends over a map of exactly {self.kernel_size}x{self.kernel_size}, "
                f"got {height}x{width}; use the image size it was trained at"
            )
        window = self.kernel_size * self.dilation
        padding = projected_zeros(self.qkv, self.heads, (height, width), (window, window))
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))
        x = self.attention(qkv, self.rpb, padding=padding, kernel_size=self.kernel_size, dilation=self.dilation)
        return self.proj(x.flatten(-2))  # type: ignore[no-any-return]


def relative_position_index(side: int) -> Tensor:
    """Return, per query and key of a map (side², side²), their entry in the flat bias table (2·side-1)²."""
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    row_steps = rows.flatten()[None, :] - rows.flatten()[:, None] + side - 1
    column_steps = columns.flatten()[None, :] - columns.flatten()[:, None] + side - 1
    return row_steps * (2 * side - 1) + column_steps


class Mlp(nn.Module):
    """Linear, erf GELU, Linear."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, C) to (…, C)."""
        return self.fc2(self.act(self.fc1(x)))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Pre-norm transformer block: attention and MLP, each with a residual and perhaps a layer scale."""

    def __init__(
        self,
        width: int,
        heads: int,
        kernel_size: int,
        dilation: int,
        mlp_ratio: float,
        *,
        layer_scale: bool = False,
        qkv_bias: bool = True,
        layer_norm_eps: float = 1e-5,
        fixed_map: bool = False,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=layer_norm_eps)
        self.attn = NeighborhoodAttention2D(width, heads, kernel_size, dilation, qkv_bias=qkv_bias, fixed_map=fixed_map)
        self.norm2 = nn.LayerNorm(width, eps=layer_norm_eps)
        self.mlp = Mlp(width, int(width * mlp_ratio))
        self.layer_scale = layer_scale
        if layer_scale:
            self.gamma1 = nn.Parameter(torch.full((width,), 1e-5))
            self.gamma2 = nn.Parameter(torch.full((width,), 1e-5))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to (B, H, W, C)."""
        if self.layer_scale:
            x = x + self.gamma1 * self.attn(self.norm1(x))
            return x + self.gamma2 * self.mlp(self.norm2(x))  # type: ignore[no-any-return]
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


def pad_to_multiple(x: Tensor, multiple: int, axes: tuple[int, int]) -> Tensor:
    """Zero-pad both spatial axes at their end to a multiple; sizes may be symbols while tracing."""
    # Rounded up without negative numbers: ONNX integer division truncates where Python's rounds down.
    amounts = [(x.shape[axis] + multiple - 1) // multiple * multiple - x.shape[axis] for axis in axes]
    if all(statically_known_true(amount == 0) for amount in amounts):
        return x
    padding = [0] * (2 * x.dim())
    for axis, amount in zip(axes, amounts, strict=True):
        padding[2 * (x.dim() - 1 - axis) + 1] = amount
    padded: Tensor = functional.pad(x, padding)
    return padded


class PatchEmbed(nn.Module):
    """Non-overlapping patches, one convolution and LayerNorm; images are zero-padded to whole patches."""

    def __init__(self, in_channels: int, width: int, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_channels, width, patch_size, stride=patch_size)
        self.norm = nn.LayerNorm(width)

    def forward(self, image: Tensor) -> Tensor:
        """Map (B, 3, H, W) to (B, ⌈H/p⌉, ⌈W/p⌉, C)."""
        image = pad_to_multiple(image, self.patch_size, (2, 3))
        return self.norm(self.proj(image).permute(0, 2, 3, 1))  # type: ignore[no-any-return]


def mean_over_map(x: Tensor) -> Tensor:
    """Average (B, H, W, C) over the map, in float32 when the type is narrower."""
    if x.dtype in (torch.float16, torch.bfloat16):
        return x.float().mean((1, 2)).to(x.dtype)
    return x.mean((1, 2))
