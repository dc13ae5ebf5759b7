"""OneFormer: Mask2Former's decoder, its queries made from a token that names the task.

https://arxiv.org/abs/2211.06220, with the names of its repository. The text encoder serves training alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from na_deploy.models.heads.deformable_pixel_decoder import DeformableConfig, DeformablePixelDecoder
from na_deploy.models.heads.mask2former import MaskedPredictor
from na_deploy.models.heads.maskformer import QueryTransformer
from na_deploy.models.heads.transformer import Mlp, sine_positions, tokens


@dataclass(frozen=True)
class OneFormerConfig:
    """The size of a head.

    Attributes:
        pixel_decoder: the pixel decoder's.
        num_classes: classes, "nothing" not counted.
        queries: queries, the task's own one included.
        hidden: channels of the queries.
        layers: layers of the decoder.
        query_layers: layers of the transformer that makes the queries.
        heads: attention heads.
        feedforward: hidden width of each layer.
        task_length: numbers in a task's vector.
        projected: true where the pixel decoder's maps are projected to ``hidden`` channels.
        pre_norm: true where norms stand before each step instead of behind it.
        task_norm: true where the task's token is normalised and is what all queries start from.
        eps: epsilon of the decoder's norms.
    """

    pixel_decoder: DeformableConfig
    num_classes: int
    queries: int
    hidden: int
    layers: int
    query_layers: int
    heads: int
    feedforward: int
    task_length: int = 77
    projected: bool = False
    pre_norm: bool = False
    task_norm: bool = True
    eps: float = 1e-5


class Predictor(MaskedPredictor):
    """The queries' first values come from the task and the picture."""

    def __init__(self, config: OneFormerConfig) -> None:
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
            eps=config.eps,
        )
        self.task_norm = config.task_norm
        self.class_input_proj = nn.Conv2d(config.pixel_decoder.mask_width, config.hidden, 1)
        self.class_transformer = QueryTransformer(
            config.hidden,
            config.heads,
            config.feedforward,
            config.query_layers,
            pre_norm=config.pre_norm,
            eps=config.eps,
        )

    def forward(self, features: Tensor, maps: Sequence[Tensor], task: Tensor) -> tuple[Tensor, Tensor]:
        """Return class scores (B, Q, classes + 1) and masks (B, Q, H/4, W/4) for a task's token (B, 1, C)."""
        batch, _, height, width = features.shape
        codes = self.query_embed.weight[None, :-1]
        if self.task_norm:
            task = self.decoder_norm(task)
        start = task if self.task_norm else torch.zeros_like(task)
        # What the queries look at are the places, coded by the picture: it is so in both implementations.
        places = sine_positions(height, width, codes.shape[-1], features).expand(batch, -1, -1)
        picture = tokens(self.class_input_proj(features))
        queries = self.class_transformer(start.expand(-1, codes.shape[1], -1), codes, places, picture)
        return self.decode(torch.cat((queries, task), 1), features, maps)


class Head(nn.Module):
    """Pixel decoder and predictor."""

    def __init__(self, config: OneFormerConfig) -> None:
        super().__init__()
        self.pixel_decoder = DeformablePixelDecoder(config.pixel_decoder)
        self.predictor = Predictor(config)

    def forward(self, maps: Sequence[Tensor], task: Tensor) -> tuple[Tensor, Tensor]:
        """Return class scores (B, Q, classes + 1) and masks (B, Q, H/4, W/4) for a task's token (B, 1, C)."""
        return self.predictor(*self.pixel_decoder(maps), task)  # type: ignore[no-any-return]


TASK_LENGTH = 77
_WORDS = {"semantic": (29119, 1550), "instance": (34572,), "panoptic": (1072, 24755)}


def task_vector(task: str, length: int = TASK_LENGTH) -> Tensor:
    """Return "the task is …" as OneFormer's tokenizers write it: CLIP's numbers of its words, zeros behind.

    Args:
        task: "semantic", "instance" or "panoptic".
        length: numbers in the vector.

    Returns:
        (1, length), float64: the numbers are beyond what half precision can tell apart.
    """
    numbers = (49406, 518, 10549, 533, *_WORDS[task], 49407)
    return torch.tensor([[*numbers, *(0,) * (length - len(numbers))]], dtype=torch.float64)


class OneFormer(nn.Module):
    """A backbone and its head, for one task at a time: :meth:`set_task` says which."""

    token: Tensor

    def __init__(self, backbone: nn.Module, config: OneFormerConfig) -> None:
        super().__init__()
        self.task_length = config.task_length
        self.backbone = backbone
        self.sem_seg_head = Head(config)
        self.task_mlp = Mlp((config.task_length, config.hidden, config.hidden))
        self.register_buffer("token", torch.zeros(1, 1, config.hidden), persistent=False)

    def set_task(self, task: str) -> None:
        """Make the token of "semantic", "instance" or "panoptic" that :meth:`forward` works with."""
        vector = task_vector(task, self.task_length).to(next(self.task_mlp.parameters()))
        self.token = self.task_mlp(vector)[None].detach()

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Map images (B, 3, H, W) to class scores (B, Q, classes + 1) and masks (B, Q, H/4, W/4)."""
        token = self.token.expand(image.shape[0], -1, -1)
        return self.sem_seg_head(self.backbone(image), token)  # type: ignore[no-any-return]
