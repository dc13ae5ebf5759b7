"""PyTorch's table of operators, made once a process: each export makes it again, half a second each time."""

from __future__ import annotations

import contextlib
from functools import cache


def share_operator_table() -> None:
    """Let the exports of this process share the table."""
    with contextlib.suppress(ImportError, AttributeError):  # a private place, and only time is lost without it
        from torch.onnx._internal._lazy_import import onnxscript_apis

        table = cache(onnxscript_apis.get_torchlib_ops)
        onnxscript_apis._module.get_torchlib_ops = table
