"""Inputs and outputs that stay in GPU memory: no copies, right order, clear refusals. On the fakes."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import na_deploy
from na_deploy.errors import UsageError
from na_deploy.runtime.tensorrt import dlpack
from na_deploy.runtime.tensorrt.arrays import DeviceArray, as_device_array, is_device_array

Images = Callable[..., np.ndarray]


class OnGpu:
    """An array in the fake GPU's memory, described as CuPy describes its own."""

    def __init__(self, cuda: Any, array: np.ndarray, stream: int | None = None, **changes: Any) -> None:
        self._cuda = cuda
        _, self.address = cuda.cudaMalloc(max(array.nbytes, 1))
        ctypes.memmove(self.address, np.ascontiguousarray(array).ctypes.data, array.nbytes)
        self.__cuda_array_interface__ = {
            "shape": array.shape,
            "typestr": array.dtype.str,
            "data": (self.address, False),
            "version": 3,
            "stream": stream,
        } | changes

    def read(self) -> np.ndarray:
        described = self.__cuda_array_interface__
        data = ctypes.string_at(
            self.address, int(np.prod(described["shape"])) * np.dtype(described["typestr"]).itemsize
        )
        return np.frombuffer(data, described["typestr"]).reshape(described["shape"])

    def free(self) -> None:
        self._cuda.cudaFree(self.address)


@pytest.fixture
def on_gpu(machine):
    made: list[OnGpu] = []

    def make(array: np.ndarray, **options: Any) -> OnGpu:
        made.append(OnGpu(machine.cuda, array, **options))
        return made[-1]

    yield make
    for array in made:
        array.free()


def read(machine: Any, array: Any) -> np.ndarray:
    described = array.__cuda_array_interface__
    assert machine.state.live(described["data"][0], 1, machine.state.device_memory)
    size = int(np.prod(described["shape"])) * np.dtype(described["typestr"]).itemsize
    return np.frombuffer(ctypes.string_at(described["data"][0], size), described["typestr"]).reshape(described["shape"])


def test_arrays_on_the_gpu_are_read_and_written_where_they_are(bundle, machine, on_gpu, make_images: Images):
    array = make_images(2)
    with na_deploy.load(bundle) as session:
        right = session.run(array)["logits"]
        copied = dict(machine.state.copied)
        into = on_gpu(np.full((2, 10), 7.0, np.float32))
        given = session.run_on_device(on_gpu(array), into={"logits": into})
        assert machine.state.copied == copied  # nothing went through the host
        np.testing.assert_array_equal(into.read(), right)
        np.testing.assert_array_equal(read(machine, given["logits"]), right)
        made = session.run_on_device(on_gpu(array))["logits"]
        assert made.__cuda_array_interface__["stream"] is None
        np.testing.assert_array_equal(read(machine, made), right)
        np.testing.assert_array_equal(session.run(on_gpu(array))["logits"], right)
        del made, given


def test_the_session_waits_for_the_stream_that_writes_an_input(bundle, machine, on_gpu, make_images: Images):
    array = make_images(2)
    _, stream = machine.cuda.cudaStreamCreateWithFlags(1)
    late = on_gpu(np.zeros_like(array), stream=stream)
    source = np.ascontiguousarray(array)
    machine.state.queue(stream, lambda: ctypes.memmove(late.address, source.ctypes.data, source.nbytes))
    with na_deploy.load(bundle) as session:
        np.testing.assert_array_equal(session.run(late)["logits"], session.run(array)["logits"])
    machine.cuda.cudaStreamDestroy(stream)


def test_an_output_on_the_gpu_outlives_its_session(bundle, machine, make_images: Images):
    array = make_images(3)
    with na_deploy.load(bundle) as session:
        right = session.run(array)["logits"]
        left = session.run_on_device(array)["logits"]
    np.testing.assert_array_equal(read(machine, left), right)


def test_dlpack_hands_memory_on_and_takes_it_back(bundle, machine, make_images: Images):
    with na_deploy.load(bundle) as session:
        right = session.run(make_images(2))["logits"]
        ours = session.run_on_device(make_images(2))["logits"]
        assert ours.__dlpack_device__() == (dlpack.CUDA, 0)
        address, shape, dtype, strides, device, owner = dlpack.read(ours, 1)
        assert (shape, dtype, strides, device) == ((2, 10), "float32", None, 0)
        del ours
        gc.collect()
        assert machine.state.live(address, 80, machine.state.device_memory)  # the consumer still has it
        np.testing.assert_array_equal(np.frombuffer(ctypes.string_at(address, 80), np.float32).reshape(2, 10), right)
        del owner
        gc.collect()
        assert not machine.state.live(address, 80, machine.state.device_memory)


def test_a_capsule_that_nobody_takes_frees_its_memory(bundle, machine, make_images: Images):
    with na_deploy.load(bundle) as session:
        ours = session.run_on_device(make_images(2))["logits"]
        capsule, address = ours.__dlpack__(), ours.address
        del ours
        assert machine.state.live(address, 80, machine.state.device_memory)
        del capsule
        gc.collect()
        assert not machine.state.live(address, 80, machine.state.device_memory)


def test_an_array_that_speaks_dlpack_only_is_read_in_place(bundle, machine, on_gpu, make_images: Images):
    array = make_images(2)
    inner = on_gpu(array)
    described = DeviceArray(inner.address, array.shape, array.dtype, 0, inner)

    class OnlyDlpack:
        __dlpack__ = described.__dlpack__
        __dlpack_device__ = described.__dlpack_device__

    with na_deploy.load(bundle) as session:
        right = session.run(array)["logits"]
        copied = machine.state.copied["to_device"]
        np.testing.assert_array_equal(session.run(OnlyDlpack())["logits"], right)
        assert machine.state.copied["to_device"] == copied
    gc.collect()
    assert not dlpack._handed_out


