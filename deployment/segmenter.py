"""From photographs to segments inside Triton: a model in Python around the packaged segmenter or detector."""

from __future__ import annotations

import json

from na_deploy.deployment.config import MODEL_FILES, SETTING, set_versions
from na_deploy.deployment.ensemble import IMAGE_BYTES, ensemble_name, preprocessing_of
from na_deploy.deployment.protobuf import Config, messages, type_name
from na_deploy.deployment.source import ModelSource
from na_deploy.errors import UsageError
from na_deploy.model_file.answers import MASKS, answer_of

SEGMENTS, IDS = "segments", "ids"
"""Outputs: JSON text with COCO's results and, of models with masks, a PNG file of ids, for each image."""


def segmenter_config(segmenter: Config, source: ModelSource, instances: int) -> Config:
    """Return the configuration of the model from image files to segments.

    Raises:
        UsageError: the model does not say how images become its input, or takes bfloat16.
    """
    types = messages()
    preprocessing = preprocessing_of(source)
    assert source.metadata is not None
    (given,) = segmenter.input
    if given.data_type == types.TYPE_BF16:
        raise UsageError(
            "Triton's python backend cannot write bfloat16, which this model takes; leave --preprocess out"
        )
    config = types.ModelConfig(name=ensemble_name(segmenter.name), backend="python")
    config.default_model_filename = MODEL_FILES["python"]
    config.input.add(name=IMAGE_BYTES, data_type=types.TYPE_STRING).dims.extend([-1])
    boxes_alone = answer_of(source.outputs, source.metadata).has_boxes and not any(
        output.name == MASKS for output in segmenter.output
    )
    for name in (SEGMENTS,) if boxes_alone else (SEGMENTS, IDS):
        config.output.add(name=name, data_type=types.TYPE_STRING).dims.extend([-1])
    set_versions(config, None)
    config.instance_group.add(count=instances, kind=types.ModelInstanceGroup.KIND_CPU)
    fixed = 1 if segmenter.max_batch_size > 0 else max(given.dims[0], 1)
    for name, value in (
        ("model", segmenter.name),
        ("input", given.name),
        ("input_type", type_name(given.data_type)),
        ("batch", str(fixed)),
        ("outputs", json.dumps([output.name for output in segmenter.output])),
        ("preprocessing", preprocessing.to_json()),
        ("metadata", json.dumps(source.metadata.to_props())),
    ):
        config.parameters[SETTING + name].string_value = value
    return config
