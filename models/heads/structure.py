"""From the shapes of a head's weights, and what its configuration says, to the description that builds it.

Numbers that shapes give are read from shapes; a configuration that says otherwise is refused. What shapes do not give
(attention heads, scales of pooling, places of norms) comes from the configuration, or is the repositories' default.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from na_deploy.errors import CheckpointError
from na_deploy.models.config import ModelConfig
from na_deploy.models.heads.deformable_pixel_decoder import DeformableConfig
from na_deploy.models.heads.mask2former import Mask2Former, Mask2FormerConfig
from na_deploy.models.heads.maskformer import MaskFormer, MaskFormerConfig
from na_deploy.models.heads.names import HeadWeights
from na_deploy.models.heads.oneformer import OneFormer, OneFormerConfig
from na_deploy.models.heads.upernet import UPerNet, UPerNetConfig

HeadConfig = UPerNetConfig | MaskFormerConfig | Mask2FormerConfig | OneFormerConfig
_PIXELS, _DECODER = "sem_seg_head.pixel_decoder.", "sem_seg_head.predictor."


@dataclass(frozen=True)
class Stated:
    """Statements of a configuration about a head.

    Attributes:
        source: its place, for messages.
        numbers: sizes that the weights' shapes give too, by name.
        heads: attention heads of the decoder.
        pool_scales: those of UPerNet.
        align_corners: UPerNet's.
        pre_norm: true where norms stand before each step.
        task_norm: OneFormer's.
        eps: epsilon of OneFormer's norms.
    """

    source: str = ""
    numbers: Mapping[str, int] = field(default_factory=dict)
    heads: int = 8
    pool_scales: tuple[int, ...] = (1, 2, 3, 6)
    align_corners: bool = False
    pre_norm: bool = False
    task_norm: bool = True
    eps: float = 1e-5


def stated_by_hugging_face(content: Mapping[str, Any], path: Path) -> Stated:
    """Read a Hugging Face ``config.json`` of a whole segmenter.

    Raises:
        CheckpointError: a variant that the networks here do not have.
    """
    decoder = content.get("decoder_config") or {}
    for where, name, only in (
        (content, "activation_function", "relu"),
        (decoder, "activation_function", "relu"),
        (decoder, "auxiliary_loss", False),
        (content, "norm", "GN"),
    ):
        if where.get(name, only) != only:
            raise CheckpointError(
                f"{path}: config.json gives {name} as {where[name]!r}, which is not supported; only {only!r} is"
            )
    numbers: dict[str, Any] = {"classes": _classes(content), "layers": decoder.get("decoder_layers")}
    numbers["queries"] = content.get("num_queries", decoder.get("num_queries"))
    if content.get("model_type") in ("mask2former", "oneformer"):
        numbers["layers"] = content["decoder_layers"] - 1 if "decoder_layers" in content else None
        numbers["hidden width"] = content.get("hidden_dim")
    if content.get("model_type") == "upernet":
        numbers |= {"layers": None, "queries": None, "channels": content.get("hidden_size")}
    heads = decoder.get("decoder_attention_heads") or content.get("num_attention_heads") or 8
    return Stated(
        source="config.json",
        numbers={name: int(number) for name, number in numbers.items() if number is not None},
        heads=int(heads),
        pool_scales=tuple(int(scale) for scale in content.get("pool_scales", (1, 2, 3, 6))),
        pre_norm=bool(content.get("pre_norm", False)),
        task_norm=bool(content.get("use_task_norm", True)),
        eps=float(content.get("layer_norm_eps", 1e-5)),
    )


def _classes(content: Mapping[str, Any]) -> int | None:
    names = content.get("id2label")
    return len(names) if isinstance(names, Mapping) else content.get("num_labels")


def stated_by_mmsegmentation(model: Mapping[str, Any], path: Path) -> Stated:
    """Read the entry ``model`` of an mmsegmentation configuration.

    Raises:
        CheckpointError: a head other than UPerHead.
    """
    head = model.get("decode_head")
    if not isinstance(head, Mapping):
        return Stated()
    if head.get("type", "UPerHead") != "UPerHead":
        raise CheckpointError(f"{path} has a decode_head of type {head['type']}; only UPerHead is supported")
    numbers = {"classes": head.get("num_classes"), "channels": head.get("channels")}
    return Stated(
        source="its training configuration",
        numbers={name: number for name, number in numbers.items() if isinstance(number, int)},
        pool_scales=tuple(head.get("pool_scales", (1, 2, 3, 6))),
        align_corners=bool(head.get("align_corners", False)),
    )


def read_head(head: HeadWeights, backbone: ModelConfig, stated: Stated, path: Path) -> HeadConfig:
    """Describe the head whose weights these are.

    Raises:
        CheckpointError: weights are missing, have another shape than the backbone asks for, or contradict ``stated``.
    """
    config = _READERS[head.kind](_Reader(head, backbone, path), stated)
    found = _numbers(config)
    for name, number in stated.numbers.items():
        if name in found and found[name] != number:
            raise CheckpointError(
                f"{path}: {stated.source} says {number} {name}, the weights of its {head.title} head have "
                f"{found[name]}; they are not of one model"
            )
    return config


def build_segmenter(backbone: nn.Module, config: HeadConfig) -> nn.Module:
    """Return the whole network around a backbone, in evaluation mode."""
    match config:
        case UPerNetConfig():
            return UPerNet(backbone, config).eval()
        case MaskFormerConfig():
            return MaskFormer(backbone, config).eval()
        case Mask2FormerConfig():
            return Mask2Former(backbone, config).eval()
        case OneFormerConfig():
            return OneFormer(backbone, config).eval()


def head_shapes(config: HeadConfig) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a head's weights, without the backbone's."""
    with torch.device("meta"):
        network = build_segmenter(nn.Identity(), config)
    return {
        name: tuple(value.shape)
        for name, value in network.state_dict().items()
        if not name.endswith(".num_batches_tracked")
    }


