"""Class names that come with the package: whole, of the right data sets, found again by their names."""

import pytest

from na_deploy.errors import UsageError
from na_deploy.models.class_sets import CLASS_SETS, class_set, matching

COUNTS = {"ade20k": (150, 100), "cityscapes": (19, 8), "coco": (80, 80), "coco_panoptic": (133, 80)}


@pytest.mark.parametrize("name", COUNTS)
def test_dense_data_sets_name_and_colour_every_class(name: str) -> None:
    known = class_set(name)
    classes, things = COUNTS[name]
    assert known.things is not None
    assert (len(known.names), len(known.palette), len(known.things)) == (classes, classes, things)
    assert len(set(known.names)) == classes
    assert all(text == text.strip() and text for text in known.names)
    assert all(0 <= channel <= 255 for colour in known.palette for channel in colour)


def test_imagenet_has_its_thousand_names() -> None:
    names = class_set("imagenet").names
    assert len(set(names)) == 1000
    assert (names[0], names[207], names[281], names[999]) == ("tench", "golden retriever", "tabby", "toilet tissue")


def test_coco_keeps_the_numbers_of_its_annotations() -> None:
    coco, panoptic = class_set("coco"), class_set("coco_panoptic")
    by_name = dict(zip(panoptic.names, panoptic.ids, strict=True))
    assert coco.names == panoptic.names[:80]
    assert coco.ids == panoptic.ids[:80]
    assert (by_name["person"], by_name["stop sign"], by_name["toothbrush"]) == (1, 13, 90)
    assert (by_name["banner"], by_name["sky-other-merged"], by_name["rug-merged"]) == (92, 187, 200)
    city = class_set("cityscapes")
    assert dict(zip(city.names, city.ids, strict=True))["bicycle"] == 33


@pytest.mark.parametrize("name", CLASS_SETS)
def test_names_lead_back_to_their_data_set(name: str) -> None:
    known = class_set(name)
    assert matching(known.labels) == known
    if known.things is not None:
        things = matching(known.things_only().labels)
        assert things is not None
        assert (things.names, things.ids) == (known.things_only().names, known.things_only().ids)
    assert matching({**known.labels, 0: "something else"}) is None


def test_an_unknown_data_set_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match="'voc' are known; those of ade20k, cityscapes"):
        class_set("voc")
    with pytest.raises(UsageError, match="countable things"):
        class_set("imagenet").things_only()
