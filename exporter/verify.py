"""Comparison of an ONNX file with the PyTorch model; the file itself runs in stock ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from onnx import TensorProto
from torch import Tensor, nn

from na_deploy.attention import torch_ops, torch_tiles
from na_deploy.attention.schema import DOMAIN, OPERATORS
from na_deploy.errors import NaDeployError, one_line
from na_deploy.exporter.bfloat16_emulation import holds_bfloat16, widen_bfloat16
from na_deploy.model_file.differences import Difference
from na_deploy.model_file.graph import ask_for, load_weights

FloatArray = NDArray[np.float32]

FOLDER_KEY = "session.model_external_initializers_file_folder_path"
SEED = 20221


@dataclass(frozen=True)
class VerificationCase:
    """The differences for one input shape.

    Attributes:
        input_shape: of the image.
        differences: of every output, and of whatever else had to be compared.
        remark: how they were compared, where that was not output by output.
    """

    input_shape: tuple[int, ...]
    differences: tuple[Difference, ...]
    remark: str = ""

    @property
    def worst(self) -> float:
        """The largest relative difference."""
        return self.worst_difference.relative

    @property
    def worst_difference(self) -> Difference:
        """The tensor with the largest relative difference."""
        return max(self.differences, key=lambda difference: difference.relative)


def refusal(file: str, found: Difference, sizes: str, accepted: float) -> str:
    """Return the sentence about a file that is not kept."""
    return (
        f"{file} is not kept: its output {found.name} differs from PyTorch by {found.relative:.1e} (relative; "
        f"{found.largest:.1e} at most) for an input of {sizes}, above the tolerance of {accepted:.0e}; --tolerance "
        "accepts more"
    )


def random_image(shape: Sequence[int], seed: int = SEED) -> Tensor:
    """Return a seeded standard-normal image batch, what normalised photographs look like to a model."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def verify_outputs(model: nn.Module, path: Path, shapes: Sequence[tuple[int, ...]]) -> list[VerificationCase]:
    """Compare every output for random images of each of ``shapes`` (B, 3, H, W).

    Args:
        model: the float32 module in eval mode.
        path: the ONNX file. bfloat16 files run widened (:mod:`bfloat16_emulation`), for lack of kernels on CPUs.
        shapes: input shapes the file accepts.

    Raises:
        NaDeployError: ONNX Runtime refuses the file.
    """
    session = open_session(path)
    names = [output.name for output in session.get_outputs()]
    cases = []
    for shape in shapes:
        image = random_image(shape)
        expected = run_torch(model, image)
        found = run_onnx(session, names, image, path)
        differences = (
            Difference.between(name, ours, theirs.numpy())
            for name, ours, theirs in zip(names, found, expected, strict=True)
        )
        cases.append(VerificationCase(tuple(shape), tuple(differences)))
    return cases


def verify_layers(model: nn.Module, path: Path, shape: tuple[int, ...]) -> list[Difference]:
    """Compare the output of every neighborhood attention layer, in order of execution."""
    proto = onnx.load(path, load_external_data=False)
    layers = [node for node in proto.graph.node if node.domain == DOMAIN and node.op_type in OPERATORS]
    ask_for(proto, [node.output[0] for node in layers])
    session = open_session(path, proto)
    image = random_image(shape)
    with _recorded_attention() as expected:
        run_torch(model, image)
    if len(expected) != len(layers):
        raise NaDeployError(
            f"{path.name} has {len(layers)} neighborhood attention layers and the PyTorch model {len(expected)}; "
            "these are not the same model"
        )
    found = run_onnx(session, [node.output[0] for node in layers], image, path)
    return [
        Difference.between(node.name, ours.astype(np.float32), theirs)
        for node, ours, theirs in zip(layers, found, expected, strict=True)
    ]


@contextmanager
def _recorded_attention() -> Iterator[list[FloatArray]]:
    """Collect the outputs of attention layers run inside the block."""
    outputs: list[FloatArray] = []

    def recording(*arguments: object) -> tuple[Tensor, Tensor]:
        output, lse = torch_tiles.tiled(*arguments)  # type: ignore[arg-type]
        outputs.append(output.numpy().copy())
        return output, lse

    with torch_ops.use_implementation(recording):
        yield outputs


def run_torch(model: nn.Module, image: Tensor) -> tuple[Tensor, ...]:
    """Return a module's outputs for an image."""
    with torch.inference_mode():
        outputs = model(image)
    return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)


def run_onnx(session: ort.InferenceSession, names: list[str], image: Tensor, path: Path) -> list[FloatArray]:
    """Return values of a file for an image.

    Raises:
        NaDeployError: ONNX Runtime fails.
    """
    try:
        found: list[FloatArray] = session.run(names, {session.get_inputs()[0].name: image.numpy()})
    except Exception as error:
        size = "x".join(map(str, image.shape))
        raise NaDeployError(f"ONNX Runtime cannot run {path.name} on an input of {size}: {one_line(error)}") from error
    return found


def open_session(path: Path, proto: onnx.ModelProto | None = None) -> ort.InferenceSession:
    """Open a file, or an edited copy of its graph, in ONNX Runtime on the CPU with nothing of ours registered."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    if proto is None:
        proto = onnx.load(path, load_external_data=False)
    external = any(tensor.data_location == TensorProto.EXTERNAL for tensor in proto.graph.initializer)
    if external:
        options.add_session_config_entry(FOLDER_KEY, str(path.resolve().parent))
    if holds_bfloat16(proto):
        if external:
            load_weights(path, proto)
        proto = widen_bfloat16(proto)
    try:
        return ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise NaDeployError(f"ONNX Runtime {ort.__version__} refuses {path.name}: {one_line(error)}") from error
