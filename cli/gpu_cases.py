"""The cases of ``na-deploy doctor --gpu``. How they are run is :mod:`na_deploy.cli.gpu_check`'s."""

from __future__ import annotations

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from na_deploy.cli.gpu_check import Bench, Case, Skipped
from na_deploy.errors import NaDeployError, UsageError
from na_deploy.runtime.bundle import open_bundle, read_manifest
from na_deploy.runtime.native_libraries import CUDA_PROVIDER, tensorrt_library
from na_deploy.runtime.session import load
from na_deploy.runtime.tensorrt.example import compile_example, find_cuda

_FUZZED = 24
_TIMED_S = 1.0


def machine(bench: Bench) -> str:
    """Name GPU, driver and library."""
    from na_deploy.runtime.tensorrt.api import TENSORRT, load_module
    from na_deploy.runtime.tensorrt.cuda import load_cuda

    cuda = load_cuda()
    cuda.device_count()
    cuda.use_device(bench.device)
    major, minor = cuda.compute_capability(bench.device)
    driver, free = cuda.driver_version(), cuda.memory()[0] / (1 << 30)
    text = f"{cuda.device_name(bench.device)}, compute capability {major}.{minor}, {free:.1f} GiB free"
    return (
        f"{text}, driver for CUDA {driver // 1000}.{driver % 1000 // 10}, TensorRT {load_module(TENSORRT).__version__}"
    )


def _accuracy(bench: Bench, bundle: Path, dtype: str = "float32") -> str:
    worst = 0.0
    with bench.session(bundle) as session:
        for batch in (1, 4, 8, 3):
            array = bench.images(batch, dtype, batch)
            worst = max(worst, bench.difference(session.run(array)["scores"], array, dtype))
    return f"largest relative difference to ONNX Runtime {worst:.1e} in batches of 1, 3, 4 and 8"


def function_bodies(bench: Bench) -> str:
    """Build from the function bodies and compare."""
    hidden = os.environ.get("NA_DEPLOY_TRT_LIBRARY")
    os.environ["NA_DEPLOY_TRT_LIBRARY"] = ""
    try:
        return _accuracy(bench, bench.bundle("tensorrt", "bodies"))
    finally:
        os.environ.pop("NA_DEPLOY_TRT_LIBRARY")
        if hidden is not None:
            os.environ["NA_DEPLOY_TRT_LIBRARY"] = hidden


def plugin(bench: Bench) -> str:
    """Build with na-deploy's plugin; the inspector must show it; compare."""
    _need_plugin()
    bundle = bench.bundle("tensorrt")
    figures = read_manifest(bundle).build
    count = sum(dict(figures.get("plugins", {})).values())
    if count != 2:
        raise NaDeployError(f"the engine inspector shows {count} plugin layers of ours, not 2: {figures}")
    return f"{_accuracy(bench, bundle)}; tactics {', '.join(figures['plugin_tactics'])}"


def half_precision(bench: Bench) -> str:
    """Compare a float16 model."""
    return _accuracy(bench, bench.bundle("tensorrt", dtype="float16"), "float16")


def bfloat16(bench: Bench) -> str:
    """Compare a bfloat16 model."""
    return _accuracy(bench, bench.bundle("tensorrt", dtype="bfloat16"), "bfloat16")


def profiles(bench: Bench) -> str:
    """Have sizes outside the profile refused by name."""
    with bench.session(bench.bundle("tensorrt")) as session:
        try:
            session.run(bench.images(9))
        except UsageError as error:
            return f"refused: {error}"
    raise NaDeployError("a batch of 9 ran in an engine for 1 to 8")


def cuda_graphs(bench: Bench) -> str:
    """Record and launch graphs for several shapes, beyond the bound, with the right results."""
    with bench.session(bench.bundle("tensorrt"), contexts=1, cuda_graphs=2) as session:
        for batch in (8, 1, 2, 1, 2, 1, 2, 3, 3, 3, 1, 1, 1):
            array = bench.images(batch, seed=batch)
            bench.difference(session.run(array)["scores"], array)
        (figures,) = session.graph_figures
    if figures.refusal or not figures.launched:
        raise NaDeployError(f"no graph was launched: {figures}")
    return f"{figures.captured} recorded, launched {figures.launched} times, {figures.dropped} dropped for others"


def onnxruntime_graphs(bench: Bench) -> str:
    """Capture and launch graphs of ONNX Runtime for several shapes in turn, beyond the bound; compare."""
    import onnxruntime

    if CUDA_PROVIDER not in onnxruntime.get_available_providers():
        raise Skipped("onnxruntime-gpu is not installed")
    worst = 0.0
    with load(bench.model(), device=bench.device, cuda_graphs=2) as session:
        for call, batch in enumerate((8, 1, 2, 8, 1, 2, 8, 1, 2, 1, 1, 8)):
            array = bench.images(batch, seed=call)
            worst = max(worst, bench.difference(session.run(array)["scores"], array))
        (figures,) = session.graph_figures
        where = session.attention
    if not figures.launched:
        raise NaDeployError(f"no graph was launched: {figures}")
    found = f"{figures.captured} captured, launched {figures.launched} times; {worst:.1e} from the CPU"
    return f"{found}; attention: {where}"


