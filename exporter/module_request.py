"""Options of ``na-deploy export package.module:factory``: weights, example inputs, free axes, windows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from na_deploy.errors import CheckpointError, UsageError
from na_deploy.exporter.rewindow import SetWindow
from na_deploy.exporter.wrappers import unwrapped
from na_deploy.models.weights import checked, fitted, read_weights, unwrapped_names

DTYPES = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "int64": torch.int64,
    "int32": torch.int32,
    "bool": torch.bool,
}
SEED = 20221


def load_weights(module: nn.Module, path: Path) -> list[str]:
    """Load a checkpoint into ``module``, of every form that checkpoints of known models may have.

    Averaged weights come first where a file holds several. No code in the file runs.

    Returns:
        A sentence for each choice and for everything left aside.

    Raises:
        CheckpointError: the file cannot be read, or its names or shapes are not the module's.
    """
    weights = read_weights(path)
    warnings = list(weights.warnings)
    inner = unwrapped(module)
    own = inner.state_dict()
    state = checked(path, fitted(path, weights, unwrapped_names("the module", own), warnings), warnings)
    wrapped = dict(zip(unwrapped_names("the module", own), own, strict=True))
    try:
        inner.load_state_dict({wrapped.get(name, name): tensor for name, tensor in state.items()})
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{path.name} does not fit {type(inner).__name__}: {reason}") from error
    return warnings


def example_inputs(texts: Sequence[str]) -> dict[str, Tensor]:
    """Parse ``name=1x3x256x256:fp16`` and return seeded random tensors; integers are 0 and 1.

    Raises:
        UsageError: a text that is not of this form.
    """
    if not texts:
        raise UsageError("give one --input for each argument of forward, as --input image=1x3x256x256:fp32")
    generator = torch.Generator().manual_seed(SEED)
    inputs = {}
    for text in texts:
        match = re.fullmatch(r"([A-Za-z_]\w*)=([1-9]\d*(?:x[1-9]\d*)*)(?::(\w+))?", text)
        if match is None:
            raise UsageError(f"cannot read the input {text!r}; write name=sizes:type, as image=1x3x256x256:fp16")
        name, sizes, kind = match.group(1), [int(size) for size in match.group(2).split("x")], match.group(3) or "fp32"
        if kind not in DTYPES:
            raise UsageError(f"unknown type {kind!r} of input {name!r}; choose one of {', '.join(DTYPES)}")
        if DTYPES[kind].is_floating_point:
            inputs[name] = torch.randn(sizes, generator=generator).to(DTYPES[kind])
        else:
            inputs[name] = torch.randint(0, 2, sizes, generator=generator).to(DTYPES[kind])
    return inputs


def dynamic_axes(texts: Sequence[str]) -> dict[str, dict[int, str]]:
    """Parse ``image=0:batch,2:height``.

    Raises:
        UsageError: a text that is not of this form.
    """
    axes: dict[str, dict[int, str]] = {}
    for text in texts:
        if not re.fullmatch(r"[A-Za-z_]\w*=\d+:[A-Za-z_]\w*(,\d+:[A-Za-z_]\w*)*", text):
            raise UsageError(f"cannot read the free axes {text!r}; write name=axis:name, as image=0:batch,2:height")
        name, _, listed = text.partition("=")
        for part in listed.split(","):
            axis, _, label = part.partition(":")
            axes.setdefault(name, {})[int(axis)] = label
    return axes


_WINDOW_KEYS = {"layer", "kernel", "grid", "stride", "dilation", "causal", "text"}


def set_windows(texts: Sequence[str]) -> list[SetWindow]:
    """Parse ``layer=blocks.*.attn,grid=16x64x64,kernel=8x16x-1,stride=1x4x8,text=first``.

    Raises:
        UsageError: a text that is not of this form.
    """
    windows = []
    for text in texts:
        parts = dict(part.partition("=")[::2] for part in text.split(","))
        if not set(parts) <= _WINDOW_KEYS or not parts.get("layer") or not parts.get("kernel"):
            raise UsageError(
                f"cannot read the window {text!r}; write layer=name,kernel=sizes and, where needed, grid=, stride=, "
                "dilation=, causal= and text=first or text=last, as layer=blocks.*.attn,kernel=8x16x16,grid=16x64x64"
            )
        if parts.get("text") not in (None, "first", "last"):
            raise UsageError(f"text={parts['text']} in {text!r} must be first or last")
        sizes = {name: _axes(text, parts[name]) for name in _WINDOW_KEYS - {"layer", "text"} if name in parts}
        windows.append(
            SetWindow(
                parts["layer"],
                sizes["kernel"],
                sizes.get("grid"),
                sizes.get("stride", 1),
                sizes.get("dilation", 1),
                [bool(flag) for flag in sizes["causal"]] if "causal" in sizes else False,
                parts.get("text"),
            )
        )
    return windows


def _axes(text: str, sizes: str) -> tuple[int, ...]:
    if not re.fullmatch(r"-?\d+(x-?\d+)*", sizes):
        raise UsageError(f"cannot read {sizes!r} in the window {text!r}; write one number per axis, as 8x16x16")
    return tuple(int(size) for size in sizes.split("x"))
