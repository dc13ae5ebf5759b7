"""Everything about the GPU kernels that needs a GPU, in one command: build, correctness, graph capture, timings.

    bash scripts/gpu_check.sh [folder for results]

Needs a CUDA toolkit (nvcc), PyTorch for the same CUDA, NumPy, ml_dtypes and pytest; nothing of na-deploy has to be
installed. Where onnxruntime-gpu and onnx are there too, and CMake finds what docs/build.md lists, a model runs through
ONNX Runtime's CUDA provider; where not, the report says so. Correctness is held to float64 on random problems, a few of
them under compute-sanitizer, and to the plain kernel on large ones. Times are medians of CUDA graph replays, candidates
in turn. ``--emulate LIBRARY`` runs the correctness part alone on the emulated GPU of the tests, without PyTorch.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gpu_check_build import NAMES, Kernels, build_library, tactics_of
from gpu_check_onnxruntime import build_and_check
from gpu_check_timings import FAMILY_B, NARROW, Case, family_a, other_windows, prepare, time_case

ROOT = Path(__file__).parents[1]
SANITIZERS = ("memcheck", "racecheck")
SANITIZED_PROBLEMS = 3


def import_ours() -> None:
    """Make ``na_deploy`` importable from the source tree where it is not installed."""
    sys.path.insert(0, str(ROOT / "tests" / "plugins"))
    try:
        import na_deploy.attention  # noqa: F401
    except ImportError:
        sys.path.insert(0, str(ROOT / "src"))


def check_random(run: Callable[[Any, int], None], tactics: Callable[[Any], list[int]], seeds: range) -> list[str]:
    """Hold every tactic to float64 on random problems; return sentences about those that differ."""
    from test_gpu_kernels import BFLOAT, DTYPES, HALF, agree, random_problem, small_map

    wrong = []
    for seed in seeds:
        for dtype in DTYPES:
            dims = [1, 7, 24, 33, 100] if seed % 3 == 0 else [8, 16, 24, 32, 48, 64] if seed % 4 else [96, 128]
            if seed % 5 == 1:
                problem, spec, scale = small_map(seed, dtype, dims)
            elif seed % 5 == 3 and dtype in (HALF, BFLOAT):  # sizes that Hopper's kernels take
                problem, spec, scale = random_problem(seed, dtype, [64, 128], large_windows=True)
            else:
                problem, spec, scale = random_problem(seed, dtype, dims)
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


def check_emulated(path: Path, seeds: range) -> list[str]:
    """Run the kernels' source on the emulated GPU of the tests."""
    library = ctypes.CDLL(str(path))

    def emulate(problem: Any, tactic: int) -> None:
        assert library.na_forward_emulated(ctypes.byref(problem.params), tactic) == 0

    return check_random(emulate, lambda problem: tactics_of(library, problem.params), seeds)


def check_on_device(library: Path, seeds: range) -> list[str]:
    """Run the compiled kernels on the present device."""
    kernels = Kernels(library)
    return check_random(on_device(kernels), lambda problem: kernels.tactics(problem.params), seeds)


def sanitize(library: Path) -> list[str]:
    """Run a few problems under compute-sanitizer; return sentences about its findings, or its absence."""
    if shutil.which("compute-sanitizer") is None:
        return ["compute-sanitizer was not found: memory was not checked."]
    told = []
    script = [sys.executable, __file__, "--library", str(library), "--problems", str(SANITIZED_PROBLEMS)]
    for tool in SANITIZERS:
        command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", *script]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        except subprocess.TimeoutExpired:
            told.append(f"compute-sanitizer, {tool}: not done after two minutes.")
            continue
        lines = (done.stdout + done.stderr).strip().splitlines() or ["it said nothing"]
        told.append(f"compute-sanitizer, {tool}: " + ("no error." if done.returncode == 0 else f"{lines[-1][:300]}."))
    return told


def graph_replays(kernels: Kernels) -> str:
    """Capture a launch, change the input, replay, and compare with a fresh launch."""
    import torch

    params, (qkv, captured, _) = prepare(Case("replay", 2, (28, 28), 4, 32, (7, 7), (2, 2)))
    fresh = torch.empty_like(captured)
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


def report(arguments: argparse.Namespace) -> bool:
    """Build, check and time everything; return whether all was right."""
    import torch

    start = time.monotonic()
    arguments.output.mkdir(parents=True, exist_ok=True)
    major, minor = torch.cuda.get_device_capability()
    architecture = f"{major}{minor}" + ("a" if major >= 9 else "")
    problems = range(arguments.problems)
    with tempfile.TemporaryDirectory() as folder:
        print(f"compiling for sm_{architecture}", flush=True)
        library = build_library(Path(folder), architecture)
        print("checking against float64", flush=True)
        wrong = check_on_device(library, problems)
        print("checking memory", flush=True)
        sanitized = sanitize(library)
        print("compiling for and checking ONNX Runtime's CUDA provider", flush=True)
        onnxruntime, disagrees = build_and_check(Path(folder) / "onnxruntime", f"{architecture}-real")
        kernels = Kernels(library)
        text = [
            f"# GPU check\n\n{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}, PyTorch {torch.__version__}\n",
            "\n".join(wrong) or f"{len(problems)} random problems agree with float64 in every tactic.",
            "\n".join(sanitized),
            f"CUDA graphs: {graph_replays(kernels)}.",
            "\n".join([onnxruntime, *disagrees]),
        ]
        wrong += disagrees
        numbers: dict[str, Any] = {"wrong": wrong}
        for title, cases in (
            ("NAT's and DiNAT's stages", family_a((1, 16, 128))),
            ("NATTEN's published problems, and with 64 channels", [*FAMILY_B, *NARROW]),
            ("Other windows and maps", other_windows()),
        ):
            rows = []
            for case in cases:
                flex = time.monotonic() - start < arguments.flex_seconds
                print(f"{title}, {case.name}, batch {case.batch}", flush=True)
                rows.append(time_case(kernels, case, arguments.peers, flex))
                numbers[title] = rows
                (arguments.output / "gpu_check.json").write_text(json.dumps(numbers, indent=1))
            text.append(show(title, rows))
            (arguments.output / "gpu_check.md").write_text("\n".join(text) + "\n")
    print("\n".join(text))
    return not wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("gpu_check"), help="folder for the table and the numbers")
    parser.add_argument("--problems", type=int, default=120, help="random problems for correctness")
    parser.add_argument("--no-peers", dest="peers", action="store_false", help="time ours alone")
    parser.add_argument(
        "--flex-seconds",
        type=float,
        default=240.0,
        help="seconds after which flex attention is left out: compiling it takes longest",
    )
    parser.add_argument("--emulate", type=Path, metavar="LIBRARY", help="correctness alone, on the emulated GPU")
    parser.add_argument("--library", type=Path, help="correctness alone, of kernels compiled before, on the GPU")
    arguments = parser.parse_args()
    import_ours()
    if not arguments.emulate:
        import torch

        if not torch.cuda.is_available():
            print("error: PyTorch finds no GPU; run this where torch.cuda.is_available()", file=sys.stderr)
            return 1
    if not (arguments.emulate or arguments.library):
        return 0 if report(arguments) else 1
    seeds = range(arguments.problems)
    where, check = ("the emulated GPU", check_emulated) if arguments.emulate else ("the GPU", check_on_device)
    wrong = check(arguments.emulate or arguments.library, seeds)
    print("\n".join(wrong) or f"random problems that agree with float64 on {where}: {len(seeds)}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
