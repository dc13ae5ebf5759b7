"""Words that quantization is asked for in. Imports nothing, so that the command line can offer them at once."""

from __future__ import annotations

FORMATS = ("int8", "fp8")
TARGETS = ("any", "tensorrt", "cpu")
METHODS = ("minmax", "percentile", "entropy")
