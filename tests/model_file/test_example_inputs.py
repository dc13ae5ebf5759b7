"""The sizes that a model is tried with: the user's, the file's, the bundle's, the exporter's, in this order."""

from __future__ import annotations

import pytest

from na_deploy.errors import UsageError
from na_deploy.model_file.example_inputs import example_inputs, example_shapes, parse_inputs, shapes_text
from na_deploy.model_file.tensors import TensorSpec
from na_deploy.models.metadata import ModelMetadata
from na_deploy.models.preprocessing import dense_prediction

IMAGE = TensorSpec("image", "float32", ("batch", 3, "height", "width"))
TOKENS = (TensorSpec("q", "float32", ("batch", "n", 8)), TensorSpec("k", "float32", ("batch", "m", 8)))
BACKBONE = ModelMetadata("nat", task="backbone", preprocessing=dense_prediction((800, 1344)))


def test_the_recorded_image_size_is_used_where_sizes_are_free():
    assert example_shapes([IMAGE], BACKBONE) == {"image": (1, 3, 800, 1344)}
    assert example_shapes([IMAGE], BACKBONE, batch=4) == {"image": (4, 3, 800, 1344)}


def test_the_user_s_sizes_come_first_then_a_bundle_s():
    usual = {"image": (8, 3, 256, 256)}
    assert example_shapes([IMAGE], BACKBONE, {"image": (1, 3, 64, 96)}, usual=usual) == {"image": (1, 3, 64, 96)}
    assert example_shapes([IMAGE], BACKBONE, usual=usual) == usual


def test_what_the_model_fixes_stays():
    fixed = TensorSpec("image", "float32", (2, 3, 224, 224))
    assert example_shapes([fixed], BACKBONE) == {"image": (2, 3, 224, 224)}
    with pytest.raises(UsageError, match="its batch is fixed to 2, not 4"):
        example_shapes([fixed], BACKBONE, batch=4)
    with pytest.raises(UsageError, match="does not fit"):
        example_shapes([fixed], BACKBONE, {"image": (2, 3, 64, 64)})


def test_sizes_nobody_gave_are_asked_for():
    with pytest.raises(UsageError, match=r"input q \(batch×n×8\) leaves n free.*give --input q=…x…x8"):
        example_shapes(TOKENS)
    recorded = ModelMetadata("Block", task="module", inputs={"q": (2, 5, 8), "k": (2, 7, 8)})
    assert example_shapes(TOKENS, recorded) == {"q": (2, 5, 8), "k": (2, 7, 8)}
    assert example_shapes(TOKENS, recorded, batch=3) == {"q": (3, 5, 8), "k": (3, 7, 8)}


def test_axes_of_one_name_get_one_size():
    shapes = example_shapes(TOKENS, None, {"q": (6, 5, 8), "k": (6, 9, 8)})
    assert shapes == {"q": (6, 5, 8), "k": (6, 9, 8)}
    with pytest.raises(UsageError, match="does not fit"):
        example_shapes(TOKENS, None, {"q": (6, 5, 8), "k": (5, 9, 8)})
    with pytest.raises(UsageError, match="no input named v"):
        example_shapes(TOKENS, None, {"v": (1,)})


def test_several_inputs_are_given_by_name():
    assert parse_inputs(["q=1x5x8", "k=1×7×8"], ["q", "k"]) == {"q": (1, 5, 8), "k": (1, 7, 8)}
    assert parse_inputs(["1x3x64x64"], ["image"]) == {"image": (1, 3, 64, 64)}
    with pytest.raises(UsageError, match="does not say which of q, k"):
        parse_inputs(["1x5x8"], ["q", "k"])
    for text in ("", "1x", "0x3", "ax3", "1x-2"):
        with pytest.raises(UsageError, match="cannot read the size"):
            parse_inputs([text], ["image"])


def test_shapes_are_written_as_people_write_them():
    assert shapes_text({"image": (1, 3, 8, 8)}) == "1×3×8×8"
    assert shapes_text({"q": (1, 5), "k": (2,)}) == "q 1×5, k 2"


def test_examples_have_the_type_and_shape():
    arrays = example_inputs([IMAGE], {"image": (2, 3, 5, 4)})
    assert arrays["image"].shape == (2, 3, 5, 4)
    assert arrays["image"].dtype.name == "float32"
    assert arrays["image"].std() > 0.5
