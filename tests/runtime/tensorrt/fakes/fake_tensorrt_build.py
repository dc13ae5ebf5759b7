"""The fake's building half: network, parser, configuration, builder. A plan holds the model, ONNX Runtime runs it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
from fake_tensorrt_run import capability, write_plan

TYPES = {1: "FLOAT", 10: "HALF", 16: "BF16", 6: "INT32", 7: "INT64", 9: "BOOL", 2: "UINT8", 3: "INT8"}


def build_classes(trt: Any, base: type) -> list[type]:
    """Return the classes that build engines."""

    class IHostMemory(base, bytes):  # type: ignore[misc, valid-type]
        """Bytes, since a class of Python has no other way to have the buffer protocol in 3.11."""

        nbytes = property(len)

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *_: object) -> None: ...

    class ITimingCache(base):  # type: ignore[misc, valid-type]
        def __init__(self, data: bytes) -> None:
            self._entries: list[str] = json.loads(data or b"[]")

        def combine(self, input_cache: Any, ignore_mismatch: bool) -> bool:
            self._entries = sorted({*self._entries, *input_cache._entries})
            return True

        def serialize(self) -> Any:
            return IHostMemory(json.dumps(self._entries).encode())

    class IProgressMonitor(base):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            self._ready = True

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None: ...

        def step_complete(self, phase_name: str, step: int) -> bool:
            return True

        def phase_finish(self, phase_name: str) -> None: ...

    class IOptimizationProfile(base):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            self._shapes: dict[str, list[list[int]]] = {}

        def __bool__(self) -> bool:
            return True

        def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:
            self._shapes[input] = [list(min), list(opt), list(max)]

    class ITensor(base):  # type: ignore[misc, valid-type]
        def __init__(self, value: onnx.ValueInfoProto) -> None:
            self._value = value

        name = property(lambda self: self._value.name)
        is_shape_tensor = property(lambda self: False)
        is_network_input = property(lambda self: True)
        dtype = property(lambda self: trt.DataType[TYPES[self._value.type.tensor_type.elem_type]])
        shape = property(lambda self: tuple(_sizes(self._value)))

    class ILayer(base):  # type: ignore[misc, valid-type]
        def __init__(self, name: str, kind: Any) -> None:
            self._name, self._kind = name, kind

        name = property(lambda self: self._name)
        type = property(lambda self: self._kind)

    if trt.__version__.startswith("10"):
        ILayer.precision_is_set = property(lambda self: False)

    class INetworkDefinition(base):  # type: ignore[misc, valid-type]
        def __init__(self, flags: int) -> None:
            self._flags = flags
            self._model: onnx.ModelProto | None = None
            self._layers: list[dict[str, Any]] = []
            self._plugins: list[str] = []
            self._name = ""

        def __iter__(self) -> Iterator[Any]:
            for number in range(len(self._layers)):
                yield self.get_layer(number)

        def get_layer(self, index: int) -> Any:
            layer = self._layers[index]
            plugin = layer["LayerType"] == "PluginV3"
            return ILayer(layer["Name"], trt.LayerType.PLUGIN_V3 if plugin else trt.LayerType.IDENTITY)

        flags = property(lambda self: self._flags)
        num_layers = property(lambda self: len(self._layers))
        num_inputs = property(lambda self: len(self._model.graph.input))
        num_outputs = property(lambda self: len(self._model.graph.output))

        def get_input(self, index: int) -> Any:
            return ITensor(self._model.graph.input[index])

        def get_flag(self, flag: Any) -> bool:
            return bool(self._flags >> int(flag) & 1)

    class ParserError(base):  # type: ignore[misc, valid-type]
        def __init__(self, node: onnx.NodeProto, text: str) -> None:
            self._node, self._text = node, text

        def code(self) -> int:
            return 8

        def desc(self) -> str:
            return self._text

        def node(self) -> int:
            return 0

        def node_name(self) -> str:
            return self._node.name

        def node_operator(self) -> str:
            return self._node.op_type

        def local_function_stack(self) -> list[str]:
            return []

    class OnnxParser(base):  # type: ignore[misc, valid-type]
        def __init__(self, network: Any, logger: Any) -> None:
            self._network, self._errors = network, []

        num_errors = property(lambda self: len(self._errors))

        def get_error(self, index: int) -> Any:
            return self._errors[index]

        def parse_from_file(self, model: str) -> bool:
            return self._parse(onnx.load(Path(model)))

        def parse(self, model: bytes, path: str | None = None) -> bool:
            return self._parse(onnx.load_model_from_string(model))

        def _parse(self, proto: onnx.ModelProto) -> bool:
            functions = {(function.domain, function.name): function for function in proto.functions}
            inlines_first = tuple(map(int, trt.__version__.split(".")[:2])) < (10, 7)
            for node in proto.graph.node:
                plugin = not trt.rtx and trt.registry.get_creator(node.op_type, "1", node.domain) is not None
                if plugin and inlines_first and (node.domain, node.op_type) in functions:
                    plugin = False
                if plugin:
                    self._network._plugins.append(node.op_type)
                    self._add(node, "PluginV3", "0x2a")
                elif node.domain == "" and node.op_type != "NonZero":
                    self._add(node, node.op_type, "0x1")
                elif (node.domain, node.op_type) in functions:
                    for inner in functions[node.domain, node.op_type].node:
                        self._add(inner, inner.op_type, "0x1", node.name + "/")
                else:
                    self._errors.append(ParserError(node, "no importer registered for op"))
            self._network._model = proto
            return not self._errors

        def _add(self, node: onnx.NodeProto, kind: str, tactic: str, place: str = "") -> None:
            layer = {
                "Name": place + (node.name or node.output[0]),
                "LayerType": kind,
                "Inputs": [{"Name": name, "Format/Datatype": "Float"} for name in node.input],
                "Outputs": [{"Name": name, "Dimensions": [1], "Format/Datatype": "Float"} for name in node.output],
                "TacticName": f"{kind.lower()}_kernel",
                "TacticValue": tactic,
            }
            if kind == "PluginV3":
                layer |= {"PluginType": node.op_type, "PluginVersion": "1", "PluginNamespace": "na_deploy"}
            self._network._layers.append(layer)

    class IBuilderConfig(base):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            self._flags: set[Any] = set()
            self._limits: dict[Any, int] = {}
            self._profiles: list[Any] = []
            self._cache: Any = None
            self.profiling_verbosity = trt.ProfilingVerbosity.LAYER_NAMES_ONLY
            self.hardware_compatibility_level = trt.HardwareCompatibilityLevel.NONE
            self.progress_monitor = None
            self.builder_optimization_level = 3
            self.engine_capability = trt.EngineCapability.STANDARD
            self.default_device_type = trt.DeviceType.GPU
            self.DLA_core = -1
            self.flags = 0
            self.max_aux_streams = 0
            self.l2_limit_for_tiling = 0
            self.tiling_optimization_level = 0
            if trt.__version__.startswith("10"):
                self.quantization_flags = 0
                self.int8_calibrator = None

        num_optimization_profiles = property(lambda self: len(self._profiles))
        avg_timing_iterations = property(lambda self: 1)

        def set_flag(self, flag: Any) -> None:
            self._flags.add(trt.BuilderFlag(flag))

        def clear_flag(self, flag: Any) -> None:
            self._flags.discard(flag)

        def get_flag(self, flag: Any) -> bool:
            return flag in self._flags

        def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None:
            self._limits[pool] = pool_size

        def get_memory_pool_limit(self, pool: Any) -> int:
            return self._limits.get(pool, 0)

        def get_tactic_sources(self) -> int:
            return 0

        def get_preview_feature(self, feature: Any) -> bool:
            return False

        def add_optimization_profile(self, profile: Any) -> int:
            self._profiles.append(profile)
            return len(self._profiles) - 1

        def create_timing_cache(self, serialized_timing_cache: bytes) -> Any:
            return ITimingCache(bytes(serialized_timing_cache))

        def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
            self._cache = cache
            return True

        def get_timing_cache(self) -> Any:
            return self._cache

    class Builder(base):  # type: ignore[misc, valid-type]
        def __init__(self, logger: Any) -> None:
            assert logger._ready, "ILogger.__init__ was not called"
            self._logger = logger
            self.max_threads = 0

        def create_network(self, flags: int = 0) -> Any:
            return INetworkDefinition(flags)

        def create_builder_config(self) -> Any:
            return IBuilderConfig()

        def create_optimization_profile(self) -> Any:
            return IOptimizationProfile()

        def build_serialized_network(self, network: Any, config: Any) -> Any:
            assert network.get_flag(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED), "not strongly typed"
            if os.environ.get("FAKE_BUILD_CRASH"):
                os.abort()
            if os.environ.get("FAKE_BUILD_FAILS"):
                self._logger.log(trt.ILogger.Severity.ERROR, os.environ["FAKE_BUILD_FAILS"])
                return None
            if not _walk(config.progress_monitor, network.num_layers):
                return None
            if config._cache is not None:
                config._cache._entries = sorted({*config._cache._entries, *(x["Name"] for x in network._layers)})
            model = network._model
            flag = trt.BuilderFlag
            header = {
                "version": trt.__version__,
                "capability": capability(),
                "hardware_compatible": config.hardware_compatibility_level != trt.HardwareCompatibilityLevel.NONE,
                "version_compatible": config.get_flag(flag.VERSION_COMPATIBLE),
                "refit": config.get_flag(flag.REFIT),
                "workspace": config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE),
                "plugins": sorted(set(network._plugins)),
                "profiles": [profile._shapes for profile in config._profiles],
                "inputs": [_describe(value) for value in model.graph.input],
                "outputs": [_describe(value) for value in model.graph.output],
                "layers": network._layers,
            }
            return IHostMemory(write_plan(header, model.SerializeToString()))

    return [
        IHostMemory,
        ITimingCache,
        IProgressMonitor,
        IOptimizationProfile,
        ITensor,
        ILayer,
        INetworkDefinition,
        ParserError,
        OnnxParser,
        IBuilderConfig,
        Builder,
    ]


def _walk(monitor: Any, layers: int) -> bool:
    """Report nested phases as TensorRT does: a phase may end before its last step."""
    if monitor is None:
        return True
    pause = float(os.environ.get("FAKE_BUILD_SECONDS", "0")) / max(1, layers)
    monitor.phase_start("Building Engine", None, 2)
    monitor.phase_start("Timing", "Building Engine", layers)
    for step in range(layers):
        time.sleep(pause)
        if not monitor.step_complete("Timing", step):
            return False
    monitor.phase_finish("Timing")
    alive = monitor.step_complete("Building Engine", 0)
    monitor.phase_finish("Building Engine")
    return bool(alive)


def _sizes(value: onnx.ValueInfoProto) -> list[int]:
    return [dim.dim_value if dim.HasField("dim_value") else -1 for dim in value.type.tensor_type.shape.dim]


def _describe(value: onnx.ValueInfoProto) -> dict[str, Any]:
    return {
        "name": value.name,
        "dtype": TYPES[value.type.tensor_type.elem_type],
        "shape": _sizes(value),
        "symbols": [dim.dim_param or None for dim in value.type.tensor_type.shape.dim],
    }
