"""Mask2Former: queries look only where their mask of the layer before says.

https://arxiv.org/abs/2112.01527, with the names of its repository.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from na_deploy.models.heads.deformable_pixel_decoder import DeformableConfig, DeformablePixelDecoder
from na_deploy.models.heads.transformer import (
    Attention,
    FeedForward,
    Mlp,
    mask_logits,
    residual,
    resized,
    sine_positions,
    tokens,
)


@dataclass(frozen=True)
class Mask2FormerConfig:
    """The size of a head.

    Attributes:
        pixel_decoder: the pixel decoder's.
        num_classes: classes, "nothing" not counted.
        queries: queries.
        hidden: channels of the queries.
        layers: layers of the decoder.
        heads: attention heads.
        feedforward: hidden width of each layer.
        projected: true where the pixel decoder's maps are projected to ``hidden`` channels.
        pre_norm: true where norms stand before each step instead of behind it.
    """

    pixel_decoder: DeformableConfig
    num_classes: int
    queries: int
    hidden: int
    layers: int
    heads: int
    feedforward: int
    projected: bool = False
    pre_norm: bool = False


class AttentionMask(nn.Module):
    """Mask of places where queries may not look: outside their masks. A module, so that verification can watch it."""

    def forward(self, logits: Tensor) -> Tensor:
        """Map mask logits (B, Q, N) to true where a query must not look."""
        return logits < 0


class SelfAttentionLayer(nn.Module):
    """Queries look at each other."""

    def __init__(self, width: int, heads: int, *, pre_norm: bool = False, eps: float = 1e-5) -> None:
        super().__init__()
        self.pre_norm = pre_norm
        self.self_attn = Attention(width, heads)
        self.norm = nn.LayerNorm(width, eps=eps)

    def forward(self, x: Tensor, codes: Tensor) -> Tensor:
        """Map queries (B, Q, C) with their codes (1, Q, C)."""
        return residual(x, self.norm, lambda x: self.self_attn(x + codes, x + codes, x), pre_norm=self.pre_norm)


class CrossAttentionLayer(nn.Module):
    """Queries look at a map, each where its mask allows."""

    def __init__(self, width: int, heads: int, *, pre_norm: bool = False, eps: float = 1e-5) -> None:
        super().__init__()
        self.pre_norm = pre_norm
        self.multihead_attn = Attention(width, heads)
        self.norm = nn.LayerNorm(width, eps=eps)

    def forward(self, x: Tensor, codes: Tensor, memory: Tensor, places: Tensor, hidden: Tensor) -> Tensor:
        """Map queries (B, Q, C) with their codes, and tokens (B, N, C) with their positions (1, N, C)."""
        hidden = hidden & ~hidden.all(-1, keepdim=True)  # a query without a mask looks everywhere

        def look(x: Tensor) -> Tensor:
            return self.multihead_attn(x + codes, memory + places, memory, hidden)  # type: ignore[no-any-return]

        return residual(x, self.norm, look, pre_norm=self.pre_norm)


class FeedForwardLayer(FeedForward):
    """Linear, ReLU, Linear, with a residual and a norm."""

    def __init__(self, width: int, hidden: int, *, pre_norm: bool = False, eps: float = 1e-5) -> None:
        super().__init__(width, hidden)
        self.pre_norm = pre_norm
        self.norm = nn.LayerNorm(width, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """Map queries (B, Q, C)."""
        return residual(x, self.norm, super().forward, pre_norm=self.pre_norm)


class MaskedPredictor(nn.Module):
    """The decoder: masked attention to each map in turn, attention among queries, feed-forward."""

    def __init__(
        self,
        *,
        in_width: int,
        mask_width: int,
        levels: int,
        num_classes: int,
        queries: int,
        hidden: int,
        layers: int,
        heads: int,
        feedforward: int,
        projected: bool,
        pre_norm: bool,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.transformer_self_attention_layers = nn.ModuleList(
            SelfAttentionLayer(hidden, heads, pre_norm=pre_norm, eps=eps) for _ in range(layers)
        )
        self.transformer_cross_attention_layers = nn.ModuleList(
            CrossAttentionLayer(hidden, heads, pre_norm=pre_norm, eps=eps) for _ in range(layers)
        )
        self.transformer_ffn_layers = nn.ModuleList(
            FeedForwardLayer(hidden, feedforward, pre_norm=pre_norm, eps=eps) for _ in range(layers)
        )
        self.decoder_norm = nn.LayerNorm(hidden, eps=eps)
        self.query_embed = nn.Embedding(queries, hidden)
        self.level_embed = nn.Embedding(levels, hidden)
        self.input_proj = nn.ModuleList(nn.Conv2d(in_width, hidden, 1) for _ in range(levels if projected else 0))
        self.class_embed = nn.Linear(hidden, num_classes + 1)
        self.mask_embed = Mlp((hidden, hidden, hidden, mask_width))
        self.attention_masks = nn.ModuleList(AttentionMask() for _ in range(layers))

    def decode(self, x: Tensor, features: Tensor, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Run the layers on queries (B, Q, C).

        Args:
            x: the queries' first values.
            features: mask features (B, M, H/4, W/4).
            maps: the attended maps (B, C, h, w), the smallest first.

        Returns:
            Class scores (B, Q, classes + 1) and masks (B, Q, H/4, W/4).
        """
        codes = self.query_embed.weight[None]
        memories, places, reduced = [], [], []
        for level, each in enumerate(maps):
            _, _, height, width = each.shape
            projected = self.input_proj[level](each) if self.input_proj else each
            memories.append(tokens(projected) + self.level_embed.weight[level])
            places.append(sine_positions(height, width, projected.shape[1], projected))
            # Scaling the features once is scaling every layer's masks: both are sums with the same weights.
            reduced.append(resized(features, (height, width)))
        layers = zip(
            self.transformer_cross_attention_layers,
            self.transformer_self_attention_layers,
            self.transformer_ffn_layers,
            self.attention_masks,
            strict=True,
        )
        for index, (look, share, think, mask) in enumerate(layers):
            level = index % len(maps)
            hidden = mask(mask_logits(self.mask_embed(self.decoder_norm(x)), reduced[level]).flatten(2))
            x = think(share(look(x, codes, memories[level], places[level], hidden), codes))
        x = self.decoder_norm(x)
        return self.class_embed(x), mask_logits(self.mask_embed(x), features)


