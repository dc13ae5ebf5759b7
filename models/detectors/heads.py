"""Heads on cut-out regions: class scores and deltas; masks. Names are those of mmdetection's heads."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from na_deploy.models.detectors.fpn import Convolution


@dataclass(frozen=True)
class BoxHeadConfig:
    """The size of a box head, and the unit of its deltas.

    Attributes:
        width: channels of the regions.
        size: side of the regions.
        num_classes: classes, "nothing" not counted.
        conv_widths: channels of every convolution; none in Shared2FCBBoxHead.
        fc_widths: channels of every linear layer.
        batch_norm: true where batch normalisation follows the convolutions.
        class_agnostic: true where one box serves all classes.
        means: see :func:`~na_deploy.models.detectors.boxes.decoded`.
        stds: likewise.
    """

    width: int
    size: int
    num_classes: int
    conv_widths: tuple[int, ...] = ()
    fc_widths: tuple[int, ...] = (1024, 1024)
    batch_norm: bool = False
    class_agnostic: bool = False
    means: tuple[float, ...] = (0, 0, 0, 0)
    stds: tuple[float, ...] = (0.1, 0.1, 0.2, 0.2)


class BoxHead(nn.Module):
    """Convolutions, linear layers, then class logits and deltas: Shared2FCBBoxHead, Shared4Conv1FCBBoxHead."""

    def __init__(self, config: BoxHeadConfig) -> None:
        super().__init__()
        self.config = config
        widths = (config.width, *config.conv_widths)
        self.shared_convs = nn.ModuleList(
            Convolution(before, behind, 3, batch_norm=config.batch_norm, relu=True)
            for before, behind in zip(widths, config.conv_widths, strict=False)
        )
        lengths = (widths[-1] * config.size**2, *config.fc_widths)
        self.shared_fcs = nn.ModuleList(
            nn.Linear(before, behind) for before, behind in zip(lengths, config.fc_widths, strict=False)
        )
        self.fc_cls = nn.Linear(lengths[-1], config.num_classes + 1)
        self.fc_reg = nn.Linear(lengths[-1], 4 if config.class_agnostic else 4 * config.num_classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map regions (R, C, size, size) to logits (R, classes + 1), nothing last, and deltas (R, classes or 1, 4)."""
        for conv in self.shared_convs:
            x = conv(x)
        x = x.flatten(1)
        for linear in self.shared_fcs:
            x = linear(x).relu()
        return self.fc_cls(x), self.fc_reg(x).unflatten(1, (-1, 4))


@dataclass(frozen=True)
class MaskHeadConfig:
    """The size of a mask head.

    Attributes:
        width: channels of the regions.
        size: side of the regions; masks have twice that.
        num_classes: classes; 1 where one mask serves all.
        conv_widths: channels of every convolution.
        upsampled: channels of the enlarged regions.
        batch_norm: true where batch normalisation follows the convolutions.
    """

    width: int
    size: int
    num_classes: int
    conv_widths: tuple[int, ...] = (256, 256, 256, 256)
    upsampled: int = 256
    batch_norm: bool = False


class MaskHead(nn.Module):
    """Convolutions, a transposed convolution, then one mask for each class: FCNMaskHead."""

    def __init__(self, config: MaskHeadConfig) -> None:
        super().__init__()
        widths = (config.width, *config.conv_widths)
        self.convs = nn.ModuleList(
            Convolution(before, behind, 3, batch_norm=config.batch_norm, relu=True)
            for before, behind in zip(widths, config.conv_widths, strict=False)
        )
        self.upsample = nn.ConvTranspose2d(widths[-1], config.upsampled, 2, stride=2)
        self.conv_logits = nn.Conv2d(config.upsampled, config.num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map regions (R, C, size, size) to mask logits (R, classes, 2·size, 2·size)."""
        for conv in self.convs:
            x = conv(x)
        return self.conv_logits(self.upsample(x).relu())  # type: ignore[no-any-return]
