"""One version of a model being served: an opened model behind a batcher, with its statistics."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from time import perf_counter_ns

from na_deploy.errors import NaDeployError, UsageError
from na_deploy.model_file.tensors import Array, check_inputs
from na_deploy.serving.batcher import Batcher, Ran
from na_deploy.serving.datatypes import NUMPY_NAMES, PROTOCOL_NAMES, array_from_raw
from na_deploy.serving.errors import InvalidRequestError, ModelFailedError, RequestError, public_text
from na_deploy.serving.metrics import Metrics, ModelMetrics
from na_deploy.serving.model_loader import OpenedModel
from na_deploy.serving.options import ServeOptions
from na_deploy.serving.requests import InferRequest
from na_deploy.serving.sources import Source
from na_deploy.serving.statistics import Statistics


class ServedModel:
    """A model that answers requests. Belongs to one event loop.

    Attributes:
        source: its origin.
        opened: session, labels, preprocessing.
        statistics: its figures.
    """

    def __init__(self, source: Source, opened: OpenedModel, options: ServeOptions, metrics: Metrics) -> None:
        self.source = source
        self.opened = opened
        self.statistics = Statistics()
        self.metrics: ModelMetrics = metrics.of_model(source.name, source.version, opened.session)
        batching = options.batching
        self._threads = ThreadPoolExecutor(batching.instances, thread_name_prefix=f"{source.name}/{source.version}")
        self._batcher = Batcher(
            opened.session.run, replace(batching, largest=opened.max_batch or 1), self._threads, self
        )

    @property
    def name(self) -> str:
        """The model's name."""
        return self.source.name

    @property
    def version(self) -> str:
        """The version, as the protocol writes it."""
        return str(self.source.version)

    def ran(self, items: int, requests: int, compute_ns: int) -> None:
        """Count a run; called by the batcher."""
        self.statistics.ran(items, compute_ns)
        self.metrics.ran(items, compute_ns)

    def waiting(self, requests: int) -> None:
        """Report the queue's length; called by the batcher."""
        self.metrics.waiting(requests)

    def inputs_of(self, request: InferRequest) -> dict[str, Array]:
        """Return a request's inputs, checked against the model.

        Raises:
            InvalidRequestError: they do not fit.
        """
        specs = self.opened.session.inputs
        if request.raw is not None:
            return self._raw_input(request.raw)
        expected = {spec.name: spec.dtype for spec in specs}
        for tensor in request.inputs:
            if tensor.name in expected and NUMPY_NAMES.get(tensor.datatype) != expected[tensor.name]:
                raise InvalidRequestError(
                    f"input {tensor.name} has datatype {tensor.datatype}; "
                    f"{self.name} takes {PROTOCOL_NAMES[expected[tensor.name]]}"
                )
        try:
            return check_inputs(specs, {tensor.name: tensor.array for tensor in request.inputs})
        except UsageError as error:
            raise InvalidRequestError(public_text(error)) from None

    async def run(self, inputs: dict[str, Array], outputs: list[str], timeout_us: int = 0) -> Ran:
        """Queue checked inputs, wait for their turn and for the answer. Cancelling takes them out of the queue.

        Raises:
            RequestError: the queue is full, the timeout passed, or the model failed.
        """
        started = perf_counter_ns()
        try:
            items = self._items(inputs)
            key = tuple((name, array.shape[1:]) for name, array in inputs.items())
            ran = await self._batcher.submit(inputs, outputs, items, key, timeout_us)
        except (RequestError, asyncio.CancelledError):
            self.statistics.failed(perf_counter_ns() - started)
            raise
        except Exception as error:
            self.statistics.failed(perf_counter_ns() - started)
            if isinstance(error, NaDeployError):
                raise ModelFailedError(public_text(error)) from error
            raise ModelFailedError(f"{self.name} failed: {type(error).__name__}: {public_text(error)}") from error
        self.statistics.answered(items, perf_counter_ns() - started, ran.queue_ns, ran.compute_ns)
        self.metrics.answered(ran.queue_ns)
        return ran

    async def close(self, grace: float) -> None:
        """Finish what waits and runs, then release the model."""
        await self._batcher.close(grace)
        self._threads.shutdown(wait=False, cancel_futures=True)
        self.opened.session.close()

    def _items(self, inputs: dict[str, Array]) -> int:
        if not self.opened.max_batch:
            return 1
        sizes = {len(array) for array in inputs.values()}
        items = sizes.pop()
        if not 1 <= items <= self.opened.max_batch or sizes:
            raise InvalidRequestError(
                f"the request has a batch of {items}; {self.name} takes 1 to {self.opened.max_batch}"
            )
        return items

    def _raw_input(self, raw: memoryview) -> dict[str, Array]:
        specs = self.opened.session.inputs
        fixed = [size for spec in specs for size in spec.shape[1:] if isinstance(size, int)]
        if len(specs) != 1 or not specs[0].shape or len(fixed) != len(specs[0].shape) - 1:
            raise InvalidRequestError(
                f"bytes without a header fit models with one input of fixed sizes; {self.name} needs a request in JSON"
            )
        first = specs[0].shape[0]
        shape = (first if isinstance(first, int) else 1, *fixed)
        return {specs[0].name: array_from_raw(specs[0].name, PROTOCOL_NAMES[specs[0].dtype], shape, raw)}
