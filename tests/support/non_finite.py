"""Problems in which a number is not finite, and the comparison of their results with float64's."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from na_deploy.attention.reference import AttentionResult, reference_attention, reference_attention_qkv
from na_deploy.attention.windows import NeighborhoodSpec


@dataclass(frozen=True)
class Spoiled:
    """A problem of random numbers with some that are not finite.

    Args:
        name: what is spoiled.
        lengths: sizes of the map.
        kernel_size: of the window.
        where: tensor and index of the number, the channel last.
        number: the number.
        dilation: of the window.
        batch: images.
        bias: whether there is a bias.
        additional: additional keys, of separate tensors.
        padding: whether there is padding.
    """

    name: str
    lengths: tuple[int, ...]
    kernel_size: tuple[int, ...]
    where: tuple[tuple[str, tuple[object, ...]], ...]
    number: float
    dilation: int = 1
    batch: int = 1
    bias: bool = False
    additional: int = 0
    padding: bool = False

    def __str__(self) -> str:
        return self.name

    @property
    def spec(self) -> NeighborhoodSpec:
        """The window."""
        return NeighborhoodSpec.create(len(self.lengths), self.kernel_size, self.dilation)

    def arrays(self, dim: int, dtype: np.dtype, heads: int = 2) -> dict[str, np.ndarray]:
        """Return the tensors, packed unless there are additional keys."""
        random = np.random.default_rng(5)
        shapes: dict[str, tuple[int, ...]] = {"qkv": (self.batch, *self.lengths, 3, heads, dim)}
        if self.additional:
            shapes = dict.fromkeys(("query", "key", "value"), (self.batch, *self.lengths, heads, dim))
            shapes |= dict.fromkeys(("additional_key", "additional_value"), (self.batch, self.additional, heads, dim))
        if self.bias:
            shapes["rel_pos_bias"] = (heads, *(2 * size - 1 for size in self.kernel_size))
        if self.padding:
            shapes["padding"] = (3, heads, dim)
        found = {name: random.normal(size=shape).astype(dtype) for name, shape in shapes.items()}
        for name, index in self.where:
            found[name][index] = self.number
        return found

    def expected(self, arrays: dict[str, np.ndarray]) -> AttentionResult:
        """Return what float64 gives, by the definition."""
        wide = {name: array.astype(np.float64) for name, array in arrays.items()}
        if "qkv" in wide:
            return reference_attention_qkv(wide.pop("qkv"), self.spec, **wide)
        return reference_attention(*(wide.pop(name) for name in ("query", "key", "value")), self.spec, **wide)


def cases() -> list[Spoiled]:
    """Return a case for every kind of tensor and number."""
    found = [
        Spoiled(f"{number} in a {part}", (9, 11), (3, 5), (("qkv", (0, 4, 5, at, 0, 3)),), number)
        for at, part in ((1, "key"), (2, "value"))
        for number in (np.inf, -np.inf, np.nan)
    ]
    return [
        *found,
        Spoiled("inf in a query", (9, 11), (3, 5), (("qkv", (0, 4, 5, 0, 1, 3)),), np.inf, bias=True),
        Spoiled("a value of one image", (8, 9), (3, 3), (("qkv", (1, 3, 2, 2, 0, 1)),), np.inf, 2, batch=3, bias=True),
        Spoiled("both infinities", (40,), (7,), (("qkv", (0, 11, 2, 0, 1)), ("qkv", (0, 13, 2, 0, 2))), -np.inf),
        Spoiled("a head's whole bias", (6, 7), (3, 3), (("rel_pos_bias", (1,)),), -np.inf, bias=True),
        Spoiled("one entry of a bias", (6, 7), (3, 3), (("rel_pos_bias", (0, 0, 0)),), -np.inf, bias=True),
        Spoiled("half of a wide bias", (12, 13), (11, 10), (("rel_pos_bias", (0, slice(10))),), -np.inf, bias=True),
        Spoiled("a key among many", (12, 13), (11, 10), (("qkv", (0, 11, 0, 1, 0, 3)),), np.inf),
        Spoiled("an additional key", (30,), (5,), (("additional_key", (0, 2, 0, 1)),), -np.inf, additional=70),
        Spoiled("a value of the map", (5, 4, 6), (3, 3, 3), (("value", (0, 2, 1, 3, 1, 0)),), np.nan, additional=5),
        Spoiled("padding", (4, 9), (5, 3), (("padding", (2, 0, 1)),), np.inf, padding=True, bias=True),
    ]


def assert_same(found: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    """Assert that infinities and NaN stand in the same places, and that the other numbers agree.

    ``tolerance`` is relative to the largest finite one.
    """
    wide, finite = found.astype(np.float64), np.isfinite(expected)
    np.testing.assert_array_equal(wide[~finite], expected[~finite])
    differences = np.abs(wide[finite] - expected[finite])
    np.testing.assert_array_less(differences, tolerance * max(np.abs(expected[finite]).max(), 1.0))
