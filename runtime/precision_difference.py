"""The difference that bfloat16 arithmetic makes to a model, which every command shows that computes in it."""

from __future__ import annotations

from na_deploy.errors import UsageError
from na_deploy.model_file.differences import worst_difference
from na_deploy.model_file.example_inputs import example_inputs, example_shapes
from na_deploy.runtime.bundle.session import BundleSession
from na_deploy.runtime.session import Session, load


def precision_difference(session: Session, threads: int | None = None) -> float | None:
    """Return the largest relative difference of a session's outputs to those in float32, on random inputs.

    Args:
        session: on OpenVINO. One over a bundle that was built for its precision remembers the difference.
        threads: of the float32 session.

    Returns:
        The difference; ``None`` of a session in float32, or where free sizes have no known value.

    Raises:
        NaDeployError: the model does not run in float32.
    """
    if session.precision != "bf16":
        return None
    if isinstance(session, BundleSession) and session.manifest.settings.get("precision") == "bf16":
        remembered = session.manifest.build.get("difference")
        if isinstance(remembered, float):
            return remembered
    try:
        shapes = example_shapes(session.inputs, session.metadata, usual=session.usual_shapes or None)
    except UsageError:
        return None
    feeds = example_inputs(session.inputs, shapes)
    with load(session.path, "openvino", precision="f32", threads=threads) as reference:
        return worst_difference(session.run(feeds), reference.run(feeds)).relative


def precision_note(session: Session, threads: int | None = None) -> str | None:
    """Return the sentence that commands show of a session in bfloat16, ``None`` of any other.

    Args and errors as :func:`precision_difference`.
    """
    if session.precision != "bf16":
        return None
    difference = precision_difference(session, threads)
    if difference is None:
        return "computes in bf16; its difference to f32 is not known, since sizes are free"
    return f"computes in bf16: outputs differ from f32 by up to {difference:.1e} (relative, random inputs)"
