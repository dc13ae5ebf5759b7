"""One model's ``ModelConfig``: what it takes and gives, and how Triton batches, places and warms it.

Builds messages only: writing them is :mod:`na_deploy.deployment.repository`'s,
checking them :mod:`na_deploy.deployment.checks`'s.
"""

from __future__ import annotations

from collections.abc import Sequence

from na_deploy import __version__
from na_deploy.deployment.options import DEFAULT_MAX_BATCH, PackageOptions, parse_versions
from na_deploy.deployment.protobuf import Config, data_type, messages
from na_deploy.deployment.source import ModelSource
from na_deploy.errors import UsageError
from na_deploy.model_file.example_inputs import example_shapes, parse_inputs
from na_deploy.model_file.tensors import TensorSpec

PLATFORMS = {"tensorrt": "tensorrt_plan", "onnxruntime": "onnxruntime_onnx", "python": ""}
MODEL_FILES = {"tensorrt": "model.plan", "onnxruntime": "model.onnx", "python": "model.py"}
"""File that each backend opens in a version's folder."""

LABELS = "labels.txt"
PLUGIN_LIBRARY = "libna_deploy_trt.so"
"""Our TensorRT plugins, beside the models: Triton loads them once, by an argument of the server."""

INTERFACE = "interface.json"
"""Beside an engine: what it takes and gives, which cannot be read from it without TensorRT."""

SETTING = "na_deploy."
"""Prefix of our own entries in a configuration's parameters."""


def model_config(source: ModelSource, name: str, options: PackageOptions, labels: bool, library: str | None) -> Config:
    """Return the configuration of one model.

    Args:
        source: the model.
        name: its name in the repository.
        options: settings of Triton for it; ``backend`` and ``device`` must be set.
        labels: true where ``labels.txt`` lies beside the configuration.
        library: full path, for Triton, of the operator library for the onnxruntime backend.

    Raises:
        UsageError: the options do not fit the model.
        NaDeployError: the model has an element type that Triton lacks.
    """
    backend = str(options.backend)
    config = messages().ModelConfig(name=name, backend=backend, platform=PLATFORMS[backend])
    config.default_model_filename = MODEL_FILES[backend]
    config.max_batch_size = max_batch(source, options)
    for target, specs in ((config.input, source.inputs), (config.output, source.outputs)):
        for spec in specs:
            entry = target.add(name=spec.name, data_type=data_type(declared_type(spec, backend)))
            if config.max_batch_size > 0 and len(spec.shape) == 1:  # one number an item, which Triton shows as (1)
                entry.dims.append(1)
                entry.reshape.SetInParent()
            else:
                entry.dims.extend(dims(spec, config.max_batch_size > 0))
    if labels:
        config.output[0].label_filename = LABELS
    set_versions(config, options.versions)
    set_batching(config, source, options)
    _set_instances(config, options)
    _set_backend(config, source, options, library)
    if options.warm_up:
        _add_warm_up(config, source, options)
    if options.cache:
        config.response_cache.enable = True
    if source.metadata is not None:
        config.parameters[SETTING + "architecture"].string_value = source.metadata.architecture
        if source.metadata.source_sha256:
            config.parameters[SETTING + "source_sha256"].string_value = source.metadata.source_sha256
    config.parameters[SETTING + "version"].string_value = __version__
    return config


def max_batch(source: ModelSource, options: PackageOptions) -> int:
    """Return ``max_batch_size``: 0 for a model of fixed batch, whose first axis then stays in ``dims``.

    Raises:
        UsageError: batching is asked for where the model or its engine does not allow it.
    """
    if not source.batch_is_free:
        if (options.max_batch or 1) > 1 or options.preferred:
            raise UsageError(
                f"{source.path} has a fixed batch, so Triton cannot batch requests for it; "
                "export it with --dynamic batch, or leave the batch options out"
            )
        return 0
    limit = source.largest_batch if options.backend == "tensorrt" else None
    wanted = options.max_batch or limit or DEFAULT_MAX_BATCH
    wanted = max([wanted, *options.preferred]) if options.max_batch is None and limit is None else wanted
    largest = max([wanted, *options.preferred])
    if limit is not None and largest > limit:
        raise UsageError(
            f"the engine in {source.path} takes batches up to {limit}, {largest} was asked for; build it anew"
        )
    return wanted


def dims(spec: TensorSpec, batched: bool) -> list[int]:
    """Return a tensor's ``dims``: -1 where free, without the batch axis where Triton batches.

    Raises:
        UsageError: nothing is left, which Triton does not take.
    """
    shape = spec.shape[1:] if batched else spec.shape
    if not shape:
        raise UsageError(f"Triton takes no tensors without dimensions, and {spec} has none beside the batch")
    return [size if isinstance(size, int) else -1 for size in shape]


def declared_type(spec: TensorSpec, backend: str) -> str:
    """Return the element type clients see: the python backend cannot hand bfloat16 to NumPy, so it speaks float32."""
    return "float32" if backend == "python" and spec.dtype == "bfloat16" else spec.dtype


