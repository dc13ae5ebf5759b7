"""Comparing networks whose queries look only where their masks say: Mask2Former and OneFormer.

A mask is a threshold, and a value near zero may fall on either side of it: rounding then changes where a query looks,
and with it the outputs, by more than any tolerance. Such a file is judged by what can be judged: PyTorch is run with
the file's own masks; what the masks were cut from, layer by layer, and the outputs must then agree within the
tolerance. So a mask can differ from PyTorch's only where PyTorch's own value is that close to zero.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper
from torch import Tensor, nn

from na_deploy.errors import NaDeployError
from na_deploy.exporter.passes import ATTENTION_MASK
from na_deploy.exporter.verify import (
    VerificationCase,
    open_session,
    random_image,
    run_onnx,
    run_torch,
    verify_outputs,
)
from na_deploy.exporter.verify_detections import verify_detections
from na_deploy.model_file.differences import Difference
from na_deploy.models.detectors.rcnn import RCNN
from na_deploy.models.heads.mask2former import AttentionMask

BoolArray = NDArray[np.bool_]


def masks_of(model: nn.Module) -> list[AttentionMask]:
    """Return a network's masks, in order of execution; none for most networks."""
    return [module for module in model.modules() if isinstance(module, AttentionMask)]


def judged(model: nn.Module, path: Path, shape: tuple[int, ...], tolerance: float) -> VerificationCase:
    """Compare every output; where masks or choices make that impossible, compare what can be compared.

    Queries' masks are compared as :func:`verify_with_masks` does, detectors as
    :func:`~na_deploy.exporter.verify_detections.verify_detections`.

    Args:
        model: the float32 module in eval mode.
        path: the ONNX file.
        shape: of the random image.
        tolerance: relative difference of outputs up to which masks need not be looked at.
    """
    if isinstance(model, RCNN):
        return verify_detections(model, path, shape, tolerance)
    case = verify_outputs(model, path, [shape])[0]
    return case if case.worst <= tolerance or not masks_of(model) else verify_with_masks(model, path, shape)


def verify_with_masks(model: nn.Module, path: Path, shape: Sequence[int]) -> VerificationCase:
    """Compare a file with PyTorch that is given the file's masks.

    Args:
        model: the float32 module in eval mode.
        path: the ONNX file; run with its masks as further outputs.
        shape: of the random image.

    Raises:
        NaDeployError: the file does not name its masks, or ONNX Runtime refuses it.
    """
    proto = onnx.load(path, load_external_data=False)
    names = [output.name for output in proto.graph.output]
    masks, logits = _mask_values(proto, path, len(masks_of(model)))
    for name in masks:
        proto.graph.output.append(helper.make_tensor_value_info(name, TensorProto.BOOL, None))
    for name in logits:
        proto.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    image = random_image(shape)
    found = run_onnx(open_session(path, proto), [*names, *masks, *logits], image, path)
    outputs = found[: len(names)]
    given: list[BoolArray] = [array.astype(np.bool_) for array in found[len(names) : len(names) + len(masks)]]
    theirs = found[len(names) + len(masks) :]
    with _given_masks(model, given) as cut_from:
        expected = run_torch(model, image)
    pairs = zip(names, outputs, expected, strict=True)
    differences = [Difference.between(name, ours.astype(np.float32), right.numpy()) for name, ours, right in pairs]
    layers = [
        Difference.between(name, ours.astype(np.float32), right)
        for name, ours, right in zip(masks, theirs, cut_from, strict=True)
    ]
    differences.append(max(layers, key=lambda difference: difference.relative))
    decided = [(right < 0) != ours for ours, right in zip(given, cut_from, strict=True)]
    apart, places = sum(int(each.sum()) for each in decided), sum(each.size for each in decided)
    nearest = max(
        (float(np.abs(x[y]).max(initial=0) / np.abs(x).max()) for x, y in zip(cut_from, decided, strict=True))
    )
    return VerificationCase(
        tuple(shape),
        tuple(differences),
        f"compared with the file's attention masks in PyTorch: {apart} of {places:,} places are decided otherwise, all "
        f"where PyTorch is within {nearest:.0e} of zero (relative)",
    )


def _mask_values(proto: onnx.ModelProto, path: Path, count: int) -> tuple[list[str], list[str]]:
    """Return the names of a file's masks and of what they were cut from."""
    cut_from = {node.output[0]: node.input[0] for node in proto.graph.node if ATTENTION_MASK in node.output[0]}
    masks = [name for name in cut_from if name.rpartition(".")[2].isdecimal()]
    if len(masks) != count:
        raise NaDeployError(f"{path.name} names {len(masks)} attention masks, the network has {count}; export it again")
    masks.sort(key=lambda name: int(name.rpartition(".")[2]))
    return masks, [cut_from[name] for name in masks]


@contextmanager
def _given_masks(model: nn.Module, masks: Sequence[BoolArray]) -> Iterator[list[NDArray[np.float32]]]:
    """Give a network these masks inside the block; collect what its own would have been cut from."""
    cut_from: list[NDArray[np.float32]] = []

    def replaced(_module: nn.Module, inputs: tuple[Tensor, ...], _output: Tensor) -> Tensor:
        cut_from.append(inputs[0].numpy().copy())
        return torch.from_numpy(masks[len(cut_from) - 1])

    handles = [module.register_forward_hook(replaced) for module in masks_of(model)]
    try:
        yield cut_from
    finally:
        for handle in handles:
            handle.remove()
