"""Making nodes of a kind alike, so that one function body serves them all."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnx import TensorProto, helper

from na_deploy.attention import NeighborhoodSpec, reference_attention, reference_attention_qkv
from na_deploy.attention.schema import DOMAIN, PACKED_OPERATOR, SEPARATE_OPERATOR, WITH_LSE
from na_deploy.exporter.passes import embed_function_bodies

SHAPE = (1, 9, 10, 2, 8)
OPSET = 22


def test_nodes_with_and_without_bias_extra_keys_and_lse_share_one_body():
    random = np.random.default_rng(0)
    value = {name: random.standard_normal(SHAPE).astype(np.float32) for name in ("q", "k", "v")}
    bias = random.standard_normal((2, 5, 5)).astype(np.float32)
    value["extra_k"], value["extra_v"] = (random.standard_normal((1, 3, 2, 8)).astype(np.float32) for _ in range(2))

    def node(output: list[str], *more: str, **attributes: object) -> onnx.NodeProto:
        return helper.make_node(
            SEPARATE_OPERATOR, ["q", "k", "v", *more], output, name=output[0], domain=DOMAIN, **attributes
        )

    def info(name: str, shape: tuple[int, ...]) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    for extra in (False, True):
        more = ("extra_k", "extra_v") if extra else ()
        nodes = [
            node(["biased"], "bias", *more, kernel_size=[3, 3], dilation=[2, 3]),
            node(["plain", "plain_lse"], *(("", *more) if extra else ()), kernel_size=[4, 5], stride=[2, 1]),
        ]
        graph = helper.make_graph(
            nodes,
            "mixed",
            [info(name, array.shape) for name, array in value.items()],
            [info("biased", SHAPE), info("plain", SHAPE), info("plain_lse", SHAPE[:-1])],
            [onnx.numpy_helper.from_array(bias, "bias")],
        )
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)]
        model = ir.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=10))
        embed_function_bodies(model, OPSET)
        proto = ir.to_proto(model)
        assert {len(n.input) for n in proto.graph.node} == {4 + 2 * extra}
        assert {len(n.output) for n in proto.graph.node} == {2}
        runtime = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
        biased, plain, lse = runtime.run(None, value)

        added = {"additional_key": value["extra_k"], "additional_value": value["extra_v"]} if extra else {}
        q, k, v = value["q"], value["k"], value["v"]
        expected = reference_attention(q, k, v, NeighborhoodSpec.create(2, 3, (2, 3)), rel_pos_bias=bias, **added)
        np.testing.assert_allclose(biased, expected.output, atol=2e-6)
        expected = reference_attention(q, k, v, NeighborhoodSpec.create(2, (4, 5), stride=(2, 1)), **added)
        np.testing.assert_allclose(plain, expected.output, atol=2e-6)
        np.testing.assert_allclose(lse, expected.lse, atol=2e-6)


def test_nodes_with_and_without_padding_share_one_body():
    random = np.random.default_rng(0)
    qkv = {
        name: random.standard_normal((1, *lengths, 3, 2, 8)).astype(np.float32)
        for name, lengths in {"small": (4, 11), "large": (9, 10)}.items()
    }
    padding = random.standard_normal((3, 2, 8)).astype(np.float32)
    bias = random.standard_normal((2, 5, 5)).astype(np.float32)
    for with_bias in (False, True):
        nodes = [
            helper.make_node(
                PACKED_OPERATOR, ["small", "", "padding"], ["padded"], kernel_size=[3, 4], dilation=[2, 3]
            ),
            helper.make_node(PACKED_OPERATOR, ["large", "bias"][: 1 + with_bias], ["plain"], kernel_size=[3, 3]),
        ]
        for node in nodes:
            node.name, node.domain = node.output[0], DOMAIN
        outputs = {"padded": (1, 4, 11, 2, 8), "plain": (1, 9, 10, 2, 8)}
        graph = helper.make_graph(
            nodes,
            "mixed",
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, array.shape) for name, array in qkv.items()],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
            [onnx.numpy_helper.from_array(bias, "bias"), onnx.numpy_helper.from_array(padding, "padding")],
        )
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)]
        model = ir.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=10))
        embed_function_bodies(model, OPSET)
        proto = ir.to_proto(model)
        assert all(len(n.input) == 3 and all(n.input) for n in proto.graph.node)  # TensorRT refuses empty names
        runtime = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
        padded, plain = runtime.run(None, qkv)
        expected = reference_attention_qkv(qkv["small"], NeighborhoodSpec.create(2, (3, 4), (2, 3)), padding=padding)
        np.testing.assert_allclose(padded, expected.output, atol=2e-6)
        added = {"rel_pos_bias": bias} if with_bias else {}
        expected = reference_attention_qkv(qkv["large"], NeighborhoodSpec.create(2, 3), **added)
        np.testing.assert_allclose(plain, expected.output, atol=2e-6)


def test_nodes_say_that_they_have_an_lse_only_where_the_model_asks_for_one():
    """TensorRT's plugin has the output, its time and its memory, only where a node says so."""
    spatial = [helper.make_tensor_value_info(name, TensorProto.FLOAT, SHAPE) for name in ("q", "k", "v")]
    for asked in (False, True):
        outputs = ["found", "lse"] if asked else ["found"]
        node = helper.make_node(SEPARATE_OPERATOR, ["q", "k", "v"], outputs, domain=DOMAIN, kernel_size=[3, 3])
        results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)]
        graph = helper.make_graph([node], "one", spatial, results)
        model = ir.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=10))
        embed_function_bodies(model, OPSET)
        (written,) = ir.to_proto(model).graph.node
        said = {attribute.name: attribute.i for attribute in written.attribute}.get(WITH_LSE, 0)
        assert (len(written.output), said) == ((2, 1) if asked else (1, 0))
        assert len(model.functions[next(iter(model.functions))].outputs) == len(outputs)
