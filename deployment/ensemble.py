"""From photographs to classes inside Triton: a preprocessing model and an ensemble that joins it to the classifier."""

from __future__ import annotations

from na_deploy.deployment.config import MODEL_FILES, SETTING, set_versions
from na_deploy.deployment.protobuf import Config, messages
from na_deploy.deployment.source import ModelSource
from na_deploy.errors import UsageError
from na_deploy.models.preprocessing import Preprocessing

IMAGE_BYTES = "image_bytes"
"""The ensemble's input: one JPEG or PNG file per item."""


def preprocessing_name(name: str) -> str:
    """Return the name of a classifier's preprocessing model."""
    return f"{name}_preprocessing"


def ensemble_name(name: str) -> str:
    """Return the name of the ensemble that takes image files."""
    return f"{name}_from_image"


def preprocessing_of(source: ModelSource) -> Preprocessing:
    """Return how images become the model's input, at the size the model takes.

    Raises:
        UsageError: the model is not one for images, or does not say how they are prepared.
    """
    shape = source.inputs[0].shape if len(source.inputs) == 1 else ()
    if source.metadata is None or len(shape) != 4:
        raise UsageError(
            f"{source.path} does not say how images become its input, so no preprocessing can be written for it; "
            "export it with na-deploy, or leave --preprocess out"
        )
    preprocessing = source.metadata.preprocessing
    if shape[1] != len(preprocessing.mean) or not preprocessing.prepares_images:
        raise UsageError(
            f"{source.path} takes {shape[1]} channels and does not say how images become them; leave --preprocess out"
        )
    return preprocessing.for_input(shape)


def preprocessing_config(classifier: Config, source: ModelSource, instances: int) -> Config:
    """Return the configuration of the model from image files to the classifier's input."""
    types = messages()
    preprocessing = preprocessing_of(source)
    config = types.ModelConfig(name=preprocessing_name(classifier.name), backend="python")
    config.default_model_filename = MODEL_FILES["python"]
    config.max_batch_size = classifier.max_batch_size
    batched = config.max_batch_size > 0
    count = [] if batched else list(classifier.input[0].dims[:1])
    config.input.add(name=IMAGE_BYTES, data_type=types.TYPE_STRING).dims.extend(count or [1])
    # Always float32: the python backend cannot write bfloat16.
    output = config.output.add(name=classifier.input[0].name, data_type=classifier.input[0].data_type)
    sides = [-1, -1] if preprocessing.mode == "shortest-side" else preprocessing.size
    output.dims.extend([*count, len(preprocessing.mean), *sides])
    if output.data_type == types.TYPE_BF16:
        raise UsageError(
            "Triton's python backend cannot write bfloat16, which this model takes; leave --preprocess out, "
            "or package it for the python backend, which takes float32"
        )
    set_versions(config, None)
    if batched:
        config.dynamic_batching.SetInParent()
    config.instance_group.add(count=instances, kind=types.ModelInstanceGroup.KIND_CPU)
    config.parameters[SETTING + "preprocessing"].string_value = preprocessing.to_json()
    return config


def ensemble_config(classifier: Config) -> Config:
    """Return the configuration of the ensemble: image files in, the classifier's outputs out."""
    types = messages()
    config = types.ModelConfig(name=ensemble_name(classifier.name), platform="ensemble")
    config.max_batch_size = classifier.max_batch_size
    count = [1] if config.max_batch_size > 0 else list(classifier.input[0].dims[:1])
    config.input.add(name=IMAGE_BYTES, data_type=types.TYPE_STRING).dims.extend(count)
    for output in classifier.output:
        config.output.add().CopyFrom(output)
    set_versions(config, None)
    prepared = classifier.input[0].name
    prepare = config.ensemble_scheduling.step.add(model_name=preprocessing_name(classifier.name), model_version=-1)
    prepare.input_map[IMAGE_BYTES] = IMAGE_BYTES
    prepare.output_map[prepared] = prepared
    classify = config.ensemble_scheduling.step.add(model_name=classifier.name, model_version=-1)
    classify.input_map[prepared] = prepared
    for output in classifier.output:
        classify.output_map[output.name] = output.name
    return config
