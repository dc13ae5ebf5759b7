"""The gRPC side of the protocol, on tritonclient's stubs. Each call reads, asks the service and writes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable
from typing import Any

import grpc
from google.protobuf import json_format
from tritonclient.grpc import service_pb2
from tritonclient.grpc.service_pb2_grpc import (
    GRPCInferenceServiceServicer,
    add_GRPCInferenceServiceServicer_to_server,
)

from na_deploy.errors import NaDeployError
from na_deploy.serving import descriptions
from na_deploy.serving.errors import NotFoundError, RequestError, UnavailableError, UnsupportedError
from na_deploy.serving.grpc_codec import decode_request, encode_response, parameters_of
from na_deploy.serving.service import Service

log = logging.getLogger("na_deploy.serving")

_ENVELOPE = 1 << 20
"""Bytes of a message beside its tensors."""
_LONG = 64 << 10
_STREAM_AHEAD = 16
"""Requests of one stream that are worked on at a time."""
FINAL = "triton_final_response"
_SHARED_MEMORY = "shared memory is not supported; send tensors in the request"


def make_server(service: Service) -> grpc.aio.Server:
    """Return a server that listens nowhere yet."""
    largest = service.options.max_request_bytes + _ENVELOPE
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", min(largest, (1 << 31) - 1)),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", 0),  # else two servers share a port without a word
        ],
        maximum_concurrent_rpcs=service.options.max_connections,
    )
    add_GRPCInferenceServiceServicer_to_server(Servicer(service), server)
    return server


class Servicer(GRPCInferenceServiceServicer):  # type: ignore[misc]  # the stubs are not typed
    """Answers the calls of the protocol; method names are the protocol's."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._repository = service.repository

    async def ServerLive(self, request: Any, context: Any) -> Any:  # noqa: D102, N802
        return service_pb2.ServerLiveResponse(live=True)

    async def ServerReady(self, request: Any, context: Any) -> Any:  # noqa: D102, N802
        return service_pb2.ServerReadyResponse(ready=self._service.ready)

    async def ModelReady(self, request: Any, context: Any) -> Any:  # noqa: D102, N802
        try:
            self._repository.get(request.name, request.version)
        except (NotFoundError, UnavailableError):
            return service_pb2.ModelReadyResponse(ready=False)
        except RequestError as error:
            await _refuse(context, error)
        return service_pb2.ModelReadyResponse(ready=self._service.ready)

    async def ServerMetadata(self, request: Any, context: Any) -> Any:  # noqa: D102, N802
        return service_pb2.ServerMetadataResponse(**descriptions.server_metadata())

    async def ModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: D102, N802
        async def work() -> Any:
            served = self._repository.get(request.name, request.version)
            content = descriptions.model_metadata(served, self._repository.versions(request.name))
            return service_pb2.ModelMetadataResponse(**content)

        return await _answered(context, work())

    async def ModelConfig(self, request: Any, context: Any) -> Any:  # noqa: D102, N802
        async def work() -> Any:
            served, options = self._repository.get(request.name, request.version), self._service.options
            content = descriptions.model_config(served, options.batching, options.versions)
            return json_format.ParseDict({"config": content}, service_pb2.ModelConfigResponse())

        return await _answered(context, work())

    async def ModelStatistics(self, request: Any, context: Any) -> Any:  # noqa: D102, N802
        async def work() -> Any:
            names = [request.name] if request.name else self._repository.names
            served = [each for name in names for each in self._repository.versions(name)]
            if request.version:
                served = [self._repository.get(request.name, request.version)]
            content = descriptions.statistics(served)
            return json_format.ParseDict(content, service_pb2.ModelStatisticsResponse())

        return await _answered(context, work())

    async def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: D102, N802
        return await _answered(context, self._infer(request))

    async def ModelStreamInfer(self, request_iterator: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:  # noqa: D102, N802
        tasks: asyncio.Queue[tuple[Any, asyncio.Task[Any]] | None] = asyncio.Queue(_STREAM_AHEAD)

        async def read() -> None:
            try:
                async for request in request_iterator:
                    await tasks.put((request, asyncio.create_task(self._infer(request))))
            finally:
                await tasks.put(None)

        reader = asyncio.create_task(read())
        try:
            while (next_one := await tasks.get()) is not None:
                request, task = next_one
                yield await _stream_answer(request, task)
        finally:
            reader.cancel()
            while not tasks.empty():
                left = tasks.get_nowait()
                if left is not None:
                    left[1].cancel()

    async def RepositoryIndex(self, request: Any, context: Any) -> Any:  # noqa: D102, N802
        models = descriptions.repository_index(self._repository, request.ready)
        return service_pb2.RepositoryIndexResponse(models=models)

    async def RepositoryModelLoad(self, request: Any, context: Any) -> Any:  # noqa: D102, N802
        async def work() -> Any:
            self._service.check_model_control()
            if request.parameters:
                raise UnsupportedError(
                    "models are loaded from the server's own folder; parameters of load are not taken"
                )
            await self._repository.load(request.model_name)
            return service_pb2.RepositoryModelLoadResponse()

        return await _answered(context, work())

    async def RepositoryModelUnload(self, request: Any, context: Any) -> Any:  # noqa: D102, N802
        async def work() -> Any:
            self._service.check_model_control()
            await self._repository.unload(request.model_name)
            return service_pb2.RepositoryModelUnloadResponse()

        return await _answered(context, work())

    async def TraceSetting(self, request: Any, context: Any) -> Any:  # noqa: D102, N802
        await _refuse(context, UnsupportedError("tracing is not offered; metrics and statistics show where time goes"))

    async def LogSettings(self, request: Any, context: Any) -> Any:  # noqa: D102, N802
        await _refuse(context, UnsupportedError("log settings cannot be changed over the network"))

    async def _no_shared_memory(self, request: Any, context: Any) -> Any:
        await _refuse(context, UnsupportedError(_SHARED_MEMORY))

    SystemSharedMemoryStatus = SystemSharedMemoryRegister = SystemSharedMemoryUnregister = _no_shared_memory
    CudaSharedMemoryStatus = CudaSharedMemoryRegister = CudaSharedMemoryUnregister = _no_shared_memory

    async def _infer(self, request: Any) -> Any:
        size = request.ByteSize()
        with self._service.measured(request.model_name, "grpc"):
            self._service.reserve(size)
            try:
                # Raw contents are only looked at; typed ones are copied number by number.
                if request.raw_input_contents or size < _LONG:
                    decoded = decode_request(request)
                else:
                    decoded = await asyncio.to_thread(decode_request, request)
                response = await self._service.infer(request.model_name, request.model_version, decoded)
            finally:
                self._service.reserve(-size)
            return encode_response(response)


async def _stream_answer(request: Any, task: asyncio.Task[Any]) -> Any:
    message = service_pb2.ModelStreamInferResponse()
    try:
        message.infer_response.CopyFrom(await task)
    except RequestError as error:
        message.error_message = str(error)
        message.infer_response.id = request.id
    if parameters_of(request.parameters).get("triton_enable_empty_final_response"):
        message.infer_response.parameters[FINAL].bool_param = True
    return message


async def _answered(context: Any, work: Awaitable[Any]) -> Any:
    try:
        return await work
    except RequestError as error:
        await _refuse(context, error)
    except NaDeployError:
        log.exception("a request failed inside the server")
        await context.abort(grpc.StatusCode.INTERNAL, "the server failed; its log says why")


async def _refuse(context: Any, error: RequestError) -> None:
    await context.abort(getattr(grpc.StatusCode, error.code), str(error))
