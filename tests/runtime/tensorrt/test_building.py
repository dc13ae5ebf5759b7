"""Building bundles for TensorRT, from Python and from the command line. On the fakes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

import na_deploy
from na_deploy.cli.build import parse_bytes
from na_deploy.cli.main import run
from na_deploy.errors import NaDeployError, UsageError
from na_deploy.runtime.building.build import build
from na_deploy.runtime.building.options import BuildOptions
from na_deploy.runtime.bundle.manifest import Profile
from na_deploy.runtime.tensorrt.progress import Phases

WriteModel = Callable[..., Path]


def header(bundle: Path) -> dict:
    """Return the header that the fake wrote into its engine."""
    plan = (bundle / "model.engine").read_bytes()
    size = int.from_bytes(plan[4:8], "little")
    return json.loads(plan[12 : 12 + size])


def left_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_the_summary_says_what_was_built(machine, write_model: WriteModel, tmp_path: Path, plugin_library, capsys):
    arguments = ["build", write_model(batch="batch"), "-o", tmp_path / "b.zip", "--backend", "tensorrt"]
    code = run([str(x) for x in [*arguments, "--batch", "1:2:8", "--plugins", "embed"]])
    out, err = capsys.readouterr()
    assert (code, err) == (0, "")
    text = " ".join(out.split())
    assert "2 neighborhood attention nodes run on the plugin library (libna_deploy_trt.so)" in text
    assert "plugins: 2 NeighborhoodAttentionQKV; tactics: pluginv3_kernel (2)" in text
    assert "layers: " in text
    assert "compute_capability 9.0" in text
    assert "lib/libna_deploy_trt.so" in text
    assert "layers.json" in text
    with na_deploy.load(tmp_path / "b.zip") as session:
        assert session.library is not None
        assert session.library.name == "libna_deploy_trt.so"
        session.warm_up({"image": (2, 3, 32, 32)})


@pytest.mark.parametrize("version", ["10.0.1.6", "10.6.0.26", "10.7.0.23"])
def test_parsers_that_inline_function_bodies_are_given_a_model_without(
    machine, write_model: WriteModel, tmp_path: Path, plugin_library, version: str
):
    """Before 10.7 a function body goes before a plugin."""
    machine.set(FAKE_TENSORRT_VERSION=version, FAKE_TENSORRT="10")
    summary = build(write_model(), tmp_path / "b.bundle", BuildOptions(backend="tensorrt", plugins="embed"))
    assert summary.manifest.requires["plugins"] == "NeighborhoodAttentionQKV"
    assert summary.manifest.build["plugins"] == {"NeighborhoodAttentionQKV": 2}


def test_the_summary_says_plugins_of_what_is_in_the_network(machine, write_model: WriteModel, tmp_path, plugin_library):
    """A library whose plugins no node of the model uses is registered and changes nothing."""
    plugin_library.write_text('{"operators": ["NeighborhoodAttention"]}')
    summary = build(write_model(), tmp_path / "b.bundle", BuildOptions(backend="tensorrt"))
    assert "plugins" not in summary.manifest.requires
    assert summary.manifest.build["plugins"] == {}


def test_without_the_plugin_library_the_function_bodies_are_built(machine, write_model: WriteModel, tmp_path: Path):
    summary = build(write_model(), tmp_path / "b.bundle", BuildOptions(backend="tensorrt"))
    assert summary.attention_runs == "function bodies"
    assert "plugins" not in summary.manifest.requires
    assert summary.manifest.build["driver_cuda"] == "13.0"
    assert summary.manifest.build["plugins"] == {}
    with pytest.raises(NaDeployError, match="no TensorRT plugin library to embed"):
        build(write_model(), tmp_path / "c.bundle", BuildOptions(backend="tensorrt", plugins="embed"))
    assert "c.bundle" not in left_in(tmp_path)


def test_an_engine_with_plugins_says_so_where_the_library_is_missing(
    machine, write_model: WriteModel, tmp_path: Path, plugin_library, monkeypatch
):
    target = tmp_path / "b.bundle"
    build(write_model(), target, BuildOptions(backend="tensorrt"))
    monkeypatch.setenv("NA_DEPLOY_TRT_LIBRARY", "")
    with pytest.raises(NaDeployError, match="it needs a plugin that is not registered"):
        na_deploy.load(target)


def test_a_library_without_our_plugins_is_refused(machine, write_model: WriteModel, tmp_path: Path, plugin_library):
    plugin_library.write_text('{"operators": []}')
    with pytest.raises(NaDeployError, match="it brings no neighborhood attention plugin"):
        build(write_model(), tmp_path / "b.bundle", BuildOptions(backend="tensorrt"))
    plugin_library.write_text("not a library")
    with pytest.raises(NaDeployError, match="refuses the plugin library"):
        build(write_model(), tmp_path / "b.bundle", BuildOptions(backend="tensorrt"))


def test_options_reach_the_builder(machine, write_model: WriteModel, tmp_path: Path):
    cache = tmp_path / "timing.cache"
    options = BuildOptions(
        backend="tensorrt",
        timing_cache=cache,
        workspace=1 << 28,
        refit=True,
        hardware_compatible=True,
        version_compatible=True,
    )
    summary = build(write_model(), tmp_path / "b.bundle", options)
    found = header(tmp_path / "b.bundle")
    assert (found["workspace"], found["refit"]) == (1 << 28, True)
    assert (found["hardware_compatible"], found["version_compatible"]) == (True, True)
    assert summary.manifest.requires["compute_capability"] == ">=8.0"
    assert summary.manifest.requires["version_compatible"] == "yes"
    first = json.loads(cache.read_text())
    assert len(first) > 5
    cache.write_text(json.dumps(["known before"]))
    build(write_model(), tmp_path / "b.bundle", options)
    assert set(json.loads(cache.read_text())) == {"known before", *first}
    assert left_in(tmp_path) == {"b.bundle", "small.onnx", "timing.cache"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "onnxruntime", "refit": True}, "--refit does not apply: onnxruntime builds no engine"),
        ({"backend": "onnxruntime", "workspace": 1}, "--workspace does not apply"),
        ({"backend": "tensorrt-rtx", "timing_cache": Path("x")}, "--timing-cache does not apply: TensorRT-RTX times"),
        ({"backend": "tensorrt-rtx", "hardware_compatible": True}, "every GPU from compute capability 8.0 on"),
        ({"backend": "tensorrt-rtx", "version_compatible": True}, "the version that built them only"),
        ({"backend": "tensorrt-rtx", "plugins": "embed"}, "takes no operator library"),
        ({"backend": "tensorrt", "workspace": 0}, "at least one byte"),
    ],
)
def test_options_that_make_no_sense_are_refused_with_the_reason(options: dict, message: str):
    with pytest.raises(UsageError, match=message):
        BuildOptions(**options)


@pytest.mark.parametrize(("text", "size"), [("512", 512), ("2GiB", 2 << 30), ("1.5 MB", 1_500_000), ("64k", 64_000)])
def test_sizes_of_memory_are_read(text: str, size: int):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "-1", "2 TiB", "1e9"])
def test_other_sizes_of_memory_are_refused(text: str):
    with pytest.raises(UsageError, match="cannot read the size"):
        parse_bytes(text)


def test_a_refused_model_names_the_node(machine, write_model: WriteModel, tmp_path: Path):
    model = write_model()
    proto = onnx.load(model)
    proto.graph.node.insert(0, onnx.helper.make_node("NonZero", ["image"], ["unused"], name="stray"))
    onnx.save(proto, model)
    with pytest.raises(NaDeployError, match=r"ONNX parser refused the model: node 'stray' \(NonZero\): no importer"):
        build(model, tmp_path / "b.bundle", BuildOptions(backend="tensorrt"))


def test_what_tensorrt_says_is_in_the_error(machine, write_model: WriteModel, tmp_path: Path):
    machine.set(FAKE_BUILD_FAILS="Could not find any implementation for node head")
    with pytest.raises(NaDeployError, match="Could not find any implementation for node head"):
        build(write_model(), tmp_path / "b.bundle", BuildOptions(backend="tensorrt"))
    assert left_in(tmp_path) == {"small.onnx"}


def test_a_crash_of_the_builder_is_an_error(machine, write_model: WriteModel, tmp_path: Path):
    machine.set(FAKE_BUILD_CRASH=1)
    with pytest.raises(NaDeployError, match=r"TensorRT crashed while building \(SIGABRT\)"):
        build(write_model(), tmp_path / "b.bundle", BuildOptions(backend="tensorrt"))
    assert left_in(tmp_path) == {"small.onnx"}


def test_a_build_that_takes_too_long_is_given_up(machine, write_model: WriteModel, tmp_path: Path):
    machine.set(FAKE_BUILD_SECONDS=60)
    started = time.monotonic()
    with pytest.raises(NaDeployError, match=r"did not finish .* within 3 s; raise --timeout"):
        build(write_model(), tmp_path / "b.bundle", BuildOptions(backend="tensorrt", timeout_s=3))
    assert time.monotonic() - started < 20
    assert left_in(tmp_path) == {"small.onnx"}


def test_a_machine_without_a_gpu_is_told_so(machine, write_model: WriteModel, tmp_path: Path):
    machine.set(FAKE_CUDA_DEVICES=-1)
    with pytest.raises(NaDeployError, match="engines run on an NVIDIA GPU with its driver"):
        build(write_model(), tmp_path / "b.bundle", BuildOptions(backend="tensorrt"))


def test_progress_goes_from_nothing_to_everything(machine, write_model: WriteModel, tmp_path: Path):
    machine.set(FAKE_BUILD_SECONDS=1)
    seen: list[tuple[float, list[str]]] = []

    def watch(phases: Phases) -> None:
        seen.append((phases.fraction, [phase.name for phase in phases.open]))

    build(write_model(), tmp_path / "b.bundle", BuildOptions(backend="tensorrt"), watch=watch)
    fractions = [fraction for fraction, _ in seen]
    assert fractions == sorted(fractions)
    assert fractions[0] < 0.1
    assert len(set(fractions)) > 5
    assert (0.5 <= fractions[-1] <= 1.0, seen[-1][1]) == (True, [])
    assert any(names == ["Building Engine", "Timing"] for _, names in seen)


def test_the_estimate_follows_the_clock():
    now = [0.0]
    phases = Phases(clock=lambda: now[0])
    phases.update({"event": "phase", "name": "a", "parent": None, "steps": 4})
    assert phases.seconds_left() is None
    now[0] = 10.0
    phases.update({"event": "step", "name": "a", "step": 0})
    assert (phases.fraction, phases.seconds_left()) == (0.25, 30.0)
    phases.update({"event": "phase", "name": "b", "parent": "a", "steps": 2})
    phases.update({"event": "step", "name": "b", "step": 0})
    assert phases.fraction == 0.375
    assert not phases.update({"event": "log", "severity": "warning", "text": ""})


def start_build(write_model: WriteModel, target: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "na_deploy.cli.main"]
    code = "import sys; from na_deploy.cli.main import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", code, "build", str(write_model()), "-o", str(target), "--backend", "tensorrt"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def workers(parent: int) -> list[int]:
    """Processes of the machine that build for ``parent``."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                line = (entry / "cmdline").read_bytes()
                status = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            if b"build_worker" in line and int(status[1]) in (parent, 1):
                found.append(int(entry.name))
    return found


