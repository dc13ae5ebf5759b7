"""The backends, each with a precision, that a model can run on here: those asked for, or all there are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from na_deploy.errors import MissingDependencyError, UsageError
from na_deploy.runtime.backend_names import ENGINE_BACKENDS, PRECISIONS, SESSION_BACKENDS
from na_deploy.runtime.bundle.archive import is_bundle, read_manifest

ALL = "all"
ONE_PRECISION = "--precision goes with --backend openvino; several are written openvino:f32,openvino:bf16"
"""Answer to a precision that belongs to no backend, or to several."""


@dataclass(frozen=True)
class Candidate:
    """A backend and its precision.

    Attributes:
        backend: one of the backends of sessions.
        precision: "f32" or "bf16" of OpenVINO; ``None`` where the file's types say it.
    """

    backend: str
    precision: str | None = None

    def __str__(self) -> str:
        return self.backend if self.precision is None else f"{self.backend} {self.precision}"

    @property
    def options(self) -> dict[str, Any]:
        """The arguments of :func:`na_deploy.runtime.session.load`."""
        return {"backend": self.backend} | ({} if self.precision is None else {"precision": self.precision})


def read_candidates(text: str) -> list[Candidate]:
    """Read ``onnxruntime,openvino:bf16``.

    Raises:
        UsageError: a name is unknown or given twice, or a precision is not OpenVINO's.
    """
    found: list[Candidate] = []
    for part in text.split(","):
        backend, colon, precision = part.strip().partition(":")
        if backend not in SESSION_BACKENDS:
            names = ", ".join((ALL, *SESSION_BACKENDS))
            raise UsageError(f"there is no backend {backend!r}; choose of {names}, several joined by commas")
        if colon and (backend != "openvino" or precision not in PRECISIONS):
            raise UsageError(f"cannot read {part!r}; a precision is written openvino:f32 or openvino:bf16")
        candidate = Candidate(backend, precision or ("f32" if backend == "openvino" else None))
        if candidate in found:
            raise UsageError(f"{part} is given twice")
        found.append(candidate)
    return found


def choose_candidates(path: Path, text: str, precision: str | None = None) -> tuple[list[Candidate], list[str]]:
    """Return what :func:`read_candidates` or, for ``all``, :func:`all_candidates` says.

    Args:
        path: the model or bundle.
        text: the backends asked for.
        precision: that of OpenVINO, where ``text`` names it once.

    Raises:
        UsageError: as :func:`read_candidates`, or the precision has no place.
    """
    if precision is not None and (":" in text or text == ALL):
        raise UsageError(ONE_PRECISION)
    if text == ALL:
        return all_candidates(path)
    return read_candidates(text if precision is None else text.replace("openvino", f"openvino:{precision}")), []


def all_candidates(path: Path) -> tuple[list[Candidate], list[str]]:
    """Return what can run an exported model or bundle on this machine, and a sentence on each backend left out."""
    found, left_out = [Candidate("onnxruntime")], []
    if is_bundle(path) and (built_for := read_manifest(path).backend) in ENGINE_BACKENDS:
        found.insert(0, Candidate(built_for))
    from na_deploy.runtime.openvino import session as openvino_session

    try:
        core = openvino_session.import_openvino().Core()
    except MissingDependencyError as error:
        return found, [f"openvino is left out: {error}"]
    for precision in PRECISIONS:
        try:
            openvino_session.check_precision(precision, core)
        except UsageError as error:
            left_out.append(f"openvino {precision} is left out: {error}")
        else:
            found.append(Candidate("openvino", precision))
    return found, left_out
