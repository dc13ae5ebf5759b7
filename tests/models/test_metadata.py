"""Properties that travel with an exported model: metadata and preprocessing survive, foreign files do not break it."""

from dataclasses import replace

import pytest

from na_deploy import __version__
from na_deploy.errors import UsageError
from na_deploy.models import ModelMetadata, Preprocessing, get_model
from na_deploy.models.preprocessing import (
    dense_prediction,
    from_hugging_face,
    hugging_face_classification,
    official_classification,
)
from na_deploy.models.recorded import recorded_arguments

METADATA = ModelMetadata(
    architecture="dinat_tiny",
    task="classification",
    num_classes=3,
    dilations=get_model("dinat_tiny").config.dilations,
    source_name="dinat_tiny_in1k_224.pth",
    source_sha256="ab" * 32,
    dtype="fp16",
    preprocessing=hugging_face_classification(384),
    labels={0: "tench", 1: "goldfish", 2: "Kākāpō"},
    palette=((0, 1, 2), (255, 128, 0), (16, 32, 64)),
    things=(0, 2),
    thresholds={"score": 0.3, "mask_size": 384.0},
    config=get_model("dinat_tiny").config,
)


def test_metadata_survives_the_properties() -> None:
    props = METADATA.to_props()
    assert all(key.startswith("na_deploy.") and isinstance(value, str) for key, value in props.items())
    assert ModelMetadata.from_props({**props, "author": "somebody"}) == METADATA
    assert METADATA.tool_version == __version__
    assert METADATA.input_size == (1, 3, 384, 384)


def test_a_segmenter_keeps_whose_rule_makes_its_segments() -> None:
    for rule in ("transformers", "detectron2"):
        metadata = replace(METADATA, task="panoptic", segment_rule=rule)
        assert ModelMetadata.from_props(metadata.to_props()) == metadata
    read = ModelMetadata.from_props({**metadata.to_props(), "na_deploy.segment_rule": "somebody's"})
    assert read is not None
    assert read.segment_rule == "detectron2"


def test_a_foreign_file_has_no_metadata() -> None:
    assert ModelMetadata.from_props({"author": "somebody"}) is None
    assert ModelMetadata.from_props({}) is None


@pytest.mark.parametrize("key", [key for key in METADATA.to_props() if key != "na_deploy.architecture"])
@pytest.mark.parametrize("damage", ["missing", "unreadable"])
def test_missing_and_unreadable_entries_take_their_defaults(key: str, damage: str) -> None:
    props = METADATA.to_props()
    del props[key]
    if damage == "unreadable":
        props[key] = "{"
    read = ModelMetadata.from_props(props)
    assert read is not None
    assert read.architecture == "dinat_tiny"
    name = key.removeprefix("na_deploy.")
    text = isinstance(getattr(METADATA, name), str) and name != "scores"
    if damage == "unreadable" and text:
        assert getattr(read, name) == "{"
    else:
        default = "unknown" if name == "tool_version" else getattr(ModelMetadata("dinat_tiny"), name)
        assert getattr(read, name) == default


def test_official_and_hugging_face_preprocessing_differ() -> None:
    official, theirs = official_classification(224), hugging_face_classification(224)
    assert (official.mode, official.resize, official.size, official.cover) == (
        "resize-then-crop",
        256,
        (224, 224),
        (256, 256),
    )
    assert (theirs.mode, theirs.resize, theirs.size) == ("square", None, (224, 224))
    assert official_classification(384).cover == (384, 384)
    assert official.mean == theirs.mean == (0.485, 0.456, 0.406)
    assert official.interpolation == "bicubic"


def test_dense_prediction_normalises_pixels_to_the_same_values() -> None:
    dense, official = dense_prediction((800, 1344)), official_classification()
    for pixel in (0, 17, 255):
        for channel in range(3):
            one = (pixel * dense.scale - dense.mean[channel]) / dense.std[channel]
            other = (pixel * official.scale - official.mean[channel]) / official.std[channel]
            assert one == pytest.approx(other, abs=1e-6)


def test_preprocessing_survives_json_and_resizing() -> None:
    for preprocessing in (
        official_classification(),
        hugging_face_classification(384),
        dense_prediction((640, 800)),
    ):
        assert Preprocessing.from_json(preprocessing.to_json()) == preprocessing
    assert official_classification().with_size((448, 448)).resize == 512
    assert hugging_face_classification().with_size((160, 200)).resize is None
    with pytest.raises(UsageError, match="not a description of image preprocessing"):
        Preprocessing.from_json("nonsense")


def test_hugging_face_processors_are_read() -> None:
    plain = from_hugging_face({"size": {"height": 224, "width": 224}, "resample": 3, "rescale_factor": 1 / 255})
    assert plain == hugging_face_classification(224)
    raw = from_hugging_face({"size": 384, "do_rescale": False, "do_normalize": False})
    assert (raw.scale, raw.mean, raw.std, raw.size) == (1.0, (0.0,) * 3, (1.0,) * 3, (384, 384))
    for content, message in (
        ({"resample": 9}, "filter 9"),
        ({"size": {"longest_edge": 3}}, "gives the size"),
    ):
        with pytest.raises(UsageError, match=message):
            from_hugging_face(content)


def test_a_checkpoint_is_asked_what_its_file_was_asked() -> None:
    dilations = ((1, 2), (1, 4))
    whole = ModelMetadata("dinat_mini", task="semantic", head="oneformer", dilations=dilations)
    assert recorded_arguments(whole) == {"arch": "dinat_mini", "dilations": dilations, "task": "semantic"}
    assert recorded_arguments(replace(whole, head="", task="classification"))["task"] is None
    assert recorded_arguments(whole, dilations="coco") == {"arch": None, "dilations": "coco", "task": "semantic"}
    assert recorded_arguments(whole, "nat_mini") == {"arch": "nat_mini", "dilations": None, "task": "semantic"}