def set_versions(config: Config, text: str | None) -> None:
    """Set which versions are served; by default the latest."""
    kind, numbers = parse_versions(text or "latest:1")
    if kind == "all":
        config.version_policy.all.SetInParent()
    elif kind == "latest":
        config.version_policy.latest.num_versions = numbers[0]
    else:
        config.version_policy.specific.versions.extend(numbers)


def set_batching(config: Config, source: ModelSource, options: PackageOptions) -> None:
    """Set dynamic batching and the queue's limits. Both need a free batch.

    Raises:
        UsageError: a delay or a queue is asked for where Triton cannot batch.
    """
    if config.max_batch_size == 0:
        if options.delay_ms or options.queue or options.timeout_ms:
            raise UsageError(
                f"{source.path} has a fixed batch: Triton's delay, queue limit and timeout belong to batching; "
                "export it with --dynamic batch, or leave them out"
            )
        return
    batching = config.dynamic_batching
    batching.SetInParent()
    batching.preferred_batch_size.extend(sorted(options.preferred))
    batching.max_queue_delay_microseconds = round(options.delay_ms * 1000)
    if options.queue or options.timeout_ms:
        policy = batching.default_queue_policy
        policy.max_queue_size = options.queue
        policy.default_timeout_microseconds = round(options.timeout_ms * 1000)
        policy.timeout_action = messages().ModelQueuePolicy.REJECT


def _set_instances(config: Config, options: PackageOptions) -> None:
    kinds = messages().ModelInstanceGroup
    # In the python backend our session takes the GPU itself.
    on_gpu = kinds.KIND_MODEL if options.backend == "python" else kinds.KIND_GPU
    kind = on_gpu if options.device == "gpu" else kinds.KIND_CPU
    config.instance_group.add(count=options.instances, kind=kind, gpus=list(options.gpus))


def _set_backend(config: Config, source: ModelSource, options: PackageOptions, library: str | None) -> None:
    if options.backend == "onnxruntime":
        if options.threads is not None:
            config.parameters["intra_op_thread_count"].string_value = str(options.threads)
        if library is not None:
            config.model_operations.op_library_filename.append(library)
    if options.backend == "python" and options.threads is not None:
        config.parameters[SETTING + "threads"].string_value = str(options.threads)
    if options.backend == "tensorrt":
        # Copies back on a stream of their own, so that the next batch computes meanwhile.
        config.optimization.cuda.output_copy_stream = True
        if options.threads is not None:
            raise UsageError("TensorRT computes on the GPU; --threads is for the onnxruntime and python backends")
    if options.cuda_graphs and options.backend == "python" and options.device == "gpu":
        # Our session keeps one for each size that Triton batches.
        config.parameters[SETTING + "cuda_graphs"].string_value = str(max(1, config.max_batch_size))
    elif options.cuda_graphs:
        if options.backend == "onnxruntime":
            raise UsageError(
                "Triton's onnxruntime backend gives each request memory of its own, which a CUDA graph would not read; "
                "use --backend python --device gpu, or an engine for the tensorrt backend"
            )
        if options.backend != "tensorrt":
            raise UsageError("CUDA graphs are for models on a GPU; give --device gpu, or leave --cuda-graphs out")
        config.optimization.cuda.graphs = True
        for batch in batches(config):
            graph = config.optimization.cuda.graph_spec.add(batch_size=batch)
            for name, sizes in example_dims(source, options, batch > 0).items():
                graph.input[name].dim.extend(sizes)


def batches(config: Config) -> list[int]:
    """Return the batch sizes worth preparing: one, the preferred ones and the largest; 0 where batches are fixed."""
    if config.max_batch_size == 0:
        return [0]
    return sorted({1, *config.dynamic_batching.preferred_batch_size, config.max_batch_size})


def example_dims(source: ModelSource, options: PackageOptions, batched: bool) -> dict[str, Sequence[int]]:
    """Return usual sizes of every input, without the batch where Triton batches.

    Raises:
        UsageError: some are free and nothing says what is usual, or those given do not fit.
    """
    given = parse_inputs(options.shapes, [spec.name for spec in source.inputs])
    usual = {name: profile.optimum for name, profile in source.profiles.items()}
    shapes = example_shapes(source.inputs, source.metadata, given, usual=usual)
    return {name: shape[1:] if batched else shape for name, shape in shapes.items()}


def _add_warm_up(config: Config, source: ModelSource, options: PackageOptions) -> None:
    try:
        sizes = example_dims(source, options, config.max_batch_size > 0)
    except UsageError as error:
        if options.shapes:
            raise
        raise UsageError(f"{error}, or leave warm-up out with --no-warm-up") from None
    for batch in batches(config):
        # A model of fixed batch is run once as it is: Triton skips warm-up of batch 0.
        sample = config.model_warmup.add(name=f"batch_{max(batch, 1)}", batch_size=max(batch, 1), count=1)
        for spec, entry in zip(source.inputs, config.input, strict=True):
            value = sample.inputs[spec.name]
            value.data_type = entry.data_type
            value.dims.extend(sizes[spec.name])
            value.zero_data = True
