"""Full attention over a token grid becomes neighborhood attention where the user says so.

Models trained with full attention (FLUX, Cosmos, Hunyuan) are run so without fine-tuning; what it costs in accuracy is
measured against the original, layer by layer on the same inputs and at the outputs.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from na_deploy.attention.torch_ops import neighborhood_attention
from na_deploy.attention.windows import NeighborhoodSpec, attended_pairs, whole_axes
from na_deploy.errors import UsageError
from na_deploy.exporter.natten_api.calls import call_site
from na_deploy.exporter.natten_api.monkeypatch import patched

_ROOT = "model"
"""Name of the module itself among layers."""

_full_attention = torch.nn.functional.scaled_dot_product_attention


@dataclass(frozen=True)
class SetWindow:
    """A choice of attention layers, and the window they get.

    Attributes:
        layer: name of the module whose forward calls ``scaled_dot_product_attention``, or a pattern of names (``*``).
        kernel_size: window, one number per axis of the grid; -1 is the whole axis.
        grid: sizes of the token grid. May be left out for one axis, and for a square of tokens on two.
        stride: as NATTEN's, one number per axis.
        dilation: as NATTEN's, one number per axis.
        is_causal: one flag per axis.
        text: place of the tokens outside the grid, "first" or "last"; they attend to all and are attended by all.
    """

    layer: str
    kernel_size: Sequence[int]
    grid: Sequence[int] | None = None
    stride: Sequence[int] | int = 1
    dilation: Sequence[int] | int = 1
    is_causal: Sequence[bool] | bool = False
    text: str | None = None

    def resolve(self, layer: str, tokens: int) -> tuple[tuple[int, ...], NeighborhoodSpec]:
        """Return the grid and the window for a layer with so many tokens.

        Raises:
            UsageError: they do not fit together.
        """
        rank = len(self.kernel_size)
        grid = tuple(self.grid or ())
        if not grid:
            side = math.isqrt(tokens)
            grid = (tokens,) if rank == 1 else (side, side) if rank == 2 and side * side == tokens else ()
        if len(grid) != rank:
            raise UsageError(
                f"{layer} attends over {tokens} tokens, and the window has {rank} axes; give the grid's sizes, as grid="
                + "x".join(["…"] * rank)
            )
        outside = tokens - math.prod(grid)
        if outside and (outside < 0 or self.text is None):
            shown = "×".join(map(str, grid))
            raise UsageError(
                f"{layer} attends over {tokens} tokens and the grid {shown} has {math.prod(grid)}; give a grid of "
                "that many, or say with text=first or text=last where the tokens outside it stand"
            )
        kernel = whole_axes(self.kernel_size, grid, self.dilation)
        spec = NeighborhoodSpec.create(rank, kernel, self.dilation, self.stride, self.is_causal)
        spec.check_lengths(grid)
        return grid, spec


@dataclass(frozen=True)
class WindowedLayer:
    """Effect of a window on one layer.

    Attributes:
        layer: the module's name, with ``#2`` for its second attention.
        grid: sizes of the token grid.
        spec: the window.
        share: query-key pairs computed, of those of full attention.
        error: the layer's output on the original's inputs: norm of the difference over the norm.
    """

    layer: str
    grid: tuple[int, ...]
    spec: NeighborhoodSpec
    share: float
    error: float


@dataclass(frozen=True)
class WindowErrors:
    """A re-windowed model against the original, in PyTorch on the example inputs.

    Attributes:
        layers: in order of execution.
        outputs: for each output of the model, norm of the difference over the norm.
    """

    layers: tuple[WindowedLayer, ...]
    outputs: tuple[float, ...]


Attend = Callable[..., Tensor]


@contextmanager
def windowed(module: nn.Module, windows: Sequence[SetWindow]) -> Iterator[None]:
    """Run the layers that ``windows`` names with their windows inside the block."""

    def attend(layer: str, query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        window = _chosen(windows, layer)
        if window is None:
            return _full_attention(query, key, value, **options)
        return _neighborhood(window, layer, query, key, value, **options)

    with _attention_calls(module, attend):
        yield


def window_errors(module: nn.Module, inputs: Mapping[str, Tensor], windows: Sequence[SetWindow]) -> WindowErrors:
    """Run the original and the re-windowed model on ``inputs`` and compare.

    Raises:
        UsageError: a window fits no layer, or not its layer; the message names the layers there are.
    """
    layers: list[WindowedLayer] = []
    seen: dict[str, int] = {}
    used: set[int] = set()

    def compare(layer: str, query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        seen[layer] = query.shape[-2]
        original = _full_attention(query, key, value, **options)
        window = _chosen(windows, layer)
        if window is not None:
            used.add(id(window))
            changed = _neighborhood(window, layer, query, key, value, **options)
            grid, spec = window.resolve(layer, query.shape[-2])
            layers.append(WindowedLayer(layer, grid, spec, _share(grid, spec, seen[layer]), _norm(changed, original)))
        return original

    with torch.inference_mode():
        with _attention_calls(module, compare):
            originals = _tensors(module(**inputs))
        for window in windows:
            if id(window) not in used:
                known = ", ".join(f"{name} ({tokens} tokens)" for name, tokens in seen.items()) or "none"
                raise UsageError(
                    f"no layer {window.layer!r} calls scaled_dot_product_attention, or an earlier window took it; "
                    f"layers that do: {known}"
                )
        with windowed(module, windows):
            changed = _tensors(module(**inputs))
    outputs = (_norm(ours, theirs) for ours, theirs in zip(changed, originals, strict=True))
    return WindowErrors(tuple(layers), tuple(outputs))


def _chosen(windows: Sequence[SetWindow], layer: str) -> SetWindow | None:
    return next((window for window in windows if fnmatch.fnmatchcase(layer, window.layer)), None)


@contextmanager
def _attention_calls(module: nn.Module, attend: Attend) -> Iterator[None]:
    """Send every ``scaled_dot_product_attention`` inside the block to ``attend``, with its layer's name."""
    stack: list[str] = [_ROOT]
    counts: dict[str, int] = {}

    def call(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        name = stack[-1]
        counts[name] = counts.get(name, 0) + 1
        layer = name if counts[name] == 1 else f"{name}#{counts[name]}"
        options = {"attn_mask": attn_mask, "is_causal": is_causal, "scale": scale, "enable_gqa": enable_gqa}
        return attend(layer, query, key, value, **options)

    def entered(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            counts.pop(name, None)
            stack.append(name)

        return hook

    handles = []
    for name, layer in module.named_modules():
        handles.append(layer.register_forward_pre_hook(entered(name or _ROOT)))
        handles.append(layer.register_forward_hook(lambda *_: _void(stack.pop()), always_call=True))
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # nn.MultiheadAttention's would not call it
    try:
        inner = {id(_full_attention): call}
        with patched(inner, module, leave=lambda name: name.startswith("torch.") and name != "torch.nn.functional"):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for handle in handles:
            handle.remove()


def _void(_: object) -> None:
    """Return None: a hook that returns something would replace the layer's output."""


def _neighborhood(
    window: SetWindow,
    layer: str,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
) -> Tensor:
    """Attend over (B, H, N, D) within the window; tokens outside the grid attend to all, and all to them."""
    if attn_mask is not None or is_causal:
        what = "a mask" if attn_mask is not None else "is_causal"
        raise UsageError(f"{layer} at {call_site()} attends with {what}, which a window cannot keep; leave it out")
    if query.dim() != 4 or query.shape[-2] != key.shape[-2]:
        raise UsageError(
            f"{layer} at {call_site()} attends from {list(query.shape)} to {list(key.shape)}; a window needs "
            "self-attention over (batch, heads, tokens, head_dim)"
        )
    tokens = query.shape[-2]
    grid, spec = window.resolve(layer, tokens)
    outside = tokens - math.prod(grid)
    first = outside if window.text == "first" else 0
    image = slice(first, first + math.prod(grid))
    text = slice(0, outside) if window.text == "first" else slice(math.prod(grid), tokens)

    def last(tensor: Tensor, part: slice, sizes: Sequence[int]) -> Tensor:  # (B, H, N, D) to heads last
        return torch.unflatten(tensor[:, :, part].transpose(1, 2), 1, tuple(sizes))

    output, _ = neighborhood_attention(
        last(query, image, grid),
        last(key, image, grid),
        last(value, image, grid),
        additional_key=last(key, text, (outside,)) if outside else None,
        additional_value=last(value, text, (outside,)) if outside else None,
        kernel_size=spec.kernel_size,
        dilation=spec.dilation,
        stride=spec.stride,
        is_causal=spec.is_causal,
        scale=scale,
    )
    attended = output.flatten(1, len(grid)).transpose(1, 2)
    if not outside:
        return attended
    words = _full_attention(query[:, :, text], key, value, scale=scale, enable_gqa=enable_gqa)
    return torch.cat([words, attended] if window.text == "first" else [attended, words], dim=2)


def _share(grid: Sequence[int], spec: NeighborhoodSpec, tokens: int) -> float:
    outside = tokens - math.prod(grid)
    return (attended_pairs(grid, spec) + outside * (math.prod(grid) + tokens)) / tokens**2


def _norm(found: Tensor, expected: Tensor) -> float:
    difference = (found.double() - expected.double()).norm()
    return float(difference / expected.double().norm().clamp_min(1e-300))


def _tensors(outputs: Any) -> list[Tensor]:
    leaves = torch.utils._pytree.tree_leaves(outputs)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]
