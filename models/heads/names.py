"""Place of a head in a checkpoint, and its weights under the names of the networks here.

Those are the official repositories' (mmsegmentation for UPerNet, mmdetection for detectors, Detectron2 for the others).
Hugging Face's are renamed; packed projections of attention are split. Sources: the modules of transformers 4.53.3.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from na_deploy.models.metadata import DETECTORS, HEADS
from na_deploy.models.weights import network_prefix

Kind = Literal[
    "upernet", "maskformer", "mask2former", "oneformer", "faster_rcnn", "mask_rcnn", "cascade_rcnn", "cascade_mask_rcnn"
]
_ANCHORS: dict[str, tuple[Kind, str]] = {
    "decode_head.fpn_bottleneck.bn.weight": ("upernet", "mmsegmentation"),
    "decode_head.fpn_bottleneck.batch_norm.weight": ("upernet", "transformers"),
    "sem_seg_head.predictor.class_transformer.decoder.norm.weight": ("oneformer", "Detectron2"),
    "model.transformer_module.decoder.query_transformer.decoder.norm.weight": ("oneformer", "transformers"),
    "sem_seg_head.predictor.query_feat.weight": ("mask2former", "Detectron2"),
    "model.transformer_module.queries_features.weight": ("mask2former", "transformers"),
    "sem_seg_head.predictor.transformer.decoder.norm.weight": ("maskformer", "Detectron2"),
    "model.transformer_module.decoder.layernorm.weight": ("maskformer", "transformers"),
    "roi_head.mask_head.conv_logits.weight": ("mask_rcnn", "mmdetection"),
    "roi_head.mask_head.0.conv_logits.weight": ("cascade_mask_rcnn", "mmdetection"),
    "roi_head.bbox_head.fc_cls.weight": ("faster_rcnn", "mmdetection"),
    "roi_head.bbox_head.0.fc_cls.weight": ("cascade_rcnn", "mmdetection"),
}
"""Weights that one kind of head in one library's layout has; the first found decides: MaskFormer's are others' too."""

TRAINING_ONLY = (
    "auxiliary_head.",
    "criterion.",
    "text_encoder.",
    "text_projector.",
    "prompt_ctx.",
    "model.text_mapper.",
)
"""Parts that only training uses."""

_PIXELS, _DECODER = "sem_seg_head.pixel_decoder.", "sem_seg_head.predictor."
_THEIRS_PIXELS, _THEIRS = "model.pixel_level_module.decoder.", "model.transformer_module."

_ENCODER_LAYER = rf"^{re.escape(_THEIRS_PIXELS)}encoder\.layers\.(\d+)\."
_OURS_ENCODER = rf"{_PIXELS}transformer.encoder.layers.\1."
_DEFORMABLE = (
    (rf"^{re.escape(_THEIRS_PIXELS)}input_projections\.", f"{_PIXELS}input_proj."),
    (rf"^{re.escape(_THEIRS_PIXELS)}level_embed$", f"{_PIXELS}transformer.level_embed"),
    (rf"{_ENCODER_LAYER}self_attn_layer_norm\.", rf"{_OURS_ENCODER}norm1."),
    (rf"{_ENCODER_LAYER}final_layer_norm\.", rf"{_OURS_ENCODER}norm2."),
    (rf"{_ENCODER_LAYER}fc(\d)\.", rf"{_OURS_ENCODER}linear\2."),
    (rf"{_ENCODER_LAYER}self_attn\.", rf"{_OURS_ENCODER}self_attn."),
    (rf"^{re.escape(_THEIRS_PIXELS)}mask_projection\.", f"{_PIXELS}mask_features."),
    (rf"^{re.escape(_THEIRS_PIXELS)}(adapter|layer)_(\d+)\.0\.", rf"{_PIXELS}\1_\2."),
    (rf"^{re.escape(_THEIRS_PIXELS)}(adapter|layer)_(\d+)\.1\.", rf"{_PIXELS}\1_\2.norm."),
    (rf"^{re.escape(_THEIRS)}queries_embedder\.", f"{_DECODER}query_embed."),
    (rf"^{re.escape(_THEIRS)}level_embed\.", f"{_DECODER}level_embed."),
    (rf"^{re.escape(_THEIRS)}input_projections\.", f"{_DECODER}input_proj."),
)

