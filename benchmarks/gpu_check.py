"""Everything about the GPU kernels that needs a GPU, in one command: build, correctness, graph capture, timings.

    bash scripts/gpu_check.sh [folder for results]

Needs a CUDA toolkit (nvcc), PyTorch for the same CUDA, NumPy, ml_dtypes and pytest; nothing of na-deploy has to be
installed. Where onnxruntime-gpu and onnx are there too, and CMake finds what docs/build.md lists, a model runs through
ONNX Runtime's CUDA provider; where not, the report says so. Correctness is held to float64 on random problems, and to
the plain kernel on large ones. Times are medians of CUDA graph replays, candidates in turn. ``--emulate LIBRARY`` runs
the correctness part alone on the emulated GPU of the tests, without PyTorch.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from gpu_check_onnxruntime import build_and_check

ROOT = Path(__file__).parents[1]
PLAIN = 1
NAMES = {1: "plain", 2: "64", 3: "128", 4: "8×8", 5: "16×8", 6: "4×16", 7: "4×4×4", 8: "2×4×8", 9: "4×4×8"}


def import_ours() -> None:
    """Make ``na_deploy`` importable from the source tree where it is not installed."""
    sys.path.insert(0, str(ROOT / "tests" / "plugins"))
    try:
        import na_deploy.attention  # noqa: F401
    except ImportError:
        folder = Path(tempfile.mkdtemp()) / "na_deploy"
        shutil.copytree(ROOT / "src" / "na_deploy", folder)
        shutil.copytree(ROOT / "attention", folder / "attention")
        sys.path.insert(0, str(folder.parent))


def build_library(folder: Path, architecture: str) -> Path:
    """Compile the kernels for one architecture, each unit in a process of its own, and link them."""
    include = [f"-I{ROOT / 'plugins' / part}" for part in ("cuda", "core")]
    nvcc = ["nvcc", "-std=c++17", "-O3", f"-arch={architecture}", "-Xcompiler", "-fPIC,-fvisibility=hidden", *include]
    units = [ROOT / "plugins/cuda/na_cuda.cu", ROOT / "plugins/cuda/tactics.cpp", ROOT / "plugins/core/check.cpp"]
    template = (ROOT / "plugins/cuda/tile_unit.cu.in").read_text()
    for kind, dim in re.findall(r"use\(((?:dev::)?[A-Za-z]+), (\d+)\)", (ROOT / "plugins/cuda/tactics.h").read_text()):
        unit = folder / f"tile_{kind.removeprefix('dev::')}_{dim}.cu"
        unit.write_text(template.replace("@NA_TYPE@", kind).replace("@NA_DIM@", dim))
        units.append(unit)

    def compiled(unit: Path) -> str:
        output = folder / f"{unit.stem}.o"
        subprocess.run([*nvcc, "-c", str(unit), "-o", str(output)], check=True)
        return str(output)

    with ThreadPoolExecutor() as pool:
        objects = list(pool.map(compiled, units))
    library = folder / "libna_deploy_cuda.so"
    subprocess.run([*nvcc, "-shared", *objects, "-o", str(library)], check=True)
    return library


class Kernels:
    """The compiled kernels on the present device."""

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library))
        self._library.na_forward.argtypes = [ctypes.c_void_p, ctypes.c_int32, ctypes.c_void_p]

    def tactics(self, params: Any) -> list[int]:
        """Return the ways to compute a problem, the default first."""
        found = (ctypes.c_int32 * 16)()
        return list(found[: self._library.na_cuda_tactics(ctypes.byref(params), found, len(found))])

    def launch(self, params: Any, tactic: int) -> None:
        """Launch on PyTorch's current stream."""
        import torch

        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        code = self._library.na_forward(ctypes.byref(params), tactic, stream)
        if code:
            raise RuntimeError(f"the launch failed with CUDA error {code}")


# --------------------------------------------------------------------------- correctness


def check_random(run: Callable[[Any, int], None], tactics: Callable[[Any], list[int]], seeds: range) -> list[str]:
    """Hold every tactic to float64 on random problems; return sentences about those that differ."""
    from test_gpu_kernels import DTYPES, agree, random_problem, small_map

    wrong = []
    for seed in seeds:
        for dtype in DTYPES:
            dims = [1, 7, 24, 33, 100] if seed % 3 == 0 else [8, 16, 24, 32, 48, 64] if seed % 4 else [96, 128]
            problem, spec, scale = (small_map if seed % 5 == 1 else random_problem)(seed, dtype, dims)
            for tactic in tactics(problem):
                problem.output[...] = float("nan")
                run(problem, tactic)
                try:
                    agree(problem, spec, scale, dtype)
                except AssertionError as error:
                    wrong.append(f"seed {seed}, {dtype}, {NAMES[tactic]}: {str(error).splitlines()[0][:200]}")
    return wrong


