"""transformers' DiNAT from 4.54 on, whose attention loses the map's axes: our own network runs in its place.

Only the classifier and the backbone are known; both are also found inside larger models.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from na_deploy.errors import UsageError
from na_deploy.models import huggingface
from na_deploy.models.build import build_model
from na_deploy.models.detect import read_structure

_MODULE = "transformers.models.dinat.modeling_dinat"
_LAST_GOOD = (4, 53)


@contextmanager
def working_dinat(module: nn.Module) -> Iterator[tuple[nn.Module, list[str]]]:
    """Put our network in the place of every broken DiNAT in ``module``, inside the block.

    Yields:
        The module, or what stands for it where it is such a DiNAT itself; and a sentence where anything was replaced.

    Raises:
        UsageError: a part of DiNAT that is neither classifier nor backbone.
    """
    undo: list[tuple[nn.Module, str, nn.Module]] = []
    found = False
    try:
        if _is_broken(module):
            module, found = _network_of(module), True
        else:
            for parent, name, child in list(_broken_children(module)):
                setattr(parent, name, _network_of(child))
                undo.append((parent, name, child))
            found = bool(undo)
        yield module, [_sentence()] if found else []
    finally:
        for parent, name, child in undo:
            setattr(parent, name, child)


def _version() -> tuple[int, ...]:
    import transformers

    return tuple(int(part) for part in transformers.__version__.split(".")[:2])


def _is_broken(module: nn.Module) -> bool:
    return type(module).__module__ == _MODULE and _version() > _LAST_GOOD


def _broken_children(module: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    for name, child in module.named_children():
        if _is_broken(child):
            yield module, name, child
        else:
            yield from _broken_children(child)


def _sentence() -> str:
    import transformers

    return (
        f"DiNAT of transformers {transformers.__version__} is broken (4.53 is the last that works: its attention loses "
        "the map's axes); na-deploy's own network with the same weights was exported in its place"
    )


def _network_of(module: nn.Module) -> nn.Module:
    kind = type(module).__name__
    if kind not in ("DinatForImageClassification", "DinatBackbone"):
        raise UsageError(
            f"{_sentence().partition(';')[0]}, and {kind} has no counterpart here; give DinatForImageClassification or "
            "DinatBackbone, or use transformers 4.53"
        )
    path = Path(kind)
    settings: Any = module.config
    tensors = {name.removeprefix("dinat."): tensor for name, tensor in module.state_dict().items()}
    tensors = huggingface.convert_state_dict(tensors, path)
    _, dilations = huggingface.evidence(settings.to_dict(), path)
    structure = read_structure(tensors, path)
    if kind == "DinatForImageClassification" and not structure.num_classes:
        raise UsageError(f"{kind} without labels gives no class scores; set num_labels, or give DinatBackbone")
    config = replace(
        structure, dilations=dilations or structure.dilations, layer_norm_eps=float(settings.layer_norm_eps)
    )
    with torch.device("meta"):
        network = build_model(config)
    network.load_state_dict(tensors, strict=True, assign=True)
    return _Classifier(network, settings) if structure.num_classes else _Backbone(network, module)


class _Classifier(nn.Module):
    def __init__(self, network: nn.Module, settings: Any) -> None:
        super().__init__()
        self.network, self.config = network.eval(), settings

    def forward(self, pixel_values: Tensor, **_: Any) -> Any:
        """Return class scores (B, classes) as transformers' classifiers do."""
        from transformers.modeling_outputs import ImageClassifierOutput

        return ImageClassifierOutput(logits=self.network(pixel_values))


class _Backbone(nn.Module):
    def __init__(self, network: nn.Module, original: nn.Module) -> None:
        super().__init__()
        self.network = network.eval()
        for name in ("config", "channels", "out_features", "out_indices", "stage_names", "num_features"):
            if hasattr(original, name):
                setattr(self, name, getattr(original, name))

    def forward(self, pixel_values: Tensor, **_: Any) -> Any:
        """Return feature maps (B, C, H, W) as transformers' backbones do."""
        from transformers.modeling_outputs import BackboneOutput

        return BackboneOutput(feature_maps=tuple(self.network(pixel_values)))
