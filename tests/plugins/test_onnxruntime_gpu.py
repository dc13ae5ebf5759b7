"""ONNX Runtime's node for the CUDA provider, without a GPU.

The library of the tests registers that very node for the CPU provider, over the GPU kernels' source on an emulated GPU,
and real models run on it.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from node_models import (
    ELEMENTS,
    PACKED_CASES,
    SEPARATE_CASES,
    SMALL_MAPS,
    Arrays,
    expect_reference,
    node_model,
    normal,
    packed,
    separate,
)
from onnx import numpy_helper

import na_deploy
from na_deploy.attention.schema import PACKED_OPERATOR, SEPARATE_OPERATOR
from na_deploy.cli.main import run
from na_deploy.deployment import PackageOptions, package
from na_deploy.errors import NaDeployError
from na_deploy.runtime.environment import GPU_KERNELS
from na_deploy.runtime.native_libraries import ONNXRUNTIME_LIBRARY_VARIABLE, gpu_capabilities

pytestmark = pytest.mark.native
CPU = ["CPUExecutionProvider"]
SESSION = onnxruntime.InferenceSession
TOLERANCE = dict(zip(ELEMENTS, (2e-6, 3e-3, 2e-2), strict=True))
"""Tiles round weights to the storage's type before they sum values."""


