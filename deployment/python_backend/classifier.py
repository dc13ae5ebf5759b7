"""Runs a model exported by na-deploy in Triton's python backend, through na_deploy's own session.

Written into a repository as ``model.py``; beside it lies ``model.onnx`` or ``model.bundle``. The Python of the python
backend must have na_deploy installed (no PyTorch).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

import na_deploy
from na_deploy.deployment.python_backend.arrays import check_arrays
from na_deploy.errors import NaDeployError
from na_deploy.model_file.tensors import Array, numpy_type


class TritonPythonModel:
    """One instance of the model."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Open the session."""
        check_arrays(pb_utils)
        config = json.loads(args["model_config"])
        settings = {name: entry["string_value"] for name, entry in config.get("parameters", {}).items()}
        threads, graphs = settings.get("na_deploy.threads"), settings.get("na_deploy.cuda_graphs")
        folder = Path(args["model_repository"]) / args["model_version"]
        bundle = folder / "model.bundle"
        path = bundle if bundle.is_dir() else folder / "model.onnx"
        self.batched = int(config["max_batch_size"]) > 0
        self.session = na_deploy.load(
            path,
            settings.get("na_deploy.backend"),
            precision=settings.get("na_deploy.precision"),
            threads=None if threads is None else int(threads),
            cuda_graphs=None if graphs is None else int(graphs),
        )
        pb_utils.Logger.log_info(
            f"{args['model_name']} runs on {self.session.device}, attention on {self.session.attention}"
        )

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Run what Triton batched: requests of equal sizes in one run, a request that does not fit alone fails."""
        answers: list[Any] = [None] * len(requests)
        groups: dict[tuple[Any, ...], list[tuple[int, list[Array]]]] = {}
        for index, request in enumerate(requests):
            arrays = [pb_utils.get_input_tensor_by_name(request, spec.name).as_numpy() for spec in self.session.inputs]
            sizes = tuple(array.shape[1:] for array in arrays) if self.batched else (index,)
            groups.setdefault(sizes, []).append((index, arrays))
        for members in groups.values():
            try:
                outputs = self._run([arrays for _, arrays in members])
            except NaDeployError as error:
                for index, _ in members:
                    answers[index] = pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error)))
                continue
            start = 0
            for index, arrays in members:
                end = start + len(arrays[0])
                part = slice(start, end) if self.batched else slice(None)
                start = end
                tensors = [pb_utils.Tensor(name, np.ascontiguousarray(output[part])) for name, output in outputs]
                answers[index] = pb_utils.InferenceResponse(output_tensors=tensors)
        return answers

    def _run(self, members: Sequence[list[Array]]) -> list[tuple[str, Array]]:
        feeds: dict[str, Array] = {}
        for place, spec in enumerate(self.session.inputs):
            arrays = [arrays[place] for arrays in members]
            joined = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
            # bfloat16 comes as float32: the python backend cannot hand it to NumPy.
            feeds[spec.name] = joined.astype(numpy_type(spec.dtype), copy=False)
        results = self.session.run(feeds)
        narrow = {spec.name for spec in self.session.outputs if spec.dtype == "bfloat16"}
        return [(name, array.astype(np.float32) if name in narrow else array) for name, array in results.items()]

    def finalize(self) -> None:
        """Close the session."""
        self.session.close()