_LAYER = rf"^{re.escape(_THEIRS)}decoder\.layers\.(\d+)\."
_RENAMES: dict[str, tuple[tuple[str, str], ...]] = {
    "upernet": (
        (r"\.batch_norm\.", ".bn."),
        (r"^decode_head\.classifier\.", "decode_head.conv_seg."),
    ),
    "mask2former": (
        *_DEFORMABLE,
        (rf"{_LAYER}self_attn_layer_norm\.", rf"{_DECODER}transformer_self_attention_layers.\1.norm."),
        (rf"{_LAYER}self_attn\.", rf"{_DECODER}transformer_self_attention_layers.\1.self_attn."),
        (rf"{_LAYER}cross_attn_layer_norm\.", rf"{_DECODER}transformer_cross_attention_layers.\1.norm."),
        (rf"{_LAYER}cross_attn\.", rf"{_DECODER}transformer_cross_attention_layers.\1.multihead_attn."),
        (rf"{_LAYER}final_layer_norm\.", rf"{_DECODER}transformer_ffn_layers.\1.norm."),
        (rf"{_LAYER}fc(\d)\.", rf"{_DECODER}transformer_ffn_layers.\1.linear\2."),
        (rf"^{re.escape(_THEIRS)}decoder\.layernorm\.", f"{_DECODER}decoder_norm."),
        (
            rf"^{re.escape(_THEIRS)}decoder\.mask_predictor\.mask_embedder\.(\d)\.0\.",
            rf"{_DECODER}mask_embed.layers.\1.",
        ),
        (rf"^{re.escape(_THEIRS)}queries_features\.", f"{_DECODER}query_feat."),
        (r"^class_predictor\.", f"{_DECODER}class_embed."),
    ),
    "oneformer": (
        *_DEFORMABLE,
        (rf"{_LAYER}self_attn\.norm\.", rf"{_DECODER}transformer_self_attention_layers.\1.norm."),
        (rf"{_LAYER}self_attn\.self_attn\.", rf"{_DECODER}transformer_self_attention_layers.\1.self_attn."),
        (rf"{_LAYER}cross_attn\.", rf"{_DECODER}transformer_cross_attention_layers.\1."),
        (rf"{_LAYER}ffn\.", rf"{_DECODER}transformer_ffn_layers.\1."),
        (rf"^{re.escape(_THEIRS)}decoder\.query_transformer\.", f"{_DECODER}class_transformer."),
        (rf"^{re.escape(_THEIRS)}decoder\.query_input_projection\.", f"{_DECODER}class_input_proj."),
        (rf"^{re.escape(_THEIRS)}decoder\.mask_embed\.layers\.(\d)\.0\.", rf"{_DECODER}mask_embed.layers.\1."),
        (rf"^{re.escape(_THEIRS)}decoder\.(class_embed|decoder_norm)\.", rf"{_DECODER}\1."),
        (r"^model\.task_encoder\.task_mlp\.layers\.(\d)\.0\.", r"task_mlp.layers.\1."),
    ),
    "maskformer": (
        (rf"^{re.escape(_THEIRS_PIXELS)}mask_projection\.", f"{_PIXELS}mask_features."),
        (rf"^{re.escape(_THEIRS)}queries_embedder\.", f"{_DECODER}query_embed."),
        (rf"^{re.escape(_THEIRS)}input_projection\.", f"{_DECODER}input_proj."),
        (rf"{_LAYER}self_attn_layer_norm\.", rf"{_DECODER}transformer.decoder.layers.\1.norm1."),
        (rf"{_LAYER}encoder_attn_layer_norm\.", rf"{_DECODER}transformer.decoder.layers.\1.norm2."),
        (rf"{_LAYER}final_layer_norm\.", rf"{_DECODER}transformer.decoder.layers.\1.norm3."),
        (rf"{_LAYER}self_attn\.", rf"{_DECODER}transformer.decoder.layers.\1.self_attn."),
        (rf"{_LAYER}encoder_attn\.", rf"{_DECODER}transformer.decoder.layers.\1.multihead_attn."),
        (rf"{_LAYER}fc(\d)\.", rf"{_DECODER}transformer.decoder.layers.\1.linear\2."),
        (rf"^{re.escape(_THEIRS)}decoder\.layernorm\.", f"{_DECODER}transformer.decoder.norm."),
        (r"^class_predictor\.", f"{_DECODER}class_embed."),
        (r"^mask_embedder\.(\d)\.0\.", rf"{_DECODER}mask_embed.layers.\1."),
    ),
}

_PYRAMID = re.compile(rf"^{re.escape(_THEIRS_PIXELS)}fpn\.(?:stem|layers\.(\d+)\.(proj|block))\.([01])\.(\w+)$")
_PACKED = re.compile(r"^(.*)\.in_proj_(weight|bias)$")


