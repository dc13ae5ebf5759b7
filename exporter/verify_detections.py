"""Comparing detectors, whose answers are choices: which anchors, which boxes stand, which class.

A choice between nearly equal scores may fall either way, and everything behind it then differs. So a file is followed
step by step: its inner values are read too, and PyTorch takes each step from what the file had there. What a network
computes (maps, logits, deltas, masks) must agree within the tolerance. What is chosen (proposals, regions, detections)
must be what PyTorch chooses from the file's own scores; a few rows may differ where rounding decided, and a line says
how many.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor

from na_deploy.errors import NaDeployError
from na_deploy.exporter.verify import VerificationCase, open_session, random_image, run_onnx
from na_deploy.model_file.differences import Difference
from na_deploy.model_file.graph import ask_for
from na_deploy.models.detectors.rcnn import RCNN

Values = dict[str, Tensor]
Rows = Sequence[NDArray[Any]]
UNDECIDED = 0.02
"""Share of chosen rows that rounding may decide otherwise."""


def verify_detections(model: RCNN, path: Path, shape: Sequence[int], tolerance: float) -> VerificationCase:
    """Compare a file with PyTorch step by step.

    Args:
        model: the float32 module in evaluation mode.
        path: the ONNX file; run with its inner values as further outputs.
        shape: of the random image.
        tolerance: relative difference up to which two rows are the same choice.

    Raises:
        NaDeployError: the file does not name its inner values, or ONNX Runtime refuses it.
    """
    image = random_image(shape)
    found = _run(model, path, image)
    compared = _Comparison(found, tolerance)
    config = model.config
    with torch.inference_mode():
        extent, maps = model.extent(image), model.neck(model.backbone(image))
        for level, (logits, deltas) in enumerate(model.rpn_head(maps)):
            compared.computed(f"rpn{level}.logits", logits)
            compared.computed(f"rpn{level}.deltas", deltas)
        theirs = [(found[f"rpn{level}.logits"], found[f"rpn{level}.deltas"]) for level in range(config.levels)]
        boxes, scores = model.rpn_head.propose(theirs, extent)
        compared.chosen("proposals", (boxes, scores), (found["proposals"], found["proposals.scores"]))
        regions, all_logits = found["proposals"], []
        for stage in range(len(config.boxes)):
            logits, deltas = model.judge(stage, maps, regions)
            compared.computed(f"stage{stage}.logits", logits)
            compared.computed(f"stage{stage}.deltas", deltas)
            logits, deltas = found[f"stage{stage}.logits"], found[f"stage{stage}.deltas"]
            all_logits.append(logits)
            if stage + 1 < len(config.boxes):
                refined = model.refine(stage, regions, logits, deltas, extent)
                regions = found[f"stage{stage + 1}.regions"]
                compared.chosen(f"stage{stage + 1}.regions", (refined,), (regions,))
        wanted = model.choose(regions, found["proposals.scores"], all_logits, deltas, extent)
        names = ("boxes", "scores", "classes")
        compared.chosen("detections", [wanted[name] for name in names], [found[name] for name in names])
        compared.counted(wanted["count"])
        if config.masks:
            compared.computed("masks", model.draw(maps, found["boxes"], found["classes"]))
    return VerificationCase(tuple(shape), tuple(compared.differences), compared.remark)


def _run(model: RCNN, path: Path, image: Tensor) -> Values:
    """Return a file's outputs and inner values, those of half precision widened."""
    proto = onnx.load(path, load_external_data=False)
    outputs = [output.name for output in proto.graph.output]
    inner = model.inner_names
    there = {name for node in proto.graph.node for name in node.output}
    missing = [name for name in inner if name not in there]
    if missing:
        raise NaDeployError(f"{path.name} does not name its {missing[0]}, which detectors have; export it again")
    ask_for(proto, inner)
    values = run_onnx(open_session(path, proto), [*outputs, *inner], image, path)
    named = {name: torch.from_numpy(np.asarray(x)) for name, x in zip([*outputs, *inner], values, strict=True)}
    return {name: x.float() if x.is_floating_point() else x for name, x in named.items()}


class _Comparison:
    """Differences as they are found."""

    def __init__(self, found: Values, tolerance: float) -> None:
        self.found, self.tolerance = found, tolerance
        self.differences: list[Difference] = []
        self.undecided: list[str] = []
        self.rows = 0

    def computed(self, name: str, wanted: Tensor) -> None:
        self.differences.append(Difference.between(name, self.found[name].numpy(), wanted.float().numpy()))

    def chosen(self, name: str, wanted: Sequence[Tensor], found: Sequence[Tensor]) -> None:
        """Match rows (B, N, …) of several tensors, boxes first, in any order."""
        apart = total = 0
        largest, magnitude = 0.0, float(wanted[0].abs().max()) if wanted[0].numel() else 0.0
        for image in range(len(wanted[0])):
            ours, right = ([x[image].numpy() for x in tensors] for tensors in (found, wanted))
            distances = _distances(ours, right, self.tolerance)
            near = distances <= self.tolerance * max(magnitude, 1.0)
            alone = max(int((~near.any(axis)).sum()) for axis in (0, 1))  # on either side
            apart, total = apart + alone, total + len(near)
            largest = max(largest, float(distances.min(1)[near.any(1)].max(initial=0)))
        relative = largest / magnitude if magnitude else 0.0
        if apart > max(UNDECIDED * total, 1):
            relative = apart / total
        elif apart:
            self.undecided.append(f"{apart} of {total:,} {name}")
        self.rows += total
        self.differences.append(Difference(name, tuple(found[0].shape), largest, relative))

    def counted(self, wanted: Tensor) -> None:
        apart = (self.found["count"] - wanted).abs()
        close = apart <= (UNDECIDED * wanted).clamp(min=1)
        largest = float(apart.max()) if apart.numel() else 0.0
        self.differences.append(Difference("count", tuple(wanted.shape), largest, 0.0 if close.all() else 1.0))

    @property
    def remark(self) -> str:
        compared = f"compared step by step from the file's own values, {self.rows:,} chosen rows as sets"
        return f"{compared}; rounding decided otherwise: {', '.join(self.undecided)}" if self.undecided else compared


def _distances(ours: Rows, right: Rows, tolerance: float) -> NDArray[np.float64]:
    """Return the distances of rows (N, N) in pixels, infinite where they differ in more than the box.

    Args:
        ours: boxes (N, 4), and perhaps scores (N) and classes (N).
        right: the same for PyTorch.
        tolerance: relative difference up to which scores agree.
    """
    distances: NDArray[np.float64] = np.abs(ours[0][:, None] - right[0]).max(-1).astype(np.float64)
    for mine, other in zip(ours[1:], right[1:], strict=True):
        allowed = tolerance if mine.dtype.kind == "f" else 0
        distances[np.abs(mine[:, None] - other) > allowed] = np.inf
    return distances