def on_device(kernels: Kernels) -> Callable[[Any, int], None]:
    """Return a function that computes a problem of NumPy arrays on the device and copies the results back."""
    import torch

    def run(problem: Any, tactic: int) -> None:
        params = type(problem.params)()
        ctypes.memmove(ctypes.byref(params), ctypes.byref(problem.params), ctypes.sizeof(params))
        kept = {}
        arrays = {**problem.arrays, "output": problem.output, "lse": problem.lse}
        for name, array in arrays.items():
            if array is not None:
                kept[name] = torch.frombuffer(bytearray(array.tobytes() or b"\0"), dtype=torch.uint8).cuda()
                setattr(params, name, kept[name].data_ptr())
        kernels.launch(params, tactic)
        torch.cuda.synchronize()
        for name in ("output", "lse"):
            if arrays[name] is not None and arrays[name].size:
                data = kept[name].cpu().numpy().tobytes()
                arrays[name].view("uint8").reshape(-1)[...] = memoryview(data)

    return run


# --------------------------------------------------------------------------- timings


@dataclass(frozen=True)
class Case:
    """A problem to time: (B, *X, H, D) in float16."""

    name: str
    batch: int
    lengths: tuple[int, ...]
    heads: int
    head_dim: int
    kernel_size: tuple[int, ...]
    dilation: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    bias: bool = False
    published_ms: str = ""


def family_a(batches: Sequence[int]) -> list[Case]:
    """NAT-Tiny's and DiNAT-Tiny's stages."""
    stages = ((56, 2, 8), (28, 4, 4), (14, 8, 2), (7, 16, 1))
    return [
        Case(f"stage {n + 1}, dilation {d}", b, (side, side), heads, 32, (7, 7), (d, d), bias=True)
        for b in batches
        for n, (side, heads, dilated) in enumerate(stages)
        for d in sorted({1, dilated})
    ]


FAMILY_B = [
    Case("2-D, window 80", 1, (256, 256), 24, 128, (80, 80), published_ms="16.2 + 2.4"),
    Case("2-D, window 80, stride 16", 1, (256, 256), 24, 128, (80, 80), stride=(16, 16), published_ms="7.9 + 2.7"),
    Case("3-D, window 18×24×24", 1, (30, 48, 80), 24, 128, (18, 24, 24), published_ms="79.0 + 5.4"),
    Case("3-D, stride 16×8×8", 1, (30, 48, 80), 24, 128, (18, 24, 24), stride=(16, 8, 8), published_ms="23.4 + 5.8"),
    *(
        Case(f"1-D, window 2048, stride {s}", 1, (32768,), 1, 128, (2048,), stride=(s,), published_ms=ms)
        for s, ms in ((1, "0.0948"), (256, "0.0627"), (2048, "0.0593"))
    ),
]


def milliseconds(candidates: dict[str, Callable[[], Any]], rounds: int = 15) -> dict[str, float]:
    """Return medians of CUDA graph replays, candidates in turn; a candidate that cannot be captured runs as it is."""
    import torch

    replays: dict[str, Callable[[], Any]] = {}
    for name, run in candidates.items():
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for _ in range(3):
                run()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                run()
            replays[name] = graph.replay
        except RuntimeError:
            torch.cuda.synchronize()
            replays[name] = run
    times: dict[str, list[float]] = {name: [] for name in replays}
    for _ in range(rounds):
        for name, run in replays.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            run()
            end.record()
            end.synchronize()
            times[name].append(start.elapsed_time(end))
    return {name: statistics.median(values) for name, values in times.items()}


def pairs_of(case: Case) -> int:
    """Count query-key pairs of a head and image."""
    from na_deploy.attention.windows import NeighborhoodSpec, attended_pairs

    spec = NeighborhoodSpec.create(len(case.lengths), case.kernel_size, case.dilation or 1, case.stride or 1)
    return attended_pairs(case.lengths, spec)