@dataclass(frozen=True)
class HeadWeights:
    """A head found in a checkpoint: all that a segmenter or a detector has beside its backbone.

    Attributes:
        kind: one of :data:`~na_deploy.models.metadata.HEADS`.
        library: whose layout the file has.
        tensors: by the names of the networks here.
        aside: parts of the file that only training uses.
    """

    kind: Kind
    library: str
    tensors: dict[str, Tensor]
    aside: tuple[str, ...]

    @property
    def num_classes(self) -> int:
        """Classes of the head, "nothing" not counted; 0 where the layer is missing."""
        layer = self.tensors.get("decode_head.conv_seg.weight")
        if layer is not None:
            return len(layer)
        names = (
            f"{_DECODER}class_embed.weight",
            "roi_head.bbox_head.fc_cls.weight",
            "roi_head.bbox_head.0.fc_cls.weight",
        )
        layer = next((self.tensors[name] for name in names if name in self.tensors), None)
        return 0 if layer is None else len(layer) - 1

    @property
    def is_detector(self) -> bool:
        """True for heads whose answer is boxes."""
        return self.kind in DETECTORS

    @property
    def title(self) -> str:
        """The head's name as people write it."""
        return HEADS[self.kind]


def load_whole(network: nn.Module, backbone: Mapping[str, Tensor], head: HeadWeights) -> None:
    """Load checked weights into a network around a backbone, which is then in evaluation mode, without gradients.

    Args:
        network: built on the meta device.
        backbone: weights in the official layout.
        head: all others. Counts of batch normalisation, which only training uses, need not be among them.
    """
    weights = {f"backbone.{name}": tensor for name, tensor in backbone.items()} | head.tensors
    for name in network.state_dict():
        if name.endswith(".num_batches_tracked"):
            weights[name] = torch.zeros((), dtype=torch.long)
    network.load_state_dict(weights, strict=True, assign=True)
    network.eval().requires_grad_(False)


def split_head(
    path: Path, tensors: Mapping[str, Tensor], warnings: list[str]
) -> tuple[HeadWeights | None, dict[str, Tensor]]:
    """Take a segmenter's or a detector's head out of a state dict.

    Args:
        path: for messages.
        tensors: the file's.
        warnings: gets a sentence where several networks are in the file.

    Returns:
        The head, ``None`` if there is none that is known; and the weights without it and without what only its
        training uses: the backbone's, and whatever else there is.
    """
    for anchor, (kind, library) in _ANCHORS.items():
        prefixes = [name.removesuffix(anchor) for name in tensors if name == anchor or name.endswith(f".{anchor}")]
        if not prefixes:
            continue
        prefix = network_prefix(path, prefixes, warnings)
        inside = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        backbone = {name: tensor for name, tensor in inside.items() if _is_backbone(name)}
        aside = {name for name in inside if name.startswith(TRAINING_ONLY)}
        counters = {name for name in inside if name.endswith(".num_batches_tracked")}
        rest = {name: x for name, x in inside.items() if name not in backbone and name not in aside | counters}
        named = _renamed(kind, rest) if library == "transformers" else rest
        parts = tuple(dict.fromkeys(_part(name) for name in sorted(aside)))
        return HeadWeights(kind, library, _unpacked(named), parts), backbone
    return None, dict(tensors)


def _is_backbone(name: str) -> bool:
    return name.startswith(("backbone.", "model.pixel_level_module.encoder."))


def _part(name: str) -> str:
    first, second, *_ = [*name.split("."), ""]
    return second if first == "model" else first


def _renamed(kind: Kind, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    rules = [(re.compile(pattern), replacement) for pattern, replacement in _RENAMES[kind]]
    levels = 1 + max((int(m.group(1)) for name in tensors if (m := _PYRAMID.match(name)) and m.group(1)), default=-1)
    result = {}
    for name, tensor in tensors.items():
        if match := _PYRAMID.match(name):
            result[_pyramid_name(match, levels)] = tensor
            continue
        renamed = name
        for pattern, replacement in rules:
            renamed, count = pattern.subn(replacement, renamed)
            if count and kind != "upernet":
                break
        result[renamed] = tensor
    return result


def _pyramid_name(match: re.Match[str], levels: int) -> str:
    """Return the name of one of MaskFormer's pyramid layers, which transformers counts from the smallest map."""
    level, part, number, leaf = match.groups()
    layer = (
        f"layer_{levels + 1}" if level is None else f"{'adapter' if part == 'proj' else 'layer'}_{levels - int(level)}"
    )
    return f"{_PIXELS}{layer}.{'norm.' if number == '1' else ''}{leaf}"


def _unpacked(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    result = {}
    for name, tensor in tensors.items():
        match = _PACKED.match(name)
        if match is None or not tensor.dim() or tensor.shape[0] % 3:
            result[name] = tensor
            continue
        for part, piece in zip("qkv", tensor.chunk(3), strict=True):
            result[f"{match.group(1)}.{part}_proj.{match.group(2)}"] = piece
    return result
