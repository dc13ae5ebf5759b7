"""Stands in for Triton's onnxruntime backend, which nvidia-pytriton's wheel lacks: ONNX Runtime, run from Python.

Installed as ``backends/onnxruntime/model.py``, Triton's core takes it for the backend "onnxruntime" and gives it
repositories as they are. It reads what the real backend reads of a configuration: the file's name, the operator
libraries, threads.
"""

import json
from pathlib import Path

import onnxruntime
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """One instance of the model."""

    def initialize(self, args):
        config = json.loads(args["model_config"])
        options = onnxruntime.SessionOptions()
        threads = config["parameters"].get("intra_op_thread_count")
        if threads is not None:
            options.intra_op_num_threads = int(threads["string_value"])
        for library in config.get("model_operations", {}).get("op_library_filename", []):
            options.register_custom_ops_library(library)
            pb_utils.Logger.log_info(f"{args['model_name']} registers {library}")
        path = Path(args["model_repository"]) / args["model_version"] / config["default_model_filename"]
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.inputs = [entry["name"] for entry in config["input"]]
        self.outputs = [entry["name"] for entry in config["output"]]

    def execute(self, requests):
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        feeds = {name: pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in self.inputs}
        results = self.session.run(self.outputs, feeds)
        tensors = [pb_utils.Tensor(name, array) for name, array in zip(self.outputs, results, strict=True)]
        return pb_utils.InferenceResponse(output_tensors=tensors)
