"""Duties of every server of the Open Inference Protocol, asked through tritonclient over HTTP and gRPC.

    for check in CHECKS: check(client, model)

Knows no server: :func:`connect` takes an address of any. The same checks hold Triton and na-deploy's own server.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class ServedModel:
    """A model with one input, as a client sees it.

    Attributes:
        name: its name.
        input: name of its input, float32.
        item: sizes of one item of it, without the batch.
        output: name of an output.
        expected: the model's answer to a batch of items.
        largest_batch: the most items it takes at once, 0 where the batch is fixed to one.
        batches: true where the server joins waiting requests.
        version: the version that is asked about.
    """

    name: str
    input: str
    item: tuple[int, ...]
    output: str
    expected: Callable[[Array], Array]
    largest_batch: int
    batches: bool
    version: str = "1"

    @property
    def shape(self) -> list[int]:
        """The input's shape as metadata states it."""
        return [-1 if self.largest_batch else 1, *self.item]


class Client:
    """tritonclient's HTTP or gRPC client, with answers alike."""

    def __init__(self, kind: str, url: str) -> None:
        self.kind = kind
        self.url = url
        self.module: Any = {"http": tritonclient.http, "grpc": tritonclient.grpc}[kind]
        self.raw = self.module.InferenceServerClient(url)

    def ask(self, method: str, *arguments: Any, **named: Any) -> Any:
        """Call a method that answers with a message, and return it as JSON types."""
        if self.kind == "grpc":
            named["as_json"] = True
        return getattr(self.raw, method)(*arguments, **named)

    def infer(
        self,
        name: str,
        feeds: dict[str, Array],
        outputs: list[str] | None = None,
        datatype: str | None = None,
        **named: Any,
    ) -> Any:
        """Infer with arrays by input name; strings are arrays of objects."""
        inputs = []
        for key, array in feeds.items():
            kind = datatype or np_to_triton_dtype(array.dtype)
            tensor = self.module.InferInput(key, list(array.shape), kind)
            tensor.set_data_from_numpy(array)
            inputs.append(tensor)
        wanted = None if outputs is None else [self.module.InferRequestedOutput(key) for key in outputs]
        return self.raw.infer(name, inputs, outputs=wanted, **named)


@contextmanager
def connect(kind: str, url: str) -> Iterator[Client]:
    """Yield a client for ``http`` or ``grpc``."""
    client = Client(kind, url)
    try:
        yield client
    finally:
        client.raw.close()


def items(model: ServedModel, count: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=(count, *model.item)).astype(np.float32)


def server_is_live_and_the_model_ready(client: Client, model: ServedModel) -> None:
    assert client.raw.is_server_live()
    assert client.raw.is_server_ready()
    assert client.raw.is_model_ready(model.name)
    assert client.raw.is_model_ready(model.name, model.version)
    assert not client.raw.is_model_ready("no_such_model")


def server_names_its_extensions(client: Client, model: ServedModel) -> None:
    about = client.ask("get_server_metadata")
    assert about["name"]
    assert about["version"]
    assert "binary_tensor_data" in about["extensions"]


def metadata_states_the_models_inputs_and_outputs(client: Client, model: ServedModel) -> None:
    about = client.ask("get_model_metadata", model.name)
    assert about["name"] == model.name
    assert model.version in about["versions"]
    (entry,) = about["inputs"]
    assert (entry["name"], entry["datatype"]) == (model.input, "FP32")
    assert [int(size) for size in entry["shape"]] == model.shape
    assert model.output in [output["name"] for output in about["outputs"]]


def config_states_the_largest_batch(client: Client, model: ServedModel) -> None:
    config = client.ask("get_model_config", model.name)
    config = config.get("config", config)
    assert config["name"] == model.name
    assert int(config.get("max_batch_size", 0)) == model.largest_batch
    (entry,) = config["input"]
    assert [int(size) for size in entry["dims"]] == [*([] if model.largest_batch else [1]), *model.item]


def answers_are_the_models_own(client: Client, model: ServedModel) -> None:
    for count in sorted({1, *([3, model.largest_batch] if model.largest_batch else [])}):
        given = items(model, count, seed=count)
        answer = client.infer(model.name, {model.input: given}, [model.output]).as_numpy(model.output)
        expected = model.expected(given)
        assert answer.shape == expected.shape
        np.testing.assert_allclose(answer, expected, rtol=1e-4, atol=1e-5)


def requests_keep_their_ids(client: Client, model: ServedModel) -> None:
    answer = client.infer(model.name, {model.input: items(model, 1)}, request_id="asked-7")
    about = answer.get_response(as_json=True) if client.kind == "grpc" else answer.get_response()
    assert about["id"] == "asked-7"
    assert about["model_name"] == model.name
    assert str(about["model_version"]) == model.version


