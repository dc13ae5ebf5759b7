"""Turns image files into a model's input in Triton's python backend, as the model's own preprocessing says.

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
from na_deploy.models.preprocessing import Preprocessing
from na_deploy.runtime.images.prepare import decode_image, prepare


class TritonPythonModel:
    """One instance of the model."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Read how images are prepared."""
        check_arrays(pb_utils)
        config = json.loads(args["model_config"])
        self.preprocessing = Preprocessing.from_json(config["parameters"]["na_deploy.preprocessing"]["string_value"])
        self.output = config["output"][0]["name"]
        self.dtype = pb_utils.triton_string_to_numpy(config["output"][0]["data_type"])

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Prepare every image of every request."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        files = pb_utils.get_input_tensor_by_name(request, "image_bytes").as_numpy().reshape(-1)
        try:
            images = [prepare(decode_image(bytes(file)), self.preprocessing) for file in files]
        except NaDeployError as error:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error)))
        prepared = np.concatenate(images).astype(self.dtype, copy=False)
        return pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor(self.output, prepared)])