def _numbers(config: HeadConfig) -> dict[str, int]:
    found = {"classes": config.num_classes}
    if isinstance(config, UPerNetConfig):
        return found | {"channels": config.width}
    return found | {"queries": config.queries, "layers": config.layers, "hidden width": config.hidden}


class _Reader:
    """Shapes by name, with a sentence for those that are missing."""

    def __init__(self, head: HeadWeights, backbone: ModelConfig, path: Path) -> None:
        self.head, self.path = head, path
        self.in_widths = tuple(backbone.widths[index] for index in backbone.out_indices)
        self.tensors: Mapping[str, Tensor] = head.tensors

    def shape(self, name: str, rank: int) -> tuple[int, ...]:
        if name not in self.tensors:
            raise CheckpointError(
                f"{self.path} lacks {name}, from which the size of its {self.head.title} head is read; the file is "
                "incomplete"
            )
        found = tuple(self.tensors[name].shape)
        if len(found) != rank:
            raise CheckpointError(f"{self.path}: {name} has shape {list(found)}, expected {rank} dimensions")
        return found

    def count(self, pattern: str) -> int:
        """Return how many numbered parts there are, from the largest number."""
        search = re.compile(pattern)
        return 1 + max((int(m.group(1)) for name in self.tensors if (m := search.match(name))), default=-1)


def _upernet(read: _Reader, stated: Stated) -> UPerNetConfig:
    classes, width, _, _ = read.shape("decode_head.conv_seg.weight", 4)
    pools = read.count(r"decode_head\.psp_modules\.(\d+)\.")
    if pools != len(stated.pool_scales):
        raise CheckpointError(
            f"{read.path} pools at {pools} scales, {stated.source or 'the default'} names {len(stated.pool_scales)} "
            f"({', '.join(map(str, stated.pool_scales))}); they are not of one model"
        )
    return UPerNetConfig(read.in_widths, width, classes, stated.pool_scales, stated.align_corners)


