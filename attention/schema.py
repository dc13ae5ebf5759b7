"""The two ONNX operators: names, attributes, types. The contract is stated in docs/operator.md."""

from __future__ import annotations

from onnx import AttributeProto, helper

DOMAIN = "na_deploy"
VERSION = 1
SEPARATE_OPERATOR = "NeighborhoodAttention"
PACKED_OPERATOR = "NeighborhoodAttentionQKV"
OPERATORS = (SEPARATE_OPERATOR, PACKED_OPERATOR)

PLUGIN_ATTRIBUTES = {"plugin_version": "1", "plugin_namespace": DOMAIN}
"""Attributes by which TensorRT's parser finds a registered plugin and prefers it to the node's function body."""

WITH_LSE = "with_lse"
"""1 on nodes with a second output: a TensorRT plugin is asked for its number of outputs before its node is seen."""


def attribute_defaults() -> tuple[list[str], list[AttributeProto]]:
    """Return the names of attributes a node must carry, and the others with their defaults."""
    required = ["kernel_size"]
    per_axis = {"dilation": 1, "stride": 1, "is_causal": 0}
    defaults = [helper.make_attribute(name, [value]) for name, value in per_axis.items()]
    defaults.append(helper.make_attribute("scale", 0.0))
    defaults.append(helper.make_attribute(WITH_LSE, 0))
    defaults += [helper.make_attribute(name, value) for name, value in PLUGIN_ATTRIBUTES.items()]
    return required, defaults
