"""Detectors against mmdetection 3.3.0's own modules, RoIAlign and suppression against plain loops."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from mmcv_operators import roi_align, suppressed
from mmdet_detectors import KINDS, Theirs, metas, theirs
from torch import Tensor

from na_deploy.models import LoadedModel, load_model
from na_deploy.models.detectors.boxes import overlap, picture_extent
from na_deploy.models.detectors.regions import levels_of, region_features
from na_deploy.models.detectors.selection import best_of_classes, highest, survivors

SIZE = (96, 131)
Loaded = Callable[[str], LoadedModel]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    """Load each kind once from a file as mmengine writes it."""
    models: dict[str, LoadedModel] = {}

    def load(kind: str) -> LoadedModel:
        if kind not in models:
            path = tmp_path_factory.mktemp(kind) / "detector.pth"
            torch.save(theirs(kind).checkpoint(), path)
            models[kind] = load_model(path)
        return models[kind]

    return load


def pictures(batch: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(batch, 3, *SIZE, generator=torch.Generator().manual_seed(seed))


def assert_close(found: Tensor, wanted: Tensor) -> None:
    assert found.shape == wanted.shape
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()


def random_boxes(count: int, height: float, width: float, seed: int = 0) -> Tensor:
    """Boxes of all sizes and proportions inside an image."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, 2, generator=generator).sort(1)[0] * torch.tensor([width, height])
    small = torch.rand(count, 1, generator=generator) ** 3
    corners[:, 1] = corners[:, 0] + (corners[:, 1] - corners[:, 0]) * small
    return corners.flatten(1)


# --------------------------------------------------------------------------- whole detectors


@pytest.mark.parametrize("kind", KINDS)
def test_maps_and_heads_compute_what_mmdetection_s_do(kind: str, loaded: Loaded) -> None:
    other, module = theirs(kind), loaded(kind).module
    with torch.inference_mode():
        maps = other.neck(other.backbone(pictures()))
        for mine, wanted in zip(module.neck(module.backbone(pictures())), maps, strict=True):
            assert_close(mine, wanted)
        for (logits, deltas), *wanted in zip(module.rpn_head(maps), *other.rpn_head(maps), strict=True):
            assert_close(logits, wanted[0])
            assert_close(deltas, wanted[1])
        boxes = torch.stack([random_boxes(12, *SIZE, seed=seed) for seed in range(2)])
        rois = torch.cat([torch.arange(2).repeat_interleave(12)[:, None], boxes.flatten(0, 1)], 1)
        for stage in range(len(module.config.boxes)):
            logits, deltas = module.judge(stage, maps, boxes)
            number = (stage,) if kind.startswith("cascade") else ()
            wanted = other.roi_head._bbox_forward(*number, maps, rois)
            assert_close(logits.flatten(0, 1), wanted["cls_score"])
            assert_close(deltas.flatten(0, 1).flatten(1), wanted["bbox_pred"])
        if "mask" in kind:
            features = module.cut(maps, boxes, 14).flatten(0, 1)
            for stage, head in enumerate(module.roi_head.mask_heads):
                number = (stage,) if kind.startswith("cascade") else ()
                assert_close(head(features), other.roi_head._mask_forward(*number, maps, rois)["mask_preds"])


def padded(sizes: list[tuple[int, int]]) -> Tensor:
    """Pictures of several sizes, zeros right and below."""
    images = torch.zeros(len(sizes), 3, *SIZE)
    for image, (height, width) in zip(images, sizes, strict=True):
        image[:, :height, :width] = pictures(1, seed=height)[0, :, :height, :width]
    return images


def detect(other: Theirs, images: Tensor, sizes: list[tuple[int, int]]) -> tuple[list[Any], list[Any], list[Tensor]]:
    """Return mmdetection's proposals, detections, and its masks (N, 28, 28) of their classes."""
    from mmdet.structures import DetDataSample

    known = metas(sizes)
    samples = [DetDataSample(metainfo=meta) for meta in known]
    maps = other.neck(other.backbone(images))
    proposals = other.rpn_head.predict(maps, samples, rescale=False)
    found = other.roi_head.predict_bbox(maps, known, proposals, rcnn_test_cfg=other.roi_head.test_cfg, rescale=False)
    masks: list[Tensor] = []
    for image, each in enumerate(found):
        if not other.roi_head.with_mask:
            break
        rois = torch.cat([torch.full((len(each), 1), float(image)), each.bboxes], 1)
        cascade = hasattr(other.roi_head, "num_stages")
        stages = [
            other.roi_head._mask_forward(*stage, maps, rois)["mask_preds"].sigmoid()
            for stage in ([(0,), (1,), (2,)] if cascade else [()])
        ]
        masks.append(torch.stack(stages).mean(0)[torch.arange(len(each)), each.labels])
    return proposals, found, masks


@pytest.mark.parametrize("kind", KINDS)
def test_proposals_and_detections_are_mmdetection_s_also_in_padded_images(kind: str, loaded: Loaded) -> None:
    sizes = [SIZE, (70, 90)]
    images, module = padded(sizes), loaded(kind).module
    with torch.inference_mode():
        proposals, wanted, masks = detect(theirs(kind), images, sizes)
        inner = module.steps(images)[1]
        named = dict(zip(loaded(kind).output_names, module(images), strict=True))
    for image in range(2):
        found = inner["proposals"][image][inner["proposals.scores"][image] >= 0]
        assert len(found) == len(proposals[image]) > 15
        torch.testing.assert_close(found, proposals[image].bboxes, rtol=1e-5, atol=1e-3)
        count = int(named["count"][image])
        assert count == len(wanted[image]) > 3
        torch.testing.assert_close(named["boxes"][image, :count], wanted[image].bboxes, rtol=1e-5, atol=1e-3)
        torch.testing.assert_close(named["scores"][image, :count], wanted[image].scores, rtol=1e-4, atol=1e-5)
        assert named["classes"][image, :count].tolist() == wanted[image].labels.tolist()
        assert named["classes"][image, count:].eq(-1).all()
        assert not named["boxes"][image, count:].any()
        assert not named["scores"][image, count:].any()
        if masks:
            torch.testing.assert_close(named["masks"][image, :count], masks[image], rtol=1e-4, atol=1e-4)
            assert not named["masks"][image, count:].any()


