"""From a description to a network, and random weights for one in the official key layout."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from na_deploy.models.config import ModelConfig
from na_deploy.models.dinat_s import DiNATs
from na_deploy.models.isotropic import IsotropicNAT
from na_deploy.models.layers import relative_position_index
from na_deploy.models.nat import NAT
from na_deploy.models.registry import get_model

_NETWORKS: dict[str, type[NAT] | type[DiNATs] | type[IsotropicNAT]] = {
    "nat": NAT,
    "dinat_s": DiNATs,
    "isotropic": IsotropicNAT,
}


def build_model(config: ModelConfig | str) -> nn.Module:
    """Return the network in evaluation mode, initialised but untrained.

    Args:
        config: a description, or a published model's name.

    Raises:
        UsageError: unknown name.
    """
    config = get_model(config).config if isinstance(config, str) else config
    return _NETWORKS[config.family](config).eval()


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of every entry of the network's state_dict, without allocating it."""
    with torch.device("meta"):
        return {name: tuple(value.shape) for name, value in build_model(config).state_dict().items()}


def random_checkpoint(config: ModelConfig | str, seed: int = 0, path: str | Path | None = None) -> dict[str, Tensor]:
    """Return random weights in the official key layout, for tests, demonstrations and benchmarks.

    Every entry is random, biases and layer scales too, so that leaving one out changes the outputs.
    Activations stay of order 1, and windows attend unevenly: scores and biases have a standard deviation near
    1.

    Args:
        config: a description, or a published model's name.
        seed: start of the random generator; equal seeds give equal weights.
        path: a file to save it to as well, as ``torch.save`` does.
    """
    config = get_model(config).config if isinstance(config, str) else config
    generator = torch.Generator().manual_seed(seed)

    def normal(shape: tuple[int, ...], deviation: float, mean: float = 0.0) -> Tensor:
        return torch.randn(shape, generator=generator) * deviation + mean

    weights: dict[str, Tensor] = {}
    for name, shape in expected_shapes(config).items():
        leaf = name.rsplit(".", 1)[-1]
        if leaf == "relative_position_index":
            weights[name] = relative_position_index(config.kernel_size)
        elif leaf == "rpb":
            weights[name] = normal(shape, 1.0)
        elif leaf in ("gamma1", "gamma2"):
            weights[name] = normal(shape, 0.1, mean=0.5)
        elif len(shape) > 1:  # keeps the variance of its input
            fan_in = torch.Size(shape[1:]).numel()
            weights[name] = normal(shape, fan_in**-0.5)
        elif leaf == "weight":
            weights[name] = normal(shape, 0.1, mean=1.0)
        else:
            weights[name] = normal(shape, 0.1)
    if path is not None:
        torch.save(weights, path)
    return weights
