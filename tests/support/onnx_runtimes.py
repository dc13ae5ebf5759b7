"""Other runtimes for ONNX files, each in a folder of its own and run in a process of its own.

``run`` returns a file's outputs as a runtime computes them. Run as a program, this file is that process:
``python onnx_runtimes.py NAME MODEL INPUTS.npz OUTPUTS.npz``.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

Arrays = dict[str, np.ndarray]


class RefusedError(Exception):
    """A runtime does not take a file; its own words."""


@dataclass(frozen=True)
class Runtime:
    """One runtime.

    Attributes:
        name: its name and version.
        packages: wheels that it needs, installed without their dependencies; empty for what the tests' environment has.
        free: it takes files with free height and width.
        slow: it compiles for seconds; tests try it on fewer files.
    """

    name: str
    packages: tuple[str, ...] = ()
    free: bool = True
    slow: bool = False


RUNTIMES = {
    "openvino": Runtime("OpenVINO 2026.4.1"),
    "openvino-2025": Runtime("OpenVINO 2025.4.0", ("openvino==2025.4.0",)),
    "reference": Runtime("onnx.reference"),
    "onnxslim": Runtime("onnxslim 0.1.98", ("onnxslim==0.1.98",)),
    "onnxsim": Runtime("onnxsim 0.8.1", ("onnxsim==0.8.1",)),
    "web": Runtime("onnxruntime-web 1.30.0"),
    "tract": Runtime("tract 0.23.9", ("tract==0.23.9",), free=False),
    "iree": Runtime("IREE 3.13.0", ("iree-base-compiler==3.13.0", "iree-base-runtime==3.13.0"), False, slow=True),
    "tvm": Runtime("TVM 0.27.0", ("apache-tvm==0.27.0.post1", "apache-tvm-ffi==0.1.15.post2"), False, slow=True),
}


def prepare(name: str) -> Path | None:
    """Install a runtime where it is not yet, and return its folder; skip the test where it cannot be had."""
    import pytest
    from wheels import FOLDER, install

    runtime = RUNTIMES[name]
    if name == "web":
        if shutil.which("npm") is None or shutil.which("node") is None:
            pytest.skip("onnxruntime-web runs in Node.js, which is not installed (Debian: apt install nodejs npm)")
        return _npm_packages(FOLDER / "onnxruntime-web")
    return install(f"runtime-{name}", runtime.packages) if runtime.packages else None


def _npm_packages(folder: Path) -> Path:
    import pytest
    from filelock import FileLock

    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not (folder / "node_modules" / "onnxruntime-web").is_dir():
            command = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "onnxruntime-web@1.30.0"]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.skip(f"onnxruntime-web cannot be installed: {done.stderr.strip().splitlines()[-1:]}")
    return folder


def run(name: str, folder: Path | None, model: Path, inputs: Arrays, scratch: Path) -> list[np.ndarray]:
    """Return the outputs of a model in a runtime.

    Args:
        name: key of :data:`RUNTIMES`.
        folder: the runtime's, from :func:`prepare`.
        model: an ONNX file.
        inputs: arrays by name.
        scratch: a folder to exchange arrays in.

    Raises:
        RefusedError: the runtime does not take the file, or ends the process.
    """
    given, made = scratch / f"{name}-in.npz", scratch / f"{name}-out.npz"
    made.unlink(missing_ok=True)
    np.savez(given, **inputs)
    environment = dict(os.environ)
    if folder is not None:
        environment["PYTHONPATH"] = os.pathsep.join([str(folder), environment.get("PYTHONPATH", "")])
        environment["NODE_PATH"] = str(folder / "node_modules")
    command = [sys.executable, __file__, name, str(model), str(given), str(made)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode or not made.exists():
        raise RefusedError(f"exit code {done.returncode}: {done.stderr.strip()[-500:]}")
    with np.load(made) as arrays:
        return [arrays[key] for key in sorted(arrays, key=lambda key: int(key.removeprefix("output")))]


# --------------------------------------------------------------------------- in the runtime's process


def _openvino(model: str, inputs: Arrays) -> list[np.ndarray]:
    import openvino

    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    results = compiled(inputs)
    return [results[index] for index in range(len(compiled.outputs))]


def _reference(model: str, inputs: Arrays) -> list[np.ndarray]:
    from onnx.reference import ReferenceEvaluator

    return ReferenceEvaluator(model).run(None, inputs)


def _onnxruntime(model: bytes, inputs: Arrays) -> list[np.ndarray]:
    import onnxruntime

    return onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, inputs)


def _onnxslim(model: str, inputs: Arrays) -> list[np.ndarray]:
    import onnxslim

    return _onnxruntime(onnxslim.slim(model).SerializeToString(), inputs)


def _onnxsim(model: str, inputs: Arrays) -> list[np.ndarray]:
    import onnx
    import onnxsim

    simplified, same = onnxsim.simplify(onnx.load(model))
    assert same
    return _onnxruntime(simplified.SerializeToString(), inputs)


def _tract(model: str, inputs: Arrays) -> list[np.ndarray]:
    import tract

    loaded = tract.onnx().load(model).into_model().into_runnable()
    return [output.to_numpy() for output in loaded.run(list(inputs.values()))]


def _iree(model: str, inputs: Arrays) -> list[np.ndarray]:
    import iree.compiler
    import iree.runtime

    mlir = Path(model).with_suffix(".mlir")
    command = [sys.executable, "-m", "iree.compiler.tools.import_onnx", model, "-o", str(mlir)]
    subprocess.run(command, check=True, capture_output=True)
    options = {"target_backends": ["llvm-cpu"], "input_type": "onnx", "extra_args": ["--iree-llvmcpu-target-cpu=host"]}
    binary = iree.compiler.compile_file(str(mlir), **options)
    context = iree.runtime.SystemContext(config=iree.runtime.Config("local-task"))
    module = iree.runtime.VmModule.copy_buffer(context.instance, binary)
    context.add_vm_module(module)
    (function,) = (name for name in module.function_names if "$" not in name and not name.startswith("__"))
    results = context.modules[module.name][function](*inputs.values())
    return [np.asarray(array) for array in (results if isinstance(results, tuple | list) else [results])]


def _tvm(model: str, inputs: Arrays) -> list[np.ndarray]:
    import onnx
    import tvm
    from tvm import relax
    from tvm.relax.frontend.onnx import from_onnx

    machine = relax.VirtualMachine(relax.build(from_onnx(onnx.load(model)), target="llvm"), tvm.cpu())
    results = machine["main"](*(tvm.runtime.tensor(array) for array in inputs.values()))
    return [array.numpy() for array in ([results] if hasattr(results, "numpy") else results)]


_NODE = """
const ort = require('onnxruntime-web'), fs = require('fs');
ort.env.wasm.numThreads = 1;
(async () => {
  const [model, request] = process.argv.slice(1);
  const session = await ort.InferenceSession.create(model, {logSeverityLevel: 4});
  const feeds = {};
  for (const [name, {dims, data}] of Object.entries(JSON.parse(fs.readFileSync(request))))
    feeds[name] = new ort.Tensor('float32', Float32Array.from(data), dims);
  const results = await session.run(feeds);
  fs.writeFileSync(request, JSON.stringify(session.outputNames.map(
    (name) => ({dims: results[name].dims, data: Array.from(results[name].data)}))));
})().catch((error) => { console.error(String(error)); process.exit(1); });
"""


def _web(model: str, inputs: Arrays) -> list[np.ndarray]:
    request = Path(model).with_suffix(".json")
    arrays = {name: {"dims": array.shape, "data": array.ravel().tolist()} for name, array in inputs.items()}
    request.write_text(json.dumps(arrays))
    subprocess.run(["node", "-e", _NODE, model, str(request)], check=True)
    results = json.loads(request.read_text())
    return [np.array(result["data"], np.float32).reshape(result["dims"]) for result in results]


def main() -> None:
    """Run one model in one runtime."""
    name, model, given, made = sys.argv[1:]
    readers = {
        "openvino": _openvino,
        "openvino-2025": _openvino,
        "reference": _reference,
        "onnxslim": _onnxslim,
        "onnxsim": _onnxsim,
        "web": _web,
        "tract": _tract,
        "iree": _iree,
        "tvm": _tvm,
    }
    with np.load(given) as arrays:
        results = readers[name](model, dict(arrays))
    np.savez(made, **{f"output{index}": result for index, result in enumerate(results)})


if __name__ == "__main__":
    main()
