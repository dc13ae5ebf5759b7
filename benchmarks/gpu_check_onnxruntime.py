"""Both operators through ONNX Runtime's CUDA provider: one model like an exported one, held to float64.

    python benchmarks/gpu_check_onnxruntime.py libna_deploy_ort.so

``scripts/gpu_check.sh`` compiles the library for the present device and runs this. ``--provider`` takes another
provider; the tests run the CUDA provider's node registered for the CPU's, on the emulated GPU.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
CUDA = "CUDAExecutionProvider"
TOLERANCE = {"FLOAT": 2e-6, "FLOAT16": 3e-3, "BFLOAT16": 2e-2}
"""Largest difference relative to the largest output; tiles round weights to the type before they sum values."""
NAMES = {"FLOAT": "float32", "FLOAT16": "float16", "BFLOAT16": "bfloat16"}
LENGTHS, KERNEL, HEADS, KEY_HEADS, DIM, MORE = (11, 7), (5, 3), 4, 2, 16, 6
NODES = {
    "packed": {"kernel_size": KERNEL, "dilation": (2, 1)},
    "separate": {"kernel_size": KERNEL, "stride": (2, 1), "is_causal": (0, 1)},
}


class NotChecked(Exception):  # noqa: N818 -- not an error
    """A part that this machine lacks, in one sentence."""


def require_provider(provider: str = CUDA) -> None:
    """Raise :class:`NotChecked` where onnxruntime does not offer a provider."""
    try:
        import onnx  # noqa: F401
        import onnxruntime
    except ImportError as error:
        raise NotChecked(f"{error}; pip install onnx onnxruntime-gpu") from None
    if provider not in onnxruntime.get_available_providers():
        raise NotChecked(f"onnxruntime {onnxruntime.__version__} has no {provider}; pip install onnxruntime-gpu")


def build_library(folder: Path, architecture: str) -> Path:
    """Compile libna_deploy_ort.so with GPU kernels for one architecture, such as ``90a-real``.

    Raises:
        NotChecked: names the missing part of CMake or the compiler.
    """
    if shutil.which("cmake") is None:
        raise NotChecked("there is no cmake to compile libna_deploy_ort.so with")
    switches = {"NATIVE": "ON", "CUDA": "ON", "TESTS": "OFF"}
    options = [f"-DNA_DEPLOY_{name}={value}" for name, value in switches.items()]
    for command in (
        ["cmake", "-S", str(ROOT), "-B", str(folder), f"-DCMAKE_CUDA_ARCHITECTURES={architecture}", *options],
        ["cmake", "--build", str(folder), "--parallel", "--target", "na_deploy_ort"],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            told = " ".join((done.stderr.strip() or done.stdout.strip()).split())
            raise NotChecked(f"libna_deploy_ort.so does not compile: {told[-600:]}")
    return folder / "plugins/onnxruntime/libna_deploy_ort.so"


def make_model(kind: str) -> Any:
    """Return a model of two attention blocks, whose tensors before and after attention are outputs in float32."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(7)
    channels = HEADS * DIM
    nodes, weights, outputs = [], [], []

    def constant(name: str, array: Any) -> str:
        weights.append(numpy_helper.from_array(array, name))
        return name

    def project(name: str, source: str, *shape: int) -> str:
        """One linear layer, its output in heads and in the storage's type."""
        width = int(np.prod(shape))
        matrix = constant(f"{name}_weight", random.normal(0, channels**-0.5, (channels, width)).astype(np.float32))
        sizes = constant(f"{name}_shape", np.array([0, *LENGTHS, *shape]))
        nodes.append(helper.make_node("MatMul", [source, matrix], [f"{name}_rows"]))
        nodes.append(helper.make_node("Reshape", [f"{name}_rows", sizes], [f"{name}_heads"]))
        return store(name, f"{name}_heads")

    def store(name: str, source: str) -> str:
        nodes.append(helper.make_node("Cast", [source], [f"{name}_stored"], to=getattr(TensorProto, kind)))
        return show(name, f"{name}_stored")

    def show(name: str, stored: str) -> str:
        nodes.append(helper.make_node("Cast", [stored], [name], to=TensorProto.FLOAT))
        outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
        return stored

    def bias(name: str) -> str:
        shape = (HEADS, *(2 * size - 1 for size in KERNEL))
        nodes.append(
            helper.make_node(
                "Cast",
                [constant(f"{name}_table", random.normal(size=shape).astype(np.float32))],
                [f"{name}_stored"],
                to=getattr(TensorProto, kind),
            )
        )
        return show(name, f"{name}_stored")

    def attend(name: str, operator: str, inputs: list[str], extra: list[str]) -> None:
        made = [f"{name}_stored", *extra]
        nodes.append(helper.make_node(operator, inputs, made, name=name, domain="na_deploy", **NODES[name]))
        show(name, made[0])

    inputs = [project("qkv", "x", 3, HEADS, DIM), bias("packed_bias")]
    attend("packed", "NeighborhoodAttentionQKV", inputs, [])
    flat = constant("flat_shape", np.array([0, *LENGTHS, channels]))
    nodes.append(helper.make_node("Reshape", ["packed", flat], ["packed_rows"]))
    nodes.append(helper.make_node("Add", ["x", "packed_rows"], ["y"]))
    inputs = [
        project("query", "y", HEADS, DIM),
        project("key", "y", KEY_HEADS, DIM),
        project("value", "y", KEY_HEADS, DIM),
        bias("separate_bias"),
        store("additional_key", "more_key"),
        store("additional_value", "more_value"),
    ]
    attend("separate", "NeighborhoodAttention", inputs, ["lse"])
    outputs.append(helper.make_tensor_value_info("lse", TensorProto.FLOAT, None))

    def given(name: str, *shape: int) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape])

    more = (MORE, KEY_HEADS, DIM)
    feeds = [given("x", *LENGTHS, channels), given("more_key", *more), given("more_value", *more)]
    graph = helper.make_graph(nodes, "two_blocks", feeds, outputs, weights)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("na_deploy", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def run_model(library: Path, provider: str, kind: str, batch: int, folder: Path) -> tuple[dict[str, Any], set[str]]:
    """Return the outputs, and the providers that ran the attention nodes."""
    import numpy as np
    import onnx
    import onnxruntime

    path = folder / "two_blocks.onnx"
    onnx.save(make_model(kind), path)
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(str(library))
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    session = onnxruntime.InferenceSession(str(path), options, providers=[provider])
    random = np.random.default_rng(8)
    feeds = {
        given.name: random.normal(size=(batch, *given.shape[1:])).astype(np.float32) for given in session.get_inputs()
    }
    names = [output.name for output in session.get_outputs()]
    found = dict(zip(names, session.run(names, feeds), strict=True))
    events = json.loads(Path(session.end_profiling()).read_text())
    ran = {
        event["args"].get("provider", "")
        for event in events
        if event.get("cat") == "Node" and event["args"].get("op_name", "").startswith("NeighborhoodAttention")
    }
    return found, ran


def difference(found: dict[str, Any]) -> float:
    """Return the largest relative difference to float64 of both operators, each on its own inputs."""
    import numpy as np

    from na_deploy.attention.reference import reference_attention, reference_attention_qkv
    from na_deploy.attention.windows import NeighborhoodSpec

    exact = {name: array.astype(np.float64) for name, array in found.items()}
    specs = {name: NeighborhoodSpec.create(2, **attributes) for name, attributes in NODES.items()}
    packed = reference_attention_qkv(exact["qkv"], specs["packed"], rel_pos_bias=exact["packed_bias"])
    separate = reference_attention(
        *(exact[name] for name in ("query", "key", "value")),
        specs["separate"],
        rel_pos_bias=exact["separate_bias"],
        additional_key=exact["additional_key"],
        additional_value=exact["additional_value"],
    )
    lse = np.abs(exact["lse"] - separate.lse).max() / np.abs(separate.lse).max()
    if not lse < 1e-5:
        return float("inf")
    return max(
        float(np.abs(exact[name] - expected).max() / np.abs(expected).max())
        for name, expected in (("packed", packed.output), ("separate", separate.output))
    )


def check(library: Path, provider: str = CUDA) -> tuple[str, list[str]]:
    """Run the model in every storage type; return a sentence about what agrees, and sentences about what does not."""
    import onnxruntime

    agrees, wrong = [], []
    for kind, tolerance in TOLERANCE.items():
        for batch in (1, 2):
            case = f"{NAMES[kind]}, batch {batch}"
            with tempfile.TemporaryDirectory() as folder:
                try:
                    found, ran = run_model(library, provider, kind, batch, Path(folder))
                except Exception as error:  # one type that fails does not hide the others
                    wrong.append(f"ONNX Runtime, {case}: {' '.join(str(error).split())[:400]}")
                    continue
            apart = difference(found)
            if ran != {provider}:
                wrong.append(f"ONNX Runtime, {case}: attention ran on {', '.join(sorted(ran)) or 'function bodies'}")
            elif not apart < tolerance:
                wrong.append(f"ONNX Runtime, {case}: {apart:.1e} from float64, {tolerance:.0e} is allowed")
            else:
                agrees.append(f"{case} ({apart:.1e})")
    name = f"ONNX Runtime {onnxruntime.__version__}, {provider.removesuffix('ExecutionProvider')} provider"
    return f"{name}, agrees with float64: {', '.join(agrees) or 'never'}.", wrong


def build_and_check(folder: Path, architecture: str) -> tuple[str, list[str]]:
    """Compile for an architecture, such as ``90a-real``, and :func:`check`; a missing part is reported instead."""
    try:
        require_provider()
        library = build_library(folder, architecture)
    except NotChecked as lack:
        return f"ONNX Runtime's CUDA provider was not checked: {lack}.", []
    return check(library)


def main() -> int:
    from gpu_check import import_ours

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", type=Path, help="libna_deploy_ort.so with GPU kernels")
    parser.add_argument("--provider", default=CUDA)
    arguments = parser.parse_args()
    import_ours()
    try:
        require_provider(arguments.provider)
    except NotChecked as lack:
        print(f"not checked: {lack}", file=sys.stderr)
        return 1
    told, wrong = check(arguments.library.resolve(), arguments.provider)
    print("\n".join([told, *wrong]))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
