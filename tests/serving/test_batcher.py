"""Requests that wait share a run; one that fails, times out or is given up takes no other with it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from na_deploy.serving.batcher import Batcher, Batching, Ran
from na_deploy.serving.errors import QueueTimeoutError, UnavailableError


class Seen:
    """Notes what a batcher tells."""

    def __init__(self) -> None:
        self.runs: list[tuple[int, int]] = []

    def ran(self, items: int, requests: int, compute_ns: int) -> None:
        self.runs.append((items, requests))

    def waiting(self, requests: int) -> None:
        pass


class Gated:
    """A model that doubles, and waits to be let go; a value of 13 makes it fail."""

    def __init__(self, is_open: bool = True) -> None:
        self.gate = threading.Event()
        self.started = threading.Semaphore(0)
        self.widths: list[int] = []
        if is_open:
            self.gate.set()

    def __call__(self, inputs: dict, outputs: object) -> dict:
        self.started.release()
        assert self.gate.wait(20)
        self.widths.append(len(inputs["x"]))
        if (inputs["x"] == 13).any():
            raise ValueError("unlucky")
        return {"y": 2 * inputs["x"]}


def scenario(
    play: Callable[[Batcher, Gated, Seen], Awaitable[None]], is_open: bool = False, **batching: object
) -> None:
    """Run a coroutine with a batcher over a gated model."""
    model, seen = Gated(is_open), Seen()

    async def main() -> None:
        with ThreadPoolExecutor(4) as threads:
            try:
                async with asyncio.timeout(20):
                    await play(Batcher(model, Batching(**batching), threads, seen), model, seen)  # type: ignore[arg-type]
            finally:
                model.gate.set()

    asyncio.run(main())


def ask(batcher: Batcher, *values: float, timeout_us: int = 0) -> asyncio.Future[Ran]:
    x = np.array(values, np.float32)[:, None]
    return batcher.submit({"x": x}, ["y"], len(x), x.shape[1:], timeout_us)


def answers(ran: Ran) -> list[float]:
    return ran.outputs["y"][:, 0].tolist()


async def started(model: Gated) -> None:
    assert await asyncio.to_thread(model.started.acquire, timeout=20)


def test_what_queued_while_the_model_was_busy_runs_together():
    async def play(batcher: Batcher, model: Gated, seen: Seen) -> None:
        first = ask(batcher, 1)
        await started(model)
        others = [ask(batcher, 2, 3), ask(batcher, 4), ask(batcher, 5, 6)]
        model.gate.set()
        results = [answers(ran) for ran in await asyncio.gather(first, *others)]
        assert results == [[2], [4, 6], [8], [10, 12]]
        assert model.widths == [1, 5]
        assert seen.runs == [(1, 1), (5, 3)]
        assert (await others[0]).batch == 5
        assert (await others[0]).queue_ns > 0

    scenario(play)


def test_no_run_is_larger_than_allowed_and_order_is_kept():
    async def play(batcher: Batcher, model: Gated, seen: Seen) -> None:
        first = ask(batcher, 0)
        await started(model)
        others = [ask(batcher, *range(index, index + 3)) for index in range(4)]
        model.gate.set()
        await asyncio.gather(first, *others)
        assert model.widths == [1, 6, 6]
        assert answers(await others[3]) == [6, 8, 10]

    scenario(play, largest=8)


def test_requests_of_other_sizes_do_not_share_a_run():
    async def play(batcher: Batcher, model: Gated, seen: Seen) -> None:
        first = ask(batcher, 0)
        await started(model)
        wide = batcher.submit({"x": np.ones((1, 2), np.float32)}, ["y"], 1, (2,))
        narrow = [ask(batcher, 1), ask(batcher, 2)]
        model.gate.set()
        await asyncio.gather(first, wide, *narrow)
        assert (await wide).outputs["y"].shape == (1, 2)
        assert seen.runs == [(1, 1), (1, 1), (2, 2)]

    scenario(play)


def test_a_delay_waits_for_company_but_not_when_the_run_is_full():
    async def play(batcher: Batcher, model: Gated, seen: Seen) -> None:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        await asyncio.gather(*(ask(batcher, value) for value in (1, 2)))
        assert loop.time() - begun >= 0.25
        assert seen.runs == [(2, 2)]
        begun = loop.time()
        await asyncio.gather(*(ask(batcher, value) for value in (1, 2, 3, 4)))
        assert loop.time() - begun < 0.25
        assert seen.runs[1:] == [(4, 4)]

    scenario(play, is_open=True, largest=4, delay=0.3)


def test_several_instances_run_at_the_same_time():
    async def play(batcher: Batcher, model: Gated, seen: Seen) -> None:
        both = [ask(batcher, 1), ask(batcher, 2)]
        await started(model)
        await started(model)
        model.gate.set()
        assert [answers(ran) for ran in await asyncio.gather(*both)] == [[2], [4]]

    scenario(play, instances=2)


def test_one_failing_request_does_not_spoil_the_others():
    async def play(batcher: Batcher, model: Gated, seen: Seen) -> None:
        first = ask(batcher, 1)
        await started(model)
        others = [ask(batcher, 2), ask(batcher, 13), ask(batcher, 4)]
        model.gate.set()
        results = await asyncio.gather(first, *others, return_exceptions=True)
        assert [answers(ran) for ran in (results[0], results[1], results[3])] == [[2], [4], [8]]
        assert isinstance(results[2], ValueError)

    scenario(play)


def test_a_model_that_loses_rows_of_a_batch_is_asked_one_by_one():
    async def play(batcher: Batcher, model: Gated, seen: Seen) -> None:
        def one_row(inputs: dict, outputs: object) -> dict:
            return {name: array[:1] for name, array in model(inputs, outputs).items()}

        batcher._run = one_row
        first = ask(batcher, 1)
        await started(model)
        others = [ask(batcher, 2), ask(batcher, 3)]
        model.gate.set()
        assert [answers(ran) for ran in await asyncio.gather(first, *others)] == [[2], [4], [6]]
        assert model.widths == [1, 2, 1, 1]

    scenario(play)


def test_a_full_queue_refuses_at_once_and_recovers():
    async def play(batcher: Batcher, model: Gated, seen: Seen) -> None:
        running = ask(batcher, 1)
        await started(model)
        waiting = [ask(batcher, 2), ask(batcher, 3)]
        with pytest.raises(UnavailableError, match="2 requests wait already, the limit"):
            ask(batcher, 4)
        model.gate.set()
        await asyncio.gather(running, *waiting)
        assert answers(await ask(batcher, 5)) == [10]

    scenario(play, queue_limit=2)


def test_a_given_up_request_leaves_the_queue_and_is_not_computed():
    async def play(batcher: Batcher, model: Gated, seen: Seen) -> None:
        running = ask(batcher, 1)
        await started(model)
        waiting = [ask(batcher, 2), ask(batcher, 3)]
        waiting[0].cancel()
        await asyncio.sleep(0)
        assert batcher.waiting == 1
        ask(batcher, 4)  # there is room again
        model.gate.set()
        await running
        assert answers(await waiting[1]) == [6]
        assert model.widths == [1, 2]

    scenario(play, queue_limit=2)


def test_a_request_s_own_timeout_ends_its_waiting():
    async def play(batcher: Batcher, model: Gated, seen: Seen) -> None:
        running = ask(batcher, 1)
        await started(model)
        with pytest.raises(QueueTimeoutError, match="within its timeout of 20000 µs"):
            await ask(batcher, 2, timeout_us=20_000)
        assert batcher.waiting == 0
        model.gate.set()
        assert answers(await running) == [2]

    scenario(play)


def test_closing_finishes_what_waits_and_takes_no_more():
    async def play(batcher: Batcher, model: Gated, seen: Seen) -> None:
        pending = [ask(batcher, 1), ask(batcher, 2)]
        await started(model)
        closing = asyncio.create_task(batcher.close(20))
        await asyncio.sleep(0)
        with pytest.raises(UnavailableError, match="being unloaded"):
            ask(batcher, 3)
        model.gate.set()
        await closing
        assert [answers(ran) for ran in await asyncio.gather(*pending)] == [[2], [4]]

    scenario(play)


def test_closing_without_patience_refuses_what_still_waits():
    async def play(batcher: Batcher, model: Gated, seen: Seen) -> None:
        running, waiting = ask(batcher, 1), ask(batcher, 2)
        await started(model)
        await batcher.close(0.05)
        with pytest.raises(UnavailableError, match="stopped before"):
            await waiting
        model.gate.set()
        assert answers(await running) == [2]

    scenario(play)
