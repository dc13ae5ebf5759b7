"""Objects from the outputs of detectors: boxes from the network's input to the picture, masks pasted into them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from na_deploy.errors import NaDeployError
from na_deploy.model_file.answers import BOXES, MASKS
from na_deploy.model_file.tensors import Array
from na_deploy.models.metadata import THRESHOLDS, ModelMetadata
from na_deploy.runtime.results.resampling import View, placed, resize
from na_deploy.runtime.results.segments import Box, Crop, Found, Segmentation, from_objects


def detections(outputs: Mapping[str, Array], view: View, metadata: ModelMetadata) -> Segmentation:
    """Return the objects of one picture, the highest score first.

    Boxes are cut at the picture's edges; those without area there are left out, as are scores below the threshold.

    Args:
        outputs: those in :data:`~na_deploy.model_file.answers.BOXES`, and masks where the model has them, of one
            picture: without the axis of the batch.
        view: the input's place on the picture.
        metadata: class names, colours and thresholds.

    Raises:
        NaDeployError: a score or a box is NaN or infinite.
    """
    names, scores, classes, count = BOXES
    number = int(outputs[count].item())
    boxes = _on_picture(outputs[names][:number].astype(np.float64), view)
    values = outputs[scores][:number].astype(np.float64)
    if not (np.isfinite(boxes).all() and np.isfinite(values).all()):
        raise NaDeployError(
            "the model answers with boxes or scores that are NaN or infinite; check its input, or export it with "
            "--dtype fp32 if it overflows"
        )
    thresholds = {**THRESHOLDS, **metadata.thresholds}
    visible = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1]) & (values >= thresholds["score"])
    order = [place for place in np.argsort(-values, kind="stable").tolist() if visible[place]]
    found = [Found(int(outputs[classes][place]), float(values[place])) for place in order]
    crops = None
    if MASKS in outputs:
        crops = [paste(outputs[MASKS][place], boxes[place], view.picture, thresholds["mask"]) for place in order]
    sides: list[Box] = [(left, top, right - left, bottom - top) for left, top, right, bottom in boxes[order].tolist()]
    return from_objects("detection", sides, crops, found, view.picture, metadata.labels, metadata.palette)


def paste(mask: Array, box: NDArray[np.float64], picture: tuple[int, int], threshold: float = 0.5) -> Crop:
    """Return the pixels of an object: its mask's probabilities scaled onto its box, from the threshold on.

    As ``paste_masks_in_image`` of Detectron2 and ``_do_paste_mask`` of mmdetection.

    Args:
        mask: (h, w), the probability in each part of the box.
        box: left, top, right and bottom in the picture's pixels.
        picture: (H, W).
        threshold: the smallest probability that counts.
    """
    left, top = (max(int(np.floor(side)), 0) for side in box[:2])
    right, bottom = (min(int(np.ceil(side)), whole) for side, whole in zip(box[2:], picture[::-1], strict=True))
    rows = placed(mask.shape[0], box[1], box[3], top, bottom)
    columns = placed(mask.shape[1], box[0], box[2], left, right)
    return Crop(left, top, resize(mask, rows, columns) >= np.float32(threshold))


def _on_picture(boxes: NDArray[np.float64], view: View) -> NDArray[np.float64]:
    """Return boxes of the network's input in the picture's pixels, cut at its edges."""
    (height, width), (rows, columns) = view.picture, view.placement.scaled
    scaled = boxes * np.array([width / columns, height / rows] * 2)
    cut: NDArray[np.float64] = np.clip(scaled, 0, np.array([width, height] * 2))
    return cut
