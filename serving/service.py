"""Carries requests out, whatever protocol they came by. The only file that knows models, images and limits together."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter_ns
from typing import Any, TypeVar

from na_deploy.errors import NaDeployError
from na_deploy.model_file.tensors import Array, numpy_type
from na_deploy.runtime.results.classification import score_function_of, top_classes
from na_deploy.serving import descriptions
from na_deploy.serving.batcher import Ran
from na_deploy.serving.classification import classify
from na_deploy.serving.datatypes import PROTOCOL_NAMES
from na_deploy.serving.errors import (
    ForbiddenError,
    InvalidRequestError,
    ModelFailedError,
    RequestError,
    UnavailableError,
    UnsupportedError,
    public_text,
)
from na_deploy.serving.images import image_input
from na_deploy.serving.metrics import Metrics
from na_deploy.serving.options import ServeOptions
from na_deploy.serving.picture import draw_windows
from na_deploy.serving.repository import Repository
from na_deploy.serving.requests import InferRequest, InferResponse, RequestedOutput, Tensor
from na_deploy.serving.segmentation import segments
from na_deploy.serving.served_model import ServedModel

log = logging.getLogger("na_deploy.serving")

T = TypeVar("T")

MOST_CLASSES = 1000


class Service:
    """One server's work.

    Attributes:
        repository: its models.
        options: the server's.
        metrics: its figures.
        ready: true while it wants requests: all models are loaded, and it is not stopping.
        started: true once all models have been loaded.
        in_progress: requests that have begun and not ended.
        ended: set when requests in progress are not waited for any longer.
    """

    def __init__(self, paths: list[Path], options: ServeOptions) -> None:
        self.options = options
        self.metrics = Metrics()
        self.repository = Repository(paths, options, self.metrics)
        self.ready = self.started = False
        self.in_progress = 0
        self.ended = asyncio.Event()
        self._decoders = ThreadPoolExecutor(max(os.cpu_count() or 1, 1), thread_name_prefix="decode")
        self._decoding = 0
        self._pending_bytes = 0
        self._arriving: set[asyncio.Timeout] = set()
        self._pictures: dict[ServedModel, asyncio.Task[bytes]] = {}

    async def infer(self, model: str, version: str, request: InferRequest) -> InferResponse:
        """Run a model on tensors.

        Raises:
            RequestError: the request is not carried out; its subclass says why.
        """
        self._check_started()
        served = self.repository.get(model, version)
        wanted = _outputs(served, request)
        inputs = served.inputs_of(request)
        # Between looking a model up and queueing there is no await: the model cannot be retired in between.
        ran = await served.run(inputs, [output.name for output in wanted], request.timeout_us)
        tensors, binary = [], set()
        for output in wanted:
            array = ran.outputs[output.name]
            if output.classes:
                labels = served.opened.labels if output.name == served.opened.logits else {}
                array = await asyncio.to_thread(classify, output.name, array, output.classes, labels, array.ndim > 1)
            tensors.append(Tensor(output.name, PROTOCOL_NAMES[array.dtype.name], array))
            if output.binary if output.binary is not None else request.binary_outputs:
                binary.add(output.name)
        return InferResponse(
            served.name,
            served.version,
            request.id,
            tuple(tensors),
            frozenset(binary),
            ran.queue_ns,
            ran.compute_ns,
            ran.batch,
        )

    async def classify_image(self, model: str, version: str, image: bytes, top: int) -> dict[str, Any]:
        """Run a classifier on a JPEG or PNG file.

        Returns:
            The best classes, most probable first, and what took how long, in milliseconds.

        Raises:
            RequestError: the request is not carried out; its subclass says why.
        """
        self._check_started()
        served = self.repository.get(model, version)
        preprocessing = served.opened.preprocessing
        if preprocessing is None:
            raise InvalidRequestError(f"{served.name} does not say how images become its input; send it tensors")
        if served.opened.logits is None:
            advice = "use segment" if segments(served) else "send it tensors"
            raise InvalidRequestError(f"{served.name} is no classifier; {advice}")
        if not 1 <= top <= MOST_CLASSES:
            raise InvalidRequestError(f"top is {top}; expected 1 to {MOST_CLASSES}")
        started = perf_counter_ns()
        pixels = await self._decode(image, served)
        # Decoding took a while; the version may have been replaced by one that wants images otherwise.
        current = self.repository.get(model, version)
        if current.opened.preprocessing not in (None, preprocessing):
            pixels = await self._decode(image, current)
            current = self.repository.get(model, version)
        served, prepared = current, perf_counter_ns()
        if served.opened.logits is None:
            raise InvalidRequestError(f"{served.name} is no classifier; send it tensors")
        ran = await self.run_pixels(served, pixels, [served.opened.logits])
        logits = ran.outputs[served.opened.logits]
        scores = score_function_of(served.opened.session.metadata, logits)
        try:
            (best,) = top_classes(logits, top, served.opened.labels, scores)
        except NaDeployError as error:
            raise ModelFailedError(public_text(error)) from None
        return {
            "model_name": served.name,
            "model_version": served.version,
            "classes": [{"class": p.index, "label": p.label, "probability": p.probability} for p in best],
            "prepare_ms": (prepared - started) / 1e6,
            "queue_ms": ran.queue_ns / 1e6,
            "compute_ms": ran.compute_ns / 1e6,
            "batch": ran.batch,
        }

    async def windows_picture(self, model: str, version: str) -> bytes:
        """Return a picture (PNG) of a model's attention windows, drawn once.

        Raises:
            RequestError: the request is not carried out; its subclass says why.
        """
        served = self.repository.get(model, version)
        if served not in self._pictures:
            alive = {each for name in self.repository.names for each in self.repository.versions(name)}
            self._pictures = {each: task for each, task in self._pictures.items() if each in alive}
            self._pictures[served] = asyncio.create_task(
                asyncio.to_thread(draw_windows, served.source.path, served.name)
            )
        try:
            return await asyncio.shield(self._pictures[served])
        except NaDeployError as error:
            raise UnsupportedError(public_text(error)) from None

    @contextmanager
    def measured(self, model: str, protocol: str) -> Iterator[None]:
        """Count what happens inside the block as one request."""
        started, outcome = perf_counter_ns(), "defect"
        self.in_progress += 1
        try:
            yield
            outcome = "ok"
        except RequestError as error:
            outcome = error.code.lower()
            raise
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        finally:
            self.in_progress -= 1
            known = model if model in self.repository.names else ""
            seconds = (perf_counter_ns() - started) / 1e9
            self.metrics.finished(known, protocol, outcome, seconds)
            if self.options.log_requests:
                log.info("%s %s %s in %.1f ms", protocol, known or "(no such model)", outcome, 1e3 * seconds)

    def catalogue(self) -> list[dict[str, Any]]:
        """Return what the page shows of every model."""
        return [
            {
                "name": served.name,
                "version": served.version,
                "answers": _answers(served),
                "device": served.opened.session.device,
                "attention": served.opened.session.attention,
                "metadata": descriptions.model_metadata(served, self.repository.versions(served.name)),
            }
            for served in (self.repository.get(name) for name in self.repository.names)
        ]

    def check_model_control(self) -> None:
        """Refuse where the operator has not allowed loading and unloading.

        Raises:
            ForbiddenError: the operator has not allowed it.
        """
        if not self.options.allow_model_control:
            raise ForbiddenError("this server lets no client load or unload models (--allow-model-control does)")

    def reserve(self, count: int) -> None:
        """Count bytes of a request being read; give them back with a negative count.

        Raises:
            UnavailableError: too many requests are being read or wait.
        """
        if count > 0 and self._pending_bytes + count > self.options.max_pending_bytes:
            raise UnavailableError("too much data of other requests waits; send the request again later")
        self._pending_bytes += count
        self.metrics.pending.set(self._pending_bytes)

    @contextmanager
    def arriving(self, deadline: asyncio.Timeout) -> Iterator[None]:
        """Let :meth:`hurry` shorten the time that a request has to arrive inside the block."""
        self._arriving.add(deadline)
        try:
            yield
        finally:
            self._arriving.discard(deadline)

    def hurry(self, patience: float) -> None:
        """Give requests that still arrive at most so many seconds."""
        latest = asyncio.get_running_loop().time() + patience
        for deadline in self._arriving:
            due = deadline.when()
            if due is None or due > latest:
                deadline.reschedule(latest)

    async def close(self, grace: float) -> None:
        """Finish requests in progress and release the models."""
        self.ready = False
        await self.repository.close(grace)
        self._decoders.shutdown(wait=False, cancel_futures=True)

    def _check_started(self) -> None:
        # Not ``ready``: what had begun to arrive before the server was told to stop is still answered.
        if not self.started:
            raise UnavailableError("the server is starting; send the request again later")

    async def _decode(self, image: bytes, served: ServedModel) -> Array:
        preprocessing, most = served.opened.preprocessing, self.options.max_image_pixels
        return await self.in_decoder(image_input, image, preprocessing, most)

    async def in_decoder(self, function: Callable[..., T], *arguments: Any) -> T:
        """Run what takes milliseconds of an image's way in or out in the decoders' threads.

        Raises:
            UnavailableError: as many images as may wait do so already.
        """
        if self._decoding >= self.options.batching.queue_limit:
            raise UnavailableError(f"{self._decoding} images wait already, the limit; send the request again later")
        self._decoding += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._decoders, function, *arguments)
        finally:
            self._decoding -= 1

    def segmenter(self, model: str, version: str) -> ServedModel:
        """Return a model that answers images with segments.

        Raises:
            RequestError: there is none of that name, or it is no segmenter or detector.
        """
        self._check_started()
        served = self.repository.get(model, version)
        if not segments(served):
            raise InvalidRequestError(
                f"{served.name} is no segmenter or detector of images; send it tensors, or use classify"
            )
        return served

    async def run_pixels(self, served: ServedModel, pixels: Array, outputs: list[str]) -> Ran:
        """Run a model on a prepared image (1, C, H, W) among what else waits for it."""
        spec = served.opened.session.inputs[0]
        if isinstance(spec.shape[0], int) and spec.shape[0] > 1:  # a fixed batch: the image fills all of it
            pixels = pixels.repeat(spec.shape[0], axis=0)
        request = InferRequest(
            inputs=(Tensor(spec.name, PROTOCOL_NAMES[spec.dtype], pixels.astype(numpy_type(spec.dtype))),)
        )
        ran = await served.run(served.inputs_of(request), outputs)
        return Ran({name: array[:1] for name, array in ran.outputs.items()}, ran.queue_ns, ran.compute_ns, ran.batch)


def _answers(served: ServedModel) -> str:
    """Return what a model answers images with: "classes", "segments", or "" for one that takes tensors alone."""
    if segments(served):
        return "segments"
    return "classes" if served.opened.preprocessing is not None and served.opened.logits is not None else ""


def _outputs(served: ServedModel, request: InferRequest) -> list[RequestedOutput]:
    known = [spec.name for spec in served.opened.session.outputs]
    for output in request.outputs:
        if output.name not in known:
            raise InvalidRequestError(f"{served.name} has no output {output.name[:80]!r}; it has {', '.join(known)}")
    return list(request.outputs) or [RequestedOutput(name) for name in known]
