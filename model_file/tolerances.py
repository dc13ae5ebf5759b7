"""Largest accepted differences by a file's precision. Imports nothing."""

from __future__ import annotations

TOLERANCE = {"fp32": 1e-4, "fp16": 2e-2, "bf16": 1e-1, "int8": 2e-1, "fp8": 2e-1}
"""Largest accepted ``max |found - expected| / max |expected|`` of any output, the expected one being float32.

Of quantized files, on pictures: their ranges are those of the samples they were calibrated on."""
