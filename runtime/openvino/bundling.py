"""The OpenVINO part of a build: the model is run at its usual sizes and compiled, its difference measured."""

from __future__ import annotations

from na_deploy.errors import NaDeployError
from na_deploy.model_file.differences import worst_difference
from na_deploy.model_file.example_inputs import example_inputs, example_shapes
from na_deploy.runtime.building.options import BuildTask, Built
from na_deploy.runtime.openvino import compiled
from na_deploy.runtime.openvino.session import OpenVinoSession, import_openvino, version
from na_deploy.runtime.session import load


def build_files(task: BuildTask) -> Built:
    """Run the model with OpenVINO, and compile it for this machine where attention is standard operators.

    Raises:
        MissingDependencyError: OpenVINO is not installed.
        NaDeployError: it refuses the model.
    """
    openvino = import_openvino()
    precision = task.options.precision or "f32"
    usual = {name: profile.optimum for name, profile in task.profiles.items()}
    task.progress("compiling with OpenVINO")
    figures: dict[str, object] = {"openvino": version(openvino)}
    files = {}
    requires = {"openvino": f">={compiled.OLDEST}"}
    with load(task.model, "openvino", precision=precision, threads=task.options.threads) as session:
        assert isinstance(session, OpenVinoSession)
        feeds = example_inputs(session.inputs, example_shapes(session.inputs, session.metadata, usual=usual))
        task.progress("running the model once")
        found = session.run(feeds)
        attention = session.attention
        if session.library is None:
            blob = task.scratch / compiled.NAME
            blob.write_bytes(session.compiled_bytes())
            files[compiled.NAME] = ("compiled", blob)
            requires |= compiled.requirements(openvino, openvino.Core())
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
        settings={"precision": precision},
    )
