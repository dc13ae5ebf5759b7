"""Faults of a ``ModelConfig`` by itself. It all parses; Triton complains late or never."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from na_deploy.deployment.protobuf import Config, messages, type_name

KNOWN_BACKENDS = ("tensorrt", "onnxruntime", "python", "pytorch", "openvino", "dali", "fil", "identity", "vllm")
_PLATFORMS = {"tensorrt": "tensorrt_plan", "onnxruntime": "onnxruntime_onnx", "pytorch": "pytorch_libtorch"}
_LONGEST_DELAY_US = 1_000_000


def check_config(config: Config, folder_name: str) -> Iterator[str]:
    """Yield one sentence for everything that is wrong, or cannot have been meant.

    Args:
        config: a parsed ``ModelConfig``.
        folder_name: name of the folder it lies in, which must be the model's.
    """
    if config.name and config.name != folder_name:
        yield f"the configuration names it {config.name}, its folder {folder_name}; they must agree"
    yield from _backend(config)
    if config.max_batch_size < 0:
        yield f"max_batch_size is {config.max_batch_size}; write 0 for a model of fixed batch, else the largest batch"
    for kind, entries in (("input", config.input), ("output", config.output)):
        yield from _tensors(kind, entries, config.max_batch_size)
    yield from _batching(config)
    yield from _versions(config)
    yield from _instances(config)
    yield from _warm_up(config)
    yield from _cuda(config)
    if config.response_cache.enable and config.model_transaction_policy.decoupled:
        yield "response_cache does not work with decoupled answers; switch one of them off"


def is_ensemble(config: Config) -> bool:
    """Tell whether the configuration joins other models."""
    return bool(config.platform == "ensemble" or config.HasField("ensemble_scheduling"))


def _backend(config: Config) -> Iterator[str]:
    if is_ensemble(config):
        if config.backend:
            yield f"an ensemble has no backend, got {config.backend}; remove it"
        if config.platform != "ensemble":
            yield f'ensemble_scheduling needs platform: "ensemble", got {config.platform!r}'
        if not config.ensemble_scheduling.step:
            yield "an ensemble needs ensemble_scheduling with at least one step"
        if config.instance_group:
            yield "an ensemble has no instances of its own; put instance_group into its models"
        return
    if not config.backend:
        platform = f" (platform {config.platform!r} names none)" if config.platform else ""
        if config.platform not in _PLATFORMS.values():
            yield f"there is no backend{platform}; write one of tensorrt, onnxruntime, python"
    elif config.backend not in KNOWN_BACKENDS:
        yield f"the backend {config.backend!r} is none that Triton ships; it has {', '.join(KNOWN_BACKENDS)}"
    expected = _PLATFORMS.get(config.backend, "")
    if config.backend in KNOWN_BACKENDS and config.platform and config.platform != expected:
        wanted = repr(expected) if expected else "none"
        yield f"platform {config.platform!r} does not belong to backend {config.backend}; expected {wanted}"


def _tensors(kind: str, entries: Any, max_batch: int) -> Iterator[str]:
    if not entries:
        yield f"there is no {kind}"
    names = [entry.name for entry in entries]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"{kind} {name!r} is there {names.count(name)} times"
    for entry in entries:
        what = f"{kind} {entry.name!r}"
        if not entry.name:
            yield f"an {kind} has no name"
        if entry.data_type == 0:
            yield f"{what} has no data_type"
        if not entry.dims:
            yield f"{what} has no dims; Triton takes no tensors without dimensions"
        for size in entry.dims:
            if size < 1 and size != -1:
                yield f"{what} has a dimension of {size}; a dimension is 1 or more, or -1 where it is free"
        if entry.HasField("reshape"):
            yield from _reshape(what, list(entry.dims), list(entry.reshape.shape), max_batch)


def _reshape(what: str, dims: Sequence[int], shape: Sequence[int], max_batch: int) -> Iterator[str]:
    if not shape and max_batch == 0:
        yield f"{what} is reshaped to nothing, which only a batched model can be"
    if any(size < 1 and size != -1 for size in shape):
        yield f"{what} is reshaped to {list(shape)}; a dimension is 1 or more, or -1 where it is free"
    elif -1 not in [*dims, *shape] and _product(dims) != _product(shape):
        yield f"{what} is reshaped from {list(dims)} to {list(shape)}, which hold different numbers of elements"
    elif list(dims).count(-1) != list(shape).count(-1):
        yield f"{what} is reshaped from {list(dims)} to {list(shape)}, which have different numbers of free dimensions"


def _batching(config: Config) -> Iterator[str]:
    if config.HasField("dynamic_batching"):
        batching = config.dynamic_batching
        if config.max_batch_size <= 0:
            yield (
                "dynamic_batching needs a max_batch_size of 1 or more; "
                f"with {config.max_batch_size} Triton batches nothing, and says nothing"
            )
        for size in batching.preferred_batch_size:
            if size < 1:
                yield f"a preferred batch of {size} is impossible; sizes begin at 1"
            elif size > config.max_batch_size > 0:
                yield f"a preferred batch of {size} is above max_batch_size {config.max_batch_size}"
        delay = batching.max_queue_delay_microseconds
        if delay > _LONGEST_DELAY_US:
            yield f"max_queue_delay_microseconds is {delay}, {delay / 1e6:g} seconds; the unit is microseconds"
        policy = batching.default_queue_policy
        timeout = policy.default_timeout_microseconds
        if 0 < timeout <= delay:
            yield f"requests time out after {timeout} µs, no later than the batching delay of {delay} µs ends"
        reject = messages().ModelQueuePolicy.REJECT
        if timeout and batching.preserve_ordering and policy.timeout_action != reject:
            yield "preserve_ordering and delayed timeouts exclude each other; reject what timed out"
        levels = batching.priority_levels
        if levels and not 1 <= batching.default_priority_level <= levels:
            yield f"default_priority_level is {batching.default_priority_level}, expected 1 to {levels}"
    if config.HasField("sequence_batching") and config.response_cache.enable:
        yield "response_cache does not work with sequence_batching; switch one of them off"


def _versions(config: Config) -> Iterator[str]:
    policy = config.version_policy
    if policy.HasField("latest") and policy.latest.num_versions < 1:
        yield "version_policy serves the latest 0 versions; write 1 or more"
    if policy.HasField("specific"):
        if not policy.specific.versions:
            yield "version_policy names no version"
        for version in policy.specific.versions:
            if version < 1:
                yield f"version_policy names version {version}; versions begin at 1"


def _instances(config: Config) -> Iterator[str]:
    kinds = messages().ModelInstanceGroup
    for group in config.instance_group:
        if group.count < 0:
            yield f"an instance_group has a count of {group.count}"
        if group.kind == kinds.KIND_CPU and group.gpus:
            yield f"an instance_group on the CPU names GPUs {list(group.gpus)}; use KIND_GPU or remove them"
        if group.kind == kinds.KIND_CPU and config.backend == "tensorrt":
            yield "the tensorrt backend runs on GPUs only; use KIND_GPU"
        if any(gpu < 0 for gpu in group.gpus):
            yield f"an instance_group names GPUs {list(group.gpus)}; they are numbered from 0"
        if group.profile and config.backend != "tensorrt":
            yield f"optimization profiles are for the tensorrt backend, this is {config.backend or config.platform}"


def _warm_up(config: Config) -> Iterator[str]:
    inputs = {entry.name: entry for entry in config.input}
    for sample in config.model_warmup:
        what = f"warm-up {sample.name!r}"
        largest = max(config.max_batch_size, 1)
        if sample.batch_size < 1:
            yield f"{what} has a batch_size of {sample.batch_size}, so Triton skips it; write 1 or more"
        elif sample.batch_size > largest:
            yield f"{what} has a batch_size of {sample.batch_size}, above {largest}"
        for name in sorted(inputs.keys() - sample.inputs.keys()):
            if not inputs[name].optional:
                yield f"{what} lacks the input {name!r}"
        for name, value in sorted(sample.inputs.items()):
            if name not in inputs:
                yield f"{what} gives the input {name!r}, which the model does not have"
                continue
            entry = inputs[name]
            if value.data_type != entry.data_type:
                given, wanted = type_name(value.data_type), type_name(entry.data_type)
                yield f"{what} gives {name!r} as {given}, the input is {wanted}"
            if not fits(list(value.dims), list(entry.dims)) or -1 in value.dims:
                yield f"{what} gives {name!r} as {list(value.dims)}, the input is {list(entry.dims)}"
            if value.WhichOneof("input_data_type") is None:
                yield f"{what} does not say what {name!r} holds; write zero_data, random_data or input_data_file"


def _cuda(config: Config) -> Iterator[str]:
    cuda = config.optimization.cuda
    if cuda.graphs and config.backend != "tensorrt":
        yield f"CUDA graphs are for the tensorrt backend, this is {config.backend or config.platform}"
    if cuda.graph_spec and not cuda.graphs:
        yield "CUDA graphs have sizes but are switched off; write graphs: true"
    inputs: Mapping[str, Any] = {entry.name: entry for entry in config.input}
    for graph in cuda.graph_spec:
        if graph.batch_size > config.max_batch_size:
            yield f"a CUDA graph is for batch {graph.batch_size}, above max_batch_size {config.max_batch_size}"
        for name, shape in sorted(graph.input.items()):
            if name not in inputs:
                yield f"a CUDA graph gives the input {name!r}, which the model does not have"
            elif not fits(list(shape.dim), list(inputs[name].dims)):
                yield f"a CUDA graph gives {name!r} as {list(shape.dim)}, the input is {list(inputs[name].dims)}"


def fits(given: Sequence[int], declared: Sequence[int]) -> bool:
    """Tell whether sizes agree, -1 on either side standing for any."""
    return len(given) == len(declared) and all(a == b or -1 in (a, b) for a, b in zip(given, declared, strict=True))


def _product(sizes: Sequence[int]) -> int:
    result = 1
    for size in sizes:
        result *= size
    return result
