"""Runs what waits together: requests that queued while the model was busy become one batch.

Knows neither protocols nor models: it is given a function that runs a batch in a thread. All its own state belongs
to one event loop, so it needs no locks.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from time import perf_counter_ns
from typing import Protocol

import numpy as np

from na_deploy.model_file.tensors import Array
from na_deploy.serving.errors import ModelFailedError, QueueTimeoutError, UnavailableError

Arrays = dict[str, Array]
Run = Callable[[Arrays, Sequence[str]], Arrays]
"""Runs the model once: inputs by name and the outputs wanted, to outputs by name. Called in a thread."""


@dataclass(frozen=True)
class Batching:
    """Rules by which requests share runs.

    Attributes:
        largest: items in one run; 1 for a model that takes one request at a time.
        delay: seconds to wait for company when a run could start with less than ``largest``.
        instances: runs at the same time.
        queue_limit: requests that may wait; further ones are refused at once.
    """

    largest: int = 8
    delay: float = 0.0
    instances: int = 1
    queue_limit: int = 100


@dataclass(frozen=True)
class Ran:
    """One request's share of a run: its outputs, nanoseconds waited and computed, items in the run."""

    outputs: Arrays
    queue_ns: int
    compute_ns: int
    batch: int


class Observer(Protocol):
    """Is told of what happens, on the event loop."""

    def ran(self, items: int, requests: int, compute_ns: int) -> None:
        """Take note of a run that ended well."""

    def waiting(self, requests: int) -> None:
        """Take note of the number of requests that wait."""


@dataclass(eq=False, repr=False, slots=True)
class _Job:
    inputs: Mapping[str, Array]
    outputs: tuple[str, ...]
    items: int
    key: Hashable
    future: asyncio.Future[Ran]
    queued_ns: int = field(default_factory=perf_counter_ns)
    waits: bool = True


