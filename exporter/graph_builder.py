"""A few helpers to write an ONNX function in Python, one line per operator. Knows nothing of attention."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from na_deploy.attention.schema import attribute_defaults


class FunctionBuilder:
    """Collects the nodes of one ``onnx.FunctionProto``; every method returns the name of a value."""

    def __init__(self, name: str, inputs: list[str], prefix: str = "v") -> None:
        self.name = name
        self.inputs = inputs
        self.prefix = prefix
        self.nodes: list[onnx.NodeProto] = []
        self._constants: dict[tuple[Any, ...], str] = {}
        self._expressions: dict[bytes, str] = {}

    def op(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Add ``operator`` and return its output; the same expression twice is added once."""
        node = helper.make_node(operator, list(inputs), [], **attributes)
        key = node.SerializeToString(deterministic=True)
        if key not in self._expressions:
            output = f"{self.prefix}{len(self.nodes)}"
            node.output.append(output)
            node.name = output  # ONNX Runtime 1.21 fuses nodes without names into nodes of one name, and then refuses
            self.nodes.append(node)
            self._expressions[key] = output
        return self._expressions[key]

    def constant(self, value: np.ndarray[Any, Any]) -> str:
        """Return a constant tensor."""
        return self.op("Constant", value=numpy_helper.from_array(value))

    def int64(self, value: int) -> str:
        """Return an int64 scalar."""
        return self.constant(np.array(value, np.int64))

    def ints(self, *values: int) -> str:
        """Return an int64 vector."""
        return self.constant(np.array(values, np.int64))

    def float32(self, value: float) -> str:
        """Return a float32 scalar."""
        return self.constant(np.array(value, np.float32))

    def attribute_ints(self, name: str) -> str:
        """Return the function's INTS attribute ``name`` as a vector."""
        return self._attribute("value_ints", name, AttributeProto.INTS)

    def attribute_float(self, name: str) -> str:
        """Return the function's FLOAT attribute ``name`` as a scalar."""
        return self._attribute("value_float", name, AttributeProto.FLOAT)

    def _attribute(self, target: str, name: str, kind: AttributeProto.AttributeType) -> str:
        output = f"attribute_{name}"
        if not any(output in node.output for node in self.nodes):
            node = helper.make_node("Constant", [], [output])
            node.attribute.append(AttributeProto(name=target, ref_attr_name=name, type=kind))
            self.nodes.append(node)
        return output

    def dimension(self, tensor: str, axis: int) -> str:
        """Return one dimension of ``tensor`` as a scalar."""
        return self.item(self.op("Shape", tensor), axis)

    def item(self, vector: str, index: int) -> str:
        """Return one entry of a vector as a scalar."""
        return self.op("Gather", vector, self.int64(index), axis=0)

    def range(self, count: str) -> str:
        """Return 0 … count-1 for a scalar ``count``."""
        return self.op("Range", self.int64(0), count, self.int64(1))

    def ceil_div(self, dividend: str, divisor: str) -> str:
        """Return the quotient rounded up, for non-negative dividends."""
        return self.op("Div", self.op("Sub", self.op("Add", dividend, divisor), self.int64(1)), divisor)

    def product(self, *scalars: str) -> str:
        """Return the product of scalars."""
        result = scalars[0]
        for factor in scalars[1:]:
            result = self.op("Mul", result, factor)
        return result

    def product_of(self, vector: str) -> str:
        """Return the product of a vector's entries, as a vector of one."""
        return self.op("ReduceProd", vector, self.ints(0), keepdims=1)

    def vector(self, *scalars: str) -> str:
        """Return scalars as one vector."""
        return self.op("Concat", *(self.op("Unsqueeze", scalar, self.ints(0)) for scalar in scalars), axis=0)

    def inner(self, name: str) -> FunctionBuilder:
        """Return a builder for the body of a loop; it may read this one's values and its own ``<name>_number``."""
        return FunctionBuilder(name, [], prefix=f"{name}_v")

    def loop(self, count: str, inner: FunctionBuilder, outputs: list[str]) -> list[str]:
        """Run ``inner`` ``count`` times; return its float32 ``outputs``, stacked along a new first axis."""
        still = inner.constant(np.array(True))  # TensorRT takes no condition in, ONNX wants one out
        graph = helper.make_graph(
            inner.nodes,
            inner.name,
            [
                helper.make_tensor_value_info(f"{inner.name}_number", TensorProto.INT64, []),
                helper.make_tensor_value_info(f"{inner.name}_going", TensorProto.BOOL, []),
            ],
            [
                helper.make_tensor_value_info(still, TensorProto.BOOL, []),
                *(helper.make_tensor_value_info(output, TensorProto.FLOAT, None) for output in outputs),
            ],
        )
        stacked = [f"{inner.name}_output_{number}" for number in range(len(outputs))]
        self.nodes.append(helper.make_node("Loop", [count, ""], stacked, name=inner.name, body=graph))
        return stacked

    def rename(self, value: str, name: str) -> None:
        """Give ``value`` the name of a function output."""
        self.nodes.append(helper.make_node("Identity", [value], [name]))

    def function(self, domain: str, outputs: list[str], opset: int, version: int) -> onnx.FunctionProto:
        """Close the function; it declares the operator's attributes with their defaults."""
        function = helper.make_function(
            domain,
            self.name,
            self.inputs,
            outputs,
            self.nodes,
            [helper.make_opsetid("", opset), helper.make_opsetid(domain, version)],
        )
        required, defaults = attribute_defaults()
        function.attribute.extend(required)
        function.attribute_proto.extend(defaults)
        return function
