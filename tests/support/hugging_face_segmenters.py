"""Small segmenters of transformers on its own Dinat and Nat, with random weights; NATTEN's functions alone are ours."""

from __future__ import annotations

from typing import Any

import torch
import transformers
import transformers.utils.import_utils
from natten_014 import natten2dav, natten2dqkrpb
from torch import Tensor, nn

transformers.utils.import_utils._natten_available = False  # or it imports functions that NATTEN has no more
from transformers.models.deprecated.nat import configuration_nat, modeling_nat  # noqa: E402
from transformers.models.dinat import modeling_dinat  # noqa: E402

for _module in (modeling_nat, modeling_dinat):
    _module.natten2dqkrpb, _module.natten2dav = natten2dqkrpb, natten2dav
    _module.requires_backends = lambda *_: None

KINDS = ("upernet", "maskformer", "mask2former", "oneformer")
CLASSES, QUERIES = 7, 9
_SIZES = {"depths": [1, 1, 1, 1], "num_heads": [1, 2, 4, 8], "kernel_size": 3, "embed_dim": 16}
_STAGES = ["stage1", "stage2", "stage3", "stage4"]
DILATIONS = [[3], [2], [2], [1]]


SMALLEST = {"encoder_layers": 1, "decoder_layers": 3}
"""Options of Mask2Former and OneFormer for tests that export: two layers of masked attention."""


def backbone_config(kind: str = "dinat") -> Any:
    """Return the configuration of a small backbone with four stages."""
    if kind == "nat":
        return configuration_nat.NatConfig(out_features=_STAGES, **_SIZES)
    return transformers.DinatConfig(out_features=_STAGES, dilations=DILATIONS, **_SIZES)


def segmenter(kind: str, backbone: Any = None, **options: Any) -> nn.Module:
    """Return one of :data:`KINDS` with random weights.

    Args:
        kind: one of :data:`KINDS`.
        backbone: configuration of the backbone; :func:`backbone_config` by default.
        options: of its configuration.
    """
    backbone = backbone or backbone_config()
    decoder = {"encoder_layers": 2, "encoder_feedforward_dim": 40, "decoder_layers": 5, "num_attention_heads": 4}
    decoder |= {"dim_feedforward": 48, "num_queries": QUERIES, "hidden_dim": 32, "num_labels": CLASSES}
    if kind == "upernet":
        options = {"hidden_size": 24, "num_labels": CLASSES, "auxiliary_channels": 8, **options}
        model = transformers.UperNetForSemanticSegmentation(
            transformers.UperNetConfig(backbone_config=backbone, **options)
        )
    elif kind == "maskformer":
        detr = transformers.DetrConfig(
            d_model=24, decoder_layers=2, decoder_attention_heads=4, decoder_ffn_dim=48, num_queries=QUERIES
        )
        options = {"fpn_feature_size": 32, "mask_feature_size": 16, "num_labels": CLASSES, **options}
        model = transformers.MaskFormerForInstanceSegmentation(
            transformers.MaskFormerConfig(backbone_config=backbone, decoder_config=detr, **options)
        )
    elif kind == "mask2former":
        options = decoder | {"feature_size": 32, "mask_feature_size": 16} | options
        model = transformers.Mask2FormerForUniversalSegmentation(
            transformers.Mask2FormerConfig(backbone_config=backbone, **options)
        )
    else:
        options = decoder | {"conv_dim": 32, "mask_dim": 32, "query_dec_layers": 2} | options
        model = transformers.OneFormerForUniversalSegmentation(
            transformers.OneFormerConfig(backbone_config=backbone, **options)
        )
    return randomised(model)


def randomised(model: nn.Module, seed: int = 3) -> nn.Module:
    """Make every weight random: activations of order 1, statistics that are no identities, offsets of some pixels."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in [*model.named_parameters(), *model.named_buffers()]:
            if not value.is_floating_point() or name.startswith("criterion"):
                continue
            noise = torch.randn(value.shape, generator=generator)
            if name.endswith("running_var"):
                value.copy_(0.7 + 0.3 * noise.abs())
            elif value.dim() > 1:
                fan_in = value[0].numel() if not name.endswith(("rpb", "level_embed")) else 1
                value.copy_(noise * fan_in**-0.5)
            else:
                value.copy_(0.2 * noise + (name.endswith("weight")))
    return model.eval()


def image(batch: int, height: int, width: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return a random image (B, 3, H, W)."""
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(2)).to(dtype)


def outputs(model: nn.Module, kind: str, images: Tensor, task: str = "panoptic") -> tuple[Tensor, ...]:
    """Return what transformers' model gives, in the order of exported files."""
    from na_deploy.models.heads.oneformer import task_vector

    more = (task_vector(task).to(images.dtype).expand(len(images), -1),) if kind == "oneformer" else ()
    with torch.no_grad():
        found = model(images, *more)
    if kind == "upernet":
        return (found.logits,)
    return found.class_queries_logits, found.masks_queries_logits
