"""Segments are those of transformers' own post-processing, and of Detectron2's rule written out plainly in PyTorch."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers.models.beit.image_processing_beit import BeitImageProcessor
from transformers.models.mask2former.image_processing_mask2former import Mask2FormerImageProcessor
from transformers.models.maskformer.image_processing_maskformer import MaskFormerImageProcessor
from transformers.models.oneformer.image_processing_oneformer import OneFormerImageProcessor

from na_deploy.models.preprocessing import Placement, dense_prediction
from na_deploy.runtime.results.queries import instances, panoptic_map, semantic_map, semantic_scores
from na_deploy.runtime.results.resampling import View

CLASSES, QUERIES = 7, 20
THINGS = frozenset({0, 2, 3})
STUFF = frozenset(range(CLASSES)) - THINGS
SIZES = [(60, 90), (37, 41), (1, 1), (300, 5)]


def processor(family: str, tmp_path: Path) -> Any:
    if family == "oneformer":
        (tmp_path / "classes.json").write_text('{"0": {"name": "thing", "isthing": 1}}')
        return OneFormerImageProcessor(repo_path=str(tmp_path), class_info_file="classes.json")
    return {"maskformer": MaskFormerImageProcessor, "mask2former": Mask2FormerImageProcessor}[family]()


def thresholds(family: str) -> dict[str, float]:
    return {"mask_size": 384.0} if family == "mask2former" else {}


def outputs(seed: int, sharp: float = 4.0, height: int = 24, width: int = 32) -> SimpleNamespace:
    """Return queries with blobs for masks: some sure, some of no object, some of the same class."""
    generator = torch.Generator().manual_seed(seed)
    classes = torch.randn(2, QUERIES, CLASSES + 1, generator=generator) * sharp
    coarse = torch.randn(2, QUERIES, 4, 5, generator=generator) * 6
    masks = functional.interpolate(coarse, (height, width), mode="bicubic")
    return SimpleNamespace(class_queries_logits=classes, masks_queries_logits=masks)


def view(given: SimpleNamespace, picture: tuple[int, int]) -> View:
    height, width = given.masks_queries_logits.shape[-2:]
    whole = (4 * height, 4 * width)
    return View(Placement(whole, whole), picture, "transformers")


def arrays(given: SimpleNamespace, item: int) -> tuple[np.ndarray, np.ndarray]:
    return given.class_queries_logits[item].numpy(), given.masks_queries_logits[item].numpy()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("family", ["maskformer", "mask2former", "oneformer"])
def test_semantic_maps_of_queries_are_those_of_transformers(family: str, size: tuple[int, int], tmp_path: Path):
    given = outputs(1)
    expected = processor(family, tmp_path).post_process_semantic_segmentation(given, [size, size])
    for item in range(2):
        scores = semantic_scores(*arrays(given, item), thresholds(family))
        ids, found = semantic_map(scores, view(given, size), logits=False)
        assert np.mean(ids - 1 == expected[item].numpy()) > 0.9999
        assert set(found) == set(np.unique(ids))
        assert all(number == own.class_index + 1 and 0 < own.score <= 1 for number, own in found.items())


@pytest.mark.parametrize("size", [*SIZES, (70, 1500)])
def test_semantic_maps_of_logits_are_those_of_transformers(size: tuple[int, int]):
    logits = torch.randn(1, 19, 16, 20, generator=torch.Generator().manual_seed(2))
    (expected,) = BeitImageProcessor().post_process_semantic_segmentation(SimpleNamespace(logits=logits), [size])
    ids, found = semantic_map(logits[0].numpy(), View(Placement((64, 80), (64, 80)), size, "transformers"), logits=True)
    assert np.mean(ids - 1 == expected.numpy()) > 0.9999
    if size == (60, 90):
        own = logits[0].softmax(0)
        best = own.argmax(0)
        for number, segment in found.items():
            rough = float(own[number - 1][best == number - 1].mean())
            assert segment.score == pytest.approx(rough, abs=0.15)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("family", ["maskformer", "mask2former"])
@pytest.mark.parametrize("threshold", [0.5, 0.05])
def test_instances_are_those_of_transformers(family: str, size: tuple[int, int], threshold: float, tmp_path: Path):
    given = outputs(3)
    expected = processor(family, tmp_path).post_process_instance_segmentation(
        given, threshold=threshold, target_sizes=[size, size], return_binary_maps=True
    )
    for item in range(2):
        masks, found = instances(*arrays(given, item), view(given, size), {**thresholds(family), "score": threshold})
        theirs = expected[item]["segments_info"]
        order = sorted(range(len(theirs)), key=lambda k: -theirs[k]["score"])
        assert len(found) == len(theirs) > 0 or size == (1, 1)
        assert [own.class_index for own in found] == [theirs[k]["label_id"] for k in order]
        np.testing.assert_allclose([own.score for own in found], [theirs[k]["score"] for k in order], atol=2e-6)
        for mask, k in zip(masks, order, strict=True):
            assert np.mean(mask == (expected[item]["segmentation"][k].numpy() == 1)) > 0.999


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("family", ["maskformer", "mask2former", "oneformer"])
@pytest.mark.parametrize("limits", [(0.5, 0.5, 0.8), (0.3, 0.2, 0.1)])
@pytest.mark.parametrize("fuse", [False, True])
def test_panoptic_maps_are_those_of_transformers(
    family: str, size: tuple[int, int], limits: tuple[float, float, float], fuse: bool, tmp_path: Path
):
    given = outputs(4)
    least, mask, overlap = limits
    fused = STUFF if fuse else frozenset()
    expected = processor(family, tmp_path).post_process_panoptic_segmentation(
        given, least, mask, overlap, label_ids_to_fuse=set(fused), target_sizes=[size, size]
    )
    for item in range(2):
        limit = {**thresholds(family), "score": least, "mask": mask, "overlap": overlap}
        ids, found = panoptic_map(*arrays(given, item), view(given, size), limit, fused)
        theirs = expected[item]["segments_info"]
        present = [(own.class_index, own.score) for own in found.values()]
        if not fuse:
            assert [index for index, _ in present] == [each["label_id"] for each in theirs]
            np.testing.assert_allclose([score for _, score in present], [each["score"] for each in theirs], atol=2e-6)
            assert np.mean(ids == np.maximum(expected[item]["segmentation"].numpy(), 0)) > 0.9995
            continue
        # transformers counts on from a fused segment's number, so two segments may share one: classes are compared.
        assert {index for index, _ in present} == {each["label_id"] for each in theirs}
        assert sum(index in STUFF for index, _ in present) == len({index for index, _ in present} & STUFF)
        if len({(each["id"], each["label_id"]) for each in theirs}) == len({each["id"] for each in theirs}):
            names = {0: -1} | {each["id"]: each["label_id"] for each in theirs}
            classes = np.vectorize(names.get)(np.maximum(expected[item]["segmentation"].numpy(), 0))
            own = np.array([-1, *(segment.class_index for segment in found.values())])[ids]
            assert np.mean(own == classes) > 0.9995


def on_picture(masks: Tensor, placement: Placement, size: tuple[int, int]) -> Tensor:
    """Scale logits as Detectron2: to the padded input, without its padding, to the picture."""
    whole = functional.interpolate(masks[None], placement.size, mode="bilinear")
    kept = whole[..., : placement.scaled[0], : placement.scaled[1]]
    return functional.interpolate(kept, size, mode="bilinear")[0]


PLACEMENT = dense_prediction((96, 128)).placement(60, 90)


def test_padding_is_cut_off_before_maps_are_scaled():
    logits = torch.randn(9, 24, 32, generator=torch.Generator().manual_seed(5))
    assert PLACEMENT.scaled == (85, 128)
    ids, _ = semantic_map(logits.numpy(), View(PLACEMENT, (60, 90)), logits=True)
    expected = on_picture(logits, PLACEMENT, (60, 90)).argmax(0)
    assert np.mean(ids - 1 == expected.numpy()) > 0.9999


@pytest.mark.parametrize("seed", range(3))
def test_instances_by_detectron2_s_rule(seed: int):
    given = outputs(10 + seed)
    classes, masks = given.class_queries_logits[0], given.masks_queries_logits[0]
    own, found = instances(*arrays(given, 0), View(PLACEMENT, (60, 90)), {"score": 0.2}, THINGS)
    scores, place = classes.softmax(-1)[:, :-1].flatten().topk(QUERIES)
    expected = []
    for score, query, index in zip(scores, place // CLASSES, place % CLASSES, strict=True):
        logits = on_picture(masks, PLACEMENT, (60, 90))[query]
        mask = logits > 0
        total = float(score * logits.sigmoid()[mask].sum() / (mask.sum() + 1e-6))
        if int(index) in THINGS and total >= 0.2:
            expected.append((total, int(index), mask.numpy()))
    expected.sort(key=lambda each: -each[0])
    assert len(expected) > 2
    assert [each.class_index for each in found] == [index for _, index, _ in expected]
    np.testing.assert_allclose([each.score for each in found], [score for score, _, _ in expected], atol=5e-6)
    assert all(np.mean(mask == theirs) > 0.9995 for mask, (_, _, theirs) in zip(own, expected, strict=True))


@pytest.mark.parametrize("seed", range(3))
def test_panoptic_maps_by_detectron2_s_rule(seed: int):
    given = outputs(20 + seed)
    scores, labels = given.class_queries_logits[0].softmax(-1).max(-1)
    masks = on_picture(given.masks_queries_logits[0], PLACEMENT, (60, 90)).sigmoid()
    keep = labels.ne(CLASSES) & (scores > 0.4)
    scores, labels, masks = scores[keep], labels[keep], masks[keep]
    owner = (scores[:, None, None] * masks).argmax(0)
    expected, classes, number, memory = torch.zeros(60, 90, dtype=torch.int32), [], 0, {}
    for k in range(len(labels)):
        index = int(labels[k])
        original, mask = masks[k] >= 0.5, (owner == k) & (masks[k] >= 0.5)
        if not mask.any() or (owner == k).sum() == 0 or mask.sum() / original.sum() < 0.3:
            continue
        if index in STUFF and index in memory:
            expected[mask] = memory[index]
            continue
        number += 1
        classes.append(index)
        memory[index] = number
        expected[mask] = number
    ids, found = panoptic_map(*arrays(given, 0), View(PLACEMENT, (60, 90)), {"score": 0.4, "overlap": 0.3}, STUFF)
    assert [own.class_index for own in found.values()] == classes
    assert len(classes) > 1
    assert np.mean(ids == expected.numpy()) > 0.9995
