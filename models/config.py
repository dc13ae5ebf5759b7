"""Descriptions of models: one frozen description that builds every NAT, DiNAT, DiNAT_s and isotropic network.

No PyTorch here: the registry, the metadata and the command line read descriptions without it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from na_deploy.errors import UsageError

Family = Literal["nat", "dinat_s", "isotropic"]
Dilations = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class ModelConfig:
    """Everything needed to build a network, and nothing about where its weights come from.

    Attributes:
        family: "nat" (NAT and DiNAT share code), "dinat_s" (Swin's layout) or "isotropic" (one level, ViT's
            layout).
        embed_dim: channels of the first level; each level doubles them.
        depths: blocks per level.
        heads: attention heads per level.
        kernel_size: window side of every block.
        dilations: per level, one dilation per block.
        mlp_ratio: hidden width of the MLP over the width of its level.
        layer_scale: True if blocks have ``gamma1`` and ``gamma2``.
        num_classes: classes of the head; 0 means no head, the pooled features are returned.
        out_indices: levels whose feature maps a backbone returns; empty for a classifier.
        patch_size: side of the patches of "dinat_s" and "isotropic"; "nat" always reduces 4 times by
            convolutions.
        in_channels: channels of the image.
        qkv_bias: True if the qkv projection has a bias.
        layer_norm_eps: epsilon of every LayerNorm inside the blocks and of the last one.
        fixed_map: ViT-rpb: attention over the whole map, which must be exactly ``kernel_size`` on both sides;
            such files carry a ``relative_position_index`` buffer in every block.
    """

    family: Family
    embed_dim: int
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    kernel_size: int
    dilations: Dilations
    mlp_ratio: float
    layer_scale: bool = False
    num_classes: int = 1000
    out_indices: tuple[int, ...] = ()
    patch_size: int = 4
    in_channels: int = 3
    qkv_bias: bool = True
    layer_norm_eps: float = 1e-5
    fixed_map: bool = False

    def __post_init__(self) -> None:
        """Check that the parts fit together.

        Raises:
            UsageError: lists of different lengths, widths that heads do not divide, levels that do not exist.
        """
        if not self.depths or min(self.depths) < 1:
            raise UsageError(f"depths must name at least one block per level, got {list(self.depths)}")
        if len(self.heads) != len(self.depths):
            raise UsageError(f"heads must name one number per level ({len(self.depths)}), got {list(self.heads)}")
        if self.family == "isotropic" and (len(self.depths) != 1 or self.out_indices):
            raise UsageError("an isotropic model has one level and no backbone form")
        for level, (width, heads) in enumerate(zip(self.widths, self.heads, strict=True)):
            if heads < 1 or width % heads:
                raise UsageError(f"level {level} is {width} wide, which {heads} heads do not divide")
        if any(not 0 <= index < len(self.depths) for index in self.out_indices):
            raise UsageError(f"out_indices must lie in 0…{len(self.depths) - 1}, got {list(self.out_indices)}")
        check_dilations(self.dilations, self.depths)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of every level."""
        return tuple(self.embed_dim * 2**level for level in range(len(self.depths)))

    @property
    def is_backbone(self) -> bool:
        """True if the network returns feature maps instead of class scores."""
        return bool(self.out_indices)

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the outputs in exported files: "logits", "features" without a head, or "stage1" and so on."""
        if self.is_backbone:
            return tuple(f"stage{index + 1}" for index in self.out_indices)
        return ("logits" if self.num_classes else "features",)

    @property
    def is_dilated(self) -> bool:
        """True if any block skips positions."""
        return any(dilation > 1 for level in self.dilations for dilation in level)

    @property
    def total_stride(self) -> int:
        """Side of the image over the side of the last feature map."""
        return int(self.patch_size * 2 ** (len(self.depths) - 1))

    def level_sizes(self, height: int, width: int) -> list[tuple[int, int]]:
        """Return (H, W) of every level's map for an image; both downsamplings round up."""
        sizes = [(-(-height // self.patch_size), -(-width // self.patch_size))]
        for _ in self.depths[1:]:
            rows, columns = sizes[-1]
            sizes.append((-(-rows // 2), -(-columns // 2)))
        return sizes

    def to_json(self) -> str:
        """Return a compact JSON object."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> ModelConfig:
        """Read what :meth:`to_json` wrote; unknown keys of later versions are ignored.

        Raises:
            UsageError: not such an object.
        """
        try:
            content: Any = json.loads(text)
            return cls.from_mapping(content)
        except (ValueError, TypeError, AttributeError) as error:
            raise UsageError(f"not a model description: {error}") from None

    @classmethod
    def from_mapping(cls, content: Mapping[str, Any]) -> ModelConfig:
        """Build from a mapping of field names, lists standing for tuples."""
        known = {field.name for field in fields(cls)}
        return cls(**{name: _frozen(value) for name, value in content.items() if name in known})


def ones(depths: Sequence[int]) -> Dilations:
    """Return dilation 1 for every block: NAT."""
    return tuple((1,) * depth for depth in depths)


def check_dilations(dilations: Sequence[Sequence[int]], depths: Sequence[int]) -> None:
    """Check that there is one positive dilation per block.

    Raises:
        UsageError: says what was given and what the depths ask for.
    """
    given = [len(level) for level in dilations]
    if given != list(depths):
        raise UsageError(
            f"dilations are given for {given} blocks per level, the model has {list(depths)}; give one "
            "number per block, levels separated by '/'"
        )
    for level in dilations:
        for dilation in level:
            if dilation < 1:
                raise UsageError(f"a dilation must be at least 1, got {dilation}")


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list | tuple) else value