def concurrent_requests_are_answered_each_with_its_own(client: Client, model: ServedModel) -> None:
    given = [items(model, 1, seed=100 + index) for index in range(32)]
    before = _statistics(client, model)

    def ask(x: Array) -> Array:
        with connect(client.kind, client.url) as own:  # tritonclient's HTTP client belongs to one thread
            answer: Array = own.infer(model.name, {model.input: x}).as_numpy(model.output)
            return answer

    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(ask, given))
    for x, answer in zip(given, answers, strict=True):
        np.testing.assert_allclose(answer, model.expected(x), rtol=1e-4, atol=1e-5)
    after = _statistics(client, model, before["inference_count"] + len(given))
    assert after["inference_count"] - before["inference_count"] == len(given)
    runs = after["execution_count"] - before["execution_count"]
    if model.batches:
        assert runs < len(given), "waiting requests were not joined"
    else:
        assert runs == len(given)


def statistics_count_requests_and_their_time(client: Client, model: ServedModel) -> None:
    before = _statistics(client, model)
    client.infer(model.name, {model.input: items(model, 1)})
    after = _statistics(client, model, before["inference_count"] + 1)
    assert after["success"] == before["success"] + 1
    assert after["compute_ns"] > before["compute_ns"]


def a_wrong_shape_is_refused_with_both_shapes(client: Client, model: ServedModel) -> None:
    wrong = np.zeros((1, *model.item[:-1], model.item[-1] + 1), np.float32)
    with pytest.raises(InferenceServerException) as caught:
        client.infer(model.name, {model.input: wrong})
    message = caught.value.message()
    assert str(model.item[-1] + 1) in message
    assert str(model.item[-1]) in message
    assert model.input in message


def a_wrong_type_is_refused(client: Client, model: ServedModel) -> None:
    with pytest.raises(InferenceServerException) as caught:
        client.infer(model.name, {model.input: items(model, 1).astype(np.float64)})
    assert "FP64" in caught.value.message()


def too_large_a_batch_is_refused(client: Client, model: ServedModel) -> None:
    with pytest.raises(InferenceServerException) as caught:
        client.infer(model.name, {model.input: items(model, max(model.largest_batch, 1) + 1)})
    assert model.name in caught.value.message() or model.input in caught.value.message()


def unknown_names_are_refused(client: Client, model: ServedModel) -> None:
    given = items(model, 1)
    with pytest.raises(InferenceServerException, match="no_such_model"):
        client.infer("no_such_model", {model.input: given})
    with pytest.raises(InferenceServerException, match="input"):
        client.infer(model.name, {"no_such_input": given})
    with pytest.raises(InferenceServerException, match="no_such_output"):
        client.infer(model.name, {model.input: given}, ["no_such_output"])
    with pytest.raises(InferenceServerException, match="987"):
        client.infer(model.name, {model.input: given}, model_version="987")


def the_server_answers_after_all_that(client: Client, model: ServedModel) -> None:
    given = items(model, 1, seed=5)
    answer = client.infer(model.name, {model.input: given}).as_numpy(model.output)
    np.testing.assert_allclose(answer, model.expected(given), rtol=1e-4, atol=1e-5)


CHECKS: list[Callable[[Client, ServedModel], None]] = [
    server_is_live_and_the_model_ready,
    server_names_its_extensions,
    metadata_states_the_models_inputs_and_outputs,
    config_states_the_largest_batch,
    answers_are_the_models_own,
    requests_keep_their_ids,
    concurrent_requests_are_answered_each_with_its_own,
    statistics_count_requests_and_their_time,
    a_wrong_shape_is_refused_with_both_shapes,
    a_wrong_type_is_refused,
    too_large_a_batch_is_refused,
    unknown_names_are_refused,
    the_server_answers_after_all_that,
]


def _statistics(client: Client, model: ServedModel, awaited: int = 0) -> dict[str, int]:
    """Counts of a model's version, once ``awaited`` inferences are counted: servers may count after they answered."""
    give_up = time.monotonic() + 5
    while (found := _counts(client, model))["inference_count"] < awaited and time.monotonic() < give_up:
        time.sleep(0.02)
    return found


def _counts(client: Client, model: ServedModel) -> dict[str, int]:
    """Return the counts; some servers leave out those of zero."""
    answer = client.ask("get_inference_statistics", model.name, model.version)
    (entry,) = answer["model_stats"]
    details = entry.get("inference_stats", {})
    return {
        "inference_count": int(entry.get("inference_count", 0)),
        "execution_count": int(entry.get("execution_count", 0)),
        "success": int(details.get("success", {}).get("count", 0)),
        "compute_ns": int(details.get("compute_infer", {}).get("ns", 0)),
    }
