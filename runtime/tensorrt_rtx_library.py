"""The native TensorRT-RTX library, driven through its C++ virtual tables from Python.

The PyPI wheel ``onnxruntime-ep-nv-tensorrt-rtx-cu13`` carries TensorRT-RTX's builder and its ONNX parser,
but no Python module and no headers. Its interfaces are C++ classes with one data member, a pointer, so a
method is an entry of a virtual table, and the tables below say which entry. They hold for the versions in
:data:`CHECKED_VERSIONS` on Linux x86-64 (Itanium C++ ABI) and nowhere else; every other version is refused.

How the tables were found: each entry's code names itself in an API trace (``createNetworkV2`` …), and the
order agrees with the ``apiv::V…`` classes of NvInferImpl.h (TensorRT 11.1) and, for the parser, with
NvOnnxParser.h.

A wrong call here ends the process instead of raising. Only :mod:`na_deploy.runtime.tensorrt_rtx_worker`, a
process of its own, uses this module; callers use :mod:`na_deploy.runtime.tensorrt_rtx`.
"""

from __future__ import annotations

import ctypes
import importlib.util
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from na_deploy.errors import MissingDependencyError

PACKAGE = "onnxruntime_ep_nv_tensorrt_rtx"
INSTALL_HINT = 'pip install --no-deps "onnxruntime-ep-nv-tensorrt-rtx-cu13==0.5.0"'
#: (major, minor, patch, build) of libtensorrt_rtx that the slots were read from and tested with.
CHECKED_VERSIONS = frozenset({(1, 7, 1, 116)})
#: NV_ONNX_PARSER_VERSION (major * 10000 + minor * 100 + patch) of the same release.
CHECKED_PARSER_VERSION = 200

_pointer = ctypes.c_void_p
_MAX_RANK = 8


class Dims(ctypes.Structure):
    """``nvinfer1::Dims64``: a rank and room for eight extents."""

    _fields_ = (("rank", ctypes.c_int32), ("extents", ctypes.c_int64 * _MAX_RANK))

    @classmethod
    def of(cls, shape: Sequence[int]) -> Dims:
        """Pack ``shape`` (at most eight extents)."""
        return cls(len(shape), (ctypes.c_int64 * _MAX_RANK)(*shape))


@dataclass(frozen=True)
class Method:
    """One virtual method: its entry in the table, what it returns and takes after ``this``."""

    slot: int
    result: Any = None
    arguments: tuple[Any, ...] = ()

    def __call__(self, this: int, *arguments: Any) -> Any:
        """Call the method on the object at address ``this``."""
        table = ctypes.c_uint64.from_address(this).value
        entry = ctypes.c_uint64.from_address(table + 8 * self.slot).value
        return ctypes.CFUNCTYPE(self.result, _pointer, *self.arguments)(entry)(this, *arguments)


# nvinfer1::apiv::VBuilder. Slots 0 and 1 of every V… class are its destructors.
BUILDER_CREATE_CONFIG = Method(5, _pointer)
BUILDER_CREATE_NETWORK_V2 = Method(6, _pointer, (ctypes.c_uint32,))
BUILDER_CREATE_OPTIMIZATION_PROFILE = Method(7, _pointer)
BUILDER_BUILD_SERIALIZED_NETWORK = Method(11, _pointer, (_pointer, _pointer))
BUILDER_SET_MAX_THREADS = Method(14, ctypes.c_bool, (ctypes.c_int32,))
# nvinfer1::apiv::VBuilderConfig
CONFIG_ADD_OPTIMIZATION_PROFILE = Method(23, ctypes.c_int32, (_pointer,))
# nvinfer1::apiv::VNetworkDefinition
NETWORK_GET_NB_LAYERS = Method(12, ctypes.c_int32)
# nvinfer1::apiv::VOptimizationProfile
PROFILE_SET_DIMENSIONS = Method(2, ctypes.c_bool, (ctypes.c_char_p, ctypes.c_int32, ctypes.POINTER(Dims)))
PROFILE_IS_VALID = Method(7, ctypes.c_bool)
# nvinfer1::apiv::VHostMemory
MEMORY_DATA = Method(2, _pointer)
MEMORY_SIZE = Method(3, ctypes.c_size_t)
# nvonnxparser::IParser: methods are entries of the object's own table.
PARSER_PARSE_FROM_FILE = Method(1, ctypes.c_bool, (ctypes.c_char_p, ctypes.c_int))
PARSER_GET_NB_ERRORS = Method(3, ctypes.c_int)
PARSER_GET_ERROR = Method(4, _pointer, (ctypes.c_int,))
# nvonnxparser::IParserError
ERROR_CODE = Method(0, ctypes.c_int)
ERROR_DESC = Method(1, ctypes.c_char_p)
ERROR_NODE = Method(5, ctypes.c_int)
ERROR_NODE_NAME = Method(6, ctypes.c_char_p)
ERROR_NODE_OPERATOR = Method(7, ctypes.c_char_p)
ERROR_LOCAL_FUNCTION_STACK = Method(8, ctypes.POINTER(ctypes.c_char_p))
ERROR_LOCAL_FUNCTION_STACK_SIZE = Method(9, ctypes.c_int32)

# nvinfer1::NetworkDefinitionCreationFlag::kSTRONGLY_TYPED is bit 0 (as in TensorRT 11).
STRONGLY_TYPED = 1 << 0
# nvinfer1::OptProfileSelector kMIN, kOPT, kMAX
PROFILE_MIN, PROFILE_OPT, PROFILE_MAX = 0, 1, 2