class Batcher:
    """A queue in front of one model. Use it from one event loop.

    Args:
        run: runs the model.
        batching: how requests share runs.
        threads: where ``run`` is called; has room for as many calls at once as ``batching`` allows.
        observer: told of runs and of the queue's length.
    """

    def __init__(self, run: Run, batching: Batching, threads: Executor, observer: Observer) -> None:
        self._run = run
        self._batching = batching
        self._threads = threads
        self._observer = observer
        self._queue: deque[_Job] = deque()
        self._running = 0
        self._timer: asyncio.TimerHandle | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        self._closed = False

    @property
    def waiting(self) -> int:
        """Number of requests that wait."""
        return len(self._queue)

    def submit(
        self, inputs: Mapping[str, Array], outputs: Sequence[str], items: int, key: Hashable, timeout_us: int = 0
    ) -> asyncio.Future[Ran]:
        """Queue a request. Cancel the future when nobody waits for it any more.

        Args:
            inputs: arrays by name; with ``items`` entries along their first axis where requests share runs.
            outputs: names of those wanted.
            items: entries along the first axis.
            key: what requests of one run have in common, such as the sizes of all other axes.
            timeout_us: how long the request may wait for its turn; 0 for as long as it takes.

        Raises:
            UnavailableError: too many wait already, or the model is being unloaded.
        """
        if self._closed:
            raise UnavailableError("the model is being unloaded; send the request again later")
        if len(self._queue) >= self._batching.queue_limit:
            raise UnavailableError(f"{len(self._queue)} requests wait already, the limit; send the request again later")
        loop = asyncio.get_running_loop()
        job = _Job(inputs, tuple(outputs), items, key, loop.create_future())
        self._queue.append(job)
        self._idle.clear()
        job.future.add_done_callback(lambda _: self._forget(job))
        if timeout_us:
            timer = loop.call_later(timeout_us / 1e6, self._expire, job, timeout_us)
            job.future.add_done_callback(lambda _: timer.cancel())  # else it keeps the inputs until it is due
        self._dispatch()
        self._observer.waiting(len(self._queue))
        return job.future

    async def close(self, grace: float = 30.0) -> None:
        """Take no more requests, finish those waiting and running; refuse what is left after ``grace`` seconds."""
        self._closed = True
        self._dispatch()
        try:
            async with asyncio.timeout(grace):
                await self._idle.wait()
        except TimeoutError:
            for job in list(self._queue):
                _fail(job, UnavailableError("the server stopped before the request's turn came"))

    def _dispatch(self) -> None:
        """Start as many runs as may start now."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._queue and self._running < self._batching.instances:
            jobs = self._next()
            items = sum(job.items for job in jobs)
            due = jobs[0].queued_ns + int(self._batching.delay * 1e9) - perf_counter_ns()
            if items < self._batching.largest and due > 0 and not self._closed:
                self._timer = asyncio.get_running_loop().call_later(due / 1e9, self._dispatch)
                return
            for job in jobs:
                self._queue.remove(job)
                job.waits = False
            self._running += 1
            started = asyncio.get_running_loop().run_in_executor(self._threads, self._compute, jobs)
            started.add_done_callback(lambda done, jobs=jobs: self._finish(jobs, done))  # type: ignore[misc]
            self._observer.waiting(len(self._queue))
        if not self._queue and not self._running:
            self._idle.set()

    def _next(self) -> list[_Job]:
        """Return the first job that waits and those that fit into one run with it, in order."""
        first = self._queue[0]
        jobs, items = [], 0
        for job in self._queue:
            if job.key == first.key and items + job.items <= max(self._batching.largest, first.items):
                jobs.append(job)
                items += job.items
                if items >= self._batching.largest:
                    break
        return jobs

    def _compute(self, jobs: list[_Job]) -> list[list[Ran] | Exception]:
        """Run jobs together; where that fails, each on its own, so that one cannot spoil the others. In a thread."""
        started = perf_counter_ns()
        try:
            return [self._compute_together(jobs, started)]
        except Exception as error:
            if len(jobs) == 1:
                return [error]
        results: list[list[Ran] | Exception] = []
        for job in jobs:
            try:
                results.append(self._compute_together([job], started))
            except Exception as error:
                results.append(error)
        return results

    def _compute_together(self, jobs: list[_Job], started: int) -> list[Ran]:
        wanted = tuple(dict.fromkeys(name for job in jobs for name in job.outputs))
        begun = perf_counter_ns()
        if len(jobs) == 1:
            outputs = self._run(dict(jobs[0].inputs), wanted)
            return [Ran(outputs, started - jobs[0].queued_ns, perf_counter_ns() - begun, jobs[0].items)]
        joined = {name: np.concatenate([job.inputs[name] for job in jobs]) for name in jobs[0].inputs}
        outputs = self._run(joined, wanted)
        compute = perf_counter_ns() - begun
        items = sum(job.items for job in jobs)
        for name, array in outputs.items():
            if array.ndim == 0 or len(array) != items:
                raise ModelFailedError(f"output {name} has shape {list(array.shape)} for a batch of {items}")
        results, place = [], 0
        for job in jobs:
            part = {name: outputs[name][place : place + job.items] for name in job.outputs}
            results.append(Ran(part, started - job.queued_ns, compute, items))
            place += job.items
        return results

    def _finish(self, jobs: list[_Job], done: asyncio.Future[list[list[Ran] | Exception]]) -> None:
        self._running -= 1
        place = 0
        # Either one run of all jobs, or one for each of them.
        for run in done.result() if not done.cancelled() else [UnavailableError("the server is stopping")] * len(jobs):
            if isinstance(run, Exception):
                _fail(jobs[place], run)
                place += 1
                continue
            self._observer.ran(run[0].batch, len(run), run[0].compute_ns)
            for job, result in zip(jobs[place:], run, strict=False):
                if not job.future.done():
                    job.future.set_result(result)
            place += len(run)
        self._dispatch()

    def _expire(self, job: _Job, timeout_us: int) -> None:
        if job.waits:
            _fail(job, QueueTimeoutError(f"the request's turn did not come within its timeout of {timeout_us} µs"))

    def _forget(self, job: _Job) -> None:
        """Take a job out of the queue that was cancelled or has failed there."""
        if job.waits:
            job.waits = False
            self._queue.remove(job)
            self._observer.waiting(len(self._queue))
            if not self._queue and not self._running:
                self._idle.set()


def _fail(job: _Job, error: Exception) -> None:
    if not job.future.done():
        job.future.set_exception(error)