def test_an_image_without_objects_or_without_a_picture_has_no_detection(loaded: Loaded) -> None:
    module = loaded("mask_rcnn").module
    with torch.inference_mode():
        boxes, scores, classes, masks, count = module(torch.zeros(2, 3, *SIZE))
    assert not count.any()
    assert (classes == -1).all()
    assert not any(x.any() for x in (boxes, scores, masks))


# --------------------------------------------------------------------------- parts against plain loops


@pytest.mark.parametrize(("size", "samples"), [(7, 0), (14, 0), (3, 2)])
def test_regions_are_those_of_plain_roi_align(size: int, samples: int) -> None:
    generator = torch.Generator().manual_seed(size)
    strides, (height, width) = (4, 8, 16, 32), (203, 301)
    maps = [torch.randn(2, 3, -(-height // s), -(-width // s), generator=generator) for s in strides]
    special = torch.tensor(
        [
            [0, 0, width, height],  # the whole image
            [0, 0, 1, 1], [width - 1, height - 1, width, height],  # corners
            [0, 100, width, 103], [150, 0, 152.5, height],  # far longer than wide
            [10, 10, 10, 60], [20, 20, 20, 20],  # without an area
            [8, 8, 120, 120], [8, 8, 64, 64], [0, 0, 112, 112],  # bins of whole places; limits of levels
            [2.7, 3.1, 225.9, 227.3],
        ]
    )  # fmt: skip
    boxes = torch.stack([torch.cat([special, random_boxes(9, height, width, seed)]) for seed in (1, 2)])
    boxes = torch.stack([boxes[..., axis].clamp(0, (width, height)[axis % 2]) for axis in range(4)], -1)
    found = region_features(maps, boxes, size, strides, finest=56, samples=samples)
    level = levels_of(boxes, 4, 56)
    assert set(level.flatten().tolist()) == {0, 1, 2}
    for image in range(2):
        for number, box in enumerate(boxes[image].numpy()):
            own = int(level[image, number])
            wanted = roi_align(maps[own][image].double().numpy(), box, size, 1 / strides[own], samples)
            difference = np.abs(found[image, number].numpy() - wanted).max()
            assert difference <= 1e-5 * float(maps[own].abs().max()), box


@pytest.mark.parametrize("ties", [False, True])
def test_suppression_is_greedy_to_the_last_box(ties: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    corners = torch.rand(300, 2, generator=generator) * 40
    boxes = torch.cat([corners, corners + 12 + 8 * torch.rand(300, 2, generator=generator)], 1)
    scores = torch.rand(300, generator=generator)
    if ties:
        scores, boxes = (scores * 4).round() / 4, (boxes / 4).round() * 4
    values, order = highest(scores[None], 300)
    assert order[0].tolist() == np.argsort(-scores.numpy(), kind="stable").tolist()
    kept = survivors(overlap(boxes[order[0]], boxes[order[0]])[None] > 0.3, values >= 0)[0]
    assert order[0][kept].tolist() == suppressed(boxes.double().numpy(), scores.numpy(), 0.3)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("ties", [False, True])
def test_detections_are_those_of_suppression_class_by_class_however_many_candidates(shared: bool, ties: bool) -> None:
    """Most boxes are copies of a few, so that the first block of candidates does not hold enough that stand."""
    generator, regions, classes, count = torch.Generator().manual_seed(2), 700, 4, 60
    few = random_boxes(25, 100, 100, seed=5)
    boxes = few[torch.randint(25, (2, regions, 1 if shared else classes), generator=generator)]
    scores = torch.rand(2, regions, classes, generator=generator)
    if ties:
        scores = (scores * 8).round() / 8
    best, of_box, of_class, region = best_of_classes(scores, boxes, 0.06, 0.5, count)
    for image in range(2):
        candidates = []
        for number in range(classes):
            own, value = boxes[image, :, 0 if shared else number].double().numpy(), scores[image, :, number].numpy()
            above = np.flatnonzero(value > 0.06)
            kept = above[suppressed(own[above], value[above], 0.5)]
            candidates += [(-value[place], place * classes + number) for place in kept]
        wanted = sorted(candidates)[:count]
        found = int((best[image] >= 0).sum())
        assert found == len(wanted)
        assert (region[image, :found] * classes + of_class[image, :found]).tolist() == [place for _, place in wanted]
        assert best[image, :found].tolist() == [-float(score) for score, _ in wanted]
        rows = boxes[image][region[image], 0 if shared else of_class[image]]
        assert torch.equal(of_box[image, :found], rows[:found])


def test_padding_is_told_from_the_picture() -> None:
    images = torch.zeros(3, 3, 10, 12)
    images[0] += 1.0
    images[1, 1, :7, :5] = -0.5
    assert picture_extent(images)[:, 0].tolist() == [[12, 10], [5, 7], [0, 0]]
