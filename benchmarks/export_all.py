"""Export every published model: time, peak memory, file size, and the difference to float64.

    python benchmarks/export_all.py [--models nat_mini,…] [--output table.md]

Each model runs in a process of its own, so that peak memory is its own. The difference is that of the exported fp32
file, run in stock ONNX Runtime at the model's own size, to the same network computed in float64 by PyTorch.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

COLUMNS = (
    "model",
    "input",
    "parameters",
    "file",
    "export",
    "peak memory",
    "load",
    "difference to float64",
    "TensorRT-RTX engine",
)


def measure(name: str) -> dict[str, float | str]:
    """Export one model in this process."""
    import numpy as np
    import onnxruntime as ort

    from na_deploy.exporter import export
    from na_deploy.exporter.verify import random_image
    from na_deploy.models import load_model, random_checkpoint

    with tempfile.TemporaryDirectory() as folder:
        checkpoint, path = Path(folder) / f"{name}_random.pth", Path(folder) / "model.onnx"
        random_checkpoint(name, seed=0, path=checkpoint)
        started = time.perf_counter()
        report = export(checkpoint, path, arch=name)
        seconds = time.perf_counter() - started
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        shape = report.options.shape
        assert shape is not None
        options = ort.SessionOptions()
        options.log_severity_level = 3
        started = time.perf_counter()
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        load = time.perf_counter() - started
        image = random_image(shape, seed=1)
        found = session.run(None, {"image": image.numpy()})[0]
        module = load_model(checkpoint, arch=name).module
        parameters = sum(parameter.numel() for parameter in module.parameters())
        expected = module.double()(image.double()).detach().numpy()
        return {
            "model": name,
            "input": "x".join(map(str, shape[2:])),
            "parameters": parameters,
            "file": report.size,
            "export": seconds,
            "peak memory": peak,
            "load": load,
            "difference to float64": float(np.abs(found - expected).max() / np.abs(expected).max()),
            "engine": engine_seconds(path, Path(folder) / "model.engine"),
        }


def engine_seconds(model: Path, engine: Path) -> float:
    """Build an engine of TensorRT-RTX, which needs no GPU; its seconds, 0 where the library is not installed."""
    from na_deploy.errors import MissingDependencyError
    from na_deploy.runtime.tensorrt.api import RTX
    from na_deploy.runtime.tensorrt.building import EngineRequest, build_engine

    try:
        report = build_engine(model, engine, EngineRequest(flavor=RTX, profiles={}))
    except MissingDependencyError:
        return 0.0
    return report.parse_seconds + report.build_seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", help="names separated by commas; every published model by default")
    parser.add_argument("--output", type=Path, help="also write the table, as Markdown, to this file")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.one)))
        return

    from machine import describe_machine

    from na_deploy.models import list_models

    names = arguments.models.split(",") if arguments.models else [entry.name for entry in list_models()]
    lines = [describe_machine(2), "", f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}"]
    print("\n".join(lines), flush=True)
    for name in names:
        result = subprocess.run([sys.executable, __file__, "--one", name], capture_output=True, text=True, check=False)
        if result.returncode:
            sys.exit(f"{name} failed:\n{result.stderr}")
        row = json.loads(result.stdout.splitlines()[-1])
        lines.append(
            f"| {name} | {row['input']} | {row['parameters'] / 1e6:.2f}M | {row['file'] / 1e6:.0f} MB | "
            f"{row['export']:.1f} s | {row['peak memory'] / 1e9:.2f} GB | {row['load']:.1f} s | "
            f"{row['difference to float64']:.1e} | {row['engine']:.1f} s |"
        )
        print(lines[-1], flush=True)
        if arguments.output:
            arguments.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