def test_bfloat16_comes_through_dlpack_with_its_type(machine, on_gpu):
    import ml_dtypes

    array = np.arange(6, dtype=np.float32).astype(ml_dtypes.bfloat16).reshape(2, 3)
    inner = on_gpu(array.view(np.uint16))
    described = DeviceArray(inner.address, array.shape, array.dtype, 0, inner)
    address, shape, dtype, _, _, _ = dlpack.read(described, 1)
    assert (address, shape, dtype) == (inner.address, (2, 3), "bfloat16")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strides": (4, 8, 16, 32)}, "is not contiguous in GPU memory; pass a contiguous copy"),
        ({"mask": object()}, "is a masked array"),
        ({"typestr": "<f8"}, "has type float64, expected float32"),
        ({"shape": (2, 3, 32)}, "has 3 axes"),
        ({"shape": (2, 3, 16, 32)}, "axis 2 is 16, not 32"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(bundle, on_gpu, make_images: Images, changes, message: str):
    with na_deploy.load(bundle) as session, pytest.raises(UsageError, match=message):
        session.run(on_gpu(make_images(2), **changes))


def test_strides_of_a_dense_array_are_accepted(bundle, on_gpu, make_images: Images):
    array = make_images(1)
    with na_deploy.load(bundle) as session:
        right = session.run(array)["logits"]
        given = on_gpu(array, strides=(99, *array.strides[1:]))  # an axis of one element has any stride
        np.testing.assert_array_equal(session.run(given)["logits"], right)


def test_an_array_of_another_gpu_is_refused(bundle, machine, on_gpu, make_images: Images):
    machine.set(FAKE_CUDA_DEVICES=2)
    machine.cuda.cudaSetDevice(1)
    there = on_gpu(make_images(2))
    refusal = pytest.raises(UsageError, match="an array lies on device 1 and the session runs on device 0")
    with na_deploy.load(bundle) as session, refusal:
        session.run(there)
    with na_deploy.load(bundle, device=1) as session:
        np.testing.assert_array_equal(session.run(there)["logits"], session.run(make_images(2))["logits"])


def test_the_callers_current_device_stays_what_it_was(bundle, machine, make_images: Images):
    machine.set(FAKE_CUDA_DEVICES=3)
    machine.cuda.cudaSetDevice(2)
    with na_deploy.load(bundle, device=1) as session:
        left = session.run_on_device(make_images(2))["logits"]
        session.run(make_images(2))
        assert machine.state.device_of[left.address] == 1
        assert machine.cuda.cudaGetDevice()[1] == 2
    del left
    assert machine.cuda.cudaGetDevice()[1] == 2


def test_host_memory_that_claims_to_be_on_the_gpu_is_refused(bundle, make_images: Images):
    array = make_images(2)
    described = {"shape": array.shape, "typestr": "<f4", "data": (array.ctypes.data, False), "version": 3}
    liar = SimpleNamespace(__cuda_array_interface__=described)
    with na_deploy.load(bundle) as session, pytest.raises(UsageError, match="CUDA knows it as host memory"):
        session.run(liar)


def test_arrays_to_write_into_are_checked(bundle, on_gpu, make_images: Images):
    with na_deploy.load(bundle) as session:
        with pytest.raises(
            UsageError, match="is float32 of shape 2×10, the array to write into is float32 of shape 2×9"
        ):
            session.run_on_device(make_images(2), into={"logits": on_gpu(np.zeros((2, 9), np.float32))})
        with pytest.raises(UsageError, match="does not lie on a GPU"):
            session.run_on_device(make_images(2), into={"logits": np.zeros((2, 10), np.float32)})
        with pytest.raises(UsageError, match="gives no output named other"):
            session.run_on_device(make_images(2), into={"other": on_gpu(np.zeros((2, 10), np.float32))})


def test_addresses_that_change_drop_the_graph_and_stay_right(bundle, machine, on_gpu, make_images: Images):
    with na_deploy.load(bundle, contexts=1) as session:
        places = [on_gpu(make_images(2, seed)) for seed in range(2)]
        for _ in range(4):
            session.run(places[0])
        figures = session.graph_figures[0]
        assert (figures.captured, figures.launched) == (1, 2)
        for seed in (1, 0, 1):
            result = session.run(places[seed])["logits"]
            np.testing.assert_array_equal(result, session.run(make_images(2, seed))["logits"])
        assert figures.dropped >= 1


def test_numpy_arrays_and_cpu_tensors_are_not_taken_for_gpu_arrays(machine, on_gpu):
    torch = pytest.importorskip("torch")
    assert not is_device_array(np.zeros(3))
    assert not is_device_array(torch.zeros(3))
    assert not is_device_array([1.0, 2.0])
    assert is_device_array(on_gpu(np.zeros(3)))
    assert as_device_array(on_gpu(np.zeros((2, 2))), "x", _cuda(machine)).nbytes == 32


def _cuda(machine: Any) -> Any:
    from na_deploy.runtime.tensorrt.cuda import load_cuda

    return load_cuda()


def test_backends_without_gpu_memory_say_so(bundle, make_images: Images):
    with na_deploy.load(bundle, backend="onnxruntime") as session, pytest.raises(UsageError, match="use run"):
        session.run_on_device(make_images(2))