class EmulatedGpu:
    """The library's launches, as tests see and decide them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._library = ctypes.CDLL(str(path))
        self._library.na_test_stream.argtypes = [ctypes.c_void_p, ctypes.c_int32]
        self._library.na_test_last_stream.restype = ctypes.c_void_p

    def use_stream(self, stream: int | None, refuse: bool = False) -> None:
        """Have ONNX Runtime answer with a stream, or an error, until the next session is opened."""
        self._library.na_test_stream(stream, refuse)

    def fail(self, error: int) -> None:
        """Have launches return an error of CUDA, 0 for none."""
        self._library.na_test_error(error)

    @property
    def launches(self) -> int:
        """Return the number of launches."""
        return int(self._library.na_test_launches())

    @property
    def last(self) -> tuple[int | None, int, bool]:
        """Stream and tactic of the last launch, and whether it had a bias."""
        library = self._library
        return library.na_test_last_stream(), library.na_test_last_tactic(), bool(library.na_test_last_had_bias())


@pytest.fixture
def gpu(native_build: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[EmulatedGpu]:
    path = native_build / "plugins/tests/libna_deploy_ort_gpu_on_cpu.so"
    monkeypatch.setenv(ONNXRUNTIME_LIBRARY_VARIABLE, str(path))
    emulated = EmulatedGpu(path)
    yield emulated
    emulated.fail(0)


@pytest.fixture
def load_node(gpu: EmulatedGpu, tmp_path: Path) -> Callable[..., Any]:
    """Load :func:`node_model` of the given arguments, with initializers where constants are given."""

    def load(*arguments: Any, constants: Mapping[str, np.ndarray] | None = None, **options: Any) -> Any:
        model = node_model(*arguments, **options)
        for name, array in (constants or {}).items():
            model.graph.initializer.append(numpy_helper.from_array(array, name))
        for given in [given for given in model.graph.input if given.name in (constants or {})]:
            model.graph.input.remove(given)
        path = tmp_path / "node.onnx"
        onnx.save(model, path)
        session = na_deploy.load(path, providers=CPU)
        assert session.library == gpu.path
        return session

    return load


@pytest.mark.parametrize("dtype", ELEMENTS)
@pytest.mark.parametrize("case", PACKED_CASES)
def test_the_packed_operator_is_right(load_node, gpu: EmulatedGpu, case: str, dtype: str):
    sizes, attributes = PACKED_CASES[case]
    arrays = packed(*sizes, dtype=dtype)
    with load_node(PACKED_OPERATOR, arrays, dtype=dtype, **attributes) as session:
        before = gpu.launches
        found = session.run(arrays)
    assert gpu.launches == before + 1
    expect_reference(found, PACKED_OPERATOR, arrays, attributes, dtype, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", ELEMENTS)
@pytest.mark.parametrize("case", SEPARATE_CASES)
def test_the_separate_operator_is_right(load_node, case: str, dtype: str):
    sizes, attributes = SEPARATE_CASES[case]
    arrays = separate(*sizes, dtype=dtype)
    heads, kernel_size = sizes[2][0], attributes["kernel_size"]
    arrays["rel_pos_bias"] = normal(heads, *(2 * size - 1 for size in kernel_size), dtype=dtype)
    with load_node(SEPARATE_OPERATOR, arrays, dtype=dtype, **attributes) as session:
        found = session.run(arrays)
    expect_reference(found, SEPARATE_OPERATOR, arrays, attributes, dtype, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", ELEMENTS)
@pytest.mark.parametrize("case", SMALL_MAPS)
def test_windows_reach_behind_small_maps_onto_padding(load_node, case: str, dtype: str):
    sizes, attributes = SMALL_MAPS[case]
    arrays = packed(*sizes, dtype=dtype)
    arrays["padding"] = normal(3, *sizes[2:4], dtype=dtype, seed=5)
    with load_node(PACKED_OPERATOR, arrays, dtype=dtype, **attributes) as session:
        found = session.run(arrays)
    expect_reference(found, PACKED_OPERATOR, arrays, attributes, dtype, TOLERANCE[dtype])


@pytest.mark.parametrize("operator", [PACKED_OPERATOR, SEPARATE_OPERATOR])
def test_an_empty_batch_launches_nothing(load_node, gpu: EmulatedGpu, operator: str):
    arrays = packed(0, (9, 8), 2, 16) if operator == PACKED_OPERATOR else separate(0, (9, 8), (2, 2), (16, 24))
    with load_node(operator, arrays, True, kernel_size=(3, 3)) as session:
        before = gpu.launches
        found = session.run(arrays)
    assert gpu.launches == before
    assert found["output"].shape == (0, 9, 8, 2, 16 if operator == PACKED_OPERATOR else 24)
    assert found["lse"].shape == (0, 9, 8, 2)


def test_lse_is_left_out_where_the_node_has_none(load_node):
    arrays = packed(1, (7, 8), 2, 16, dtype="float16")
    with load_node(PACKED_OPERATOR, arrays, lse=False, dtype="float16", kernel_size=(3, 3)) as session:
        found = session.run(arrays)
    assert set(found) == {"output"}
    expect_reference(found, PACKED_OPERATOR, arrays, {"kernel_size": (3, 3)}, "float16", TOLERANCE["float16"])


def test_no_additional_keys_are_none(load_node):
    arrays = separate(1, (9, 8), (2, 2), (16, 24))
    none = {"additional_key": normal(1, 0, 2, 16), "additional_value": normal(1, 0, 2, 24)}
    with load_node(SEPARATE_OPERATOR, arrays | none, kernel_size=(3, 3)) as session:
        found = session.run(arrays | none)
    expect_reference(found, SEPARATE_OPERATOR, arrays, {"kernel_size": (3, 3)}, "float32", TOLERANCE["float32"])


def test_a_session_with_free_sizes_runs_any_batch_and_map(load_node):
    attributes = {"kernel_size": (5, 5)}
    with load_node(PACKED_OPERATOR, packed(2, (9, 9), 2, 16, (5, 5)), True, **attributes) as session:
        for batch, lengths in ((1, (5, 5)), (3, (7, 6)), (1, (11, 13))):
            arrays = packed(batch, lengths, 2, 16, (5, 5))
            expect_reference(session.run(arrays), PACKED_OPERATOR, arrays, attributes, "float32", 2e-6)


def test_a_launch_takes_the_default_tactic_and_the_stream_of_its_call(load_node, gpu: EmulatedGpu):
    arrays = packed(1, (7, 7), 1, 16)
    with load_node(PACKED_OPERATOR, arrays, kernel_size=(3, 3)) as session:
        session.run(arrays)
        stream, tactic, _ = gpu.last
        assert stream is None  # ONNX Runtime's own answer on a CPU
        assert tactic > 1  # a tile kernel
        gpu.use_stream(0x5EA)
        session.run(arrays)
        assert gpu.last == (0x5EA, tactic, False)
        gpu.use_stream(0xB0A7)
        session.run(arrays)
        assert gpu.last == (0xB0A7, tactic, False)


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_a_constant_bias_is_not_looked_at_on_the_host(load_node, gpu: EmulatedGpu, value: float):
    arrays = packed(1, (7, 8), 2, 16, (3, 3))
    constants = {"rel_pos_bias": np.full_like(arrays["rel_pos_bias"], value)}
    with load_node(PACKED_OPERATOR, arrays, constants=constants, kernel_size=(3, 3)) as session:
        found = session.run({"qkv": arrays["qkv"]})
    assert gpu.last[2]  # zeros too
    expect_reference(found, PACKED_OPERATOR, arrays | constants, {"kernel_size": (3, 3)}, "float32", 2e-6)


# --------------------------------------------------------------------------- refusals


def sentence(session: Any, arrays: Arrays) -> str:
    """Return the message of a run that fails, in one line."""
    with pytest.raises(NaDeployError) as error:
        session.run(arrays)
    text = str(error.value)
    assert "\n" not in text
    assert "NeighborhoodAttentionQKV node 'layer3.attn': " in text
    return text


def test_what_cuda_refuses_is_told_with_its_words(load_node, gpu: EmulatedGpu):
    arrays = packed(1, (7, 7), 1, 16)
    with load_node(PACKED_OPERATOR, arrays, kernel_size=(3, 3)) as session:
        gpu.fail(700)
        told = sentence(session, arrays)
        assert "CUDA answers the launch of the GPU kernel with error 700, an emulated error" in told
        assert "compute capabilities" not in told
        gpu.fail(209)
        told = sentence(session, arrays)
        assert "error 209, no kernel image; the library is compiled for compute capabilities 8.0, 9.0, compile" in told
        gpu.fail(0)
        session.run(arrays)


def test_no_stream_is_told_as_it_was_answered(load_node, gpu: EmulatedGpu):
    arrays = packed(1, (7, 7), 1, 16)
    with load_node(PACKED_OPERATOR, arrays, kernel_size=(3, 3)) as session:
        gpu.use_stream(None, refuse=True)
        assert "there is no stream" in sentence(session, arrays)


def test_what_the_gpu_kernels_cannot_take_is_refused(load_node, gpu: EmulatedGpu):
    arrays = packed(1, (7, 7), 1, 300)
    with load_node(PACKED_OPERATOR, arrays, kernel_size=(3, 3)) as session:
        before = gpu.launches
        told = sentence(session, arrays)
        assert "heads have at most 256 channels on a GPU, got 300" in told
        assert "custom_operators=False" in told
        assert gpu.launches == before


def test_windows_that_do_not_fit_are_told_as_on_a_cpu(load_node):
    arrays = packed(1, (9, 6), 2, 8)
    with load_node(PACKED_OPERATOR, arrays, kernel_size=(3, 3), dilation=(1, 3)) as session:
        assert "3*3 = 9 exceeds the length 6 of spatial axis 1" in sentence(session, arrays)


def test_a_bias_at_any_element_is_taken(load_node, gpu: EmulatedGpu):
    arrays = packed(1, (7, 7), 2, 16, (3, 3))
    room = np.empty(arrays["rel_pos_bias"].nbytes + 64, np.uint8)
    start = -room.ctypes.data % 16 + 4
    odd = room[start : start + arrays["rel_pos_bias"].nbytes].view(np.float32).reshape(arrays["rel_pos_bias"].shape)
    odd[...] = arrays["rel_pos_bias"]
    with load_node(PACKED_OPERATOR, arrays, kernel_size=(3, 3)) as session:
        found = session.run({"qkv": arrays["qkv"], "rel_pos_bias": odd})
    expect_reference(found, PACKED_OPERATOR, arrays, {"kernel_size": (3, 3)}, "float32", 2e-6)


def test_a_tensor_at_an_odd_address_is_refused(load_node, gpu: EmulatedGpu):
    arrays = packed(1, (7, 7), 1, 16)
    room = np.empty(arrays["qkv"].nbytes + 64, np.uint8)
    start = -room.ctypes.data % 16 + 4
    odd = room[start : start + arrays["qkv"].nbytes].view(np.float32).reshape(arrays["qkv"].shape)
    odd[...] = arrays["qkv"]
    with load_node(PACKED_OPERATOR, arrays, kernel_size=(3, 3)) as session:
        before = gpu.launches
        assert "qkv must begin at an address that is a multiple of 16 on a GPU, got one 4 bytes past it" in sentence(
            session, {"qkv": odd}
        )
        assert gpu.launches == before


def test_attributes_are_refused_when_the_model_is_loaded(load_node):
    with pytest.raises(NaDeployError, match=r"node 'layer3.attn': the attribute kernel_size is missing"):
        load_node(PACKED_OPERATOR, packed(1, (9, 9), 2, 8))


# --------------------------------------------------------------------------- whole models


def test_an_exported_model_runs_on_it(gpu: EmulatedGpu, write_model):
    path = write_model(batch="batch")
    images = np.random.default_rng(5).normal(size=(2, 3, 32, 32)).astype(np.float32)
    before = gpu.launches
    with na_deploy.load(path, providers=CPU) as ours:
        found = ours.run(images)["logits"]
    assert gpu.launches > before
    with na_deploy.load(path, custom_operators=False) as stock:
        np.testing.assert_allclose(found, stock.run(images)["logits"], rtol=1e-4, atol=1e-5)


@pytest.fixture
def gpu_check(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The part of scripts/gpu_check.sh that runs a model through ONNX Runtime."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    return importlib.import_module("gpu_check_onnxruntime")


def test_the_check_for_gpus_runs_both_operators_in_a_model(gpu: EmulatedGpu, gpu_check: Any):
    told, wrong = gpu_check.check(gpu.path, *CPU)
    assert wrong == []
    assert all(f"{kind}, batch {batch} (" in told for kind in ELEMENTS for batch in (1, 2))


def test_the_check_for_gpus_tells_what_fails(gpu: EmulatedGpu, gpu_check: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gpu_check, "TOLERANCE", {"FLOAT": 0.0})
    told, wrong = gpu_check.check(gpu.path, *CPU)
    assert told.endswith("agrees with float64: never.")
    assert len(wrong) == 2
    assert all("float32, batch" in text and "from float64, 0e+00 is allowed" in text for text in wrong)
    gpu.fail(700)
    told, wrong = gpu_check.check(gpu.path, *CPU)
    assert len(wrong) == 2
    assert all("error 700, an emulated error" in text for text in wrong)


def test_the_check_for_gpus_says_that_there_is_no_cuda_provider(
    gpu_check: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: CPU)
    told, wrong = gpu_check.build_and_check(tmp_path, "80-real")
    assert re.fullmatch(r"ONNX Runtime's CUDA provider was not checked: onnxruntime .* has no CUDA.*-gpu\.", told)
    assert wrong == []


# --------------------------------------------------------------------------- the library with kernels for both


@pytest.fixture
def both(native_build: Path, monkeypatch: pytest.MonkeyPatch) -> EmulatedGpu:
    """The library as -DNA_DEPLOY_CUDA=ON makes it, with the emulated GPU for the real kernels."""
    path = native_build / "plugins/tests/libna_deploy_ort_with_gpu.so"
    monkeypatch.setenv(ONNXRUNTIME_LIBRARY_VARIABLE, str(path))
    return EmulatedGpu(path)


def test_without_the_cuda_provider_models_run_on_the_cpu_kernels(both: EmulatedGpu, tmp_path: Path):
    arrays, attributes = packed(2, (9, 8), 2, 16, (5, 5)), {"kernel_size": (5, 5)}
    path = tmp_path / "node.onnx"
    onnx.save(node_model(PACKED_OPERATOR, arrays, **attributes), path)
    with na_deploy.load(path, providers=CPU) as session:
        assert session.library == both.path
        found = session.run(arrays)
    assert both.launches == 0
    expect_reference(found, PACKED_OPERATOR, arrays, attributes, "float32")


def with_cuda(monkeypatch: pytest.MonkeyPatch, pretend: bool = False) -> list[Any]:
    """Have onnxruntime offer the CUDA provider and open sessions without it; returns what sessions were asked for.

    Args:
        monkeypatch: undoes the change after the test.
        pretend: sessions say that they have the provider.
    """
    asked: list[Any] = []

    class Session(SESSION):  # type: ignore[misc,valid-type]
        def __init__(self, *given: Any, providers: list[Any]) -> None:
            asked.append(providers)
            super().__init__(*given, providers=CPU)

        def get_providers(self) -> list[str]:
            return ["CUDAExecutionProvider", *CPU] if pretend else super().get_providers()

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", *CPU])
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    return asked


def test_a_session_on_cuda_takes_a_library_with_gpu_kernels(
    both: EmulatedGpu, write_model, monkeypatch: pytest.MonkeyPatch
):
    path = write_model()
    asked = with_cuda(monkeypatch)
    assert na_deploy.load(path).library == both.path
    assert na_deploy.load(path, custom_operators=False).library is None
    with pytest.raises(NaDeployError, match=r"could not start CUDAExecutionProvider on this machine; it offers CPU"):
        na_deploy.load(path, device=1)
    assert asked[-1] == [("CUDAExecutionProvider", {"device_id": 1}), *CPU]


def test_on_cuda_a_library_that_does_not_load_gives_a_warning(
    write_model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = write_model()
    with_cuda(monkeypatch)
    library = tmp_path / "libbroken.so"
    library.write_bytes(b"not a library")
    monkeypatch.setenv(ONNXRUNTIME_LIBRARY_VARIABLE, str(library))
    with pytest.warns(
        RuntimeWarning, match=r"libbroken\.so does not load: .*; the model runs on its embedded function"
    ):
        assert na_deploy.load(path).library is None


def gpu_finding(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    assert run(["doctor", "--json"]) == 0
    (found,) = (f for f in json.loads(capsys.readouterr().out)["findings"] if f["name"] == GPU_KERNELS)
    return found


def test_doctor_tells_whether_the_library_holds_gpu_kernels(
    both: EmulatedGpu, native_build: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: CPU)
    assert gpu_capabilities(both.path) == "8.0, 9.0"
    found = gpu_finding(capsys)
    assert found["status"] == "missing"
    assert found["detail"] == f"{both.path}, for compute capability 8.0, 9.0, but onnxruntime has no CUDA provider"
    assert "pip install onnxruntime-gpu" in found["remedy"]

    with monkeypatch.context() as context:
        with_cuda(context)
        context.setenv("PATH", "")
        found = gpu_finding(capsys)
        assert found["status"] == "missing"
        assert found["detail"].endswith("for compute capability 8.0, 9.0, but no driver (nvidia-smi) found")

    without = native_build / "plugins/onnxruntime/libna_deploy_ort.so"
    monkeypatch.setenv(ONNXRUNTIME_LIBRARY_VARIABLE, str(without))
    assert gpu_capabilities(without) == ""
    found = gpu_finding(capsys)
    assert (found["status"], found["detail"]) == ("missing", f"{without} is compiled without them")
    assert "docs/build.md" in found["remedy"]

    monkeypatch.setenv(ONNXRUNTIME_LIBRARY_VARIABLE, "")
    assert gpu_finding(capsys)["detail"] == "there is no operator library to hold them"


def test_doctor_runs_the_gpu_kernels_where_there_is_a_gpu(
    gpu: EmulatedGpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    driver = tmp_path / "nvidia-smi"
    driver.write_text("#!/bin/sh\necho Emulated, 1.0, 9.0\n")
    driver.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with_cuda(monkeypatch)
    found = gpu_finding(capsys)
    assert found["status"] == "broken"
    assert found["detail"] == "onnxruntime could not start CUDAExecutionProvider on this machine; it offers " + CPU[0]

    with_cuda(monkeypatch, pretend=True)
    before = gpu.launches
    found = gpu_finding(capsys)
    assert found["status"] == "works"
    assert re.search(r"capability 8\.0, 9\.0; largest relative difference to float64: \d\.\de-07$", found["detail"])
    assert gpu.launches > before

    gpu.fail(700)
    found = gpu_finding(capsys)
    assert found["status"] == "broken"
    assert "error 700" in found["detail"]


def test_packages_for_a_gpu_take_the_library_if_it_has_gpu_kernels(
    both: EmulatedGpu, native_build: Path, write_model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = write_model()
    package([path], tmp_path / "repository", PackageOptions(name="with", device="gpu"))
    copied = tmp_path / "repository/with/libna_deploy_ort.so"
    assert copied.read_bytes() == both.path.read_bytes()
    without = native_build / "plugins/onnxruntime/libna_deploy_ort.so"
    monkeypatch.setenv(ONNXRUNTIME_LIBRARY_VARIABLE, str(without))
    package([path], tmp_path / "repository", PackageOptions(name="without", device="gpu"))
    assert not (tmp_path / "repository/without/libna_deploy_ort.so").exists()
