"""PyTorch module to ONNX graph: the call of ``torch.onnx.export`` and what surrounds it."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterator

import onnx_ir as ir
import torch
from torch import Tensor, nn

from na_deploy.attention.registration import register_schemas
from na_deploy.errors import NaDeployError
from na_deploy.exporter.options import ExportOptions
from na_deploy.exporter.translation import translation_table
from na_deploy.models.detectors.rcnn import RCNN

TORCH_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
LARGEST_SIDE = 8192
"""Upper bound given to the tracer for a free height or width; it is not checked at run time."""


class TypedModel(nn.Module):
    """A copy of a model in another precision whose inputs and outputs stay float32.

    Images and results keep one type whatever the file's precision, so that callers, NumPy (which has no bfloat16) and
    servers treat every file alike.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype, inner: int = 0) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).to(dtype)
        self.dtype = dtype
        self.inner = inner
        """Outputs at the end that keep the model's type, since they are no outputs of the file."""

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Run the model on a float32 image; whole numbers stay as they are."""
        outputs = self.model(image.to(self.dtype))
        if isinstance(outputs, Tensor):
            return outputs.float()
        own = len(outputs) - self.inner
        widened = (output.float() if output.is_floating_point() else output for output in outputs[:own])
        return (*widened, *outputs[own:])


class WithInnerValues(nn.Module):
    """A detector that also returns what it computes on the way, so that the file names those values."""

    def __init__(self, model: RCNN) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs, then the inner values."""
        outputs, inner = self.model.steps(image)
        return (*outputs.values(), *inner.values())


def trace(
    model: nn.Module,
    shape: tuple[int, int, int, int],
    output_names: list[str],
    options: ExportOptions,
    smallest: int = 1,
) -> ir.Model:
    """Return the model's graph with one neighborhood attention node per attention, without function bodies.

    Args:
        model: a float32 module in eval mode that takes one image (B, 3, H, W).
        shape: example size; free dimensions are traced with at least 2, since a size of 1 would be fixed.
        output_names: names for the outputs, in order. A detector's inner values are no outputs, but keep their names.
        options: precision, free dimensions and opset.
        smallest: height and width from which on all maps have sides of 2 or more, which the tracer takes for granted
            in the end; told so at once it need not try twice. Files are right below, too, as verification shows.

    Raises:
        NaDeployError: the model cannot be traced.
    """
    batch, channels, height, width = shape
    sizes: dict[int, torch.export.Dim] = {}
    if "batch" in options.dynamic:
        batch = max(batch, 2)
        sizes[0] = torch.export.Dim("batch", min=1)
    if "spatial" in options.dynamic:
        sizes[2] = torch.export.Dim("height", min=smallest, max=LARGEST_SIDE)
        sizes[3] = torch.export.Dim("width", min=smallest, max=LARGEST_SIDE)
        height += 0 if height != width else 1  # equal sizes would be taken for one dimension
    inner = model.inner_names if isinstance(model, RCNN) else []
    whole = WithInnerValues(model) if isinstance(model, RCNN) else model
    typed = whole if options.dtype == "fp32" else TypedModel(whole, TORCH_DTYPES[options.dtype], len(inner))
    register_schemas()
    try:
        with quiet(), torch.no_grad():
            program = torch.onnx.export(
                typed.eval(),
                (torch.zeros(batch, channels, height, width),),
                dynamo=True,
                opset_version=options.opset,
                dynamic_shapes=(sizes,) if sizes else None,
                custom_translation_table=translation_table(),
                input_names=["image"],
                output_names=[*output_names, *inner],
                verbose=False,
            )
    except Exception as error:
        cause = root_cause(error)
        if isinstance(cause, NaDeployError):  # a layer said what is wrong
            raise cause from error
        reason = (str(cause).strip() or "no reason given").splitlines()[0]
        raise NaDeployError(
            f"the model could not be traced with an input of {batch}x{channels}x{height}x{width}: "
            f"{type(cause).__name__}: {reason}"
        ) from error
    assert program is not None
    for _ in inner:
        program.model.graph.outputs.pop()
    return program.model


def root_cause(error: BaseException) -> BaseException:
    """Return what the tracer's own error was raised from, at the very start."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep remarks of PyTorch and the tracer off the terminal: log lines, warnings, what is printed."""
    loggers = [
        logger
        for name, logger in logging.root.manager.loggerDict.items()
        if isinstance(logger, logging.Logger) and name.partition(".")[0] in _LOGGING
    ]
    levels = [(logger, logger.level) for logger in (*loggers, *map(logging.getLogger, _LOGGING))]
    for logger, _ in levels:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in reversed(levels):
            logger.setLevel(level)


_LOGGING = ("torch", "onnxscript", "onnx_ir")
