"""mmsegmentation's own UPerHead, imported beside stand-ins for mmcv's compiled operators, which it does not use."""

from __future__ import annotations

import sys
import types
from importlib.machinery import ModuleSpec
from typing import Any

from torch import nn


def _missing(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError(f"mmcv.ops.{name} is a stand-in")

    return type(name, (), {"__init__": refuse})


def _stand_in(name: str) -> None:
    module = types.ModuleType(name)
    module.__spec__ = ModuleSpec(name, None, is_package=True)
    module.__path__ = []
    module.__getattr__ = _missing  # type: ignore[method-assign]
    sys.modules[name] = module


def uper_head(in_widths: tuple[int, ...], width: int, classes: int, **options: Any) -> nn.Module:
    """Return a UPerHead in evaluation mode."""
    for name in ("", ".point_sample", ".modulated_deform_conv", ".multi_scale_deform_attn"):
        if f"mmcv.ops{name}" not in sys.modules:
            _stand_in(f"mmcv.ops{name}")
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
