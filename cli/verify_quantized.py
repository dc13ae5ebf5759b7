"""``na-deploy verify`` for quantized files: on samples of the user's, against the checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from na_deploy.cli.output import console, print_json
from na_deploy.cli.progress import step_progress
from na_deploy.errors import UsageError, VerificationError
from na_deploy.optional_dependencies import export_libraries

LIMIT = 128


def quantized_kind(model: Path) -> str:
    """Return "int8" or "fp8" for a quantized ONNX file, "" for any other file."""
    from na_deploy.runtime.bundle.description import describe

    if model.suffix != ".onnx" or not model.is_file():
        return ""
    metadata = describe(model).metadata
    return metadata.quantized if metadata is not None else ""


def verify_quantized(
    checkpoint: Path,
    model: Path,
    kind: str,
    images: Path | None,
    data: Path | None,
    tolerance: float | None,
    *,
    arch: str | None,
    dilations: str | None,
    as_json: bool,
) -> None:
    """Compare a quantized file with its checkpoint in PyTorch float32, and print the comparison.

    Raises:
        UsageError: there are no samples: random numbers leave the ranges that the file was calibrated for.
        VerificationError: an output differs by more than the tolerance.
    """
    from na_deploy.model_file.tolerances import TOLERANCE
    from na_deploy.runtime.quantization.samples import read_samples
    from na_deploy.runtime.quantization.trial import Trial, finds_objects
    from na_deploy.runtime.session import load

    if (images is None) == (data is None):
        raise UsageError(
            f"{model.name} is quantized: it is right on what it was calibrated for, not on random numbers; give "
            "--images, a folder of pictures, or --data, a .npz file"
        )
    with export_libraries("comparing with a checkpoint"):
        from na_deploy.models.recorded import recorded_arguments
    limit = TOLERANCE[kind] if tolerance is None else tolerance
    with step_progress("running both") as (_, counted), load(model) as own:
        samples = read_samples(own, LIMIT, images=images, data=data)
        if finds_objects(own):
            raise UsageError(
                f"{model.name} finds objects, whose order changes with the last bit; compare it with its float file by "
                "na-deploy eval --coco"
            )
        asked: dict[str, Any] = {"arch": arch, "dilations": dilations}
        if own.metadata is not None:
            asked = recorded_arguments(own.metadata, arch, dilations)
        with load(checkpoint, "torch", **asked) as reference:
            found = Trial(reference, samples, counted).compare(model)
    passed = found.worst.relative <= limit
    content: dict[str, Any] = {
        "quantized": kind,
        "samples": samples.name,
        "tolerance": limit,
        "passed": passed,
        "relative": found.worst.relative,
        "output": found.worst.name,
        "agreement": found.agreement,
        "accuracy": None if found.accuracy is None else dict(zip(("float", "quantized"), found.accuracy, strict=True)),
    }
    if as_json:
        print_json(content)
    else:
        out = console()
        out.print(f"{model.name} ({kind}) against PyTorch float32 on {samples.name}", markup=False)
        out.print(f"largest relative difference {found.worst.relative:.1e} ({found.worst.name}), tolerance {limit:.0e}")
        if found.agreement is not None:
            out.print(f"same class {found.agreement:.2%}")
        if found.accuracy is not None:
            out.print(f"accuracy {found.accuracy[0]:.2%} in float, {found.accuracy[1]:.2%} quantized")
    if not passed:
        raise VerificationError(
            f"{model.name} differs from {checkpoint.name} by {found.worst.relative:.1e} (relative) at "
            f"{found.worst.name}, above the tolerance of {limit:.0e}"
        )
