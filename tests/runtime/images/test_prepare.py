"""Images become the arrays that the original code would have made of them."""

from __future__ import annotations

import importlib
import io
import tracemalloc
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from na_deploy.errors import NaDeployError, UsageError
from na_deploy.models.preprocessing import (
    Preprocessing,
    dense_prediction,
    from_hugging_face,
    hugging_face_classification,
    official_classification,
    shortest_side,
)
from na_deploy.runtime.images.prepare import decode_image, prepare, prepare_files, read_image

CASES = Path(__file__).parents[2] / "data"


def photo(width: int = 300, height: int = 200, mode: str = "RGB", seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (9, 11, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def by_hand(pixels: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    values = pixels.astype(np.float64) * preprocessing.scale
    values = (values - np.array(preprocessing.mean)) / np.array(preprocessing.std)
    return values.transpose(2, 0, 1)[None]


def test_official_preprocessing_scales_the_shorter_side_and_crops_the_centre():
    image, preprocessing = photo(300, 200), official_classification()
    found = prepare(image, preprocessing)
    resized = image.resize((384, 256), Image.Resampling.BICUBIC)
    expected = by_hand(np.asarray(resized)[16:240, 80:304], preprocessing)
    assert found.shape == (1, 3, 224, 224)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_portraits_are_cropped_from_the_middle_too():
    image, preprocessing = photo(200, 301), official_classification()
    resized = image.resize((256, 385), Image.Resampling.BICUBIC)
    top = round((385 - 224) / 2)
    expected = by_hand(np.asarray(resized)[top : top + 224, 16:240], preprocessing)
    np.testing.assert_allclose(prepare(image, preprocessing), expected, atol=1e-5)


def test_hugging_face_preprocessing_ignores_proportions():
    image, preprocessing = photo(300, 200), hugging_face_classification()
    expected = by_hand(np.asarray(image.resize((224, 224), Image.Resampling.BICUBIC)), preprocessing)
    np.testing.assert_allclose(prepare(image, preprocessing), expected, atol=1e-5)


def test_dense_preprocessing_keeps_proportions_and_pads_with_zeros():
    image, preprocessing = photo(300, 200), dense_prediction((120, 150))
    found = prepare(image, preprocessing)
    expected = by_hand(np.asarray(image.resize((150, 100), Image.Resampling.BILINEAR)), preprocessing)
    np.testing.assert_allclose(found[..., :100, :], expected, atol=1e-4)
    assert np.all(found[..., 100:, :] == 0)


@pytest.mark.parametrize("size", [(640, 427), (427, 640), (100, 1000), (1000, 33), (64, 64), (4, 4), (5, 300)])
@pytest.mark.parametrize("family", ["MaskFormer", "Mask2Former", "OneFormer"])
def test_segmenters_inputs_are_those_of_transformers_processors(size: tuple[int, int], family: str, tmp_path: Path):

    module = importlib.import_module(f"transformers.models.{family.lower()}.image_processing_{family.lower()}")
    (tmp_path / "classes.json").write_text('{"0": {"name": "thing", "isthing": 1}}')
    options = {"repo_path": str(tmp_path), "class_info_file": "classes.json"} if family == "OneFormer" else {}
    theirs = getattr(module, f"{family}ImageProcessor")(size={"shortest_edge": 48, "longest_edge": 96}, **options)
    image, preprocessing = photo(*size), from_hugging_face(theirs.to_dict())
    expected = theirs.preprocess(image, **({"task_inputs": ["semantic"]} if family == "OneFormer" else {}))
    found = prepare(image, preprocessing)
    pixels = np.stack(expected["pixel_values"])
    assert found.shape == pixels.shape
    np.testing.assert_allclose(found, pixels, atol=1e-5)
    assert preprocessing.placement(size[1], size[0]).scaled == found.shape[2:]


def test_the_shorter_side_is_scaled_and_zeros_fill_up_to_a_multiple():
    image, preprocessing = photo(300, 201), shortest_side(100, 140, 32)
    found, placement = prepare(image, preprocessing), preprocessing.placement(201, 300)
    assert placement.size == found.shape[2:] == (96, 160)
    assert placement.scaled == (94, 140)  # 201/300 of 140 is 93.8
    expected = by_hand(np.asarray(image.resize((140, 94), Image.Resampling.BILINEAR)), preprocessing)
    np.testing.assert_allclose(found[..., :94, :140], expected, atol=1e-4)
    assert np.all(found[..., 94:, :] == 0)
    assert np.all(found[..., 140:] == 0)
    fixed = preprocessing.with_size((64, 64))
    assert (fixed.mode, prepare(image, fixed).shape) == ("fit", (1, 3, 64, 64))
    assert prepare(photo(1, 1), preprocessing).shape == (1, 3, 128, 128)
    assert prepare(photo(12000, 1), preprocessing).shape == (1, 3, 32, 160)


def test_channels_can_be_asked_for_in_reverse():
    image = photo()
    plain = Preprocessing(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    reverse = Preprocessing(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), channel_order="BGR")
    assert np.array_equal(prepare(image, plain)[:, ::-1], prepare(image, reverse))


def test_the_camera_orientation_is_applied(tmp_path: Path):
    upright = photo(64, 48)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side: show it rotated by 270 degrees
    upright.rotate(90, expand=True).save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(np.asarray(read_image(tmp_path / "turned.png")), np.asarray(upright))


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [("L", "png"), ("1", "png"), ("P", "png"), ("CMYK", "jpg"), ("LA", "png"), ("RGBA", "webp")],
)
def test_every_colour_mode_becomes_rgb(tmp_path: Path, mode: str, suffix: str):
    image = photo(mode=mode)
    path = tmp_path / f"image.{suffix}"
    image.save(path, **({"quality": 95} if suffix != "png" else {}))
    found = read_image(path)
    assert found.mode == "RGB"
    difference = np.abs(np.asarray(found, np.float64) - np.asarray(image.convert("RGB"), np.float64))
    assert difference.mean() < 6


def test_transparency_is_laid_over_white(tmp_path: Path):
    image = photo(mode="RGBA")
    image.putalpha(0)
    image.save(tmp_path / "clear.png")
    assert np.all(np.asarray(read_image(tmp_path / "clear.png")) == 255)


def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path):
    values = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    found = np.asarray(read_image(tmp_path / "deep.png"), np.float64)[..., 0]
    assert np.abs(found - values / 257).max() <= 0.5


def test_several_files_become_one_batch_in_order(tmp_path: Path):
    paths = []
    for seed in range(3):
        paths.append(tmp_path / f"{seed}.png")
        photo(seed=seed).save(paths[-1])
    batch = prepare_files(paths, official_classification())
    assert batch.shape == (3, 3, 224, 224)
    assert np.array_equal(batch[2:], prepare(photo(seed=2), official_classification()))


def jpeg() -> bytes:
    stream = io.BytesIO()
    photo(600, 500).save(stream, "JPEG")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an image"),
        (b"GIF? no, text", "not an image"),
        (jpeg()[:3000], "damaged or truncated"),
        (jpeg()[:30], "damaged|not an"),
    ],
)
def test_a_file_that_is_no_image_is_refused_in_a_sentence(tmp_path: Path, content: bytes, message: str):
    path = tmp_path / "photo.jpg"
    path.write_bytes(content)
    with pytest.raises(NaDeployError, match=message) as error:
        read_image(path)
    assert "photo.jpg" in str(error.value)
    assert "\n" not in str(error.value)


