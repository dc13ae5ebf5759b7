"""The one rule for the sizes that a model is tried with: in ``bench``, ``inspect``, ``verify``, servers and builds."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from na_deploy.errors import UsageError
from na_deploy.model_file.graph import bind_sizes
from na_deploy.model_file.tensors import Array, TensorSpec, format_shape, random_input
from na_deploy.models.metadata import ModelMetadata

Sizes = Mapping[str, Sequence[int]]


def example_shapes(
    inputs: Sequence[TensorSpec],
    metadata: ModelMetadata | None = None,
    given: Sizes | None = None,
    *,
    batch: int | None = None,
    usual: Sizes | None = None,
) -> dict[str, tuple[int, ...]]:
    """Return a shape for every input.

    Sizes that the user gave come first, then those the model fixes, then ``usual`` ones, then those that the
    exporter recorded. A free first axis is the batch, 1 unless said otherwise.

    Args:
        inputs: the model's.
        metadata: the exporter's record.
        given: shapes by input name, from the user.
        batch: items of a free first axis.
        usual: shapes by input name that a bundle was built for.

    Raises:
        UsageError: a size does not fit the model, or a free one is known from nowhere.
    """
    names = [spec.name for spec in inputs]
    for name in given or {}:
        if name not in names:
            raise UsageError(f"the model has no input named {name}; it has {', '.join(names)}")
    chosen: dict[str, int] = {}  # sizes of free axes by name: several inputs may share one
    shapes = {}
    for spec in inputs:
        shape = (given or {}).get(spec.name)
        shapes[spec.name] = tuple(shape) if shape is not None else _filled(spec, metadata, batch, usual, chosen)
        if len(shapes[spec.name]) == len(spec.shape):
            chosen |= {d: s for d, s in zip(spec.shape, shapes[spec.name], strict=True) if isinstance(d, str)}
    bind_sizes(tuple(inputs), shapes)
    if batch is not None:
        _check_batch(inputs, shapes, batch)
    return shapes


def example_inputs(inputs: Sequence[TensorSpec], shapes: Sizes, seed: int = 0) -> dict[str, Array]:
    """Return random numbers of the given shapes for every input."""
    return {spec.name: random_input(spec, shapes[spec.name], seed + index) for index, spec in enumerate(inputs)}


def shapes_text(shapes: Sizes) -> str:
    """Return shapes as people write them; of several inputs with their names."""
    if len(shapes) == 1:
        return "×".join(map(str, next(iter(shapes.values()))))
    return ", ".join(f"{name} {'×'.join(map(str, shape))}" for name, shape in shapes.items())


def _filled(
    spec: TensorSpec, metadata: ModelMetadata | None, batch: int | None, usual: Sizes | None, chosen: Mapping[str, int]
) -> tuple[int, ...]:
    recorded_inputs = {} if metadata is None else metadata.inputs
    known: list[int | None] = list((usual or recorded_inputs).get(spec.name, [None] * len(spec.shape)))
    recorded = metadata.input_size if metadata is not None else ()
    if len(recorded) == len(spec.shape) == 4 and (spec.shape[1] == recorded[1] or isinstance(spec.shape[1], str)):
        known = [size if size is not None else recorded[axis] for axis, size in enumerate(known)]
    shape = []
    for axis, size in enumerate(spec.shape):
        if isinstance(size, int):
            shape.append(size)
            continue
        found = batch if axis == 0 and batch is not None else chosen.get(size, known[axis])
        if found is None and axis == 0:
            found = 1
        if found is None:
            example = "x".join("…" if isinstance(d, str) else str(d) for d in spec.shape)
            raise UsageError(
                f"input {spec.name} ({format_shape(spec.shape)}) leaves {size} free and the file records no size; "
                f"give --input {spec.name}={example}"
            )
        shape.append(found)
    return tuple(shape)


def _check_batch(inputs: Sequence[TensorSpec], shapes: Mapping[str, tuple[int, ...]], batch: int) -> None:
    for spec in inputs:
        if spec.shape and shapes[spec.name][0] != batch:
            fixed = shapes[spec.name][0]
            raise UsageError(f"its batch is fixed to {fixed}, not {batch}; export with --dynamic batch")


def parse_inputs(texts: Sequence[str], names: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Parse repeated ``--input`` values: ``name=1x3x224x224``, or the sizes alone where a model has one input.

    Args:
        texts: the values.
        names: those of the model's inputs.

    Raises:
        UsageError: not sizes joined by ``x``, or a name is missing.
    """
    shapes = {}
    for text in texts:
        name, _, sizes = text.rpartition("=")
        if not name and len(names) != 1:
            raise UsageError(f"--input {text} does not say which of {', '.join(names)} it is for; write name={text}")
        shapes[name or names[0]] = parse_shape(sizes)
    return shapes


def parse_shape(text: str) -> tuple[int, ...]:
    """Parse ``1x3x224x224``.

    Raises:
        UsageError: not positive numbers joined by ``x``.
    """
    if not re.fullmatch(r"[1-9]\d*([x×][1-9]\d*)*", text.lower()):
        raise UsageError(f"cannot read the size {text!r}; write positive numbers joined by x, such as 1x3x224x224")
    return tuple(int(part) for part in re.split("[x×]", text.lower()))