def time_case(kernels: Kernels, case: Case, copy_rate: float, peers: bool) -> dict[str, Any]:
    """Time every tile tactic and what else computes the same; the plain kernel checks them."""
    import torch
    import torch.nn.functional as F
    from cpu_library import Params, _sizes

    rank, tokens = len(case.lengths), prod(case.lengths)
    qkv = torch.randn(case.batch, *case.lengths, 3, case.heads, case.head_dim, device="cuda").half()
    bias = torch.randn(case.heads, *(2 * k - 1 for k in case.kernel_size), device="cuda").half() if case.bias else None
    output = torch.empty(case.batch, *case.lengths, case.heads, case.head_dim, device="cuda", dtype=torch.half)
    params = Params(
        rank=rank,
        packed=1,
        dtype=1,
        batch=case.batch,
        length=_sizes(case.lengths),
        heads=case.heads,
        key_heads=case.heads,
        head_dim=case.head_dim,
        value_dim=case.head_dim,
        kernel_size=_sizes(case.kernel_size),
        dilation=_sizes(case.dilation or (1,) * rank),
        stride=_sizes(case.stride or (1,) * rank),
        is_causal=_sizes((0,) * rank),
        query=qkv.data_ptr(),
        rel_pos_bias=None if bias is None else bias.data_ptr(),
        output=output.data_ptr(),
    )
    tactics = kernels.tactics(params)
    kernels.launch(params, PLAIN)
    expected = output.float().clone()
    worst = 0.0
    for tactic in tactics[:-1]:
        output.fill_(float("nan"))
        kernels.launch(params, tactic)
        difference = ((output.float() - expected).abs().max() / expected.abs().max()).item()
        worst = max(worst, difference if difference == difference else float("inf"))
    candidates: dict[str, Callable[[], Any]] = {
        NAMES[tactic]: (lambda t=tactic: kernels.launch(params, t)) for tactic in tactics[:-1]
    }
    query, key, value = (part.flatten(1, rank).transpose(1, 2).contiguous() for part in qkv.unbind(-3))
    if peers:
        candidates["full attention, SDPA"] = lambda: F.scaled_dot_product_attention(query, key, value)
        if case.batch * case.heads * tokens**2 * 2 < 8e9:
            mask = torch.zeros(case.batch, case.heads, tokens, tokens, device="cuda", dtype=torch.half)
            candidates["dense mask, SDPA"] = lambda: F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        flex = compiled_flex(case, query, key, value)
        if flex is not None:
            candidates["compiled flex"] = flex
    times = milliseconds(candidates)
    ours = {name: ms for name, ms in times.items() if name in NAMES.values()}
    best = min(ours, key=lambda name: ours[name])
    operations = 4.0 * case.head_dim * pairs_of(case) * case.heads * case.batch
    moved = 4.0 * case.batch * tokens * case.heads * case.head_dim * 2
    return {
        "case": case.name,
        "batch": case.batch,
        "default": f"{NAMES[tactics[0]]} {ours[NAMES[tactics[0]]]:.4f} ms",
        "best": f"{best} {ours[best]:.4f} ms",
        "TFLOP/s": operations / ours[best] / 1e9,
        "GB/s": moved / ours[best] / 1e6,
        "of copy": moved / ours[best] / 1e6 / copy_rate,
        "difference": worst,
        "published, H100": case.published_ms,
        **{name: ms / ours[best] for name, ms in times.items() if name not in ours},
        "all": times,
    }


def compiled_flex(case: Case, query: Any, key: Any, value: Any) -> Callable[[], Any] | None:
    """Return compiled flex attention with the window as block mask, without bias; None where it does not compile."""
    import numpy as np
    import torch
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    from na_deploy.attention.windows import window_bounds

    rank, tokens = len(case.lengths), prod(case.lengths)
    places = torch.from_numpy(np.indices(case.lengths).reshape(rank, -1)).cuda()
    steps, strides = case.dilation or (1,) * rank, case.stride or (1,) * rank
    axes = zip(case.lengths, case.kernel_size, steps, strides, strict=True)
    bounds = [tuple(torch.from_numpy(b).cuda() for b in window_bounds(*sizes)) for sizes in axes]

    def mask(batch: object, head: object, q: Any, k: Any) -> Any:
        sees = q >= 0
        for place, step, (start, end) in zip(places, steps, bounds, strict=True):
            element = place[k] // step
            same = place[q] % step == place[k] % step
            sees = sees & same & (element >= start[place[q]]) & (element < end[place[q]])
        return sees

    try:
        blocks = create_block_mask(mask, None, None, tokens, tokens, device="cuda", _compile=True)
        torch._dynamo.reset()
        compiled = torch.compile(flex_attention, dynamic=False)
        compiled(query, key, value, block_mask=blocks)
    except Exception as error:  # a peer that fails is told, not fatal
        print(f"compiled flex: {case.name}: {str(error).splitlines()[0][:200]}", file=sys.stderr)
        return None
    return lambda: compiled(query, key, value, block_mask=blocks)


def copy_gigabytes() -> float:
    """Return GB/s of a device copy, read and write counted."""
    import torch

    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    ms = milliseconds({"copy": lambda: target.copy_(source)})["copy"]
    return 2 * source.numel() / ms / 1e6


