"""The session: one interface over every backend that runs an exported model.

A backend is a function ``(path, options) -> Session`` in a module of its own, which is imported when asked for. Only
the names of backends are known here.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from na_deploy.closeable import Closeable
from na_deploy.errors import UsageError
from na_deploy.model_file.tensors import Array, TensorSpec, check_inputs, random_input
from na_deploy.models.metadata import ModelMetadata
from na_deploy.runtime.backend_names import AUTO, ENGINE_BACKENDS, SESSION_BACKENDS
from na_deploy.runtime.bundle.archive import is_bundle
from na_deploy.runtime.graph_figures import GraphFigures

if TYPE_CHECKING:
    from na_deploy.runtime.bundle.manifest import Manifest
    from na_deploy.runtime.results.predict import Picture, Result

_BY_SUFFIX = {".engine": "tensorrt", ".plan": "tensorrt", ".trt": "tensorrt"} | dict.fromkeys(
    (".pt", ".pth", ".pkl", ".bin", ".safetensors"), "torch"
)


@dataclass(frozen=True)
class SessionOptions:
    """The options of :func:`load`, as backends receive them.

    Attributes:
        threads: threads inside one operator; ``None`` leaves the runtime's own default.
        providers: ONNX Runtime execution providers in order of preference; ``None`` takes the installed ones.
        custom_operators: use the operator library where it is installed.
        library: that library's file, if another than the installed one is to be used.
        device: number of the GPU; ``None`` is the first for engines, and the CPU for PyTorch.
        contexts: calls of an engine that run at the same time; ``None`` leaves the backend's own default.
        cuda_graphs: combinations of shapes whose CUDA graph is kept; 0 for none, ``None`` for the backend's default.
        arch: architecture of a checkpoint that does not record it.
        dilations: dilations of such a checkpoint.
        task: what the checkpoint of a segmenter is asked: "semantic", "instance" or "panoptic".
        precision: "f32" or "bf16", the arithmetic of OpenVINO; ``None`` is float32.
        streams: calls that OpenVINO works on at the same time; ``None`` leaves its own default for low latency.
        cache: folder of OpenVINO's compiled models; ``None`` keeps none.
        compiled: OpenVINO's compiled model of a bundle, for the machine that it was built on.
        manifest: manifest of the verified bundle that the file is from.
    """

    threads: int | None = None
    providers: tuple[str, ...] | None = None
    custom_operators: bool = True
    library: Path | None = None
    device: int | None = None
    contexts: int | None = None
    cuda_graphs: int | None = None
    arch: str | None = None
    dilations: str | Sequence[Sequence[int]] | None = None
    task: str | None = None
    precision: str | None = None
    streams: int | None = None
    cache: Path | None = None
    compiled: Path | None = None
    manifest: Manifest | None = None


class Session(Closeable):
    """A loaded model. Use :func:`load`; close it or use it as a context manager.

    ``run`` may be called from several threads at once.

    Attributes:
        path: the file the model was read from.
        inputs: specs of the arrays that ``run`` takes.
        outputs: specs of the arrays that ``run`` returns.
        metadata: the exporter's record in the file, ``None`` for a model from elsewhere.
        backend: the backend's name.
        device: the processor or GPU it runs on, in words.
        library: the operator library, where attention runs on it; ``None`` where the function bodies do.
        precision: "f32" or "bf16" of OpenVINO; ``None`` where the file's types say it.
        batches: smallest and largest batch that an engine takes; ``None`` for any.
        cuda_graphs: combinations of shapes whose CUDA graph is kept.
        usual_shapes: shapes that a bundle was built for, by input; empty for others.
    """

    library: Path | None = None
    precision: str | None = None
    batches: tuple[int, int] | None = None
    cuda_graphs: int = 0
    usual_shapes: Mapping[str, tuple[int, ...]] = MappingProxyType({})
    path: Path
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    metadata: ModelMetadata | None
    backend: str
    device: str

    @property
    def attention(self) -> str:
        """The part that computes neighborhood attention, in words."""
        return "operator library" if self.library else "function bodies"

    @property
    def graph_figures(self) -> list[GraphFigures]:
        """Counts of CUDA graphs, one for each stream; empty for sessions that keep none."""
        return []

    def run(self, inputs: Mapping[str, Any] | Any, outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Run the model once.

        Args:
            inputs: arrays by input name, or one array when the model has a single input. Types and shapes
                must be those of :attr:`inputs`; nothing is converted silently.
            outputs: names of the outputs to return; all of them by default.

        Returns:
            Arrays by output name.

        Raises:
            UsageError: an input or output does not fit the model, or the session is closed.
            NaDeployError: the runtime failed.
        """
        return self._run(self._check_inputs(inputs), self._output_names(outputs))

    def predict(
        self,
        picture: Picture,
        *,
        top: int = 5,
        thresholds: Mapping[str, float] | None = None,
        task: str | None = None,
        labels: Mapping[int, str] | None = None,
    ) -> Result:
        """Run the model on one picture and return its answer.

        Args:
            picture: a file, a Pillow image, or an array (H, W, 3) of uint8. It is prepared as the model's file says.
            top: classes of a classification.
            thresholds: in place of the model's own: "score", "mask", "overlap", "mask_size".
            task: "semantic", "instance" or "panoptic", for a segmenter with queries that is to answer otherwise.
            labels: class names in place of the model's own.

        Returns:
            A ``Classification``, a ``Segmentation``, or ``Features`` of models without an answer of their own; all in
            ``na_deploy.runtime.results.predict``.

        Raises:
            UsageError: the model does not take pictures, or the picture cannot be read.
            NaDeployError: the picture is damaged, or the runtime failed.
        """
        from na_deploy.runtime.results.predict import ResultOptions, predict

        return predict(self, picture, ResultOptions(top, thresholds, task, labels))

    def run_on_device(
        self,
        inputs: Mapping[str, Any] | Any,
        outputs: Sequence[str] | None = None,
        into: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Run the model once and leave the outputs in GPU memory.

        Args:
            inputs: as for :meth:`run`; arrays on the session's GPU are read where they are.
            outputs: as for :meth:`run`.
            into: arrays on the GPU, by output name, that outputs are written into; the others get new memory.

        Returns:
            Finished arrays by output name that torch, CuPy and others take through ``__cuda_array_interface__`` or
            DLPack without a copy.

        Raises:
            UsageError: as for :meth:`run`, or the session's backend keeps nothing in GPU memory.
            NaDeployError: the runtime failed.
        """
        raise UsageError(f"sessions on {self.backend} leave nothing on a GPU; use run, or build for tensorrt")

    def run_async(
        self, inputs: Mapping[str, Any] | Any, outputs: Sequence[str] | None = None
    ) -> Future[dict[str, Array]]:
        """Run the model in another thread.

        Args:
            inputs: as for :meth:`run`. They are read later: do not write into them before the future is done.
            outputs: as for :meth:`run`.

        Returns:
            A future of what :meth:`run` returns; its exception is a failure of the runtime, or that the session was
            closed meanwhile.

        Raises:
            UsageError: an input or output does not fit the model.
        """
        names = self._output_names(outputs)
        return _executor().submit(self._run, self._check_inputs(inputs), names)

    def warm_up(self, sizes: Mapping[str, Sequence[int]] | None = None, runs: int = 2) -> None:
        """Run the model on random numbers, so that the first real call does not pay for memory and planning.

        Args:
            sizes: shape of each input that has free dimensions.
            runs: number of runs.

        Raises:
            UsageError: an input's free dimensions are not given, or the sizes do not fit the model.
            NaDeployError: the runtime failed.
        """
        given = dict(sizes or {})
        feeds = {spec.name: random_input(spec, given.pop(spec.name, None)) for spec in self.inputs}
        if given:
            raise UsageError(f"{self.path.name} has no input named {', '.join(given)}")
        for _ in range(runs):
            self.run(feeds)

    def _output_names(self, outputs: Sequence[str] | None) -> list[str]:
        known = [spec.name for spec in self.outputs]
        names = known if outputs is None else list(outputs)
        for name in names:
            if name not in known:
                raise UsageError(f"{self.path.name} has no output named {name}; it has {', '.join(known)}")
        return names

    def _check_inputs(self, inputs: Mapping[str, Any] | Any) -> dict[str, Any]:
        return check_inputs(self.inputs, inputs)

    @abstractmethod
    def _run(self, inputs: dict[str, Array], outputs: list[str]) -> dict[str, Array]:
        """Run with checked inputs."""

    @abstractmethod
    def close(self) -> None:
        """Release the model; calls in progress finish, later ones are refused. Closing twice does nothing."""

    def __repr__(self) -> str:
        inputs = ", ".join(str(spec) for spec in self.inputs)
        return f"<{type(self).__name__} {self.path} on {self.device} ({inputs})>"


def _forget_threads() -> None:
    _executor.cache_clear()


os.register_at_fork(after_in_child=_forget_threads)  # a forked process has none of its parent's threads


@cache
def _executor() -> ThreadPoolExecutor:
    """Return the threads that wait for asynchronous calls; runtimes compute in threads of their own."""
    return ThreadPoolExecutor(max_workers=8, thread_name_prefix="na-deploy")


def load(
    path: str | Path,
    backend: str | None = None,
    *,
    threads: int | None = None,
    providers: Sequence[str] | None = None,
    custom_operators: bool = True,
    device: int | None = None,
    contexts: int | None = None,
    cuda_graphs: int | None = None,
    arch: str | None = None,
    dilations: str | Sequence[Sequence[int]] | None = None,
    task: str | None = None,
    precision: str | None = None,
    streams: int | None = None,
    cache: str | Path | None = None,
    tolerance: float | None = None,
) -> Session:
    """Load an exported model.

    Args:
        path: an ONNX file; a bundle of ``na-deploy build``, a folder or a .zip archive, whose members are verified by
            hash before anything in them is loaded; an engine; or a checkpoint, which PyTorch runs as the reference.
        backend: ``"onnxruntime"``, ``"openvino"``, ``"tensorrt"``, ``"tensorrt-rtx"`` or ``"torch"``; or ``"auto"``:
            the fastest within ``tolerance``, as a bundle remembers it of this machine, or measured now, which takes
            seconds. By default a bundle names its own, and the file's ending decides otherwise: .engine, .plan and
            .trt are TensorRT's, .pt, .pth, .bin and .safetensors PyTorch's, others ONNX.
        threads: threads inside one operator; by default the runtime decides.
        providers: ONNX Runtime execution providers in order of preference; by default CUDA where ONNX
            Runtime has it, then the CPU.
        custom_operators: register the operator library when it is installed and has kernels for the first provider:
            always for the CPU, for CUDA where it was compiled with them. Without it, or when false, the function
            bodies embedded in the model run. A library that does not load gives a warning.
        device: number of the GPU that an engine, or ONNX Runtime with CUDA, runs on, 0 by default; ``torch`` runs on
            the CPU without it.
        contexts: calls of an engine that run at the same time, 2 by default; more of them wait.
        cuda_graphs: combinations of shapes whose CUDA graph is kept: by an engine per context, 4 by default; by ONNX
            Runtime's CUDA provider for the first that come twice, none by default. 0 is for none.
        arch: architecture of a checkpoint that does not record it.
        dilations: dilations of such a checkpoint, as ``load_model`` takes them.
        task: "semantic", "instance" or "panoptic": what a segmenter's checkpoint is asked. Exported files have a task
            of their own.
        precision: arithmetic of OpenVINO on the CPU: "f32", the default, or "bf16" on processors that have it.
        streams: calls that OpenVINO works on at the same time.
        cache: a folder where OpenVINO keeps compiled models, so that later loads are faster.
        tolerance: largest accepted relative difference of ``backend="auto"``; by default that of the file's type, so
            that a float32 file runs in float32.

    Raises:
        UsageError: the file does not exist, or an option is not one of the possible values.
        NaDeployError: the file is damaged, is not an ONNX model, or the runtime refuses it.
        MissingDependencyError: the backend's library is not installed.
    """
    location = Path(path)
    if tolerance is not None and backend != AUTO:
        raise UsageError(f"tolerance is for backend {AUTO!r}, which measures; remove it")
    if backend == AUTO:
        if precision is not None:
            raise UsageError(f"backend {AUTO!r} chooses the precision; give a tolerance for it instead")
        from na_deploy.runtime.bench.choice import chosen_backend

        backend, precision = chosen_backend(location, tolerance, threads)
    name = backend or default_backend(location)
    if name not in SESSION_BACKENDS:
        raise UsageError(f"there is no backend {name!r}; choose one of {', '.join((*SESSION_BACKENDS, AUTO))}")
    if contexts is not None and contexts < 1:
        raise UsageError(f"contexts must be at least 1, got {contexts}")
    if cuda_graphs is not None and cuda_graphs < 0:
        raise UsageError(f"cuda_graphs must be at least 0, got {cuda_graphs}")
    if threads is not None and threads < 1:
        raise UsageError(f"threads must be at least 1, got {threads}")
    if streams is not None and streams < 1:
        raise UsageError(f"streams must be at least 1, got {streams}")
    if isinstance(providers, str):
        raise UsageError(f"providers is a list of names, got the text {providers!r}; write [{providers!r}]")
    options = SessionOptions(
        threads,
        None if providers is None else tuple(providers),
        custom_operators,
        device=device,
        contexts=contexts,
        cuda_graphs=cuda_graphs,
        arch=arch,
        dilations=dilations,
        task=task,
        precision=precision,
        streams=streams,
        cache=None if cache is None else Path(cache),
    )
    # PyTorch's files are zip archives too.
    if _BY_SUFFIX.get(location.suffix) != "torch" and is_bundle(location):
        from na_deploy.runtime.bundle.session import open_bundle_session

        return open_bundle_session(location, backend, options)
    check_backend_options(name, options)
    if location.is_dir() and name != "torch":
        raise UsageError(f"{location} is a folder without manifest.json; give an .onnx file or a bundle")
    if not location.exists():
        raise UsageError(f"{location} does not exist; give the path of an exported .onnx file or of a bundle")
    return open_session(location, name, options)


def default_backend(path: Path) -> str:
    """Return the backend of a file by its name's ending; a bundle's is in its manifest."""
    return _BY_SUFFIX.get(path.suffix, "onnxruntime")


def check_backend_options(backend: str, options: SessionOptions) -> None:
    """Refuse options of another backend.

    Raises:
        UsageError: names the option.
    """
    for option in ("precision", "streams", "cache"):
        if getattr(options, option) is not None and backend != "openvino":
            raise UsageError(f"{option} is for the openvino backend, not for {backend}; remove it")
    if options.cuda_graphs and backend not in ("onnxruntime", *ENGINE_BACKENDS):
        raise UsageError(f"cuda_graphs is for onnxruntime and engines on a GPU, not for {backend}; remove it")
    for option in ("arch", "dilations", "task"):
        if getattr(options, option) is not None and backend != "torch":
            raise UsageError(f"{option} is for checkpoints; an exported file has its own, so remove it or export again")


def open_session(path: Path, backend: str, options: SessionOptions) -> Session:
    """Open an ONNX file with a backend. Use :func:`load`, which checks what it is given."""
    module, _, function = SESSION_BACKENDS[backend].partition(":")
    session: Session = getattr(import_module(module), function)(path, options)
    return session
