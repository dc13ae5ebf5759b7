"""One layer of neighborhood attention on a CPU: the operator library in ONNX Runtime, its peers, and the floor.

    python benchmarks/cpu_kernels.py [--only nat|large] [--no-natten]

Ours and the function body run in ONNX Runtime, flex attention compiled by PyTorch's own compiler, all with the same
number of threads and, at NAT's shapes, with the relative positional bias (NATTEN knows none). Medians in one process.
The floor is arithmetic: two multiply-adds for each channel of each attended key, against the rate of multiply-adds
that the processor reaches with nothing else to do, measured here as well.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from machine import describe_machine, open_session, time_interleaved
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console
from rich.table import Table
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from na_deploy.attention.schema import DOMAIN, PACKED_OPERATOR
from na_deploy.attention.windows import NeighborhoodSpec, window_bounds
from na_deploy.exporter.function_body import BodyFeatures, packed_function
from na_deploy.runtime.native_libraries import onnxruntime_library, why_missing

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "plugins"))
from cpu_library import CpuLibrary, Problem, aligned, build

OPSET = 22


@dataclass(frozen=True)
class Layer:
    """One layer: spatial sizes, heads, head_dim, attributes."""

    lengths: tuple[int, ...]
    heads: int
    head_dim: int
    kernel_size: tuple[int, ...]
    dilation: int = 1
    bias: bool = True

    @property
    def spec(self) -> NeighborhoodSpec:
        """Return its attributes."""
        return NeighborhoodSpec.create(len(self.lengths), self.kernel_size, self.dilation)

    @property
    def multiply_adds(self) -> float:
        """Count the multiply-adds of both products over attended keys alone."""
        keys = float(np.prod(self.kernel_size))
        return float(np.prod(self.lengths)) * self.heads * keys * 2 * self.head_dim

    def row(self) -> tuple[str, ...]:
        """Return the first columns of its row in a table."""
        return (
            "×".join(map(str, self.lengths)),
            str(self.heads),
            str(self.head_dim),
            "×".join(map(str, self.kernel_size)),
            str(self.dilation),
        )


NAT = [
    Layer((side, side), heads, 32, (7, 7), dilation)
    for side, heads, dilation in ((56, 2, 1), (28, 4, 1), (14, 8, 1), (7, 16, 1), (56, 2, 8), (28, 4, 4), (14, 8, 2))
]
LARGE = [
    Layer(lengths, 2, head_dim, kernel_size, bias=False)
    for lengths, kernel_size in (((16, 32, 32), (8, 16, 16)), ((4096,), (512,)))
    for head_dim in (64, 128)
]


def arrays_of(layer: Layer) -> tuple[np.ndarray, np.ndarray | None]:
    random = np.random.default_rng(0)
    shape = (1, *layer.lengths, 3, layer.heads, layer.head_dim)
    qkv = aligned(int(np.prod(shape))).reshape(shape)
    qkv[...] = random.normal(size=shape)
    if not layer.bias:
        return qkv, None
    return qkv, random.normal(size=(layer.heads, *(2 * k - 1 for k in layer.kernel_size))).astype(np.float32)


def node_model(layer: Layer, bias: np.ndarray | None) -> bytes:
    rank = len(layer.lengths)
    inputs = ["qkv"] if bias is None else ["qkv", "bias"]
    node = helper.make_node(
        PACKED_OPERATOR,
        inputs,
        ["output"],
        domain=DOMAIN,
        kernel_size=layer.kernel_size,
        dilation=[layer.dilation] * rank,
    )
    graph = helper.make_graph(
        [node],
        "layer",
        [helper.make_tensor_value_info("qkv", TensorProto.FLOAT, (1, *layer.lengths, 3, layer.heads, layer.head_dim))],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, (1, *layer.lengths, layer.heads, layer.head_dim))],
        [] if bias is None else [numpy_helper.from_array(bias, "bias")],
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)],
        functions=[packed_function(BodyFeatures(rank=rank, rel_pos_bias=bias is not None), OPSET)],
        ir_version=10,
    )
    return bytes(model.SerializeToString())


def compiled_flex(layer: Layer, qkv: np.ndarray, bias: np.ndarray | None) -> Callable[[], object]:
    """Flex attention with the window as block mask and the bias as score modification, compiled."""
    tokens = int(np.prod(layer.lengths))
    tensor = torch.from_numpy(qkv).reshape(1, tokens, 3, layer.heads, layer.head_dim).permute(2, 0, 3, 1, 4)
    query, key, value = (part.contiguous() for part in tensor)
    places = torch.from_numpy(np.indices(layer.lengths).reshape(len(layer.lengths), -1))
    bounds = [
        tuple(torch.from_numpy(b) for b in window_bounds(length, kernel, layer.dilation))
        for length, kernel in zip(layer.lengths, layer.kernel_size, strict=True)
    ]

    def mask(batch: object, head: object, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        sees = torch.ones((), dtype=torch.bool)
        for place, (start, end) in zip(places, bounds, strict=True):
            element = place[k] // layer.dilation
            same_group = place[q] % layer.dilation == place[k] % layer.dilation
            sees = sees & same_group & (element >= start[place[q]]) & (element < end[place[q]])
        return sees

    def add_bias(score: torch.Tensor, batch: object, head: object, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        index = tuple(
            (place[k] // layer.dilation - place[q] // layer.dilation + kernel - 1).clamp(0, 2 * kernel - 2)
            for place, kernel in zip(places, layer.kernel_size, strict=True)
        )
        return score + table[(head, *index)]

    table = None if bias is None else torch.from_numpy(bias)
    blocks = create_block_mask(mask, None, None, tokens, tokens, device="cpu")
    torch._dynamo.reset()  # each layer is compiled for its own sizes
    compiled = torch.compile(flex_attention, dynamic=False)

    def run() -> object:
        with torch.inference_mode():
            return compiled(query, key, value, block_mask=blocks, score_mod=None if table is None else add_bias)

    return run


def natten_cpu(layer: Layer, qkv: np.ndarray) -> Callable[[], object]:
    import natten

    function = (natten.na1d, natten.na2d, natten.na3d)[len(layer.lengths) - 1]
    query, key, value = (part.contiguous() for part in torch.from_numpy(qkv).unbind(-3))

    def run() -> object:
        with torch.inference_mode():
            return function(query, key, value, kernel_size=layer.kernel_size, dilation=layer.dilation)

    return run


def one_thread(cpu: CpuLibrary, layer: Layer, qkv: np.ndarray, bias: np.ndarray | None) -> Callable[[], object]:
    """Call the kernels alone, without ONNX Runtime."""
    problem = Problem(layer.spec, qkv, rel_pos_bias=bias, lse=False)
    plan = cpu.plan(problem)
    kept = cpu.prepare_bias(problem, plan)
    return lambda: (cpu.run(problem, plan), kept)


def multiply_add_rate(cpu: CpuLibrary, threads: int) -> float:
    """Return the best rate of multiply-adds a second of ``threads`` threads, in units of 1e9."""
    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(5):
            started = time.perf_counter()
            count = sum(pool.map(cpu.multiply_adds, [3_000_000] * threads))
            best = max(best, count / (time.perf_counter() - started))
    return best / 1e9


def measure(
    layer: Layer, cpu: CpuLibrary, library: Path, arguments: argparse.Namespace
) -> tuple[dict[str, float], dict[str, float]]:
    qkv, bias = arrays_of(layer)
    model = node_model(layer, bias)
    native, body = open_session(model, arguments.threads, library), open_session(model, arguments.threads)
    expected = body.run(None, {"qkv": qkv})[0]
    assert np.abs(native.run(None, {"qkv": qkv})[0] - expected).max() < 1e-5 * np.abs(expected).max()
    ours = time_interleaved(
        {
            "ours": lambda: native.run(None, {"qkv": qkv}),
            "one thread": one_thread(cpu, layer, qkv, bias),
            "function body": lambda: body.run(None, {"qkv": qkv}),
        },
        arguments.rounds,
        budget=20,
    )
    others: dict[str, Callable[[], object]] = {"compiled flex": compiled_flex(layer, qkv, bias)}
    if arguments.natten:
        others["NATTEN's CPU path"] = natten_cpu(layer, qkv)
    return ours, time_interleaved(others, arguments.rounds, budget=15)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["nat", "large"])
    parser.add_argument("--natten", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=41)
    arguments = parser.parse_args()
    library = onnxruntime_library()
    if library is None:
        raise SystemExit(f"error: the operator library is {why_missing()}")
    torch.set_num_threads(arguments.threads)
    warnings.filterwarnings("ignore", module="torch.nn.attention")
    console = Console(width=160)
    console.print(describe_machine(arguments.threads))
    with tempfile.TemporaryDirectory() as folder:
        cpu = CpuLibrary(build(Path(folder)))
        rate, rate_one = multiply_add_rate(cpu, arguments.threads), multiply_add_rate(cpu, 1)
        console.print(
            f"{cpu.target()}; multiply-adds: {rate_one:.0f} G/s in one thread, {rate:.0f} G/s in {arguments.threads}"
        )
        table = Table(title="Milliseconds (medians) and times slower than ours; share: of the rate of multiply-adds")
        for heading in ("map", "heads", "dim", "window", "dilation"):
            table.add_column(heading, justify="right")
        layers = {"nat": NAT, "large": LARGE}.get(arguments.only, NAT + LARGE)
        for number, layer in enumerate(layers):
            ours, others = measure(layer, cpu, library, arguments)
            native, single = ours["ours"], ours["one thread"]
            peers = {"function body": ours["function body"], **others}
            if number == 0:
                for heading in ("ours", "share", "one thread", "share", *peers):
                    table.add_column(heading, justify="right")
            giga = layer.multiply_adds / 1e6
            table.add_row(
                *layer.row(),
                f"{native:.3f}",
                f"{giga / native / rate:.0%}",
                f"{single:.3f} ({single / native:.2f}×)",
                f"{giga / single / rate_one:.0%}",
                *(f"{ms:.2f} ({ms / native:.1f}×)" for ms in peers.values()),
            )
    console.print(table)


if __name__ == "__main__":
    main()