class Predictor(MaskedPredictor):
    """Mask2Former's: the queries' first values are learned."""

    def __init__(self, config: Mask2FormerConfig) -> None:
        super().__init__(
            in_width=config.pixel_decoder.width,
            mask_width=config.pixel_decoder.mask_width,
            levels=config.pixel_decoder.levels,
            num_classes=config.num_classes,
            queries=config.queries,
            hidden=config.hidden,
            layers=config.layers,
            heads=config.heads,
            feedforward=config.feedforward,
            projected=config.projected,
            pre_norm=config.pre_norm,
        )
        self.query_feat = nn.Embedding(config.queries, config.hidden)

    def forward(self, features: Tensor, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return class scores (B, Q, classes + 1) and masks (B, Q, H/4, W/4)."""
        return self.decode(self.query_feat.weight.expand(features.shape[0], -1, -1), features, maps)


class Head(nn.Module):
    """Pixel decoder and predictor."""

    def __init__(self, config: Mask2FormerConfig) -> None:
        super().__init__()
        self.pixel_decoder = DeformablePixelDecoder(config.pixel_decoder)
        self.predictor = Predictor(config)

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return class scores (B, Q, classes + 1) and masks (B, Q, H/4, W/4)."""
        return self.predictor(*self.pixel_decoder(maps))  # type: ignore[no-any-return]


class Mask2Former(nn.Module):
    """A backbone and its head."""

    def __init__(self, backbone: nn.Module, config: Mask2FormerConfig) -> None:
        super().__init__()
        self.backbone = backbone
        self.sem_seg_head = Head(config)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Map images (B, 3, H, W) to class scores (B, Q, classes + 1) and masks (B, Q, H/4, W/4)."""
        return self.sem_seg_head(self.backbone(image))  # type: ignore[no-any-return]