def graph_replays(kernels: Kernels) -> str:
    """Capture a launch, change the input, replay, and compare with a fresh launch."""
    import torch
    from cpu_library import Params, _sizes

    qkv = torch.randn(2, 28, 28, 3, 4, 32, device="cuda").half()
    captured, fresh = (torch.empty(2, 28, 28, 4, 32, device="cuda", dtype=torch.half) for _ in range(2))
    params = Params(
        rank=2, packed=1, dtype=1, batch=2, length=_sizes((28, 28)), heads=4, key_heads=4, head_dim=32, value_dim=32,
        kernel_size=_sizes((7, 7)), dilation=_sizes((2, 2)), stride=_sizes((1, 1)), is_causal=_sizes((0, 0)),
        query=qkv.data_ptr(), output=captured.data_ptr(),
    )  # fmt: skip
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kernels.launch(params, 0)
    qkv.copy_(torch.randn_like(qkv))
    graph.replay()
    params.output = fresh.data_ptr()
    kernels.launch(params, 0)
    torch.cuda.synchronize()
    return "captured and replayed" if torch.equal(captured, fresh) else "a replay differs from a launch"


def show(title: str, rows: Sequence[dict[str, Any]]) -> str:
    """Return rows as a Markdown table."""
    columns = list(dict.fromkeys(name for row in rows for name in row if name != "all"))
    lines = [f"\n## {title}\n", "| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for row in rows:
        cells = (row.get(name, "") for name in columns)
        lines.append("| " + " | ".join(f"{c:.3g}" if isinstance(c, float) else str(c) for c in cells) + " |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("gpu_check"), help="folder for the table and the numbers")
    parser.add_argument("--problems", type=int, default=120, help="random problems for correctness")
    parser.add_argument("--no-peers", dest="peers", action="store_false", help="time ours alone")
    parser.add_argument("--emulate", type=Path, metavar="LIBRARY", help="correctness alone, on the emulated GPU")
    arguments = parser.parse_args()
    import_ours()
    if arguments.emulate:
        library = ctypes.CDLL(str(arguments.emulate))

        def tactics(problem: Any) -> list[int]:
            found = (ctypes.c_int32 * 16)()
            return list(found[: library.na_cuda_tactics(ctypes.byref(problem.params), found, 16)])

        def emulate(problem: Any, tactic: int) -> None:
            assert library.na_forward_emulated(ctypes.byref(problem.params), tactic) == 0

        wrong = check_random(emulate, tactics, range(arguments.problems))
        print("\n".join(wrong) or f"{arguments.problems} random problems agree with float64 on the emulated GPU")
        return 1 if wrong else 0

    import torch

    arguments.output.mkdir(parents=True, exist_ok=True)
    major, minor = torch.cuda.get_device_capability()
    architecture = f"sm_{major}{minor}" + ("a" if major >= 9 else "")
    with tempfile.TemporaryDirectory() as folder:
        print(f"compiling for {architecture}", flush=True)
        kernels = Kernels(build_library(Path(folder), architecture))
        print("checking against float64", flush=True)
        wrong = check_random(
            on_device(kernels), lambda problem: kernels.tactics(problem.params), range(arguments.problems)
        )
        print("compiling for and checking ONNX Runtime's CUDA provider", flush=True)
        onnxruntime, disagrees = build_and_check(
            Path(folder) / "onnxruntime", architecture.removeprefix("sm_") + "-real"
        )
        report = [
            f"# GPU check\n\n{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}, PyTorch {torch.__version__}\n",
            "\n".join(wrong) or f"{arguments.problems} random problems agree with float64 in every tactic.",
            f"CUDA graphs: {graph_replays(kernels)}.",
            "\n".join([onnxruntime, *disagrees]),
        ]
        wrong += disagrees
        copy_rate = copy_gigabytes()
        report.append(f"Device copy: {copy_rate:.0f} GB/s.")
        numbers: dict[str, Any] = {"copy GB/s": copy_rate, "wrong": wrong}
        for title, cases in (("Family A: NAT and DiNAT", family_a((64, 128))), ("Family B: large windows", FAMILY_B)):
            rows = []
            for case in cases:
                print(title, case.name, case.batch, flush=True)
                rows.append(time_case(kernels, case, copy_rate, arguments.peers))
                numbers[title] = rows
                (arguments.output / "gpu_check.json").write_text(json.dumps(numbers, indent=1))
            report.append(show(title, rows))
            (arguments.output / "gpu_check.md").write_text("\n".join(report) + "\n")
    print("\n".join(report))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
