"""The OpenVINO part of a build: the model is run at its usual sizes and compiled, its difference measured."""

from __future__ import annotations

from pathlib import Path

from na_deploy.errors import NaDeployError
from na_deploy.model_file.differences import worst_difference
from na_deploy.model_file.example_inputs import example_inputs, example_shapes
from na_deploy.runtime.building.options import BuildTask, Built
from na_deploy.runtime.native_libraries import OPENVINO_LIBRARY, why_missing
from na_deploy.runtime.openvino import compiled
from na_deploy.runtime.openvino.session import import_openvino, open_session, version
from na_deploy.runtime.session import SessionOptions, load


def build_files(task: BuildTask) -> Built:
    """Compile the model for this machine with OpenVINO and run it.

    Raises:
        MissingDependencyError: OpenVINO is not installed.
        NaDeployError: it refuses the model.
    """
    openvino = import_openvino()
    precision = task.options.precision or "f32"
    usual = {name: profile.optimum for name, profile in task.profiles.items()}
    task.progress("compiling with OpenVINO")
    figures: dict[str, object] = {"openvino": version(openvino)}
    files: dict[str, tuple[str, Path]] = {}
    requires = {"openvino": f">={compiled.OLDEST}"}
    options = SessionOptions(precision=precision, threads=task.options.threads, library=task.options.library)
    with open_session(task.model, options) as session:
        feeds = example_inputs(session.inputs, example_shapes(session.inputs, session.metadata, usual=usual))
        task.progress("running the model once")
        found = session.run(feeds)
        attention = session.attention
        if task.options.plugins == "embed":
            if session.library is None:
                raise NaDeployError(f"there is no operator library to embed: it is {why_missing(OPENVINO_LIBRARY)}")
            files[f"lib/{session.library.name}"] = ("library", session.library)
        blob = task.scratch / compiled.NAME
        blob.write_bytes(session.compiled_bytes())
        files[compiled.NAME] = ("compiled", blob)
        requires |= compiled.requirements(openvino, openvino.Core(), session.library is not None)
    with load(task.model, "onnxruntime", custom_operators=False, threads=task.options.threads) as reference:
        task.progress("comparing with ONNX Runtime")
        difference = worst_difference(found, reference.run(feeds)).relative
    figures["difference"] = difference
    if not difference < float("inf"):
        raise NaDeployError(f"OpenVINO gives numbers that are not finite for {task.model}; build for onnxruntime")
    return Built(
        step="compile",
        files=files,
        requires=requires,
        figures=figures,
        attention_runs=attention,
        settings={"precision": precision, compiled.ATTENTION: attention},
    )
