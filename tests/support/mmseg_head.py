"""mmsegmentation's own UPerHead, imported beside stand-ins for mmcv's compiled operators, which it does not use."""

from __future__ import annotations

from typing import Any

import mmcv_operators
from torch import nn


def uper_head(in_widths: tuple[int, ...], width: int, classes: int, **options: Any) -> nn.Module:
    """Return a UPerHead in evaluation mode."""
    mmcv_operators.install()
    from mmseg.models.decode_heads import UPerHead

    head: nn.Module = UPerHead(
        in_channels=list(in_widths),
        in_index=list(range(len(in_widths))),
        channels=width,
        num_classes=classes,
        norm_cfg={"type": "BN"},
        dropout_ratio=0.1,
        **options,
    )
    return head.eval()
