"""Engines that are damaged, of another version, of another GPU; machines without what is needed. On the fakes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import na_deploy
from na_deploy.errors import MissingDependencyError, NaDeployError, UsageError
from na_deploy.runtime.tensorrt.api import TENSORRT, load_module
from na_deploy.runtime.tensorrt.engine import explain
from na_deploy.runtime.tensorrt.probe import probe_engine


def one_sentence(error: BaseException) -> str:
    text = str(error)
    assert "\n" not in text
    assert len(text) < 700
    return text


def regions(size: int, count: int) -> list[int]:
    """Places all over a file: its first and last bytes and others between."""
    random = np.random.default_rng(size)
    step = size // count
    spread = [begin + int(random.integers(step)) for begin in range(0, size - step, step)]
    return [*range(0, 16, 3), *spread, *range(size - 40, size, 13)]


def test_an_engine_without_a_bundle_is_tried_and_loaded(engine: Path, make_images):
    with na_deploy.load(engine) as session:
        assert [str(spec) for spec in session.inputs] == ["image: float32 image.0×3×32×32"]
        assert session.profiles == ("image 1×3×32×32 to 8×3×32×32",)
        assert session.run(make_images(3))["logits"].shape == (3, 10)


def test_damage_anywhere_in_an_engine_is_an_error_and_never_ends_this_process(engine: Path, machine, tmp_path: Path):
    machine.set(FAKE_TENSORRT_CRASH=1)  # half of the damages end the process that loads the engine
    whole = engine.read_bytes()
    damaged = tmp_path / "damaged.engine"
    outcomes: set[str] = set()
    for place in regions(len(whole), 8):
        content = bytearray(whole)
        content[place] ^= 1 << place % 8
        damaged.write_bytes(content)
        with pytest.raises(NaDeployError) as failure:
            na_deploy.load(damaged)
        text = one_sentence(failure.value)
        assert "it is damaged or no engine" in text
        outcomes.add("crash" if "crashed (SIGABRT)" in text else "refused")
    assert outcomes == {"crash", "refused"}


def test_an_engine_cut_off_anywhere_is_an_error(engine: Path, tmp_path: Path):
    whole = engine.read_bytes()
    damaged = tmp_path / "damaged.engine"
    for size in (0, 1, 4, 11, 100, len(whole) // 2, len(whole) - 1):
        damaged.write_bytes(whole[:size])
        with pytest.raises(NaDeployError) as failure:
            na_deploy.load(damaged)
        assert "damaged" in one_sentence(failure.value) or "is empty" in str(failure.value)


def test_damage_in_a_bundle_is_found_before_tensorrt_sees_the_engine(bundle: Path):
    engine = bundle / "model.engine"
    whole = engine.read_bytes()
    for place in regions(len(whole), 40):
        content = bytearray(whole)
        content[place] ^= 0x10
        engine.write_bytes(content)
        with pytest.raises(NaDeployError, match=r"model\.engine is not the file that manifest\.json describes"):
            na_deploy.load(bundle)


def test_another_version_of_tensorrt_is_refused_by_its_manifest(bundle: Path, machine):
    import os

    other = {"10": "11", "11": "10"}[os.environ["FAKE_TENSORRT"]]
    machine.set(FAKE_TENSORRT=other)
    with pytest.raises(NaDeployError, match=r"needs TensorRT exactly 1\d\.\S+, 1\d\.\S+ is installed; build it again"):
        na_deploy.load(bundle)


def test_another_version_of_tensorrt_is_refused_without_a_manifest(engine: Path, machine):
    import os

    machine.set(FAKE_TENSORRT={"10": "11", "11": "10"}[os.environ["FAKE_TENSORRT"]])
    with pytest.raises(NaDeployError, match="it was built with another version; build it again"):
        na_deploy.load(engine)


def test_a_version_compatible_engine_runs_on_a_later_version(machine, write_model, tmp_path: Path, make_images):
    from na_deploy.runtime.building.build import build
    from na_deploy.runtime.building.options import BuildOptions

    machine.set(FAKE_TENSORRT=10)
    target = tmp_path / "b.bundle"
    build(write_model(), target, BuildOptions(backend="tensorrt", version_compatible=True))
    machine.set(FAKE_TENSORRT=11)
    with na_deploy.load(target) as session:
        assert session.run(make_images(1))["logits"].shape == (1, 10)
    alone = tmp_path / "alone.engine"
    shutil.copy(target / "model.engine", alone)
    with pytest.raises(NaDeployError, match="engine_host_code_allowed is not set"):
        na_deploy.load(alone)  # code inside a file that nothing vouches for is not run
    machine.set(FAKE_TENSORRT=11)
    build(write_model(), target, BuildOptions(backend="tensorrt", version_compatible=True))
    machine.set(FAKE_TENSORRT=10)
    with pytest.raises(NaDeployError, match=r"needs TensorRT 11\.\S+ or later, 10\.\S+ is installed"):
        na_deploy.load(target)


def test_another_gpu_is_refused(bundle: Path, engine: Path, machine):
    machine.set(FAKE_CUDA_CAPABILITY="8.6")
    with pytest.raises(NaDeployError, match=r"is for compute capability 9\.0, this GPU has 8\.6"):
        na_deploy.load(bundle)
    with pytest.raises(NaDeployError, match="it was built for another GPU"):
        na_deploy.load(engine)


def test_a_hardware_compatible_engine_runs_on_another_gpu(machine, write_model, tmp_path: Path, make_images):
    from na_deploy.runtime.building.build import build
    from na_deploy.runtime.building.options import BuildOptions

    target = tmp_path / "b.bundle"
    build(write_model(), target, BuildOptions(backend="tensorrt", hardware_compatible=True))
    machine.set(FAKE_CUDA_CAPABILITY="8.6")
    with na_deploy.load(target) as session:
        assert session.run(make_images(1))["logits"].shape == (1, 10)
    machine.set(FAKE_CUDA_CAPABILITY="7.5")
    with pytest.raises(NaDeployError, match=r"is for compute capability >=8\.0, this GPU has 7\.5"):
        na_deploy.load(target)


def test_a_device_that_is_not_there_is_refused(bundle: Path):
    with pytest.raises(UsageError, match="there is no device 1; this machine has 1, numbered from 0"):
        na_deploy.load(bundle, device=1)


@pytest.mark.parametrize(("devices", "message"), [(0, "the driver reports none"), (-1, "InsufficientDriver")])
def test_a_machine_without_a_gpu_is_told_what_runs_instead(bundle: Path, machine, devices: int, message: str):
    machine.set(FAKE_CUDA_DEVICES=devices)
    with pytest.raises(NaDeployError) as failure:
        na_deploy.load(bundle)
    assert message in str(failure.value)
    assert "load(…, backend='onnxruntime')" in str(failure.value)


def test_too_little_memory_for_the_first_call_is_an_error(bundle: Path, machine, make_images):
    machine.set(FAKE_CUDA_BYTES=100)
    with (
        na_deploy.load(bundle) as session,
        pytest.raises(NaDeployError, match="enough free memory to allocate"),
    ):
        session.run(make_images(1))


def test_a_model_is_not_an_engine(machine, write_model):
    with pytest.raises(UsageError, match=r"small\.onnx is a model, and tensorrt runs engines; build one with"):
        na_deploy.load(write_model(), backend="tensorrt")


def test_a_bundle_for_onnxruntime_has_no_engine(machine, write_model, tmp_path: Path):
    from na_deploy.runtime.building.build import build

    build(write_model(), tmp_path / "b.bundle")
    with pytest.raises(UsageError, match="holds no engine of tensorrt; build one with: na-deploy build --backend tens"):
        na_deploy.load(tmp_path / "b.bundle", backend="tensorrt")


def test_an_engine_that_changes_after_the_trial_is_still_an_error(engine: Path):
    probe_engine(engine, TENSORRT, 0, None)
    engine.write_bytes(b"")
    from na_deploy.runtime.tensorrt.engine import load_engine

    with pytest.raises(NaDeployError, match="is empty"):
        load_engine(engine, load_module(TENSORRT), TENSORRT)


@pytest.mark.parametrize(
    ("reason", "meaning"),
    [
        ("Error Code 4: Internal Error (magicTag mismatch)", "it is damaged"),
        ("expecting library version 11.4.0 got 10.16.1, please rebuild", "built with another version"),
        ("generated on an incompatible device, expecting compute 9.0 got compute 8.0", "built for another GPU"),
        ("getCreator could not find plugin creator: X version: 1", "a plugin that is not registered"),
        ("OutOfMemory: Requested size was 1234 bytes", "not have enough memory free"),
        ("something never seen", "something never seen"),
    ],
)
def test_what_tensorrt_says_is_explained(reason: str, meaning: str):
    assert meaning in explain(reason)
    assert reason in explain(reason)


def without(*modules: str) -> str:
    """Python code that loads a bundle where some modules are not installed, and prints the error."""
    imported = "" if "tensorrt" in modules else "import tensorrt\n"  # the fake of it needs the fake of CUDA
    blocked = "".join(f"sys.modules[{name!r}] = None\n" for name in modules)
    return (
        f"import sys\n{imported}{blocked}import na_deploy\n"
        "try: na_deploy.load(sys.argv[1])\n"
        "except na_deploy.errors.NaDeployError as error: print(type(error).__name__, error)"
    )


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ("tensorrt", "TensorRT is not installed; install it with: pip install tensorrt-cu13"),
        ("cuda.bindings.runtime", "running an engine needs cuda-python"),
    ],
)
def test_what_is_missing_is_named_with_what_to_install(bundle: Path, module: str, message: str):
    command = [sys.executable, "-c", without(module), str(bundle)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.startswith(f"{MissingDependencyError.__name__} {message}"), done.stdout + done.stderr


def test_a_version_that_is_not_known_is_refused(machine, tmp_path: Path, monkeypatch):
    package = tmp_path / "modules" / "tensorrt"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text('__version__ = "9.3.0"')
    monkeypatch.syspath_prepend(str(package.parent))
    machine.set(FAKE_TENSORRT="11")
    with pytest.raises(MissingDependencyError, match=r"TensorRT 9\.3\.0 is installed; .* 10 and 11"):
        load_module(TENSORRT)


def test_nothing_optional_is_imported_to_read_a_bundle(bundle: Path):
    code = (
        "import sys\nfrom pathlib import Path\nfrom na_deploy.runtime.bundle import read_manifest\n"
        "import na_deploy.runtime.tensorrt, na_deploy.runtime.session, na_deploy.cli.main\n"
        "print(read_manifest(Path(sys.argv[1])).backend)\n"
        "assert not {'tensorrt', 'cuda', 'polygraphy', 'torch'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(bundle)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "tensorrt"), done.stderr


def test_a_forged_description_of_layers_is_text_and_nothing_more(bundle: Path):
    from na_deploy.runtime.tensorrt.layers import parse_layers

    for text in ("", "[]", "{}", '{"Layers": 3}', "[" * 100_000):
        with pytest.raises(NaDeployError):
            parse_layers(text, "layers.json")
    strange = [{"Name": 3, "Outputs": "x"}, "plain", None, {"Outputs": [None, {"Format/Datatype": 7}]}]
    assert len(parse_layers(json.dumps({"Layers": strange}), "layers.json")) == 4