def arrays_on_the_gpu(bench: Bench) -> str:
    """Pass arrays of torch and CuPy in and out without copies."""
    array, tried = bench.images(4), []
    with bench.session(bench.bundle("tensorrt")) as session:
        kept = session.run_on_device(array)["scores"]
        for name in ("torch", "cupy"):
            try:
                library = __import__(name)
                on_gpu = _to_gpu(library, name, array, bench.device)
            except ImportError:
                continue
            for _ in range(4):
                result = session.run_on_device(on_gpu)["scores"]
            bench.difference(_to_host(library, name, result), array)
            bench.difference(_to_host(library, name, kept), array)
            tried.append(name)
    if not tried:
        raise Skipped("neither torch with CUDA nor CuPy is installed")
    return f"{' and '.join(tried)}: right, in and out"


def threads(bench: Bench) -> str:
    """Share a session among eight threads."""
    arrays = [bench.images(1 + seed % 4, seed=seed) for seed in range(32)]
    with bench.session(bench.bundle("tensorrt"), contexts=3) as session, ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda array: session.run(array)["scores"], arrays))
    worst = max(bench.difference(found, array) for found, array in zip(results, arrays, strict=True))
    return f"32 calls of 8 threads in 3 contexts; largest relative difference {worst:.1e}"


def out_of_memory(bench: Bench) -> str:
    """Fill the GPU; a call must fail with a sentence, and work again afterwards."""
    from na_deploy.runtime.tensorrt.cuda import OutOfDeviceMemoryError, load_cuda

    cuda, taken, size = load_cuda(), [], 1 << 30
    with bench.session(bench.bundle("tensorrt"), contexts=1) as session:
        cuda.use_device(bench.device)
        try:
            while size >= 1 << 16:
                try:
                    taken.append(cuda.allocate(size))
                except OutOfDeviceMemoryError:
                    size //= 2
            try:
                session.run(bench.images(8))
                said = "the call still found memory that TensorRT had kept"
            except NaDeployError as error:
                said = f"said: {error}"
        finally:
            for address in taken:
                cuda.free(address)
        array = bench.images(8)
        bench.difference(session.run(array)["scores"], array)
    return f"{said}; works again afterwards"


