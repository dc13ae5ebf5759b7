"""Neighborhood attention as OpenVINO operators, computed by the library ``libna_deploy_openvino.so``.

They are written in Python, which binds them to no release of OpenVINO: ``evaluate`` hands addresses to the library,
which computes on the threads of the calling stream. Import this module after ``openvino``.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import openvino
from openvino import opset13
from openvino.frontend.onnx import ConversionExtension

from na_deploy.attention.schema import DOMAIN, PACKED_OPERATOR, SEPARATE_OPERATOR
from na_deploy.errors import NaDeployError
from na_deploy.runtime.openvino.library import (
    AXES,
    BFLOAT16,
    FLOAT16,
    FLOAT32,
    CallKind,
    LibraryNode,
    OpenVinoLibrary,
    PreparedCall,
    Shape,
)

_DTYPES = {openvino.Type.f32: FLOAT32, openvino.Type.f16: FLOAT16, openvino.Type.bf16: BFLOAT16}
_BIAS = {PACKED_OPERATOR: 1, SEPARATE_OPERATOR: 3}
_DEFAULTS = {"dilation": 1, "stride": 1, "is_causal": 0}
_HANDLES = {name: [type(name, (), {})()] * 100_000 for name in _BIAS}
"""Objects that OpenVINO names operators by and keeps for them. It lets go of them without holding Python's lock, which
must not be for the last time and may lose a count: so each has many references that stay."""
_KEPT_CALLS = 16
_MOST_AXES_OF_SNIPPETS = 6
"""OpenVINO compiles elementwise nodes over tensors of up to so many axes to code of its own, conversions too."""
_PASSING = 512
"""Nodes that exist for a moment, while OpenVINO infers shapes, of which so many are kept."""


class OperatorNodes:
    """The attention nodes of one model: makes OpenVINO read them, and keeps them while the model is in use.

    OpenVINO can keep Python operators alive by itself, and then never lets go of them or of the model's weights. So
    they are kept here; :meth:`release` ends them after the compiled model.

    Args:
        core: an ``openvino.Core`` for this model alone.
        library: the loaded library.

    Attributes:
        library: the same.
        is_compiled: the model is compiled; to be set when it is.
        failures: sentences of nodes that refused their inputs, the oldest first. An exception would end the process:
            OpenVINO passes it on without holding Python's lock.
    """

    def __init__(self, core: Any, library: OpenVinoLibrary) -> None:
        self.library = library
        self.is_compiled = False
        self.failures: deque[str] = deque(maxlen=_PASSING)
        self._lock = threading.Lock()
        self._lasting: list[Any] = []
        self._passing: deque[Any] = deque(maxlen=_PASSING)
        for name in (PACKED_OPERATOR, SEPARATE_OPERATOR):
            operator = type(name, (AttentionOperator,), {"owner": self, "name": name})
            core.add_extension(operator)  # reads compiled models from a cache
            core.add_extension(ConversionExtension(name, DOMAIN, _converter(operator)))

    def keep(self, operator: AttentionOperator, for_a_moment: bool) -> None:
        """Keep a node: until :meth:`release`, or until many more have passed."""
        with self._lock:
            (self._passing if for_a_moment else self._lasting).append(operator)

    def complete(self, model: Any, bfloat16: bool) -> None:
        """Adapt the nodes of a model that was just read.

        Nodes whose lse nobody reads lose that output. With ``bfloat16`` attention reads and writes bfloat16, without
        conversions between it and the products around it; its bias stays float32.
        """
        for node in model.get_ordered_ops():
            if isinstance(node, AttentionOperator):
                node.give_way(bfloat16)
        model.validate_nodes_and_infer_types()

    def release(self) -> None:
        """Let go of all nodes. The compiled model must not run any more."""
        with self._lock:
            self._lasting.clear()
            self._passing.clear()


def _converter(operator: type[AttentionOperator]) -> Any:
    """Return the function that makes a node of the operator from one in an ONNX file."""

    def convert(context: Any) -> Any:
        inputs = [context.get_input(index) for index in range(context.get_input_size())]
        given = [slot for slot, source in enumerate(inputs) if source.get_node().get_type_name() != "NullNode"]
        kernel_size = [int(size) for size in context.get_attribute("kernel_size", [])]
        attributes: dict[str, Any] = {"kernel_size": kernel_size}
        for name, default in _DEFAULTS.items():
            values = [int(value) for value in context.get_attribute(name, [])] or [default]
            attributes[name] = values * len(kernel_size) if len(values) == 1 else values
        attributes["is_causal"] = [int(value != 0) for value in attributes["is_causal"]]
        attributes |= {"scale": float(context.get_attribute("scale", 0.0)), "given": given, "results": 2}
        return operator([inputs[slot] for slot in given], attributes).outputs()

    return convert


class AttentionOperator(openvino.Op):  # type: ignore[misc]
    """One attention node. Its clones share the library's node, and with it the plans for shapes.

    Where sizes are free, OpenVINO clones every node at every run to infer its shapes, so clones ask for little.

    Attributes:
        owner: the model's nodes.
        name: the operator's name.
        attributes: those of the operator, with ``given``, the operator's inputs that the node has, and ``results``, the
            number of its outputs. OpenVINO writes them into a cache and reads them back.
    """

    owner: OperatorNodes
    name: str

    def __init__(
        self,
        inputs: Sequence[Any] | None = None,
        attributes: dict[str, Any] | None = None,
        node: LibraryNode | None = None,
    ) -> None:
        super().__init__(_HANDLES[self.name][0])
        unknown = {name: [0] for name in (*AXES, "given")} | {"scale": 0.0, "results": 1}
        self.attributes: dict[str, Any] = attributes or unknown
        self._node = node
        self._calls: dict[tuple[Shape, ...], PreparedCall] = {}
        self._given: tuple[int, ...] = ()
        self._bias = -1
        self._constant_bias = False
        self._changing: tuple[int, ...] = ()  # the inputs that do not stay where they are
        self._results = 1
        sources = {source.get_node().get_type_name() for source in inputs or []}
        self.owner.keep(self, self.owner.is_compiled and sources <= {"Parameter", "Constant"})
        if inputs is not None:
            self.set_arguments(list(inputs))
            self.constructor_validate_and_infer_types()

    def give_way(self, bfloat16: bool) -> None:
        """Put a node in this one's place: without an lse that nobody reads, and over bfloat16 if asked to."""
        results = 2 if self.output(1).get_target_inputs() else 1
        sources = [self.input_value(index) for index in range(self.get_input_size())]
        if bfloat16:
            sources = [
                source if index == self._bias else _converted(source, "bf16") for index, source in enumerate(sources)
            ]
        other = type(self)(sources, self.attributes | {"results": results}, self._node)
        other.set_friendly_name(self.get_friendly_name())
        found = list(other.outputs())
        if bfloat16:
            found[0] = _converted(found[0], self.get_output_element_type(0).to_string())
        for own, result in zip(self.outputs(), found, strict=False):
            result.get_tensor().set_names(own.get_tensor().get_names())
            for target in own.get_target_inputs():
                target.replace_source_output(result)

    def validate_and_infer_types(self) -> None:
        """Set types and shapes of the outputs; sizes may still be free."""
        try:
            shapes = self._infer_shapes()
        except NaDeployError as error:
            self._fail(error)
            shapes = [None, None]
        for index in range(int(self.attributes["results"])):
            element = openvino.Type.f32 if index else self.get_input_element_type(0)
            sizes = shapes[index]
            shape = openvino.PartialShape.dynamic() if sizes is None else openvino.PartialShape(list(sizes))
            self.set_output_type(index, element, shape)

    def _infer_shapes(self) -> list[Shape | None]:
        """Return the sizes of output and lse, -1 for those not known yet; ``None`` where an input's rank is not."""
        own = self.attributes
        if self._node is None:
            self._node = self.owner.library.make_node(self.name == PACKED_OPERATOR, own, own["scale"])
        self._given = tuple(int(slot) for slot in own["given"])
        if _BIAS[self.name] in self._given:
            self._bias = self._given.index(_BIAS[self.name])
            self._constant_bias = self.input_value(self._bias).get_node().get_type_name() == "Constant"
        self._results = int(own["results"])
        self._changing = tuple(
            index for index in range(len(self._given)) if index != self._bias or not self._constant_bias
        )
        shapes = [self.get_input_partial_shape(index) for index in range(self.get_input_size())]
        if not all(shape.rank.is_static for shape in shapes):
            return [None, None]
        kind = CallKind(self._given, tuple(_sizes(shape) for shape in shapes))
        return [self._node.output_sizes(kind, with_channels) for with_channels in (True, False)]

    def _fail(self, error: NaDeployError) -> None:
        name = self.get_friendly_name()
        node = "" if name.startswith(f"{self.name}_") else f" node {name!r}"  # OpenVINO's own, while the file is read
        self.owner.failures.append(f"{self.name}{node}: {error}")

    def clone_with_new_inputs(self, new_inputs: Sequence[Any]) -> AttentionOperator:
        """Return a node like this one over other inputs."""
        return type(self)(new_inputs, self.attributes, self._node)

    def visit_attributes(self, visitor: Any) -> bool:
        """Show the attributes to OpenVINO, or take them from it."""
        visitor.on_attributes(self.attributes)
        return True

    def has_evaluate(self) -> bool:
        """Say that the node computes by itself."""
        return True

    def evaluate(self, outputs: Sequence[Any], inputs: Sequence[Any]) -> bool:
        """Compute one call; return whether that was possible."""
        try:
            self._evaluate(outputs, inputs)
        except NaDeployError as error:
            self._fail(error)
            return False
        return True

    def _evaluate(self, outputs: Sequence[Any], inputs: Sequence[Any]) -> None:
        # Between a model's layers all that stands here comes from main memory. Indices, because a loop over OpenVINO's
        # own lists ends with a C++ exception, which takes longer than everything else.
        if self._node is None:  # the attributes were refused
            raise NaDeployError("it has no valid attributes")
        arrays = [inputs[index].data for index in self._changing]
        shapes = tuple([array.shape for array in arrays])
        call = self._calls.get(shapes)  # types of a compiled node do not change
        if call is None:
            call = self._prepare(shapes, inputs)
        results = [outputs[index].data for index in range(self._results)]
        if results[0].shape == (0,):  # OpenVINO leaves shapes to the node
            for index in range(self._results):
                outputs[index].shape = self._node.output_sizes(call.kind, with_channels=index == 0)
            results = [outputs[index].data for index in range(self._results)]
        lse = _address(results[1]) if self._results > 1 else None
        self._node.run(call, [_address(array) for array in arrays], _address(results[0]), lse)

    def _prepare(self, shapes: tuple[Shape, ...], inputs: Sequence[Any]) -> PreparedCall:
        assert self._node is not None
        arrays = [inputs[index].data for index in range(len(self._given))]
        is_wide = self._bias >= 0 and inputs[self._bias].element_type == openvino.Type.f32
        kind = CallKind(
            self._given,
            tuple(array.shape for array in arrays),
            _DTYPES[inputs[0].element_type],
            is_wide,
            self._constant_bias,
        )
        constant = {self._given[self._bias]: _address(arrays[self._bias])} if self._constant_bias else {}
        call = self._node.prepare(kind, constant)
        if self.owner.is_compiled:  # before, constants may still move
            if len(self._calls) >= _KEPT_CALLS:
                self._calls = {}
            self._calls[shapes] = call
        return call


def _converted(source: Any, element: str) -> Any:
    """Return a tensor in another type.

    In a bfloat16 graph both types become the same, and OpenVINO drops the conversion, unless it has compiled it to a
    copy before: added axes keep it from that.
    """
    rank = source.get_partial_shape().rank
    added = range(rank.get_length(), _MOST_AXES_OF_SNIPPETS + 1) if rank.is_static else range(0)
    if not added:
        return opset13.convert(source, element).output(0)
    axes = opset13.constant(np.array(added, np.int64))
    wide = opset13.convert(opset13.unsqueeze(source, axes), element)
    return opset13.squeeze(wide, axes).output(0)


def _address(array: Any) -> int:
    place: int = array.__array_interface__["data"][0]
    return place


def _sizes(shape: Any) -> Shape:
    """Return the sizes of a shape of known rank, -1 for free ones, by index: see ``_evaluate``."""
    sizes = [shape[axis] for axis in range(shape.rank.get_length())]
    return tuple([size.get_length() if size.is_static else -1 for size in sizes])
