"""Write what a TensorRT Python module has, as JSON: classes with their attributes, enumerations with their values.

    python record_api.py folder_with_the_bindings module_name > api/tensorrt_11.json

The folder holds one wheel's content (``pip install --no-deps --target``). Wheels of the bindings alone link libraries
that they do not carry; put stand-ins with their names into LD_LIBRARY_PATH (see bindings.py).
"""

from __future__ import annotations

import importlib
import json
import sys
from typing import Any

CLASSES = [
    "Builder",
    "BuilderFlag",
    "DataType",
    "Dims",
    "EngineInspector",
    "ExecutionContextAllocationStrategy",
    "HardwareCompatibilityLevel",
    "IBuilderConfig",
    "ICudaEngine",
    "IExecutionContext",
    "IHostMemory",
    "ILayer",
    "ILogger",
    "INetworkDefinition",
    "IOptimizationProfile",
    "IPluginRegistry",
    "IProfiler",
    "IProgressMonitor",
    "IRuntimeConfig",
    "ITensor",
    "ITimingCache",
    "LayerInformationFormat",
    "LayerType",
    "Logger",
    "MemoryPoolType",
    "NetworkDefinitionCreationFlag",
    "OnnxParser",
    "OnnxParserFlag",
    "ParserError",
    "PreviewFeature",
    "ProfilingVerbosity",
    "Runtime",
    "TacticSource",
    "TensorFormat",
    "TensorIOMode",
    "TensorLocation",
    "EngineCapability",
    "DeviceType",
    "Refitter",
    "OnnxParserRefitter",
    "RuntimePlatform",
    "TilingOptimizationLevel",
]


def describe(module: Any) -> dict[str, Any]:
    """Return the module's version, functions, classes and enumerations."""
    content: dict[str, Any] = {"version": module.__version__, "functions": [], "classes": {}, "enumerations": {}}
    for name in sorted(dir(module)):
        found = getattr(module, name)
        if name.startswith("_"):
            continue
        if not isinstance(found, type):
            if callable(found):
                content["functions"].append(name)
            continue
        if name not in CLASSES:
            continue
        members = getattr(found, "__members__", None)
        if members:
            content["enumerations"][name] = {key: int(value) for key, value in members.items()}
        else:
            content["classes"][name] = sorted(key for key in dir(found) if not key.startswith("_"))
    return content


if __name__ == "__main__":
    sys.path.insert(0, sys.argv[1])
    print(json.dumps(describe(importlib.import_module(sys.argv[2])), indent=1))