def damaged_engines(bench: Bench) -> str:
    """Load engines with a bit changed in many places, and cut off: errors, or a load that survives its trial."""
    from na_deploy.runtime.session import load

    with open_bundle(bench.bundle("tensorrt")) as bundle:
        whole = bundle.file("engine").read_bytes()
    random, outcomes = np.random.default_rng(0), {"refused": 0, "crashed in the trial": 0, "loaded": 0}
    damaged = bench.folder / "damaged.engine"
    for index in range(_FUZZED):
        content = bytearray(whole)
        if index % 4 == 3:
            content = content[: int(random.integers(len(content)))]
        else:
            begin = index * len(whole) // _FUZZED
            content[begin + int(random.integers(len(whole) // _FUZZED))] ^= 1 << int(random.integers(8))
        damaged.write_bytes(content)
        try:
            load(damaged, backend="tensorrt", device=bench.device).close()
            outcomes["loaded"] += 1  # a changed weight is a valid engine to TensorRT; only a bundle's hash finds it
        except NaDeployError as error:
            outcomes["crashed in the trial" if "crashed" in str(error) else "refused"] += 1
    return ", ".join(f"{count} {name}" for name, count in outcomes.items())


def timing_cache(bench: Bench) -> str:
    """Build twice with one timing cache."""
    cache, seconds = bench.folder / "timing.cache", []
    for index in range(2):
        started = perf_counter()
        bench.bundle("tensorrt", f"cached{index}", timing_cache=cache)
        seconds.append(perf_counter() - started)
    return f"{cache.stat().st_size} bytes; {seconds[0]:.1f} s, then {seconds[1]:.1f} s"


def compatible_engines(bench: Bench) -> str:
    """Build and run engines for other GPUs and other versions."""
    kinds: dict[str, dict[str, Any]] = {
        "hardware": {"hardware_compatible": True},
        "version": {"version_compatible": True},
    }
    for name, options in kinds.items():
        _accuracy(bench, bench.bundle("tensorrt", name, **options))
    return "hardware-compatible and version-compatible engines build, load and are right"


def refit_and_workspace(bench: Bench) -> str:
    """Build and run an engine whose weights can be replaced, with little scratch memory."""
    return _accuracy(bench, bench.bundle("tensorrt", "refit", refit=True, workspace=64 << 20))


def embedded_plugin(bench: Bench) -> str:
    """Build an archive with the plugin inside, and run it with the installed one hidden."""
    _need_plugin()
    return _accuracy(bench, bench.bundle("tensorrt", "embedded", plugins="embed"))


def tensorrt_rtx(bench: Bench) -> str:
    """Build with TensorRT-RTX and run on this GPU."""
    text = _accuracy(bench, bench.bundle("tensorrt-rtx"))
    return f"TensorRT-RTX {read_manifest(bench.bundle('tensorrt-rtx')).requires['tensorrt_rtx']}: {text}"


def cpp_example(bench: Bench) -> str:
    """Compile examples/cpp/run_engine.cpp and run an engine with it."""
    source = Path(__file__).resolve().parent.parent / "examples" / "cpp" / "run_engine.cpp"
    root, compiler, cuda = os.environ.get("TENSORRT_ROOT"), shutil.which("c++") or shutil.which("g++"), find_cuda()
    if root is None or compiler is None or cuda is None or not source.is_file():
        raise Skipped("needs TENSORRT_ROOT (TensorRT's folder), CUDA_HOME, a C++ compiler and na-deploy's sources")
    program = compile_example(source, Path(root), cuda, bench.folder / "run_engine", compiler)
    with open_bundle(bench.bundle("tensorrt")) as bundle:
        library = tensorrt_library()
        arguments = [str(program), str(bundle.file("engine")), *([] if library is None else [str(library)])]
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode != 0:
        raise NaDeployError(f"run_engine failed: {(done.stderr or done.stdout).strip()}")
    return done.stdout.strip()


def overhead(bench: Bench) -> str:
    """Time a session: per call, what graphs win, what overlapping copies win."""
    array, figures = bench.images(1), {}
    for name, graphs in (("with graphs", 4), ("without", 0)):
        with bench.session(bench.bundle("tensorrt"), contexts=1, cuda_graphs=graphs) as session:
            figures[name] = _microseconds(session, array)
    with bench.session(bench.bundle("tensorrt"), contexts=1) as session:
        on_gpu = session.run_on_device(array)  # also shows that results of a call can wait on the GPU
        figures["left on the GPU"] = _microseconds(session, array, on_device=True)
        del on_gpu
    per_second = []
    large = bench.images(8)
    for streams in (1, 2):
        with bench.session(bench.bundle("tensorrt"), contexts=streams) as session, ThreadPoolExecutor(2) as pool:
            list(pool.map(session.run, [large] * 8))
            started, calls = perf_counter(), 64
            list(pool.map(session.run, [large] * calls))
            per_second.append(8 * calls / (perf_counter() - started))
    text = ", ".join(f"{name} {value:.0f} µs" for name, value in figures.items())
    overlap = f"1 stream {per_second[0]:.0f}, 2 streams {per_second[1]:.0f}"
    return f"a call of one image: {text}; images per second of 2 threads: {overlap}"


def _microseconds(session: Any, array: Any, on_device: bool = False) -> float:
    call = session.run_on_device if on_device else session.run
    for _ in range(5):
        call(array)
    times: list[float] = []
    until = perf_counter() + _TIMED_S
    while perf_counter() < until or not times:
        started = perf_counter()
        call(array)
        times.append(perf_counter() - started)
    return 1e6 * float(np.median(times))


def _need_plugin() -> None:
    if tensorrt_library() is None:
        raise Skipped("the plugin library for TensorRT is not built; NA_DEPLOY_TRT_LIBRARY names one elsewhere")


def _to_gpu(library: Any, name: str, array: Any, device: int) -> Any:
    if name == "torch":
        if not library.cuda.is_available():
            raise ImportError
        return library.from_numpy(array).to(f"cuda:{device}")
    with library.cuda.Device(device):
        return library.asarray(array)


def _to_host(library: Any, name: str, array: Any) -> Any:
    if name == "torch":
        return library.from_dlpack(array).cpu().numpy()
    return library.asarray(array).get()


CASES: dict[str, Case] = {
    "machine": machine,
    "function bodies in TensorRT": function_bodies,
    "plugin in TensorRT": plugin,
    "float16": half_precision,
    "bfloat16": bfloat16,
    "optimization profiles": profiles,
    "CUDA graphs": cuda_graphs,
    "CUDA graphs in ONNX Runtime": onnxruntime_graphs,
    "arrays on the GPU": arrays_on_the_gpu,
    "threads": threads,
    "out of memory": out_of_memory,
    "damaged engines": damaged_engines,
    "timing cache": timing_cache,
    "compatible engines": compatible_engines,
    "refit and workspace": refit_and_workspace,
    "embedded plugin": embedded_plugin,
    "TensorRT-RTX": tensorrt_rtx,
    "C++ example": cpp_example,
    "host overhead": overhead,
}
"""Every case by its name in docs/engines.md."""
