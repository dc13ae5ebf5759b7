"""Peak memory of one model: operator library, function bodies and PyTorch, each in a process of its own.

    python benchmarks/memory.py [--model nat_mini] [--batch 1,8]

Peak resident set after three runs, less that of the same process when its libraries are imported and nothing is loaded.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

CANDIDATES = ("operator library", "function bodies", "PyTorch, tiles", "PyTorch, dense masks")


def peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def run_candidate(candidate: str, checkpoint: Path, model: str, exported: Path, batch: int) -> float:
    """Run one candidate in this process and return what it added to the peak, in MB."""
    import numpy as np

    image = np.random.default_rng(0).normal(size=(batch, 3, 224, 224)).astype(np.float32)
    if candidate.startswith("PyTorch"):
        import torch

        from na_deploy.attention import torch_ops, torch_tiles
        from na_deploy.models import load_model

        before = peak_megabytes()
        module = load_model(checkpoint, arch=model).module.eval()
        implementation = torch_tiles.tiled if "tiles" in candidate else torch_tiles.dense
        with torch_ops.use_implementation(implementation), torch.inference_mode():
            for _ in range(3):
                module(torch.from_numpy(image))
    else:
        import na_deploy

        before = peak_megabytes()
        with na_deploy.load(exported, custom_operators=candidate == "operator library") as session:
            for _ in range(3):
                session.run({"image": image})
    return peak_megabytes() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nat_mini")
    parser.add_argument("--batch", default="1,8")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(run_candidate(**json.loads(arguments.child))))
        return
    table = Table(title=f"{arguments.model}, 224×224, fp32: MB at the peak beyond the imported libraries")
    for heading in ("batch", *CANDIDATES):
        table.add_column(heading, justify="right")
    with tempfile.TemporaryDirectory() as folder:
        checkpoint, exported = Path(folder) / f"{arguments.model}_random.pth", Path(folder) / "model.onnx"
        prepare = (
            "import sys; from na_deploy.models import random_checkpoint; from na_deploy.exporter import export\n"
            "name, checkpoint, exported = sys.argv[1:]\n"
            "random_checkpoint(name, seed=0, path=checkpoint); export(checkpoint, exported, arch=name, dynamic='batch')"
        )
        subprocess.run([sys.executable, "-c", prepare, arguments.model, checkpoint, exported], check=True)
        for batch in (int(size) for size in arguments.batch.split(",")):
            row = [str(batch)]
            for candidate in CANDIDATES:
                child = {"candidate": candidate, "checkpoint": str(checkpoint), "model": arguments.model}
                child |= {"exported": str(exported), "batch": batch}
                command = [sys.executable, __file__, "--child", json.dumps(child)]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                row.append(f"{float(done.stdout.splitlines()[-1]):.0f}")
            table.add_row(*row)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
