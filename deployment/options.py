"""Options of a model repository, checked as far as possible before a model is seen."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from na_deploy.errors import UsageError
from na_deploy.runtime.backend_names import PRECISIONS

TRITON_BACKENDS = ("onnxruntime", "tensorrt", "python")
"""Triton's backends that a repository can be written for."""

PACKAGE_BACKENDS = (*TRITON_BACKENDS, "openvino")
"""What users choose from: "openvino" is our own session on OpenVINO, in the python backend."""

DEVICES = ("cpu", "gpu")
DEFAULT_MAX_BATCH = 8
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class PackageOptions:
    """Settings of Triton for a model.

    Attributes:
        backend: one of :data:`PACKAGE_BACKENDS`; ``None`` takes what a bundle was built for, else "onnxruntime".
        precision: arithmetic of OpenVINO, "f32" or "bf16"; ``None`` takes the bundle's, else "f32".
        name: the model's name; ``None`` takes the file's.
        version: number of the version to write; ``None`` takes the next free one.
        max_batch: largest batch of a model whose batch is free; ``None`` takes what the engine allows, else 8.
        preferred: batch sizes to prefer; none leaves the choice to Triton.
        delay_ms: milliseconds that a request may wait for others to join its batch.
        queue: requests that may wait, beyond which more are refused; 0 sets no limit.
        timeout_ms: milliseconds after which a waiting request is refused; 0 sets no limit.
        instances: copies of the model, on each GPU where it runs on GPUs.
        device: one of :data:`DEVICES`; ``None`` takes "gpu" for tensorrt, else "cpu".
        gpus: numbers of the GPUs; none leaves the choice to Triton.
        threads: threads inside one operator, for the onnxruntime and python backends.
        warm_up: run the model before it is ready.
        cuda_graphs: capture CUDA graphs; for the tensorrt backend, and the python backend on a GPU.
        cache: let Triton answer repeated requests from its response cache.
        labels: a file of class names; ``None`` takes those in the model.
        versions: the versions that are served: ``latest:N``, ``all`` or ``1,3``; ``None`` keeps what is set.
        preprocess: write a preprocessing model and an ensemble from image bytes to the model's outputs too.
        operators: the operator library for the onnxruntime backend: "auto", "none" or a file.
        mount: the repository's place as Triton sees it, which needs the operator library's full path.
        shapes: input sizes for warm-up and CUDA graphs where the model leaves some free, as users write them:
            ``1x3x512x512`` or ``name=1x3x512x512``; by default the model's own.
    """

    backend: str | None = None
    precision: str | None = None
    name: str | None = None
    version: int | None = None
    max_batch: int | None = None
    preferred: tuple[int, ...] = ()
    delay_ms: float = 0.0
    queue: int = 0
    timeout_ms: float = 0.0
    instances: int = 1
    device: str | None = None
    gpus: tuple[int, ...] = ()
    threads: int | None = None
    warm_up: bool = True
    cuda_graphs: bool = False
    cache: bool = False
    labels: Path | None = None
    versions: str | None = None
    preprocess: bool = False
    operators: str = "auto"
    mount: str = "/models"
    shapes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.backend is not None and self.backend not in PACKAGE_BACKENDS:
            raise UsageError(f"backends for these models are {', '.join(PACKAGE_BACKENDS)}, got {self.backend!r}")
        if self.precision is not None and (self.backend != "openvino" or self.precision not in PRECISIONS):
            raise UsageError(f"precision is {' or '.join(PRECISIONS)} of backend openvino; got {self.precision!r}")
        if self.device is not None and self.device not in DEVICES:
            raise UsageError(f"a model runs on cpu or gpu, got {self.device!r}")
        if self.backend == "openvino" and self.device == "gpu":
            raise UsageError("the openvino backend runs on the processor; choose another backend, or --device cpu")
        if self.backend == "tensorrt" and self.device == "cpu":
            raise UsageError("the tensorrt backend runs on GPUs only; choose the onnxruntime or python backend")
        if self.gpus and (self.device == "cpu" or self.backend in ("python", "openvino")):
            raise UsageError(
                "GPUs are chosen for models that run on them: the tensorrt and onnxruntime backends on gpu"
            )
        if self.name is not None:
            check_name(self.name)
        for what, value, least in (
            ("the version", self.version, 1),
            ("the largest batch", self.max_batch, 1),
            ("the number of instances", self.instances, 1),
            ("the number of threads", self.threads, 1),
            ("the delay", self.delay_ms, 0),
            ("the queue", self.queue, 0),
            ("the timeout", self.timeout_ms, 0),
        ):
            if value is not None and value < least:
                raise UsageError(f"{what} must be at least {least}, got {value}")
        if any(size < 1 for size in self.preferred) or len(set(self.preferred)) != len(self.preferred):
            raise UsageError(f"preferred batch sizes are different positive numbers, got {list(self.preferred)}")
        if self.max_batch is not None and any(size > self.max_batch for size in self.preferred):
            raise UsageError(f"a preferred batch of {max(self.preferred)} is above the largest batch {self.max_batch}")
        if any(gpu < 0 for gpu in self.gpus):
            raise UsageError(f"GPUs are numbered from 0, got {list(self.gpus)}")
        if not PurePosixPath(self.mount).is_absolute():
            raise UsageError(
                f"the repository's place for Triton must be a full path such as /models, got {self.mount!r}"
            )
        if self.versions is not None:
            parse_versions(self.versions)


def check_name(name: str) -> None:
    """Refuse what cannot be a model's name: it is a folder's name and part of a URL.

    Raises:
        UsageError: it has other characters than letters, digits, ``_``, ``-`` and ``.``.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot be a model's name; use letters, digits, '_', '-' and '.', a letter or digit first"
        )


def parse_versions(text: str) -> tuple[str, tuple[int, ...]]:
    """Read ``latest:2``, ``all`` or ``1,3``.

    Returns:
        "latest" with how many, "all" with nothing, or "specific" with the numbers.

    Raises:
        UsageError: it is none of these.
    """
    if text == "all":
        return "all", ()
    kind, _, count = text.rpartition(":")
    numbers = count.split(",") if not kind else [count]
    if kind in ("", "latest") and all(part.isascii() and part.isdecimal() and int(part) > 0 for part in numbers):
        return ("latest" if kind else "specific"), tuple(int(part) for part in numbers)
    raise UsageError(f"cannot read the versions {text!r}; write latest:2, all, or numbers such as 1,3")
