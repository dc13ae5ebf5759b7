"""Segments are measured and written as COCO's tools read them."""

from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as coco

from na_deploy.errors import UsageError
from na_deploy.models.class_sets import class_set
from na_deploy.runtime.results.rle import decode_mask, encode_ids, encode_mask
from na_deploy.runtime.results.segments import Found, from_ids, from_masks


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (40, 33), (300, 200), (0, 4)])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 1.0])
def test_masks_are_packed_as_pycocotools_packs_them(size: tuple[int, int], share: float):
    mask = np.random.default_rng(0).random(size) < share
    encoded = encode_mask(mask)
    theirs = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert encoded == {"size": list(size), "counts": theirs["counts"].decode()}
    if mask.size:
        assert np.array_equal(decode_mask(encoded), mask)
        assert np.array_equal(coco.decode({"size": size, "counts": encoded["counts"].encode()}), mask)


@pytest.mark.parametrize(("left", "top"), [(0, 0), (3, 0), (0, 2), (3, 2), (6, 5)])
def test_a_part_of_a_mask_is_packed_as_the_whole(left: int, top: int):
    for share in (0.0, 0.6, 1.0):
        part = np.random.default_rng(2).random((4, 5)) < share
        whole = np.zeros((9, 11), np.bool_)
        whole[top : top + 4, left : left + 5] = part
        assert encode_mask(part, (9, 11), left, top) == encode_mask(whole)
        tall = np.random.default_rng(3).random((9, 5)) < max(share, 0.9)  # runs go on from column to column
        whole = np.zeros((9, 11), np.bool_)
        whole[:, left : left + 5] = tall
        assert encode_mask(tall, (9, 11), left) == encode_mask(whole)


def test_all_segments_of_a_map_are_packed_in_one_pass():
    ids = np.random.default_rng(1).integers(0, 5, (9, 11)).repeat(13, 0).repeat(7, 1)
    assert encode_ids(ids, [4, 1, 2, 9]) == [encode_mask(ids == number) for number in (4, 1, 2, 9)]


def test_damaged_masks_are_refused():
    with pytest.raises(UsageError, match="size is 3×3"):
        decode_mask({"size": [3, 3], "counts": encode_mask(np.ones((2, 2)))["counts"]})
    with pytest.raises(UsageError, match="in the middle"):
        decode_mask({"size": [3, 3], "counts": "o"})


def test_segments_of_a_map_are_measured():
    ids = np.zeros((6, 8), np.int32)
    ids[1:4, 2:7] = 1
    ids[2, 3] = 2
    found = {1: Found(4, 0.9), 2: Found(0, 0.6), 3: Found(1, 0.5)}
    result = from_ids("panoptic", ids, found, {4: "sky"}, things=(0,), palette=((1, 2, 3),))
    first, second = result.segments  # the third has no pixel
    assert (first.id, first.label, first.area, first.box, first.is_thing) == (1, "sky", 14, (2, 1, 5, 3), False)
    assert (second.id, second.label, second.area, second.box, second.is_thing) == (2, "class 0", 1, (3, 2, 1, 1), True)
    assert np.array_equal(result.mask(first), ids == 1)
    assert np.array_equal(result.class_map(), np.select([ids == 1, ids == 2], [4, 0], -1))


def test_instances_may_overlap_and_the_better_lies_on_top():
    masks = [np.zeros((5, 6), np.bool_) for _ in range(3)]
    masks[0][1:4, 1:4] = True
    masks[1][2:5, 2:6] = True
    result = from_masks(masks, [Found(1, 0.9), Found(0, 0.8), Found(0, 0.7)], (5, 6), {})
    assert [(segment.id, segment.area) for segment in result.segments] == [(1, 9), (2, 12)]
    assert all(
        np.array_equal(result.mask(segment), mask) for segment, mask in zip(result.segments, masks, strict=False)
    )
    assert (result.ids[2, 2], result.ids[4, 5], result.ids[0, 0]) == (1, 2, 0)
    entries = result.to_coco()
    assert [
        coco.area({**entry["segmentation"], "counts": entry["segmentation"]["counts"].encode()}) for entry in entries
    ] == [9, 12]


def test_results_carry_the_data_set_s_category_numbers():
    ids = np.full((2, 2), 7, np.int32)
    labels = class_set("coco_panoptic").labels
    (entry,) = from_ids("panoptic", ids, {7: Found(80, 0.5)}, labels, (0,)).to_coco(labels)
    assert (entry["category_id"], entry["category"], entry["class"], entry["isthing"]) == (92, "banner", 80, 0)
    (entry,) = from_ids("panoptic", ids, {7: Found(80, 0.5)}, {}, (0,)).to_coco({0: "a", 1: "b"})
    assert entry["category_id"] == 80
