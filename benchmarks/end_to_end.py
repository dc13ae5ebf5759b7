"""Whole models on a CPU: the exported file with the operator library, on its function bodies, PyTorch, and the floor.

    python benchmarks/end_to_end.py [--models nat_mini,nat_tiny] [--batch 1,8]

Candidates take turns in one process, ONNX Runtime's first, then PyTorch's; medians. The floor is the same exported
graph with every neighborhood attention replaced by a copy of its value: what remains if attention cost nothing.
NATTEN's CPU path knows no relative positional bias, so it runs without one.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import natten
import torch
from attention_free import floor_of
from machine import describe_machine, open_session, time_interleaved
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from na_deploy.attention import NeighborhoodSpec, torch_ops, torch_tiles
from na_deploy.exporter import export
from na_deploy.models import LoadedModel, load_model, random_checkpoint
from na_deploy.runtime.native_libraries import onnxruntime_library, why_missing


def natten_cpu(
    query: Tensor, key: Tensor, value: Tensor, spec: NeighborhoodSpec, scale: float, *_: Tensor | None
) -> tuple[Tensor, Tensor]:
    """NATTEN's own attention, as an implementation of the operators."""
    output = natten.na2d(
        query.contiguous(),
        key.contiguous(),
        value.contiguous(),
        kernel_size=spec.kernel_size,
        dilation=spec.dilation,
        scale=scale,
    )
    return output, output[..., 0]


def eager(model: nn.Module, image: Tensor, implementation: torch_ops.Implementation) -> Callable[[], object]:
    def run() -> object:
        with torch_ops.use_implementation(implementation), torch.inference_mode():
            return model(image)

    return run


def prepare(name: str, batches: list[int], folder: Path) -> tuple[LoadedModel, dict[int, Path]]:
    """Export a model with random weights, once for each batch size."""
    checkpoint = folder / f"{name}_random.pth"
    random_checkpoint(name, seed=0, path=checkpoint)
    loaded = load_model(checkpoint, arch=name)
    paths = {batch: folder / f"{name}_{batch}.onnx" for batch in batches}
    for batch, path in paths.items():
        export(loaded, path, input=(batch, 3, *loaded.input_size))
    return loaded, paths


def measure(
    loaded: LoadedModel, path: Path, library: Path, batch: int, threads: int, rounds: int, eager_too: bool
) -> dict[str, float]:
    image = torch.randn(batch, 3, *loaded.input_size, generator=torch.Generator().manual_seed(0))
    feed = {"image": image.numpy()}
    native, body = open_session(str(path), threads, library), open_session(str(path), threads)
    floor = open_session(floor_of(path).SerializeToString(), threads)
    times = time_interleaved(
        {
            "operator library": lambda: native.run(None, feed),
            "floor": lambda: floor.run(None, feed),
            "function bodies": lambda: body.run(None, feed),
        },
        rounds,
    )
    if eager_too:
        # After ONNX Runtime: PyTorch's threads go on spinning and slow down whatever follows.
        implementations = {"tiles": torch_tiles.tiled, "dense masks": torch_tiles.dense, "NATTEN": natten_cpu}
        times |= time_interleaved(
            {f"PyTorch, {name}": eager(loaded.module, image, run) for name, run in implementations.items()}, rounds
        )
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="nat_mini,nat_tiny,dinat_tiny,dinat_base")
    parser.add_argument("--batch", default="1,8", help="batch sizes; PyTorch runs only with the first")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=21)
    arguments = parser.parse_args()
    library = onnxruntime_library()
    if library is None:
        raise SystemExit(f"error: the operator library is {why_missing()}")
    torch.set_num_threads(arguments.threads)
    warnings.filterwarnings("ignore", module="torch.nn.attention")  # flex attention, not compiled: natten's CPU path
    console = Console(width=150)
    console.print(describe_machine(arguments.threads), f"natten {natten.__version__}", sep=", ")
    table = Table(title="224×224, fp32: milliseconds (medians), and times slower than with the operator library")
    table.add_column("model")
    table.add_column("batch", justify="right")
    batches = [int(batch) for batch in arguments.batch.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        # All exports first: they verify in sessions of their own, which the shared pool of threads rules out.
        exported = {name: prepare(name, batches, Path(folder)) for name in arguments.models.split(",")}
        for name, (loaded, paths) in exported.items():
            for batch, path in paths.items():
                times = measure(loaded, path, library, batch, arguments.threads, arguments.rounds, batch == batches[0])
                if len(table.columns) == 2:
                    for candidate in times:
                        table.add_column(candidate, justify="right")
                ours = times["operator library"]
                table.add_row(name, str(batch), *(f"{ms:.1f} ({ms / ours:.2f}×)" for ms in times.values()))
    console.print(table)


if __name__ == "__main__":
    main()