def wait_until(condition: Callable[[], object], seconds: float = 30.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.05)


@pytest.mark.parametrize(("signal_number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_an_interrupted_build_leaves_the_old_bundle_and_no_process(
    machine, bundle: Path, write_model: WriteModel, tmp_path: Path, monkeypatch, signal_number: int, code: int
):
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    machine.set(FAKE_BUILD_SECONDS=60)
    before = (bundle / "manifest.json").read_bytes()
    process = start_build(write_model, bundle)
    wait_until(lambda: workers(process.pid))
    (worker,) = workers(process.pid)
    process.send_signal(signal_number)
    process.communicate(timeout=30)
    assert process.returncode == code
    wait_until(lambda: not Path(f"/proc/{worker}").exists() or "Z" in Path(f"/proc/{worker}/stat").read_text().split())
    assert (bundle / "manifest.json").read_bytes() == before
    assert left_in(tmp_path) == {"small.bundle", "small.onnx", "tmp"}
    if signal_number == signal.SIGINT:
        assert left_in(temporary) == set()
    machine.set(FAKE_BUILD_SECONDS=0)
    with na_deploy.load(bundle) as session:
        session.warm_up({"image": (1, 3, 32, 32)})


def test_builds_to_one_place_leave_one_whole_bundle(machine, write_model: WriteModel, tmp_path: Path):
    model, target = write_model(), tmp_path / "b.bundle"
    failures: list[BaseException] = []

    def work() -> None:
        try:
            build(model, target, BuildOptions(backend="tensorrt"))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures
    assert left_in(tmp_path) == {"b.bundle", "small.onnx"}
    with na_deploy.load(target) as session:
        session.run(np.random.default_rng(0).standard_normal((1, 3, 32, 32), dtype=np.float32))
    assert os.environ["FAKE_TENSORRT"] in ("10", "11")


def test_options_reach_the_building_process_as_they_are():
    options = BuildOptions(
        backend="tensorrt",
        batch=(1, 4, 8),
        size=((224, 224), (256, 256), (384, 512)),
        threads=3,
        timing_cache=Path("tactics.cache"),
        workspace=1 << 30,
        refit=True,
        device=1,
        library=Path("/opt/lib.so"),
        profiles={"image": Profile((1, 3, 8, 8), (2, 3, 8, 8), (4, 3, 8, 8))},
    )
    assert BuildOptions.from_json(options.to_json()) == options
    assert BuildOptions.from_json(BuildOptions().to_json()) == BuildOptions()
