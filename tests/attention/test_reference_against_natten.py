"""The float64 reference against ``natten`` itself, on random problems that its CPU path can run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import natten
import numpy as np
import pytest
import torch

from na_deploy.attention import NeighborhoodSpec, reference_attention

OPERATORS = {1: natten.na1d, 2: natten.na2d, 3: natten.na3d}
LONGEST = {1: 40, 2: 15, 3: 8}
CASES = 72


@dataclass(frozen=True)
class Problem:
    lengths: tuple[int, ...]
    spec: NeighborhoodSpec
    heads: int
    key_heads: int
    head_dim: int
    additional: int
    scale: float | None


def random_problem(seed: int) -> Problem:
    """Draw a problem: odd and even sizes, dilations that do not divide them, windows as long as the axis."""
    random = np.random.default_rng(seed)
    rank = seed % 3 + 1
    lengths, kernels, dilations, strides, causal = [], [], [], [], []
    for _ in range(rank):
        length = int(random.integers(5, LONGEST[rank] + 1))
        kernel = int(random.integers(2, min(length, 7) + 1))
        dilation = int(random.integers(1, length // kernel + 1))
        is_causal = bool(random.random() < 0.3)
        if is_causal and kernel * dilation == length:  # not in natten's CPU path
            kernel, dilation, length = 2, 1, length + 1
        lengths.append(length)
        kernels.append(kernel)
        dilations.append(dilation)
        strides.append(int(random.integers(1, kernel + 1)))
        causal.append(is_causal)
    key_heads = int(random.integers(1, 3))
    return Problem(
        tuple(lengths),
        NeighborhoodSpec.create(rank, kernels, dilations, strides, causal),
        heads=key_heads * int(random.integers(1, 3)),
        key_heads=key_heads,
        head_dim=int(random.choice([8, 16])),
        additional=int(random.choice([0, 0, 3])),
        scale=None if random.random() < 0.5 else float(random.uniform(0.1, 1.0)),
    )


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("seed", range(CASES))
def test_the_reference_is_nattens_attention(seed: int):
    problem = random_problem(seed)
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    shape = (2, *problem.lengths)
    query = normal(*shape, problem.heads, problem.head_dim)
    key, value = (normal(*shape, problem.key_heads, problem.head_dim) for _ in range(2))
    more: dict[str, Any] = {}
    if problem.additional:
        extra = (2, problem.additional, problem.key_heads, problem.head_dim)
        more = {"additional_keys": normal(*extra), "additional_values": normal(*extra)}
    spec = problem.spec
    output, lse = OPERATORS[spec.rank](
        query,
        key,
        value,
        kernel_size=spec.kernel_size,
        dilation=spec.dilation,
        stride=spec.stride,
        is_causal=spec.is_causal,
        scale=problem.scale,
        return_lse=True,
        **more,
    )
    expected = reference_attention(
        query,
        key,
        value,
        spec,
        scale=problem.scale,
        additional_key=more.get("additional_keys"),
        additional_value=more.get("additional_values"),
    )
    np.testing.assert_allclose(output, expected.output, atol=5e-6, err_msg=str(problem))
    np.testing.assert_allclose(lse, expected.lse, atol=5e-6, err_msg=str(problem))