def implementation(interface: int) -> int:
    """Return the ``apiv::V…`` object behind a public interface: its data member, after the table pointer."""
    return ctypes.c_uint64.from_address(interface + 8).value


class Logger:
    """An ``nvinfer1::ILogger`` whose messages go to a Python function.

    Its table is that of ILogger in TensorRT 11, which derives from IVersionedInterface: getAPILanguage,
    getInterfaceInfo, two destructors, log.

    Args:
        receive: Called with (severity, message) from any thread; severity 0 is an internal error, 1 an error,
            2 a warning, 3 information, 4 verbose.
    """

    def __init__(self, receive: Callable[[int, str], None]) -> None:
        def log(_this: int, severity: int, message: bytes | None) -> None:
            receive(severity, (message or b"").decode(errors="replace"))

        self._kind = ctypes.create_string_buffer(b"ILogger")
        # getInterfaceInfo returns its 16 bytes in two registers, of which a callback fills one (the name).
        # The checked version does not call it.
        self._callbacks = (
            ctypes.CFUNCTYPE(ctypes.c_int32, _pointer)(lambda _this: 0),
            ctypes.CFUNCTYPE(_pointer, _pointer)(lambda _this: ctypes.addressof(self._kind)),
            ctypes.CFUNCTYPE(None, _pointer)(lambda _this: None),
            ctypes.CFUNCTYPE(None, _pointer)(lambda _this: None),
            ctypes.CFUNCTYPE(None, _pointer, ctypes.c_int32, ctypes.c_char_p)(log),
        )
        entries = [ctypes.cast(callback, _pointer).value for callback in self._callbacks]
        self._table = (_pointer * len(entries))(*entries)
        self._object = _pointer(ctypes.addressof(self._table))
        self.address = ctypes.addressof(self._object)


@dataclass(frozen=True)
class Library:
    """The loaded builder and parser libraries."""

    builder: ctypes.CDLL
    parser: ctypes.CDLL
    version: tuple[int, int, int, int]

    def create_builder(self, logger: Logger) -> int:
        """``nvinfer1::createInferBuilder``; the address of the builder's ``apiv::VBuilder``."""
        create = self.builder.createInferBuilder_INTERNAL
        create.restype, create.argtypes = _pointer, (_pointer, ctypes.c_int32)
        major, minor, patch, _ = self.version
        return implementation(create(logger.address, major * 10000 + minor * 100 + patch))

    def create_parser(self, network: int, logger: Logger) -> int:
        """``nvonnxparser::createParser``; the address of the ``IParser``."""
        create = self.parser.createNvOnnxParser_INTERNAL
        create.restype, create.argtypes = _pointer, (_pointer, _pointer, ctypes.c_int)
        return int(create(network, logger.address, CHECKED_PARSER_VERSION))


def find_libraries() -> tuple[Path, Path]:
    """Find the builder's and the parser's library files in the installed wheel, without importing it.

    Raises:
        MissingDependencyError: Not Linux x86-64, or the wheel is not installed, or it lacks a library.
    """
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise MissingDependencyError(
            f"TensorRT-RTX builds are supported on Linux x86_64; this is {sys.platform} {platform.machine()}"
        )
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise MissingDependencyError(f"TensorRT-RTX is not installed; install it with: {INSTALL_HINT}")
    folder = Path(spec.submodule_search_locations[0])
    found = []
    for stem in ("libtensorrt_rtx", "libtensorrt_onnxparser_rtx"):
        files = sorted(folder.glob(f"{stem}.so.*.*.*"))
        if len(files) != 1:
            raise MissingDependencyError(
                f"expected one {stem}.so.X.Y.Z in {folder}, found {len(files)}; reinstall: {INSTALL_HINT}"
            )
        found.append(files[0])
    return found[0], found[1]


def load() -> Library:
    """Load both libraries and refuse versions whose virtual tables were not checked.

    Raises:
        MissingDependencyError: The wheel is missing, cannot be loaded, or is of another version.
    """
    builder_file, parser_file = find_libraries()
    try:
        builder = ctypes.CDLL(str(builder_file), mode=ctypes.RTLD_GLOBAL)
        parser = ctypes.CDLL(str(parser_file))
    except OSError as error:
        raise MissingDependencyError(f"TensorRT-RTX cannot be loaded: {error}") from None
    version = (
        int(builder.getInferLibMajorVersion()),
        int(builder.getInferLibMinorVersion()),
        int(builder.getInferLibPatchVersion()),
        int(builder.getInferLibBuildVersion()),
    )
    check_version(version, int(parser.getNvOnnxParserVersion()))
    return Library(builder, parser, version)


def check_version(version: tuple[int, int, int, int], parser_version: int) -> None:
    """Refuse a library whose virtual tables are not known.

    Raises:
        MissingDependencyError: The version is none of :data:`CHECKED_VERSIONS`.
    """
    if version not in CHECKED_VERSIONS or parser_version != CHECKED_PARSER_VERSION:
        known = ", ".join(".".join(map(str, checked)) for checked in sorted(CHECKED_VERSIONS))
        raise MissingDependencyError(
            f"TensorRT-RTX {'.'.join(map(str, version))} (parser {parser_version}) is installed, but its "
            f"interface was checked only for {known} (parser {CHECKED_PARSER_VERSION}); "
            f"install that one: {INSTALL_HINT}"
        )
