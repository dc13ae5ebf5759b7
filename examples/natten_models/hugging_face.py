"""transformers' own DINAT, unedited: as classifier, as backbone, and under Mask2Former's pixel decoder.

transformers asks for natten 0.14, whose two functions are all it calls. Where another natten is installed, or none,
they come from na-deploy; nothing else of transformers is touched. (Its DINAT is broken from 4.54 on.)
"""

from __future__ import annotations

import transformers
import transformers.utils.import_utils
from torch import Tensor, nn

from na_deploy.exporter.natten_api.unfused import FUNCTIONS

transformers.utils.import_utils._natten_available = False  # or it imports names that newer natten has no more
from transformers.models.dinat import modeling_dinat  # noqa: E402
from transformers.models.mask2former.modeling_mask2former import Mask2FormerPixelLevelModule  # noqa: E402

modeling_dinat.natten2dqkrpb, modeling_dinat.natten2dav = FUNCTIONS["natten2dqkrpb"], FUNCTIONS["natten2dav"]
modeling_dinat.requires_backends = lambda *_: None

INPUTS = {"small": {"image": (1, 3, 64, 64)}, "full": {"image": (1, 3, 224, 224)}}
MINI = {"embed_dim": 64, "depths": [3, 4, 6, 5], "num_heads": [2, 4, 8, 16], "kernel_size": 7}
MINI["dilations"] = [[1, 8, 1], [1, 4, 1, 4], [1, 2, 1, 2, 1, 2], [1] * 5]
TINY = {"embed_dim": 32, "depths": [2, 2, 1, 1], "num_heads": [2, 4, 8, 8], "kernel_size": 3}
TINY["dilations"] = [[1, 4], [1, 2], [1], [1]]
STAGES = ["stage1", "stage2", "stage3", "stage4"]


class Classifier(nn.Module):
    """``DinatForImageClassification``, logits alone."""

    def __init__(self, **options: object) -> None:
        super().__init__()
        self.model = modeling_dinat.DinatForImageClassification(transformers.DinatConfig(**options))

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, labels)."""
        logits: Tensor = self.model(image, return_dict=False)[0]
        return logits


class Backbone(nn.Module):
    """``DinatBackbone`` with all four stages."""

    def __init__(self, **options: object) -> None:
        super().__init__()
        self.model = modeling_dinat.DinatBackbone(transformers.DinatConfig(out_features=STAGES, **options))

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) to four maps."""
        maps: tuple[Tensor, ...] = self.model(image, return_dict=False)[0]
        return maps


class PixelPath(nn.Module):
    """Mask2Former's backbone and pixel decoder (deformable attention over three scales, then a pyramid)."""

    def __init__(self, layers: int, width: int, **options: object) -> None:
        super().__init__()
        backbone = transformers.DinatConfig(out_features=STAGES, **options)
        config = transformers.Mask2FormerConfig(
            backbone_config=backbone, encoder_layers=layers, feature_size=width, mask_feature_size=width
        )
        self.model = Mask2FormerPixelLevelModule(config)
        nn.init.normal_(self.model.decoder.level_embed)  # which it leaves to its owner

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) to mask features and the three maps that the decoder's queries read."""
        found = self.model(image)
        return found.decoder_last_hidden_state, *found.decoder_hidden_states


def small() -> Classifier:
    """Seven classes."""
    return Classifier(**TINY, num_labels=7)


def full() -> Classifier:
    """DiNAT-Mini."""
    return Classifier(**MINI, num_labels=1000)


def small_backbone() -> Backbone:
    """Four small stages."""
    return Backbone(**TINY)


def full_backbone() -> Backbone:
    """DiNAT-Mini's stages."""
    return Backbone(**MINI)


def small_pixels() -> PixelPath:
    """One layer of deformable attention."""
    return PixelPath(1, 32, **TINY)


def full_pixels() -> PixelPath:
    """Six layers, 256 channels, on DiNAT-Mini."""
    return PixelPath(6, 256, **MINI)
