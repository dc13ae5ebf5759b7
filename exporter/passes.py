"""Passes over a traced graph before it is written; each is small and can be read alone."""

from __future__ import annotations

import ast
import math

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from na_deploy import __version__
from na_deploy.attention.schema import DOMAIN, OPERATORS, PACKED_OPERATOR, SEPARATE_OPERATOR, VERSION, WITH_LSE
from na_deploy.attention.tiling import tiled_pairs
from na_deploy.attention.windows import NeighborhoodSpec
from na_deploy.exporter.function_body import BodyFeatures, packed_function, separate_function
from na_deploy.exporter.function_parts import LARGE_SCORES
from na_deploy.exporter.type_agreement import make_types_agree

LARGE_WINDOW = 512
"""Keys of a window from which on a layer of unknown size is done in parts."""

ATTENTION_MASK = "attention_masks."
"""Part of the names of values that say where queries may not look, and of the modules that compute them."""

OPTIONAL_INPUT = {PACKED_OPERATOR: 1, SEPARATE_OPERATOR: 3}
"""Position of rel_pos_bias among the inputs."""


def finish(model: ir.Model, name: str, opset: int) -> None:
    """Make a traced graph a file of ours: attention nodes named and with bodies, nothing of the tracer left.

    Args:
        model: the graph; it is changed.
        name: the graph's name.
        opset: version of the standard operators in function bodies.
    """
    make_types_agree(model, opset)
    tidy_attention_nodes(model)
    name_attention_masks(model)
    name_products(model)
    simplify_attention_reshapes(model)
    RemoveUnusedNodesPass()(model)
    strip_traces(model)
    embed_function_bodies(model, opset)
    model.graph.name = name
    model.producer_name = "na-deploy"
    model.producer_version = __version__


def attention_nodes(model: ir.Model) -> list[ir.Node]:
    """Return the neighborhood attention nodes, in order of execution."""
    return [node for node in model.graph if node.domain == DOMAIN and node.op_type in OPERATORS]


def tidy_attention_nodes(model: ir.Model) -> None:
    """Name each node after its module and drop the outputs nobody reads.

    ONNX Runtime refuses a node with more outputs than its function has, so an unread ``lse`` must go.
    """
    names: set[str] = set()
    for number, node in enumerate(attention_nodes(model)):
        scopes = ast.literal_eval(node.metadata_props.get("pkg.torch.onnx.name_scopes", "[]"))
        module = next((scope for scope in reversed(scopes[:-1]) if scope), f"attention_{number}")
        name = module.removeprefix("model.")
        node.name = name if name not in names else f"{name}.{number}"  # one module may attend several times
        names.add(node.name)
        if not node.outputs[0].is_graph_output():
            node.outputs[0].name = f"{node.name}.output"
        padding = node.inputs[2] if node.op_type == PACKED_OPERATOR and _has_input(node, 2) else None
        if padding is not None and padding.is_initializer() and len(padding.uses()) == 1:  # named by the tracer
            padding.name = f"{node.name}.padding"
        outputs = node.outputs
        if len(outputs) > 1 and not outputs[1].uses() and not outputs[1].is_graph_output():
            node.resize_outputs(1)


def name_attention_masks(model: ir.Model) -> None:
    """Name the masks of Mask2Former and OneFormer after their modules, so that verification finds them."""
    for node in model.graph:
        scopes = ast.literal_eval(node.metadata_props.get("pkg.torch.onnx.name_scopes", "[]"))
        module = next((scope for scope in reversed(scopes) if ATTENTION_MASK in scope), None)
        if module is not None and node.outputs[0].dtype == ir.DataType.BOOL:
            node.outputs[0].name = module.rpartition(ATTENTION_MASK)[0].removeprefix("model.") + (
                ATTENTION_MASK + module.rpartition(ATTENTION_MASK)[2].partition(".")[0]
            )


def name_products(model: ir.Model) -> None:
    """Name convolutions and matrix products after their modules, from which inspection tells a network's parts."""
    for number, node in enumerate(model.graph):
        if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
            scopes = ast.literal_eval(node.metadata_props.get("pkg.torch.onnx.name_scopes", "[]"))
            module = next((scope for scope in reversed(scopes[:-1]) if scope), "")
            node.name = f"{module.removeprefix('model.')}.{node.op_type}_{number}".lstrip(".")


def simplify_attention_reshapes(model: ir.Model) -> None:
    """Give the reshapes around packed nodes constant shapes that copy the leading dimensions.

    With free sizes the tracer computes these shapes at run time, one small graph for each block.
    """
    for node in attention_nodes(model):
        if node.op_type != PACKED_OPERATOR:
            continue
        packed, output = node.inputs[0], node.outputs[0]
        if packed is None or packed.shape is None:
            continue
        leading = packed.shape.rank() - 3
        heads, head_dim = packed.shape[-2], packed.shape[-1]
        if not (isinstance(heads, int) and isinstance(head_dim, int)):
            continue
        split = packed.producer()
        if split is not None and split.op_type == "Reshape" and _rank(split.inputs[0]) == leading + 1:
            _set_reshape(model, split, [0] * leading + [3, heads, head_dim])
        for use in output.uses():
            merge = use.node
            if merge.op_type == "Reshape" and use.idx == 0 and _rank(merge.outputs[0]) == leading + 1:
                _set_reshape(model, merge, [0] * leading + [heads * head_dim])


