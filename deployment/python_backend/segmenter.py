"""Answers image files with segments in Triton's python backend; the network is another model of the repository.

Written into a repository as ``model.py``. The Python of the python backend must have na_deploy installed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from na_deploy.deployment.python_backend.arrays import check_arrays
from na_deploy.errors import NaDeployError
from na_deploy.model_file.tensors import Array
from na_deploy.models.metadata import ModelMetadata
from na_deploy.models.preprocessing import Preprocessing
from na_deploy.runtime.images.prepare import decode_image, prepare
from na_deploy.runtime.pictures.id_map import id_map_png
from na_deploy.runtime.results.predict import read_result
from na_deploy.runtime.results.segments import Segmentation


class TritonPythonModel:
    """One instance of the model."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Read which model runs, and how images go in and segments come out."""
        check_arrays(pb_utils)
        config = json.loads(args["model_config"])
        settings = {name: entry["string_value"] for name, entry in config["parameters"].items()}
        self.model, self.input = settings["na_deploy.model"], settings["na_deploy.input"]
        self.dtype = pb_utils.triton_string_to_numpy(settings["na_deploy.input_type"])
        self.batch = int(settings["na_deploy.batch"])
        self.outputs = json.loads(settings["na_deploy.outputs"])
        self.answers = [output["name"] for output in config["output"]]
        self.preprocessing = Preprocessing.from_json(settings["na_deploy.preprocessing"])
        self.metadata = ModelMetadata.from_props(json.loads(settings["na_deploy.metadata"]))

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer every image of every request."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        files = pb_utils.get_input_tensor_by_name(request, "image_bytes").as_numpy().reshape(-1)
        try:
            found = [self._segments(bytes(file)) for file in files]
        except NaDeployError as error:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error)))
        tensors = [
            pb_utils.Tensor(name, np.array([answer[name] for answer in found], np.object_)) for name in self.answers
        ]
        return pb_utils.InferenceResponse(output_tensors=tensors)

    def _segments(self, file: bytes) -> dict[str, bytes]:
        """Return the segments of one image as JSON and, where it is asked for, as a PNG of ids."""
        image = decode_image(file)
        pixels = prepare(image, self.preprocessing).astype(self.dtype, copy=False).repeat(self.batch, axis=0)
        size = (image.height, image.width)
        result = read_result(self.metadata, self._run(pixels), self.preprocessing, size)
        if not isinstance(result, Segmentation) or self.metadata is None:
            raise NaDeployError(f"{self.model} gave no segments")
        content = {
            "task": result.task,
            "height": size[0],
            "width": size[1],
            "segments": result.to_coco(self.metadata.labels),
        }
        answer = {"segments": json.dumps(content).encode()}
        return {**answer, "ids": id_map_png(result)} if "ids" in self.answers else answer

    def _run(self, pixels: Array) -> dict[str, Array]:
        response = pb_utils.InferenceRequest(
            model_name=self.model,
            requested_output_names=self.outputs,
            inputs=[pb_utils.Tensor(self.input, pixels)],
            preferred_memory=pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU, 0),
        ).exec()
        if response.has_error():
            raise NaDeployError(f"{self.model} failed: {response.error().message()}")
        return {name: pb_utils.get_output_tensor_by_name(response, name).as_numpy()[:1] for name in self.outputs}
