"""The check that an ensemble's steps connect: every tensor is made before it is used, in the type and size wanted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from na_deploy.deployment.check_config import fits
from na_deploy.deployment.protobuf import Config, type_name


def check_ensemble(config: Config, others: Mapping[str, Config]) -> Iterator[str]:
    """Yield one sentence for everything that keeps the steps from connecting.

    Args:
        config: the ensemble's.
        others: the repository's other models, by name.
    """
    made: dict[str, _Tensor] = {
        entry.name: _Tensor(entry, config.max_batch_size, "the ensemble") for entry in config.input
    }
    used: set[str] = set()
    known_later = {tensor for step in config.ensemble_scheduling.step for tensor in step.output_map.values()}
    for number, step in enumerate(config.ensemble_scheduling.step, 1):
        what = f"step {number}"
        model = others.get(step.model_name)
        if not step.model_name:
            yield f"{what} names no model"
        elif step.model_name == config.name:
            yield f"{what} is the ensemble itself"
        elif model is None:
            yield f"{what} runs {step.model_name}, which the repository does not have"
        if step.model_version < 1 and step.model_version != -1:
            yield f"{what} asks for version {step.model_version} of {step.model_name}; write -1 for the latest"
        if not step.input_map:
            yield f"{what} maps no input"
        if not step.output_map:
            yield f"{what} maps no output"
        if model is None or step.model_name == config.name:
            for tensor in step.output_map.values():
                made.setdefault(tensor, _Tensor(None, 0, what))
            used.update(step.input_map.values())
            continue
        if config.max_batch_size > model.max_batch_size > 0:
            yield (
                f"the ensemble takes batches up to {config.max_batch_size}, {step.model_name} in {what} only up to "
                f"{model.max_batch_size}"
            )
        yield from _inputs(what, step, model, made, known_later)
        used.update(step.input_map.values())
        yield from _outputs(what, step, model, made)
    for entry in config.output:
        tensor = made.get(entry.name)
        if tensor is None:
            yield f"no step makes the output {entry.name!r}"
        else:
            used.add(entry.name)
            yield from _agreement(
                f"the output {entry.name!r}", _Tensor(entry, config.max_batch_size, "the ensemble"), tensor
            )
    for entry in config.input:
        if entry.name not in used:
            yield f"no step uses the input {entry.name!r}"


class _Tensor:
    """A tensor of an ensemble: its type and full shape, as far as known, and where they come from."""

    def __init__(self, entry: Any, max_batch: int, source: str) -> None:
        self.source = source
        self.type: int | None = None if entry is None else entry.data_type
        self.shape: list[int] | None = None
        if entry is not None:
            sizes = list(entry.dims)
            self.shape = [-1, *sizes] if max_batch > 0 else sizes


def _inputs(what: str, step: Any, model: Config, made: Mapping[str, _Tensor], known_later: set[str]) -> Iterator[str]:
    entries = {entry.name: entry for entry in model.input}
    for name in sorted(entries.keys() - step.input_map.keys()):
        if not entries[name].optional:
            yield f"{what} does not map the input {name!r} of {model.name}"
    for name, tensor in sorted(step.input_map.items()):
        if name not in entries:
            yield f"{what} maps the input {name!r}, which {model.name} does not have"
        elif tensor not in made:
            when = "only a later step makes it" if tensor in known_later else "nothing makes it"
            yield f"{what} feeds {name!r} of {model.name} from {tensor!r}, but {when}"
        else:
            wanted = _Tensor(entries[name], model.max_batch_size, model.name)
            yield from _agreement(f"input {name!r} of {model.name} in {what}", wanted, made[tensor])


def _outputs(what: str, step: Any, model: Config, made: dict[str, _Tensor]) -> Iterator[str]:
    entries = {entry.name: entry for entry in model.output}
    for name, tensor in sorted(step.output_map.items()):
        if tensor in made:
            yield f"{what} makes {tensor!r} a second time"
        if name not in entries:
            yield f"{what} maps the output {name!r}, which {model.name} does not have"
            made.setdefault(tensor, _Tensor(None, 0, what))
        else:
            made.setdefault(tensor, _Tensor(entries[name], model.max_batch_size, model.name))


def _agreement(what: str, wanted: _Tensor, given: _Tensor) -> Iterator[str]:
    if wanted.type is not None and given.type is not None and wanted.type != given.type:
        yield f"{what} is {type_name(wanted.type)}, {given.source} gives {type_name(given.type)}"
    if wanted.shape is not None and given.shape is not None and not fits(given.shape, wanted.shape):
        yield f"{what} is {wanted.shape} with its batch, {given.source} gives {given.shape}"
