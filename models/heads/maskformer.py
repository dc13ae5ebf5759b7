"""MaskFormer: DETR's decoder over the last map; each query names a class and multiplies out a mask.

https://arxiv.org/abs/2107.06278, with the names of its repository.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from na_deploy.models.heads.pyramid_pixel_decoder import PyramidPixelDecoder
from na_deploy.models.heads.transformer import (
    Attention,
    FeedForward,
    Mlp,
    mask_logits,
    residual,
    sine_positions,
    tokens,
)


@dataclass(frozen=True)
class MaskFormerConfig:
    """The size of a head.

    Attributes:
        in_widths: channels of the backbone's maps.
        num_classes: classes, "nothing" not counted.
        queries: queries.
        width: channels of the pixel decoder.
        mask_width: channels of the mask features.
        hidden: channels of the queries.
        layers: layers of the decoder.
        heads: attention heads.
        feedforward: hidden width of each layer.
        projected: true where the last map is projected to ``hidden`` channels first.
    """

    in_widths: tuple[int, ...]
    num_classes: int
    queries: int
    width: int
    mask_width: int
    hidden: int
    layers: int
    heads: int
    feedforward: int
    projected: bool = True


class QueryLayer(FeedForward):
    """Queries look at each other, then at the map, then through a feed-forward network."""

    def __init__(self, width: int, heads: int, feedforward: int, *, pre_norm: bool = False, eps: float = 1e-5) -> None:
        super().__init__(width, feedforward)
        self.pre_norm = pre_norm
        self.self_attn = Attention(width, heads)
        self.multihead_attn = Attention(width, heads)
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.norm3 = nn.LayerNorm(width, eps=eps)

    def forward(self, x: Tensor, codes: Tensor, memory: Tensor, places: Tensor) -> Tensor:  # type: ignore[override]
        """Map queries (B, Q, C) with their codes (1, Q, C), and tokens (B, N, C) with their positions (1, N, C)."""

        def among(x: Tensor) -> Tensor:
            return self.self_attn(x + codes, x + codes, x)  # type: ignore[no-any-return]

        def outward(x: Tensor) -> Tensor:
            return self.multihead_attn(x + codes, memory + places, memory)  # type: ignore[no-any-return]

        x = residual(x, self.norm1, among, pre_norm=self.pre_norm)
        x = residual(x, self.norm2, outward, pre_norm=self.pre_norm)
        return residual(x, self.norm3, super().forward, pre_norm=self.pre_norm)


class QueryDecoder(nn.Module):
    """Layers of :class:`QueryLayer` and a last norm."""

    def __init__(
        self, width: int, heads: int, feedforward: int, layers: int, *, pre_norm: bool = False, eps: float = 1e-5
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            QueryLayer(width, heads, feedforward, pre_norm=pre_norm, eps=eps) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width, eps=eps)

    def forward(self, x: Tensor, codes: Tensor, memory: Tensor, places: Tensor) -> Tensor:
        """Map queries (B, Q, C) to (B, Q, C)."""
        for layer in self.layers:
            x = layer(x, codes, memory, places)
        return self.norm(x)  # type: ignore[no-any-return]


class QueryTransformer(nn.Module):
    """The decoder under the names of the official files, which have an encoder beside it in other models."""

    def __init__(
        self, width: int, heads: int, feedforward: int, layers: int, *, pre_norm: bool = False, eps: float = 1e-5
    ) -> None:
        super().__init__()
        self.decoder = QueryDecoder(width, heads, feedforward, layers, pre_norm=pre_norm, eps=eps)

    def forward(self, x: Tensor, codes: Tensor, memory: Tensor, places: Tensor) -> Tensor:
        """Map queries (B, Q, C) to (B, Q, C)."""
        return self.decoder(x, codes, memory, places)  # type: ignore[no-any-return]


class Predictor(nn.Module):
    """From the last map and the mask features to classes and masks."""

    def __init__(self, config: MaskFormerConfig) -> None:
        super().__init__()
        hidden = config.hidden
        self.query_embed = nn.Embedding(config.queries, hidden)
        self.input_proj = nn.Conv2d(config.in_widths[-1], hidden, 1) if config.projected else nn.Identity()
        self.transformer = QueryTransformer(hidden, config.heads, config.feedforward, config.layers)
        self.class_embed = nn.Linear(hidden, config.num_classes + 1)
        self.mask_embed = Mlp((hidden, hidden, hidden, config.mask_width))

    def forward(self, last: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return class scores (B, Q, classes + 1) and masks (B, Q, H/4, W/4)."""
        last = self.input_proj(last)
        batch, width, rows, columns = last.shape
        codes = self.query_embed.weight[None]
        queries = (codes * 0).expand(batch, -1, -1)
        x = self.transformer(queries, codes, tokens(last), sine_positions(rows, columns, width, last))
        return self.class_embed(x), mask_logits(self.mask_embed(x), features)


class Head(nn.Module):
    """Pixel decoder and predictor."""

    def __init__(self, config: MaskFormerConfig) -> None:
        super().__init__()
        self.pixel_decoder = PyramidPixelDecoder(config.in_widths, config.width, config.mask_width)
        self.predictor = Predictor(config)

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return class scores (B, Q, classes + 1) and masks (B, Q, H/4, W/4)."""
        return self.predictor(maps[-1], self.pixel_decoder(maps))  # type: ignore[no-any-return]


class MaskFormer(nn.Module):
    """A backbone and its head."""

    def __init__(self, backbone: nn.Module, config: MaskFormerConfig) -> None:
        super().__init__()
        self.backbone = backbone
        self.sem_seg_head = Head(config)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Map images (B, 3, H, W) to class scores (B, Q, classes + 1) and masks (B, Q, H/4, W/4)."""
        return self.sem_seg_head(self.backbone(image))  # type: ignore[no-any-return]