def test_an_enormous_image_is_refused_before_it_is_decoded(tmp_path: Path):
    Image.new("1", (20000, 20000)).save(tmp_path / "bomb.png")
    with pytest.raises(NaDeployError, match=r"has more than \d+ pixels; scale it down first"):
        read_image(tmp_path / "bomb.png")


def test_a_missing_image_is_a_wrong_request(tmp_path: Path):
    with pytest.raises(UsageError, match=r"absent\.jpg does not exist; give an image"):
        read_image(tmp_path / "absent.jpg")
    with pytest.raises(UsageError, match="directory"):
        read_image(tmp_path)


@pytest.mark.parametrize("size", [(1, 4_000), (1, 60_000), (60_000, 1), (12_000, 3)])
def test_work_for_a_very_long_picture_is_bounded(size: tuple[int, int]):
    image, preprocessing = photo(*size), official_classification()
    tracemalloc.start()
    found = prepare(image, preprocessing)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.shape == (1, 3, 224, 224)
    assert peak < 20e6  # NumPy's; Pillow's own memory is not counted here
    middle = np.asarray(image)[size[1] // 2, size[0] // 2] / 255  # the crop shows the middle alone
    expected = (middle - np.array(preprocessing.mean)) / np.array(preprocessing.std)
    np.testing.assert_allclose(found[0, :, 112, 112], expected, atol=0.7)


def test_a_long_picture_s_middle_is_that_of_the_whole_scaled_picture():
    image, preprocessing = photo(20, 2_000), official_classification()
    whole = image.resize((256, 25_600), Image.Resampling.BICUBIC)
    top = round((25_600 - 224) / 2)
    expected = by_hand(np.asarray(whole)[top : top + 224, 16:240], preprocessing)
    np.testing.assert_allclose(prepare(image, preprocessing), expected, atol=0.05)  # a rounding of 1 in 255 is 0.018


def test_orientation_is_read_from_exif_that_is_otherwise_broken():
    upright = read_image(CASES / "exif_resolution_as_text.jpg")
    with Image.open(CASES / "exif_resolution_as_text.jpg") as image:
        assert upright.size == image.size[::-1]  # orientation 6: a quarter turn


@pytest.mark.parametrize(
    "block", [b"", b"\x00", b"Exif\x00\x00II*\x00\xff\xff\xff\xff", b"MM\x00*\x00\x00\x00\x08\x00\x01"]
)
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_sound_picture_with_a_broken_exif_block_is_taken(kind: str, block: bytes):
    buffer = BytesIO()
    photo(30, 20).save(buffer, kind, exif=block)
    assert decode_image(buffer.getvalue()).size == (30, 20)


@given(st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_no_exif_block_ends_in_another_error(block: bytes):
    buffer = BytesIO()
    photo(8, 6).save(buffer, "JPEG", exif=b"Exif\x00\x00" + block)
    assert sorted(decode_image(buffer.getvalue()).size) == [6, 8]
