"""The fake's runtime half: plans, engines, contexts."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import struct
from typing import Any

import ml_dtypes
import numpy as np
from cuda.bindings import runtime as cuda

MAGIC = b"ftrt"
DTYPES = {
    "FLOAT": np.dtype(np.float32),
    "HALF": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "INT8": np.dtype(np.int8),
}


def write_plan(header: dict[str, Any], model: bytes) -> bytes:
    """Return an engine's bytes: magic, sizes, header, model, digest."""
    text = json.dumps(header).encode()
    body = struct.pack("<II", len(text), len(model)) + text + model
    return MAGIC + body + hashlib.sha256(body).digest()


def capability() -> str:
    return os.environ.get("FAKE_CUDA_CAPABILITY", "9.0")


def _spoil(model: Any) -> None:
    """Have the attention layers from the one that FAKE_WRONG_FROM numbers on compute with another scale."""
    nodes = [node for node in model.graph.node if node.domain == "na_deploy"]
    for node in nodes[int(os.environ.get("FAKE_WRONG_FROM", len(nodes))) :]:
        for attribute in node.attribute:
            if attribute.name == "scale":
                attribute.f = 10.0


def run_classes(trt: Any, base: type) -> list[type]:
    """Return the classes that load and run engines."""

    class Dims(base):  # type: ignore[misc, valid-type]
        def __init__(self, sizes: Any) -> None:
            self._sizes = tuple(sizes)

        def __iter__(self) -> Any:
            return iter(self._sizes)

        def __len__(self) -> int:
            return len(self._sizes)

    class Runtime(base):  # type: ignore[misc, valid-type]
        def __init__(self, logger: Any) -> None:
            assert logger._ready, "ILogger.__init__ was not called"
            self._logger = logger
            self.engine_host_code_allowed = False

        def deserialize_cuda_engine(self, serialized_engine: Any) -> Any:
            def refuse(text: str) -> None:
                self._logger.log(trt.ILogger.Severity.ERROR, text)

            plan = bytes(serialized_engine)
            if cuda.cudaGetDeviceCount()[0] != 0:
                return refuse("IRuntime::deserializeCudaEngine: Error Code 1: Cuda Runtime (cudaError 35)")
            if plan[:4] != MAGIC:
                return refuse("Serialization assertion stdVersionRead == kSERIALIZATION_VERSION failed. magic tag")
            body, digest = plan[4:-32], plan[-32:]
            if hashlib.sha256(body).digest() != digest:
                if os.environ.get("FAKE_TENSORRT_CRASH") and hashlib.sha256(plan).digest()[0] % 2:
                    os.abort()
                return refuse("Serialization (Serialization assertion safeVersionRead failed. corrupt engine)")
            size, _ = struct.unpack("<II", body[:8])
            header = json.loads(body[8 : 8 + size])
            if header["version"] != trt.__version__:
                if not header["version_compatible"]:
                    return refuse(
                        "The engine plan file is not compatible with this version of TensorRT, expecting library "
                        f"version {trt.__version__} got {header['version']}, please rebuild."
                    )
                if not self.engine_host_code_allowed:
                    return refuse("version compatible plan contains host code, engine_host_code_allowed is not set")
            if header["capability"] != capability() and not header["hardware_compatible"] and not trt.rtx:
                return refuse(
                    "The engine plan file is generated on an incompatible device, expecting compute "
                    f"{capability()} got compute {header['capability']}, please rebuild."
                )
            for kind in header["plugins"]:
                if trt.registry.get_creator(kind, "1", "na_deploy") is None:
                    return refuse(f"getCreator could not find plugin creator: {kind} version: 1 namespace: na_deploy")
            return ICudaEngine(header, body[8 + size :], self._logger)

    class ICudaEngine(base):  # type: ignore[misc, valid-type]
        def __init__(self, header: dict[str, Any], model: bytes, logger: Any) -> None:
            self._header, self._logger = header, logger
            self._io = {entry["name"]: entry for entry in header["inputs"] + header["outputs"]}
            self._inputs = [entry["name"] for entry in header["inputs"]]
            self._model = model
            self._session: Any = None

        num_io_tensors = property(lambda self: len(self._io))
        num_layers = property(lambda self: len(self._header["layers"]))
        num_optimization_profiles = property(lambda self: max(1, len(self._header["profiles"])))
        device_memory_size_v2 = property(lambda self: int(os.environ.get("FAKE_ACTIVATIONS", "4096")))
        refittable = property(lambda self: self._header["refit"])
        num_aux_streams = property(lambda self: 0)

        def get_tensor_name(self, index: int) -> str:
            return list(self._io)[index]

        def get_tensor_mode(self, name: str) -> Any:
            return trt.TensorIOMode.INPUT if name in self._inputs else trt.TensorIOMode.OUTPUT

        def get_tensor_shape(self, name: str) -> Any:
            return Dims(self._io[name]["shape"])

        def get_tensor_dtype(self, name: str) -> Any:
            return trt.DataType[self._io[name]["dtype"]]

        def get_tensor_location(self, name: str) -> Any:
            return trt.TensorLocation.DEVICE

        def get_tensor_format(self, name: str) -> Any:
            return trt.TensorFormat.LINEAR

        def is_shape_inference_io(self, name: str) -> bool:
            return False

        def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[Any]:
            if not self._header["profiles"]:
                return [Dims(self._io[name]["shape"])] * 3
            profile = self._header["profiles"][profile_index]
            return [Dims(shape) for shape in profile.get(name, [self._io[name]["shape"]] * 3)]

        def create_execution_context(self, strategy: Any = None) -> Any:
            return IExecutionContext(self, strategy)

        def create_engine_inspector(self) -> Any:
            return EngineInspector(self)

        def _compute(self, feeds: dict[str, Any]) -> list[Any]:
            if self._session is None:
                import onnx
                import onnxruntime

                from na_deploy.exporter.bfloat16_emulation import widen_bfloat16

                model = onnx.load_model_from_string(self._model)
                self._wide = any(entry["dtype"] == "BF16" for entry in self._io.values())
                if self._wide:  # ONNX Runtime has no kernels for it on CPUs
                    model = widen_bfloat16(model)
                _spoil(model)
                data = model.SerializeToString()
                self._session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
            if self._wide:
                feeds = {name: array.astype(np.float32) for name, array in feeds.items()}
            found = self._session.run([entry["name"] for entry in self._header["outputs"]], feeds)
            types = [DTYPES[entry["dtype"]] for entry in self._header["outputs"]]
            return [array.astype(dtype) for array, dtype in zip(found, types, strict=True)]

    class EngineInspector(base):  # type: ignore[misc, valid-type]
        def __init__(self, engine: Any) -> None:
            self._engine = engine

        def get_engine_information(self, format: Any) -> str:
            assert format == trt.LayerInformationFormat.JSON
            return json.dumps({"Layers": self._engine._header["layers"], "Bindings": list(self._engine._io)})

    class IExecutionContext(base):  # type: ignore[misc, valid-type]
        def __init__(self, engine: Any, strategy: Any) -> None:
            self._engine = engine
            self.profiler = None
            self._own_memory = strategy != trt.ExecutionContextAllocationStrategy.USER_MANAGED
            self._memory = 0
            self._profile = 0
            self._shapes: dict[str, tuple[int, ...]] = {}
            self._addresses: dict[str, int] = {}
            self._version = 0
            self._prepared = -1  # version at the last run

        engine = property(lambda self: self._engine)

        def _say(self, text: str) -> bool:
            self._engine._logger.log(trt.ILogger.Severity.ERROR, text)
            return False

        def set_device_memory(self, memory: int, size: int) -> None:
            assert size >= self._engine.device_memory_size_v2, "too little memory for activations"
            self._memory = memory

        def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
            if not 0 <= profile_index < self._engine.num_optimization_profiles:
                return self._say(f"setOptimizationProfileAsync: profile {profile_index} does not exist")
            self._profile, self._version = profile_index, self._version + 1
            return True

        def set_input_shape(self, name: str, shape: Any) -> bool:
            low, _, high = self._engine.get_tensor_profile_shape(name, self._profile)
            shape = tuple(shape)
            if len(shape) != len(low) or not all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True)):
                return self._say(f"setInputShape: {name} {shape} does not satisfy any optimization profiles")
            self._shapes[name], self._version = shape, self._version + 1
            return True

        def infer_shapes(self) -> list[str]:
            return [name for name in self._engine._inputs if name not in self._shapes]

        def get_tensor_shape(self, name: str) -> Any:
            if name in self._shapes:
                return Dims(self._shapes[name])
            free = {
                symbol: size
                for entry in self._engine._header["inputs"]
                for symbol, size in zip(entry["symbols"], self._shapes.get(entry["name"], ()), strict=False)
            }
            entry = self._engine._io[name]
            sizes = zip(entry["shape"], entry["symbols"], strict=True)
            return Dims(free.get(symbol, -1) if size < 0 else size for size, symbol in sizes)

        def set_tensor_address(self, name: str, memory: int) -> bool:
            assert isinstance(memory, int)
            if self._addresses.get(name) != memory:
                self._addresses[name], self._version = memory, self._version + 1
            return True

        def execute_async_v3(self, stream_handle: int) -> bool:
            missing = [name for name in self._engine._io if name not in self._addresses]
            if missing:
                return self._say(f"enqueueV3: no address for {missing[0]}")
            if not self._own_memory and not self._memory:
                return self._say("enqueueV3: no memory for activations")
            stream = cuda.STATE.streams[stream_handle]
            recording = stream.recording is not None
            if recording and (self._prepared != self._version or os.environ.get("FAKE_NO_CAPTURE")):
                stream.invalidated = True
                return self._say("enqueueV3: operation not permitted when stream is capturing")
            self._prepared = self._version
            version, shapes, addresses = self._version, dict(self._shapes), dict(self._addresses)

            def work() -> None:
                if self.profiler is not None:
                    for index, layer in enumerate(self._engine._header["layers"]):
                        self.profiler.report_layer_time(layer["Name"], 0.5 + index)
                if recording:
                    assert self._version == version, "a graph ran after its context had been changed"
                self._run(shapes, addresses)

            return cuda.STATE.queue(stream_handle, work) == 0

        def _run(self, shapes: dict[str, tuple[int, ...]], addresses: dict[str, int]) -> None:
            if not self._own_memory and not cuda.STATE.live(self._memory, 1, cuda.STATE.device_memory):
                raise AssertionError("the memory for activations was freed")
            feeds = {}
            for entry in self._engine._header["inputs"]:
                name, dtype = entry["name"], DTYPES[entry["dtype"]]
                size = int(np.prod(shapes[name])) * dtype.itemsize
                if not cuda.STATE.live(addresses[name], size, cuda.STATE.device_memory):
                    cuda.STATE.broken = cuda.cudaError_t.cudaErrorIllegalAddress
                    return
                feeds[name] = np.frombuffer(ctypes.string_at(addresses[name], size), dtype).reshape(shapes[name])
            for entry, result in zip(self._engine._header["outputs"], self._engine._compute(feeds), strict=True):
                data = np.ascontiguousarray(result).tobytes()
                if not cuda.STATE.live(addresses[entry["name"]], len(data), cuda.STATE.device_memory):
                    cuda.STATE.broken = cuda.cudaError_t.cudaErrorIllegalAddress
                    return
                ctypes.memmove(addresses[entry["name"]], data, len(data))

    class IProfiler(base):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            self._ready = True

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            raise NotImplementedError

    return [IProfiler, Dims, Runtime, ICudaEngine, EngineInspector, IExecutionContext]
