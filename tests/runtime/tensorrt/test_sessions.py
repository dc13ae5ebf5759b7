"""Sessions over TensorRT engines: right results, shapes, profiles, graphs, memory, threads. On the fakes."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import na_deploy
from na_deploy.errors import NaDeployError, UsageError

Images = Callable[..., np.ndarray]


def expected(bundle: Path, array: np.ndarray) -> np.ndarray:
    with na_deploy.load(bundle, backend="onnxruntime", custom_operators=False) as session:
        return session.run(array)["logits"]


def test_an_engine_gives_what_the_model_gives(bundle, make_images: Images):
    with na_deploy.load(bundle) as session:
        assert (session.backend, session.device) == ("tensorrt", "Fake GPU (device 0)")
        assert [str(spec) for spec in session.inputs] == ["image: float32 batch×3×32×32"]
        assert [str(spec) for spec in session.outputs] == ["logits: float32 batch×10"]
        for batch in (1, 8, 3):
            array = make_images(batch, seed=batch)
            np.testing.assert_allclose(session.run(array)["logits"], expected(bundle, array), rtol=1e-5, atol=1e-6)


def test_results_belong_to_the_caller(bundle, make_images: Images):
    with na_deploy.load(bundle) as session:
        first = session.run(make_images(2, 1))["logits"]
        kept = first.copy()
        session.run(make_images(2, 2))
        np.testing.assert_array_equal(first, kept)
    np.testing.assert_array_equal(first, kept)


def test_inputs_in_any_memory_layout_are_read_right(bundle, make_images: Images):
    array = np.asfortranarray(make_images(4))[::2]
    with na_deploy.load(bundle) as session:
        np.testing.assert_allclose(session.run(array)["logits"], expected(bundle, array), rtol=1e-5, atol=1e-6)


def test_shapes_outside_the_profile_are_refused_with_the_profile(bundle, make_images: Images):
    with na_deploy.load(bundle) as session, pytest.raises(UsageError) as failure:
        session.run(make_images(9))
    assert "not built for image 9×3×32×32; it takes image 1×3×32×32 to 8×3×32×32" in str(failure.value)


def test_a_second_call_records_a_graph_and_the_third_launches_it(bundle, make_images: Images):
    arrays = [make_images(2, seed) for seed in range(5)]
    with na_deploy.load(bundle, contexts=1) as session:
        results = [session.run(array)["logits"] for array in arrays]
        (figures,) = session.graph_figures
    assert (figures.captured, figures.launched, figures.refusal) == (1, 3, None)
    for array, result in zip(arrays, results, strict=True):
        np.testing.assert_allclose(result, expected(bundle, array), rtol=1e-5, atol=1e-6)


def test_each_combination_of_shapes_has_its_graph_and_the_oldest_goes(bundle, make_images: Images):
    with na_deploy.load(bundle, contexts=1, cuda_graphs=2) as session:
        inner = session._session
        assert session.cuda_graphs == 2
        session.run(make_images(8))  # buffers grow once, here
        for batch in (1, 2, 1, 2, 1, 2):
            session.run(make_images(batch))
        figures = inner.graph_figures[0]
        assert (figures.captured, figures.launched) == (2, 2)
        assert len(inner._pool._streams[0]._contexts) == 2
        for _ in range(2):
            session.run(make_images(3))  # the oldest, of batch 1, has to go
        assert (figures.captured, figures.dropped) == (3, 1)
        session.run(make_images(2))
        assert figures.launched == 3


def test_graphs_can_be_switched_off(bundle, make_images: Images):
    with na_deploy.load(bundle, contexts=1, cuda_graphs=0) as session:
        for _ in range(4):
            session.run(make_images(2))
        (figures,) = session.graph_figures
    assert (figures.captured, figures.refusal) == (0, "switched off")


def test_an_engine_that_cannot_be_recorded_runs_without_graphs(bundle, machine, make_images: Images):
    machine.set(FAKE_NO_CAPTURE="1")
    array = make_images(2)
    with na_deploy.load(bundle, contexts=1) as session:
        results = [session.run(array)["logits"] for _ in range(5)]
        (figures,) = session.graph_figures
    assert figures.captured == 0
    assert "not permitted when stream is capturing" in figures.refusal
    for result in results:
        np.testing.assert_allclose(result, expected(bundle, array), rtol=1e-5, atol=1e-6)


def test_threads_share_a_session(bundle, make_images: Images):
    arrays = [make_images(1 + seed % 4, seed) for seed in range(24)]
    wanted = [expected(bundle, array) for array in arrays]
    with na_deploy.load(bundle, contexts=3) as session, ThreadPoolExecutor(8) as threads:
        results = list(threads.map(lambda array: session.run(array)["logits"], arrays))
        assert len(session._session._pool) <= 3
    for result, right in zip(results, wanted, strict=True):
        np.testing.assert_allclose(result, right, rtol=1e-5, atol=1e-6)


def test_closing_waits_for_calls_and_refuses_later_ones(bundle, make_images: Images):
    session = na_deploy.load(bundle)
    future = session.run_async(make_images(2))
    future.result()
    session.close()
    session.close()
    with pytest.raises(UsageError, match=r"is closed; load the model again"):
        session.run(make_images(2))


def test_closing_while_others_run_ends_cleanly(bundle, make_images: Images):
    session = na_deploy.load(bundle, contexts=2)
    started = threading.Barrier(5)
    refused: list[str] = []

    def work() -> None:
        started.wait()
        try:
            for _ in range(10):
                session.run(make_images(1))
        except UsageError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    started.wait()
    session.close()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert all("is closed" in text for text in refused)


def test_warm_up_and_asynchronous_calls_work(bundle, make_images: Images):
    with na_deploy.load(bundle) as session:
        session.warm_up({"image": (4, 3, 32, 32)})
        futures = [session.run_async(make_images(2, seed)) for seed in range(6)]
        for seed, future in enumerate(futures):
            right = expected(bundle, make_images(2, seed))
            np.testing.assert_allclose(future.result()["logits"], right, rtol=1e-5, atol=1e-6)


def test_a_gpu_without_memory_is_an_error_and_the_session_lives_on(bundle, machine, make_images: Images):
    with na_deploy.load(bundle, contexts=1) as session:
        session.run(make_images(1))
        machine.set(FAKE_CUDA_BYTES=machine.state.used + 64)
        with pytest.raises(NaDeployError, match="the GPU does not have enough free memory to allocate"):
            session.run(make_images(8))
        machine.set(FAKE_CUDA_BYTES=1 << 30)
        array = make_images(8)
        np.testing.assert_allclose(session.run(array)["logits"], expected(bundle, array), rtol=1e-5, atol=1e-6)


def test_a_second_context_that_finds_no_memory_leaves_one_that_works(bundle, machine, make_images: Images):
    with na_deploy.load(bundle, contexts=4) as session:
        session.run(make_images(2))
        pool = session._session._pool
        with pool.borrow():
            machine.set(FAKE_CUDA_BYTES=1)
            streams = len(pool)
        machine.set(FAKE_CUDA_BYTES=1 << 30)
        assert streams == 1
        session.run(make_images(2))


def test_a_broken_device_is_an_error(bundle, machine, make_images: Images):
    session = na_deploy.load(bundle)
    session.run(make_images(1))
    machine.state.broken = machine.cuda.cudaError_t.cudaErrorIllegalAddress
    with pytest.raises(NaDeployError, match="IllegalAddress"):
        session.run(make_images(1))
    machine.state.broken = None
    session.close()


def test_a_forgotten_device_array_frees_its_memory(bundle, machine, make_images: Images):
    with na_deploy.load(bundle) as session:
        before = machine.state.used
        array = session.run_on_device(make_images(2))["logits"]
        session.run_on_device(make_images(2))
        seen = weakref.ref(array)
        del array
        assert seen() is None
    assert machine.state.used <= before