def _maskformer(read: _Reader, stated: Stated) -> MaskFormerConfig:
    classes, hidden = read.shape(f"{_DECODER}class_embed.weight", 2)
    mask_width, width, _, _ = read.shape(f"{_PIXELS}mask_features.weight", 4)
    layer = f"{_DECODER}transformer.decoder.layers"
    return MaskFormerConfig(
        in_widths=read.in_widths,
        num_classes=classes - 1,
        queries=read.shape(f"{_DECODER}query_embed.weight", 2)[0],
        width=width,
        mask_width=mask_width,
        hidden=hidden,
        layers=read.count(rf"{re.escape(layer)}\.(\d+)\."),
        heads=stated.heads,
        feedforward=read.shape(f"{layer}.0.linear1.weight", 2)[0],
        projected=f"{_DECODER}input_proj.weight" in read.tensors,
    )


def _deformable(read: _Reader, eps: float = 1e-5) -> DeformableConfig:
    mask_width, width, _, _ = read.shape(f"{_PIXELS}mask_features.weight", 4)
    levels, _ = read.shape(f"{_PIXELS}transformer.level_embed", 2)
    layer = f"{_PIXELS}transformer.encoder.layers"
    places, _ = read.shape(f"{layer}.0.self_attn.attention_weights.weight", 2)
    points = DeformableConfig.points
    if places % (levels * points):
        raise CheckpointError(
            f"{read.path}: {layer}.0.self_attn.attention_weights.weight reads {places} places, expected a multiple of "
            f"{levels} maps with {points} points each"
        )
    return DeformableConfig(
        in_widths=read.in_widths,
        width=width,
        mask_width=mask_width,
        layers=read.count(rf"{re.escape(layer)}\.(\d+)\."),
        heads=places // (levels * points),
        feedforward=read.shape(f"{layer}.0.linear1.weight", 2)[0],
        pyramid=len({name.split(".")[2] for name in read.tensors if name.startswith(f"{_PIXELS}adapter_")}),
        levels=levels,
        eps=eps,
    )


def _masked(read: _Reader, stated: Stated, pixels: DeformableConfig) -> dict[str, Any]:
    classes, hidden = read.shape(f"{_DECODER}class_embed.weight", 2)
    return {
        "pixel_decoder": pixels,
        "num_classes": classes - 1,
        "queries": read.shape(f"{_DECODER}query_embed.weight", 2)[0],
        "hidden": hidden,
        "layers": read.count(rf"{re.escape(_DECODER)}transformer_ffn_layers\.(\d+)\."),
        "heads": stated.heads,
        "feedforward": read.shape(f"{_DECODER}transformer_ffn_layers.0.linear1.weight", 2)[0],
        "projected": f"{_DECODER}input_proj.0.weight" in read.tensors or pixels.width != hidden,
        "pre_norm": stated.pre_norm,
    }


def _mask2former(read: _Reader, stated: Stated) -> Mask2FormerConfig:
    return Mask2FormerConfig(**_masked(read, stated, _deformable(read)))


def _oneformer(read: _Reader, stated: Stated) -> OneFormerConfig:
    return OneFormerConfig(
        **_masked(read, stated, _deformable(read, stated.eps)),
        query_layers=read.count(rf"{re.escape(_DECODER)}class_transformer\.decoder\.layers\.(\d+)\."),
        task_length=read.shape("task_mlp.layers.0.weight", 2)[1],
        task_norm=stated.task_norm,
        eps=stated.eps,
    )


_READERS: dict[str, Callable[[_Reader, Stated], HeadConfig]] = {
    "upernet": _upernet,
    "maskformer": _maskformer,
    "mask2former": _mask2former,
    "oneformer": _oneformer,
}
