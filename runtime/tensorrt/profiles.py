"""Optimization profiles of engines, and the choice of one for the shapes of a call."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from na_deploy.errors import UsageError
from na_deploy.model_file.tensors import format_shape
from na_deploy.runtime.bundle.manifest import Profile

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class EngineProfile:
    """One optimization profile of an engine.

    Attributes:
        index: its number in the engine.
        sizes: the sizes of every input.
    """

    index: int
    sizes: Mapping[str, Profile]

    def holds(self, shapes: Shapes) -> bool:
        """Tell whether it takes all these shapes."""
        return all(self.sizes[name].holds(shape) for name, shape in shapes.items())

    def distance(self, shapes: Shapes) -> float:
        """Return the distance of shapes to the optimum: the sum of the ratios' absolute logarithms."""
        return sum(
            abs(math.log(max(size, 1) / max(usual, 1)))
            for name, shape in shapes.items()
            for size, usual in zip(shape, self.sizes[name].optimum, strict=True)
        )

    def __str__(self) -> str:
        return ", ".join(
            f"{name} {format_shape(sizes.minimum)}"
            + (f" to {format_shape(sizes.maximum)}" if sizes.minimum != sizes.maximum else "")
            for name, sizes in self.sizes.items()
        )


def read_profiles(engine: Any, inputs: Sequence[str]) -> tuple[EngineProfile, ...]:
    """Read an engine's optimization profiles; at least one, also for an engine of fixed sizes."""

    def sizes(name: str, index: int) -> Profile:
        low, usual, high = (tuple(int(size) for size in dims) for dims in engine.get_tensor_profile_shape(name, index))
        return Profile(low, usual, high)

    return tuple(
        EngineProfile(index, {name: sizes(name, index) for name in inputs})
        for index in range(max(1, int(engine.num_optimization_profiles)))
    )


def choose_profile(profiles: Sequence[EngineProfile], shapes: Shapes) -> EngineProfile:
    """Return the profile that takes the shapes and was optimized nearest to them.

    Raises:
        UsageError: none takes them; the message lists the profiles.
    """
    fitting = [profile for profile in profiles if profile.holds(shapes)]
    if fitting:
        return min(fitting, key=lambda profile: (profile.distance(shapes), profile.index))
    given = ", ".join(f"{name} {format_shape(shape)}" for name, shape in shapes.items())
    known = "; or ".join(str(profile) for profile in profiles)
    raise UsageError(f"the engine was not built for {given}; it takes {known} (see --batch and --size of build)")
