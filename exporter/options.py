"""Options of an export, checked before any work is done."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from na_deploy.errors import UsageError
from na_deploy.model_file.tolerances import TOLERANCE

DTYPES = ("fp32", "fp16", "bf16")
PARTS = ("whole", "backbone")
"""All of a segmenter or a detector, or the feature maps of its backbone."""

DYNAMIC = ("batch", "spatial")
DEFAULT_OPSET = 22
"""Opset 22 is the first whose Conv takes bfloat16; ONNX Runtime 1.21 and later read it."""
OPSETS = range(20, 24)
"""Gelu is one operator from 20 on; 23 is the last that is checked."""


@dataclass(frozen=True)
class ExportOptions:
    """The form of the exported file.

    Attributes:
        shape: batch, channels, height, width of the example image; ``None`` takes 1 x 3 x the model's own size.
        dynamic: dimensions left free in the file: "batch", "spatial" (height and width) or both.
        dtype: precision of weights and computation, typed in the file; inputs and outputs stay float32.
        opset: ONNX operator set.
        external_data: write weights beside the model even if they would fit into it.
        tolerance: largest accepted relative difference to PyTorch float32; ``None`` takes that of the dtype.
        flat: standard operators only, for runtimes that know no model-local functions.
    """

    shape: tuple[int, int, int, int] | None = None
    dynamic: tuple[str, ...] = ()
    dtype: str = "fp32"
    opset: int = DEFAULT_OPSET
    external_data: bool = False
    tolerance: float | None = None
    flat: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise UsageError(f"unknown dtype {self.dtype!r}; choose one of {', '.join(DTYPES)}")
        for name in self.dynamic:
            if name not in DYNAMIC:
                raise UsageError(f"unknown dynamic dimension {name!r}; choose batch, spatial or both")
        if self.opset not in OPSETS:
            raise UsageError(f"opset {self.opset} is not supported; choose {OPSETS.start} to {OPSETS.stop - 1}")
        if self.dtype == "bf16" and self.opset < DEFAULT_OPSET:
            raise UsageError(
                f"bf16 needs opset {DEFAULT_OPSET} or later (Conv takes bfloat16 from there on), got {self.opset}"
            )
        if self.tolerance is not None and not self.tolerance > 0:
            raise UsageError(f"tolerance must be above 0, got {self.tolerance}")

    @property
    def accepted_difference(self) -> float:
        """The tolerance in force."""
        return TOLERANCE[self.dtype] if self.tolerance is None else self.tolerance


def parse_shape(text: str) -> tuple[int, int, int, int]:
    """Parse ``1x3x224x224``.

    Raises:
        UsageError: it is not four positive numbers.
    """
    if not re.fullmatch(r"\d+(x\d+){3}", text):
        raise UsageError(
            f"cannot read the input shape {text!r}; write batch x channels x height x width, as 1x3x224x224"
        )
    batch, channels, height, width = (int(part) for part in text.split("x"))
    if min(batch, channels, height, width) < 1:
        raise UsageError(f"the input shape {text} has a zero; every size must be at least 1")
    return batch, channels, height, width


def parse_dynamic(values: Sequence[str]) -> tuple[str, ...]:
    """Parse repeated or comma-separated ``--dynamic`` values, in a fixed order without repeats."""
    given = [part.strip() for value in values for part in value.split(",") if part.strip()]
    unknown = [part for part in given if part not in DYNAMIC]
    if unknown:
        raise UsageError(f"unknown dynamic dimension {unknown[0]!r}; choose batch, spatial or both")
    return tuple(name for name in DYNAMIC if name in given)
