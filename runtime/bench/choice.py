"""The fastest backend for a model on this machine, among those whose answers are within a tolerance: measured now."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from na_deploy.errors import NaDeployError, UsageError
from na_deploy.model_file.tolerances import TOLERANCE
from na_deploy.progress import Progress
from na_deploy.runtime.bench.candidates import Candidate, all_candidates
from na_deploy.runtime.bench.compare import Measurement, Report, Target, machine, measure
from na_deploy.runtime.bundle.archive import is_bundle, read_manifest
from na_deploy.runtime.bundle.description import describe

MEASURED_ON = "measured_on"
"""Entry of a manifest's settings: the machine on which a bundle's backend was found to be the fastest."""

SECONDS = 1.0
"""Seconds that each candidate is timed for where nobody says."""


@dataclass(frozen=True)
class Choice:
    """The outcome of a comparison.

    Attributes:
        candidate: the fastest within the tolerance.
        tolerance: largest accepted relative difference to ONNX Runtime on the file's function bodies.
        rows: candidates with what was measured of them, in the order in which they were tried.
        remarks: sentences on candidates that are left out.
    """

    candidate: Candidate
    tolerance: float
    rows: tuple[tuple[Candidate, Measurement], ...]
    remarks: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return JSON types, for a manifest and for people."""
        return {
            "machine": machine(),
            "tolerance": self.tolerance,
            "candidates": [
                {"backend": str(candidate), "p50_ms": round(row.p50_ms, 3), "difference": row.difference}
                for candidate, row in self.rows
            ],
        }


def choose(
    path: Path,
    *,
    tolerance: float | None = None,
    threads: int | None = None,
    shapes: Sequence[str] = (),
    seconds: float = SECONDS,
    progress: Progress | None = None,
) -> Choice:
    """Time every backend that runs a model here, each in a process of its own, and compare their answers.

    Args:
        path: an ONNX file or a bundle.
        tolerance: largest accepted relative difference to ONNX Runtime on the function bodies; by default that of the
            file's type.
        threads: threads of each.
        shapes: input sizes as users write them; by default the model's.
        seconds: time spent on each.
        progress: called with a few words as each step begins.

    Raises:
        UsageError: the tolerance is not above zero.
        NaDeployError: none runs the model, or none is within the tolerance.
    """
    if tolerance is not None and not tolerance > 0:
        raise UsageError(f"tolerance must be above 0, got {tolerance}")
    limit = TOLERANCE[_dtype(path)] if tolerance is None else tolerance
    candidates, left_out = all_candidates(path)
    targets = [Target(str(each), "session", path, each.options, path) for each in candidates]
    report: Report = measure(
        targets, [None], shapes=shapes, threads=threads, duration_s=seconds, progress=progress, leave_out=True
    )
    by_label = {str(each): each for each in candidates}
    rows = tuple((by_label[row.label], row) for row in report.measurements)
    remarks = (*left_out, *report.remarks)
    accepted = [(row.p50_ms, place) for place, (_, row) in enumerate(rows) if _within(row, limit)]
    if not accepted:
        found = ", ".join(f"{each} {row.difference:.1e}" for each, row in rows if row.difference is not None)
        raise NaDeployError(
            f"no backend runs {path.name} within the tolerance of {limit:.0e}"
            + (f": differences are {found}; give a larger tolerance" if found else f"; {'; '.join(remarks)}")
        )
    return Choice(rows[min(accepted)[1]][0], limit, rows, remarks)


def chosen_backend(path: Path, tolerance: float | None, threads: int | None) -> tuple[str | None, str | None]:
    """Return backend and precision for ``load(path, backend="auto")``.

    A bundle that was built for the fastest backend on this machine remembers it: both are ``None`` then, so that its
    own are taken. Measurements are kept for the life of the process, while the file stays as it is.
    """
    if not path.exists():
        raise UsageError(f"{path} does not exist; give the path of an exported .onnx file or of a bundle")
    if is_bundle(path) and tolerance is None and read_manifest(path).settings.get(MEASURED_ON) == machine():
        return None, None
    stat = path.stat()
    candidate = _measured(path.resolve(), stat.st_mtime_ns, stat.st_size, tolerance, threads)
    return candidate.backend, candidate.precision


@cache
def _measured(path: Path, _changed: int, _size: int, tolerance: float | None, threads: int | None) -> Candidate:
    return choose(path, tolerance=tolerance, threads=threads).candidate


def _within(row: Measurement, limit: float) -> bool:
    return row.difference is not None and row.difference <= limit


def _dtype(path: Path) -> str:
    """Return the precision of a model's file: fp32, fp16 or bf16."""
    metadata = describe(path).metadata
    kind = "" if metadata is None else metadata.quantized or metadata.dtype
    return kind if kind in TOLERANCE else "fp32"
