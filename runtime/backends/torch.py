"""Sessions in PyTorch: the reference that the others are compared with. Takes checkpoints, not exported files.

PyTorch is imported when a session is opened, never with this module.
"""

from __future__ import annotations

import threading
import warnings
from pathlib import Path
from typing import Any

from na_deploy.errors import MissingDependencyError, NaDeployError, UsageError
from na_deploy.model_file.tensors import Array, TensorSpec
from na_deploy.models.metadata import HEAD_OUTPUTS
from na_deploy.runtime.session import Session, SessionOptions


def open_session(path: Path, options: SessionOptions) -> TorchSession:
    """Load a checkpoint: official .pth, .safetensors, or a folder of Hugging Face.

    Raises:
        MissingDependencyError: PyTorch, or the library that reads the checkpoint, is not installed.
        UsageError: an exported file was given, or the device does not exist.
        CheckpointError: the checkpoint cannot be read, or is no NAT or DiNAT model.
    """
    if path.suffix in (".onnx", ".engine", ".plan"):
        raise UsageError(f"PyTorch runs checkpoints and {path.name} is none; give the checkpoint that it was made from")
    try:
        import torch

        from na_deploy.models import load_model
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"the torch backend needs {error.name}, which is not installed; "
            "install it with: pip install 'na-deploy[export]'"
        ) from None
    count = torch.cuda.device_count()
    if options.device is not None and not 0 <= options.device < count:
        raise UsageError(f"there is no device {options.device}; PyTorch sees {count} GPUs here")
    device = None if options.device is None else torch.device("cuda", options.device)
    loaded = load_model(path, arch=options.arch, dilations=options.dilations, task=options.task)
    for warning in loaded.warnings:
        warnings.warn(warning, RuntimeWarning, stacklevel=3)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    return TorchSession(path, loaded, device)


class TorchSession(Session):
    """A checkpoint in PyTorch, in float32. Attention runs in tiles, as in exported files."""

    backend = "torch"

    def __init__(self, path: Path, loaded: Any, device: Any) -> None:
        self.path = path
        self.metadata = loaded.metadata
        self.device = "CPU" if device is None else str(device)
        channels = loaded.config.in_channels
        self.inputs = (TensorSpec("image", "float32", ("batch", channels, "height", "width")),)
        self.outputs = _outputs(loaded.config, loaded.metadata.head)
        self._device = device
        self._lock = threading.Lock()
        self._module: Any | None = loaded.module if device is None else loaded.module.to(device)

    @property
    def attention(self) -> str:
        """The part that computes neighborhood attention, in words."""
        return "tiles in PyTorch"

    def _run(self, inputs: dict[str, Array], outputs: list[str]) -> dict[str, Array]:
        import torch

        with self._lock:
            module = self._module
        if module is None:
            raise UsageError(f"the session of {self.path.name} is closed; load the model again")
        try:
            with torch.inference_mode():
                found = module(torch.tensor(inputs["image"], device=self._device))
        except (RuntimeError, ValueError) as error:
            raise NaDeployError(f"PyTorch could not run {self.path.name}: {str(error).splitlines()[0]}") from error
        arrays = [found] if isinstance(found, torch.Tensor) else list(found)
        named = {spec.name: array for spec, array in zip(self.outputs, arrays, strict=True)}
        return {name: named[name].cpu().numpy() for name in outputs}

    def close(self) -> None:
        """Release the network once calls in progress have finished."""
        with self._lock:
            self._module = None


def _outputs(config: Any, head: str) -> tuple[TensorSpec, ...]:
    """Describe the outputs by the names that exported files give them."""
    if head:
        shapes: dict[str, tuple[int | str, ...]] = {
            "logits": ("batch", "classes", "height", "width"),
            "class_logits": ("batch", "queries", "classes"),
            "mask_logits": ("batch", "queries", "height", "width"),
            "boxes": ("batch", "detections", 4),
            "scores": ("batch", "detections"),
            "classes": ("batch", "detections"),
            "masks": ("batch", "detections", "mask_height", "mask_width"),
            "count": ("batch",),
        }
        whole = ("classes", "count")
        return tuple(
            TensorSpec(name, "int64" if name in whole else "float32", shapes[name]) for name in HEAD_OUTPUTS[head]
        )
    if config.is_backbone:
        shape: tuple[int | str, ...] = ("batch", "channels", "height", "width")
    else:
        shape = ("batch", config.num_classes or "features")
    return tuple(TensorSpec(name, "float32", shape) for name in config.output_names)
