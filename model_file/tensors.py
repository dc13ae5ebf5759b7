"""Names, types and shapes of a model's inputs and outputs, and the check of arrays against them.

Knows no runtime: every backend describes its model with :class:`TensorSpec` and calls :func:`check_inputs`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from na_deploy.errors import UsageError

Array = NDArray[Any]
Dimension = int | str


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a model.

    Attributes:
        name: its name in the model.
        dtype: element type by NumPy's name, such as ``float32``; ``bfloat16`` means ml_dtypes' type.
        shape: one entry per axis; an integer is fixed, a string names a dimension chosen at run time.
    """

    name: str
    dtype: str
    shape: tuple[Dimension, ...]

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype} {format_shape(self.shape)}"


def format_shape(shape: Sequence[Dimension]) -> str:
    """Return a shape as people write it: ``1×3×224×224``, ``batch×(height//4)``; ``scalar`` for no axes."""
    return "×".join(_factor(dimension) for dimension in shape) or "scalar"


def _factor(dimension: Dimension) -> str:
    """Return a dimension, in parentheses where it is arithmetic over free sizes."""
    text = str(dimension)
    return text if re.fullmatch(r"[\w.]+", text) else f"({text})"


def check_inputs(
    specs: Sequence[TensorSpec],
    given: Mapping[str, Any] | Any,
    convert: Callable[[Any], Any] = np.asarray,
) -> dict[str, Any]:
    """Return the inputs as arrays by name, after comparing them with what the model expects.

    Args:
        specs: the model's inputs.
        given: arrays by input name, or one array when the model has one input. Anything ``numpy.asarray``
            accepts.
        convert: makes an array of what is given: something with ``dtype``, ``ndim`` and ``shape``.

    Raises:
        UsageError: a name, type, rank or dimension differs; the message states given and expected.
    """
    if not isinstance(given, Mapping):
        if len(specs) != 1:
            raise UsageError(f"the model has {len(specs)} inputs ({_names(specs)}); pass a dict of arrays by name")
        given = {specs[0].name: given}
    unknown = [str(name) for name in given if name not in {spec.name for spec in specs}]
    missing = [spec for spec in specs if spec.name not in given]
    if unknown:
        raise UsageError(f"the model has no input named {', '.join(unknown)}; it expects {_names(specs)}")
    if missing:
        raise UsageError(f"input {_names(missing)} is missing; the model expects {_names(specs)}")

    chosen: dict[str, tuple[int, str]] = {}  # symbolic dimension -> its size and the input that set it
    return {spec.name: _check(spec, convert(given[spec.name]), chosen) for spec in specs}


def _check(spec: TensorSpec, array: Any, chosen: dict[str, tuple[int, str]]) -> Any:
    given = f"input {spec.name} has shape {format_shape(array.shape)}"
    expected = f"expected {spec.dtype} of shape {format_shape(spec.shape)}"
    if array.dtype.name != spec.dtype:
        raise UsageError(f"input {spec.name} has type {array.dtype.name}, {expected}; convert it first")
    if array.ndim != len(spec.shape):
        raise UsageError(f"input {spec.name} has {array.ndim} axes (shape {format_shape(array.shape)}), {expected}")
    for axis, (size, wanted) in enumerate(zip(array.shape, spec.shape, strict=True)):
        if isinstance(wanted, int):
            if size != wanted:
                raise UsageError(f"{given}, {expected}: axis {axis} is {size}, not {wanted}")
        elif chosen.setdefault(wanted, (size, spec.name))[0] != size:
            other, source = chosen[wanted]
            raise UsageError(f"{given}, {expected}: {wanted} is {size} here and {other} in {source}")
    return array


def _names(specs: Sequence[TensorSpec]) -> str:
    return ", ".join(str(spec) for spec in specs)


def numpy_type(name: str) -> Any:
    """Return NumPy's type of an element type's name; ml_dtypes' for ``bfloat16``."""
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


def random_input(spec: TensorSpec, shape: Sequence[int] | None = None, seed: int = 0) -> Array:
    """Return an array that fits an input: normal numbers, zeros for integers and truth values.

    Args:
        spec: the input.
        shape: its sizes; needed where the model leaves some free.
        seed: the random numbers'.

    Raises:
        UsageError: free sizes are not given.
    """
    if shape is None:
        if not all(isinstance(size, int) for size in spec.shape):
            raise UsageError(f"input {spec} has free sizes; give a shape")
        shape = [int(size) for size in spec.shape]
    dtype = numpy_type(spec.dtype)
    if dtype.kind in "iub":
        return np.zeros(tuple(shape), dtype)
    return np.random.default_rng(seed).standard_normal(tuple(shape), dtype=np.float32).astype(dtype)
