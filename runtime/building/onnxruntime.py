"""The ONNX Runtime part of a build: nothing to compile, the bundle is tried once."""

from __future__ import annotations

import importlib.metadata

from na_deploy.errors import NaDeployError
from na_deploy.runtime.building.options import BuildTask, Built
from na_deploy.runtime.native_libraries import onnxruntime_library, why_missing
from na_deploy.runtime.session import load


def build_files(task: BuildTask) -> Built:
    """Run the model once, at the usual sizes where some are free."""
    task.progress("running the model once")
    library = onnxruntime_library()
    embed = task.options.plugins == "embed"
    if embed and library is None:
        raise NaDeployError(f"there is no operator library to embed: it is {why_missing()}")
    with load(task.model, threads=task.options.threads) as session:
        session.warm_up({name: profile.optimum for name, profile in task.profiles.items()}, runs=1)
        attention = session.attention
    return Built(
        step="run once",
        files={"lib/" + library.name: ("library", library)} if embed and library else {},
        requires={"onnxruntime": ">=1.21"},
        figures={"onnxruntime": importlib.metadata.version("onnxruntime")},
        attention_runs=attention,
    )
