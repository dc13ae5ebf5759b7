"""An inference request and its answer, whatever protocol carried them. Values only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from na_deploy.model_file.tensors import Array
from na_deploy.serving.errors import InvalidRequestError, UnsupportedError

Parameters = Mapping[str, object]
MOST_AXES = 32
MOST_TENSORS = 256
SEQUENCE_PARAMETERS = ("sequence_id", "sequence_start", "sequence_end")


@dataclass(frozen=True)
class Tensor:
    """A named tensor; ``datatype`` is the protocol's name of the array's type."""

    name: str
    datatype: str
    array: Array


@dataclass(frozen=True)
class RequestedOutput:
    """An output the client wants.

    Attributes:
        name: the output.
        binary: as bytes after the JSON (HTTP); ``None`` leaves it to the request's default.
        classes: ask for the so many best classes instead of the numbers; 0 for the numbers.
    """

    name: str
    binary: bool | None = None
    classes: int = 0


@dataclass(frozen=True)
class InferRequest:
    """One inference that a client asks for.

    Attributes:
        id: the client's own, given back.
        inputs: the tensors, for a request that names them.
        raw: the only input's bytes alone, for a request without a header; type and shape are then the model's.
        outputs: those wanted; all of them if empty.
        binary_outputs: outputs that do not say otherwise go back as bytes (HTTP).
        timeout_us: how long the request may wait for its turn, in microseconds; 0 for as long as it takes.
    """

    id: str = ""
    inputs: tuple[Tensor, ...] = ()
    raw: memoryview | None = None
    outputs: tuple[RequestedOutput, ...] = ()
    binary_outputs: bool = False
    timeout_us: int = 0


@dataclass(frozen=True)
class InferResponse:
    """A model's answer.

    Attributes:
        model: its name.
        version: its version.
        id: the request's.
        outputs: in the order asked for.
        binary: names of the outputs that go back as bytes (HTTP).
        queue_ns: how long it waited for its turn.
        compute_ns: how long the run took that it was part of.
        batch: how many items ran together in it.
    """

    model: str
    version: str
    id: str
    outputs: tuple[Tensor, ...]
    binary: frozenset[str] = field(default_factory=frozenset)
    queue_ns: int = 0
    compute_ns: int = 0
    batch: int = 1

    @property
    def nbytes(self) -> int:
        """Bytes of the outputs."""
        return sum(tensor.array.nbytes for tensor in self.outputs)


def timeout_of(parameters: Parameters) -> int:
    """Return the request's ``timeout``, after refusing parameters whose meaning this server does not carry out.

    Raises:
        InvalidRequestError: it is not a number of microseconds.
        UnsupportedError: the request belongs to a sequence.
    """
    if any(parameters.get(name) not in (None, 0, "", False) for name in SEQUENCE_PARAMETERS):
        raise UnsupportedError("the request belongs to a sequence; models here keep nothing between requests")
    timeout = 0 if parameters.get("timeout") is None else parameters["timeout"]
    if isinstance(timeout, bool) or not isinstance(timeout, int) or not 0 <= timeout < 1 << 63:
        raise InvalidRequestError("the parameter timeout is not a whole number of microseconds, 0 or more")
    return timeout


def refuse_shared_memory(name: str, parameters: Parameters) -> None:
    """Refuse a tensor that lies in shared memory.

    Raises:
        UnsupportedError: the tensor lies in shared memory.
    """
    if parameters.get("shared_memory_region") is not None:
        raise UnsupportedError(f"tensor {name!r} lies in shared memory, which is not supported; send it in the request")


def requested_output(name: object, parameters: Parameters) -> RequestedOutput:
    """Return a checked entry of the request's outputs.

    Raises:
        InvalidRequestError: the name or a parameter has the wrong type.
        UnsupportedError: the output should go to shared memory.
    """
    if not isinstance(name, str) or not name:
        raise InvalidRequestError("an entry of outputs has no name")
    refuse_shared_memory(name, parameters)
    binary = parameters.get("binary_data")
    if binary is not None and not isinstance(binary, bool):
        raise InvalidRequestError(f"the parameter binary_data of output {name!r} is neither true nor false")
    classes = 0 if parameters.get("classification") is None else parameters["classification"]
    if isinstance(classes, bool) or not isinstance(classes, int) or classes < 0:
        raise InvalidRequestError(f"the parameter classification of output {name!r} is not a number of classes")
    return RequestedOutput(name, binary, classes)


def check_names(kind: str, names: list[str]) -> None:
    """Refuse a name that occurs twice, and lists too long to be meant.

    Raises:
        InvalidRequestError: a name occurs twice, or there are too many.
    """
    if len(names) > MOST_TENSORS:
        raise InvalidRequestError(f"the request has {len(names)} {kind}; at most {MOST_TENSORS} are read")
    for name in names:
        if names.count(name) > 1:
            raise InvalidRequestError(f"the request names {name!r} twice among its {kind}")


def check_shape(name: str, shape: object) -> tuple[int, ...]:
    """Return a tensor's shape as stated.

    Raises:
        InvalidRequestError: it is not a list of sizes.
    """
    if not isinstance(shape, list | tuple) or len(shape) > MOST_AXES:
        raise InvalidRequestError(f"tensor {name!r} has no shape that is a list of up to {MOST_AXES} sizes")
    for size in shape:
        if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size < 1 << 48:
            raise InvalidRequestError(f"tensor {name!r} has the size {str(size)[:40]} in its shape; expected 0 or more")
    return tuple(shape)
