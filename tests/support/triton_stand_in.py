"""The module that Triton's python backend gives its models, as far as ours use it, and models opened as it opens them.

Their files are the packaged ones, unedited. Models call each other in the test's own process.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from google.protobuf import json_format

from na_deploy.deployment.protobuf import CONFIG, read

NAME = "triton_python_backend_utils"


class Tensor:
    """A named array."""

    def __init__(self, name: str, array: np.ndarray) -> None:
        self.name, self.array = name, array

    def as_numpy(self) -> np.ndarray:
        return self.array

    def to_dlpack(self) -> np.ndarray:
        return self.array

    @classmethod
    def from_dlpack(cls, name: str, packed: np.ndarray) -> Tensor:
        return cls(name, packed)


class TritonError:
    """A sentence in place of outputs."""

    def __init__(self, text: str) -> None:
        self.text = text

    def message(self) -> str:
        return self.text


class InferenceResponse:
    """An answer: outputs, or an error."""

    def __init__(self, output_tensors: Sequence[Tensor] = (), error: TritonError | None = None) -> None:
        self.tensors, self.failure = {tensor.name: tensor for tensor in output_tensors}, error

    def has_error(self) -> bool:
        return self.failure is not None

    def error(self) -> TritonError | None:
        return self.failure


class TritonModelException(Exception):  # noqa: N818 - Triton's name
    """A model's refusal to start."""


class Models:
    """Opened models by name, and the stand-in module through which they see each other."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened: dict[str, Any] = {}
        models = self.opened

        class InferenceRequest:
            def __init__(self, inputs: Sequence[Tensor], model_name: str = "", **_: Any) -> None:
                self.tensors, self.model = {tensor.name: tensor for tensor in inputs}, model_name

            def exec(self) -> InferenceResponse:
                (answer,) = models[self.model].execute([self])
                assert isinstance(answer, InferenceResponse)
                return answer

        module: Any = ModuleType(NAME)
        module.Tensor, module.TritonError, module.InferenceResponse = Tensor, TritonError, InferenceResponse
        module.InferenceRequest, module.TritonModelException = InferenceRequest, TritonModelException
        module.Logger = SimpleNamespace(log_info=lambda text: None)
        module.PreferredMemory = lambda *place: place
        module.TRITONSERVER_MEMORY_CPU = 0
        module.get_input_tensor_by_name = lambda request, name: request.tensors[name]
        module.get_output_tensor_by_name = lambda response, name: response.tensors[name]
        module.triton_string_to_numpy = {"TYPE_FP32": np.float32, "TYPE_FP16": np.float16}.__getitem__
        monkeypatch.setitem(sys.modules, NAME, module)
        self._request = InferenceRequest

    def open(self, repository: Path, name: str) -> Any:
        """Start a packaged model of the python backend."""
        config = json_format.MessageToDict(read(repository / name / CONFIG), preserving_proto_field_name=True)
        config["max_batch_size"] = config.get("max_batch_size", 0)
        spec = importlib.util.spec_from_file_location(f"packaged_{name}", repository / name / "1" / "model.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        model = module.TritonPythonModel()
        model.initialize(
            {
                "model_config": json.dumps(config),
                "model_repository": str(repository / name),
                "model_version": "1",
                "model_name": name,
            }
        )
        self.opened[name] = model
        return model

    def ask(self, name: str, **arrays: np.ndarray) -> dict[str, np.ndarray]:
        """Return an opened model's outputs."""
        answer = self._request([Tensor(key, array) for key, array in arrays.items()], name).exec()
        assert answer.failure is None, answer.failure.text
        return {key: tensor.as_numpy() for key, tensor in answer.tensors.items()}