def _rank(value: ir.Value | None) -> int | None:
    return None if value is None or value.shape is None else value.shape.rank()


def _set_reshape(model: ir.Model, node: ir.Node, shape: list[int]) -> None:
    name = "shape_" + "_".join(str(size) for size in shape)
    constant = model.graph.initializers.get(name)
    if constant is None:
        tensor = ir.tensor(np.array(shape, np.int64), name=name)
        constant = ir.Value(
            name=name, const_value=tensor, shape=ir.Shape([len(shape)]), type=ir.TensorType(ir.DataType.INT64)
        )
        model.graph.register_initializer(constant)
    node.replace_input_with(1, constant)
    node.attributes.pop("allowzero", None)


def strip_traces(model: ir.Model) -> None:
    """Remove the tracer's notes: source lines and paths of the exporting machine have no place in the file."""
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        node.metadata_props.clear()
        node.doc_string = None
    for value in [*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()]:
        value.metadata_props.clear()
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        for output in node.outputs:
            output.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.metadata_props.clear()
    model.graph.doc_string = None
    model.doc_string = None


def embed_function_bodies(model: ir.Model, opset: int) -> None:
    """Add the portable body of each operator the model uses, and make its nodes fit it.

    A body cannot ask whether an optional input or output is there, so nodes of a kind are made alike: where some carry
    ``rel_pos_bias`` or ``padding``, the others get one of zeros; where some give ``lse``, the others name it as well.
    TensorRT refuses an empty name, so a bias of zeros stands before additional keys and padding too.
    """
    model.graph.opset_imports[DOMAIN] = VERSION
    for operator, build in ((PACKED_OPERATOR, packed_function), (SEPARATE_OPERATOR, separate_function)):
        nodes = [node for node in attention_nodes(model) if node.op_type == operator]
        if not nodes:
            continue
        at = OPTIONAL_INPUT[operator]
        ranks = [len(node.attributes["kernel_size"].as_ints()) for node in nodes]
        more = any(_has_input(node, at + 1) for node in nodes)
        features = BodyFeatures(
            rank=max(ranks),
            mixed_ranks=min(ranks) < max(ranks),
            rel_pos_bias=any(_has_input(node, at) for node in nodes),
            additional=more and operator == SEPARATE_OPERATOR,
            padding=more and operator == PACKED_OPERATOR,
            lse=any(len(node.outputs) > 1 for node in nodes),
            in_parts=any(_scores(node) > LARGE_SCORES for node in nodes),
        )
        function = ir.serde.deserialize_function(build(features, opset))
        model.functions[function.identifier()] = function
        for node in nodes:
            if (features.rel_pos_bias or more) and not _has_input(node, at):
                kernel = (int(size) for size in node.attributes["kernel_size"].as_ints())
                _add_zeros(model, node, at, "no_bias", (_size(node, -2), *(2 * size - 1 for size in kernel)))
            if features.padding and not _has_input(node, at + 1):
                _add_zeros(model, node, at + 1, "no_padding", (3, _size(node, -2), _size(node, -1)))
            if features.lse and len(node.outputs) == 1:
                node.resize_outputs(2)
                node.outputs[1].name = f"{node.name}.lse"
            if len(node.outputs) > 1:
                node.attributes.add(ir.AttrInt64(WITH_LSE, 1))


def _scores(node: ir.Node) -> int:
    """Return how many scores of one image tiles compute; where sizes are free, what the window alone tells."""
    kernel = [int(size) for size in node.attributes["kernel_size"].as_ints()]
    given = (node.attributes.get(name) for name in ("dilation", "stride"))
    dilation, stride = (1 if sizes is None else [int(size) for size in sizes.as_ints()] for sizes in given)
    rank, shape = len(kernel), node.inputs[0].shape if node.inputs[0] is not None else None
    sizes = [] if shape is None else [size for size in (*shape[1 : rank + 1], shape[-2]) if isinstance(size, int)]
    if len(sizes) < rank + 1:
        return (LARGE_SCORES + 1) * (math.prod(kernel) // LARGE_WINDOW)
    *lengths, heads = sizes
    return heads * tiled_pairs(lengths, NeighborhoodSpec.create(rank, kernel, dilation, stride))


def _has_input(node: ir.Node, index: int) -> bool:
    return len(node.inputs) > index and node.inputs[index] is not None


def _size(node: ir.Node, axis: int) -> int:
    """Return a known size of the first input."""
    query = node.inputs[0]
    assert query is not None
    assert query.shape is not None
    size = query.shape[axis]
    assert isinstance(size, int)
    return size


def _add_zeros(model: ir.Model, node: ir.Node, at: int, what: str, shape: tuple[int, ...]) -> None:
    query = node.inputs[0]
    assert query is not None
    assert query.dtype is not None
    name = f"{node.name}.{what}"
    tensor = ir.tensor(np.zeros(shape, query.dtype.numpy()), dtype=query.dtype, name=name)
    value = ir.Value(name=name, const_value=tensor, shape=ir.Shape(shape), type=ir.TensorType(query.dtype))
    model.graph.register_initializer(value)
    if len(node.inputs) <= at:
        node.resize_inputs(at + 1)
    node.replace_input_with(at, value)
