"""The layers of an engine, from the engine inspector's JSON. Reads texts only; no TensorRT is needed.

The form of that text is TensorRT's and not fixed: unknown parts are left out, never an error.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from na_deploy.attention.schema import OPERATORS
from na_deploy.errors import NaDeployError

_TYPES = (
    ("bf16", "bfloat16"),
    ("bfloat16", "bfloat16"),
    ("fp16", "float16"),
    ("half", "float16"),
    ("fp8", "float8"),
    ("fp32", "float32"),
    ("float", "float32"),
    ("int64", "int64"),
    ("int32", "int32"),
    ("uint8", "uint8"),
    ("int8", "int8"),
    ("bool", "bool"),
)
_MAX_BYTES = 64 << 20


@dataclass(frozen=True)
class EngineLayer:
    """One layer of an engine.

    Attributes:
        name: TensorRT's name of it, made of the names of the nodes in it.
        kind: its type, such as "Convolution", "Myelin" or "PluginV3".
        precision: element type of its first output, empty where the inspector gives none.
        tactic: name of the kernel or number of the tactic, empty where the inspector gives none.
        operator: na-deploy's operator that it computes, empty for others.
        outputs: names of its outputs.
        ms: time it took, where it was measured.
    """

    name: str
    kind: str
    precision: str
    tactic: str
    operator: str
    outputs: tuple[str, ...] = ()
    ms: float | None = None


def read_layers(file: Path) -> list[EngineLayer]:
    """Read the layers from a file.

    Raises:
        NaDeployError: it is not an inspector's output.
    """
    if file.stat().st_size > _MAX_BYTES:
        raise NaDeployError(f"{file} is larger than any description of layers; build the bundle again")
    return parse_layers(file.read_text(encoding="utf-8", errors="replace"), str(file))


def parse_layers(text: str, source: str) -> list[EngineLayer]:
    """Read the layers from an inspector's text. See :func:`read_layers`."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise NaDeployError(f"{source} is not an engine inspector's JSON ({error}); build the bundle again") from None
    layers = content.get("Layers") if isinstance(content, dict) else None
    if not isinstance(layers, list):
        raise NaDeployError(f"{source} lists no layers; build the bundle again")
    return [_layer(entry) for entry in layers]


def summarize_layers(layers: Sequence[EngineLayer]) -> dict[str, Any]:
    """Return a summary for a bundle's manifest: layers by precision, and plugins with their tactics."""
    plugins = [layer for layer in layers if layer.operator]
    return {
        "engine_layers": len(layers),
        "precisions": dict(Counter(layer.precision or "not stated" for layer in layers).most_common()),
        "plugins": dict(Counter(layer.operator for layer in plugins)),
        "plugin_tactics": dict(Counter(layer.tactic or "not stated" for layer in plugins)),
    }


def _layer(entry: Any) -> EngineLayer:
    if not isinstance(entry, Mapping):  # with less detail, a layer is its name
        return EngineLayer(str(entry), "", "", "", "")
    outputs = entry.get("Outputs")
    outputs = [output for output in outputs if isinstance(output, Mapping)] if isinstance(outputs, list) else []
    kind = str(entry.get("LayerType") or entry.get("ParameterType") or "")
    return EngineLayer(
        name=str(entry.get("Name", "")),
        kind=kind,
        precision=_precision(str(outputs[0].get("Format/Datatype", ""))) if outputs else "",
        tactic=str(entry.get("TacticName") or entry.get("TacticValue") or ""),
        operator=_operator(entry, kind),
        outputs=tuple(str(output.get("Name", "")) for output in outputs),
    )


def _precision(text: str) -> str:
    lowered = text.lower()
    return next((name for sign, name in _TYPES if sign in lowered), "")


def _operator(entry: Mapping[str, Any], kind: str) -> str:
    if "plugin" not in kind.lower():
        return ""
    said = [str(value) for key, value in entry.items() if "plugin" in key.lower()] + [str(entry.get("Name", ""))]
    # The longer name contains the shorter one.
    for operator in sorted(OPERATORS, key=len, reverse=True):
        if any(operator in text for text in said):
            return operator
    return ""
