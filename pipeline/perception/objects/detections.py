"""A detector's output tensors → boxes with classes and scores. Pure functions of arrays.

Contains the layouts of YOLOX, NanoDet and SSD, their recognition, and suppression. Knows neither the picture nor the
runtime: pixels are those of the network's input, and detector.py scales them to the camera's.

Example:
    layout = layout_of(shapes, input_px=(416, 416), classes=80)              # "yolox"
    candidates = LAYOUTS[layout](outputs, (416, 416), 80)                    # boxes, scores of every class
    suppressed(candidates, min_score=0.35, overlap=0.5)                      # (class, score, box), surest first
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.errors import ConfigError
from pipeline.probabilities import softmax

Floats = npt.NDArray[np.float32]
Tensors = Mapping[str, npt.NDArray[np.generic]]
Size = tuple[int, int]  # width, height in px

YOLOX_STRIDES_PX = ((8, 16, 32), (8, 16, 32, 64))  # the usual heads; those with P6
# Cells of NanoDet-Plus (4 levels) lie at multiples of the stride; those of the first NanoDet (3) half a stride further.
NANODET_STRIDES_PX = {4: ((8, 16, 32, 64), 0.0), 3: ((8, 16, 32), 0.5)}
NANODET_BINS = 8  # a distance is a distribution over 0 … 7 strides (reg_max 7, in every published model)
DETECTION_ENCODINGS = ("text_utf8",)  # of frames that hold boxes of another program
SSD_VARIANCES = (0.1, 0.2)  # of centre and size: Liu et al. 2016, as in their code and all later ones

COCO = (
    "person",
    "bicycle",
    "car",
    "motorcycle",
    "airplane",
    "bus",
    "train",
    "truck",
    "boat",
    "traffic light",
    "fire hydrant",
    "stop sign",
    "parking meter",
    "bench",
    "bird",
    "cat",
    "dog",
    "horse",
    "sheep",
    "cow",
    "elephant",
    "bear",
    "zebra",
    "giraffe",
    "backpack",
    "umbrella",
    "handbag",
    "tie",
    "suitcase",
    "frisbee",
    "skis",
    "snowboard",
    "sports ball",
    "kite",
    "baseball bat",
    "baseball glove",
    "skateboard",
    "surfboard",
    "tennis racket",
    "bottle",
    "wine glass",
    "cup",
    "fork",
    "knife",
    "spoon",
    "bowl",
    "banana",
    "apple",
    "sandwich",
    "orange",
    "broccoli",
    "carrot",
    "hot dog",
    "pizza",
    "donut",
    "cake",
    "chair",
    "couch",
    "potted plant",
    "bed",
    "dining table",
    "toilet",
    "tv",
    "laptop",
    "mouse",
    "remote",
    "keyboard",
    "cell phone",
    "microwave",
    "oven",
    "toaster",
    "sink",
    "refrigerator",
    "book",
    "clock",
    "vase",
    "scissors",
    "teddy bear",
    "hair drier",
    "toothbrush",
)
# COCO's own ids go up to 90 and leave these out; SSDs of TensorFlow and torchvision use them.
_COCO_GAPS = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
COCO_BY_ID = tuple(sorted(set(range(1, 91)) - set(_COCO_GAPS)))


class Detection(NamedTuple):
    """box_px: left, top, width, height in the captured picture."""

    label: str
    score: float
    box_px: tuple[float, float, float, float]


class Candidates(NamedTuple):
    """boxes_px: (n, 4) float32 left, top, right, bottom in the network's input. scores: (n, classes) in [0, 1]."""

    boxes_px: Floats
    scores: Floats


# ---- YOLOX: (1, cells, 5 + classes): x, y, log w, log h in strides from the cell's corner; objectness; classes. Both
# are probabilities already. Ge et al. 2021; `demo_postprocess` in yolox/utils/demo_utils.py of their repository.


def yolox(outputs: Tensors, input_px: Size, classes: int) -> Candidates:
    (output,) = outputs.values()
    rows = _rows(output)
    strides = next(s for s in YOLOX_STRIDES_PX if _cell_count(s, input_px, math.floor) == len(rows))
    corners, stride = _cells(strides, input_px, math.floor)
    centre = (rows[:, :2] + corners) * stride
    size = np.exp(rows[:, 2:4]) * stride
    return Candidates(np.hstack([centre - size / 2, centre + size / 2]), rows[:, 4:5] * rows[:, 5:])


# ---- NanoDet: class probabilities, and for left, top, right, bottom the logits of a distribution over distances in
# strides. One tensor (1, cells, classes + 32), or a pair of tensors a level as opencv_zoo's and the first NanoDet's
# exports have it. `distribution_project`, `distance2bbox` and `get_single_level_center_priors` in RangiLyu/nanodet.


def nanodet(outputs: Tensors, input_px: Size, classes: int) -> Candidates:
    bins = 4 * NANODET_BINS
    if len(outputs) == 1:
        (output,) = outputs.values()
        rows = _rows(output)
        scores, distances = rows[:, :classes], rows[:, classes:]
    else:
        # Levels are sorted by size, since their names and order depend on the exporter.
        levels = sorted((_rows(output) for output in outputs.values()), key=len, reverse=True)
        scores = np.vstack([rows for rows in levels if rows.shape[1] == classes and rows.shape[1] != bins])
        distances = np.vstack([rows for rows in levels if rows.shape[1] == bins])
    strides, middle = next(
        v for v in NANODET_STRIDES_PX.values() if _cell_count(v[0], input_px, math.ceil) == len(scores)
    )
    corners, stride = _cells(strides, input_px, math.ceil)
    logits = distances.reshape(len(scores), 4, NANODET_BINS)
    odds = np.exp(logits - logits.max(axis=2, keepdims=True))
    reach = (odds @ np.arange(NANODET_BINS, dtype=np.float32)) / odds.sum(axis=2) * stride
    centre = (corners + np.float32(middle)) * stride
    limit = np.array(input_px, np.float32)
    boxes = np.hstack([np.clip(centre - reach[:, :2], 0, limit), np.clip(centre + reach[:, 2:], 0, limit)])
    return Candidates(boxes, scores)


# ---- SSD as TensorFlow's and torchvision's exports end: suppressed already, one class a box.

_SSD_NAMES = {
    "boxes": ("detection_boxes", "bboxes", "boxes"),
    "classes": ("detection_classes", "classes", "labels"),
    "scores": ("detection_scores", "scores"),
    "count": ("num_detections", "num"),
}


def ssd(outputs: Tensors, input_px: Size, classes: int) -> Candidates:
    """TensorFlow ("detection_boxes": top, left, bottom, right as shares of the picture), ONNX's model zoo ("bboxes":
    left, top, right, bottom as shares) and torchvision ("boxes": the same in px). With 80 classes the ids are COCO's
    own, up to 90; else they count from 1, since 0 is the background. Boxes of unknown ids are dropped.
    """
    names = _named(outputs)
    boxes = np.asarray(outputs[names["boxes"]], np.float32).reshape(-1, 4)
    ids = np.rint(np.asarray(outputs[names["classes"]], np.float64)).astype(int).ravel()
    scores = np.asarray(outputs[names["scores"]], np.float32).ravel()
    count = int(np.asarray(outputs[names["count"]]).ravel()[0]) if "count" in names else len(boxes)
    if names["boxes"].startswith("detection_boxes"):
        boxes = boxes[:, [1, 0, 3, 2]]
    if not names["boxes"].startswith("boxes"):
        boxes = boxes * np.tile(np.array(input_px, np.float32), 2)
    known = np.searchsorted(COCO_BY_ID, ids) if classes == len(COCO) else ids - 1
    by_id = COCO_BY_ID if classes == len(COCO) else tuple(range(1, classes + 1))
    fits = np.isin(ids, by_id) & (np.arange(len(ids)) < count)
    spread = np.zeros((int(fits.sum()), classes), np.float32)
    spread[np.arange(len(spread)), known[fits]] = scores[fits]
    return Candidates(boxes[fits], spread)


# ---- SSD as it is trained: offsets from prior boxes, and classes with the background first (Liu et al. 2016, eq. 2).


def ssd_raw(outputs: Tensors, input_px: Size, classes: int) -> Candidates:
    """Three tensors: `priors` or `anchors` (n, 4) centre x, y, width, height as shares of the picture; of the others
    the one that is 4 wide holds offsets, the other one scores of background and classes: logits, or probabilities that
    sum to 1."""
    prior = next(name for name in outputs if name.startswith(("priors", "anchors")))
    rows = [_rows(output) for name, output in outputs.items() if name != prior]
    offsets = next(r for r in rows if r.shape[1] == 4)
    scores = next(r for r in rows if r.shape[1] == classes + 1)
    priors = _rows(outputs[prior])
    centre = priors[:, :2] + offsets[:, :2] * np.float32(SSD_VARIANCES[0]) * priors[:, 2:]
    size = priors[:, 2:] * np.exp(offsets[:, 2:] * np.float32(SSD_VARIANCES[1]))
    if not np.allclose(scores.sum(axis=1), 1, atol=1e-2) or scores.min(initial=0) < 0:
        scores = softmax(scores)
    boxes = np.hstack([centre - size / 2, centre + size / 2]) * np.tile(np.array(input_px, np.float32), 2)
    return Candidates(boxes.astype(np.float32), scores[:, 1:])


Decode = Callable[[Tensors, Size, int], Candidates]
LAYOUTS: dict[str, Decode] = {"yolox": yolox, "nanodet": nanodet, "ssd": ssd, "ssd_raw": ssd_raw}


def layout_of(shapes: Mapping[str, Sequence[int | str | None]], *, input_px: Size, classes: int) -> str:
    """The layout of outputs with these names and shapes. Raises ConfigError, which lists them, where it is unknown."""
    wide = [shape[-1] if shape else 1 for shape in shapes.values()]
    rows = [shape[-2] if len(shape) > 1 else 1 for shape in shapes.values()]
    yolox_rows = [_cell_count(strides, input_px, math.floor) for strides in YOLOX_STRIDES_PX]
    nanodet_rows = [_cell_count(strides, input_px, math.ceil) for strides, _ in NANODET_STRIDES_PX.values()]
    if {"boxes", "classes", "scores"} <= set(_named(shapes)):
        return "ssd"
    if len(shapes) == 1 and wide[0] == 5 + classes and rows[0] in yolox_rows:
        return "yolox"
    if len(shapes) == 1 and wide[0] == classes + 4 * NANODET_BINS and rows[0] in nanodet_rows:
        return "nanodet"
    halves = {
        width: sum(int(r or 0) for r, w in zip(rows, wide, strict=True) if w == width)
        for width in (classes, 4 * NANODET_BINS)
    }
    if len(shapes) in (6, 8) and len(set(halves.values())) == 1 and halves[classes] in nanodet_rows:
        return "nanodet"
    if any(name.startswith(("priors", "anchors")) for name in shapes) and {4, classes + 1} <= set(wide):
        return "ssd_raw"
    here = "; ".join(f"{name} {' × '.join(map(str, shape))}" for name, shape in shapes.items())
    raise ConfigError(
        f"the outputs have none of the layouts {', '.join(LAYOUTS)}. Found: {here}. "
        f"Expected for {classes} labels and pictures of {input_px[0]}×{input_px[1]}: "
        f"yolox {yolox_rows[0]} × {5 + classes}; nanodet {' or '.join(map(str, nanodet_rows))} × "
        f"{classes + 4 * NANODET_BINS}, or both parts of that per level; ssd boxes, classes and scores by these names. "
        "Another number of classes: name them with labels:"
    )


def suppressed(
    candidates: Candidates, *, min_score: float, overlap: float, limit: int = 100
) -> list[tuple[int, float, Floats]]:
    """(class, score, box (4,) as left, top, right, bottom) of at most `limit` boxes, surest first. Of boxes of
    one class that overlap more than `overlap` (intersection over union), only the surest remains."""
    if not len(candidates.boxes_px):
        return []
    kinds = candidates.scores.argmax(axis=1)
    scores = candidates.scores[np.arange(len(kinds)), kinds]
    good = np.flatnonzero((scores >= min_score) & np.isfinite(candidates.boxes_px).all(axis=1))
    if not len(good):
        return []
    boxes, scores, kinds = candidates.boxes_px[good], scores[good], kinds[good]
    sides = np.hstack([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]])
    selected = cv2.dnn.NMSBoxesBatched(sides.tolist(), scores.tolist(), kinds.tolist(), min_score, overlap)
    order = sorted((int(i) for i in np.ravel(selected)), key=lambda i: -scores[i])[:limit]
    return [(int(kinds[i]), float(scores[i]), boxes[i]) for i in order]


def read_detections(text: str) -> list[Detection]:
    """Boxes of another program, from a text frame. Raises ValueError that quotes what is malformed.

    Either JSON, a list of {"label": "car", "box_px": [left, top, width, height], "score": 0.9}, or lines as KITTI's
    label_2 has them (type, …, left, top, right, bottom in columns 5 to 8; DontCare is left out; a 16th column is the
    score).
    """
    if text.lstrip()[:1] == "[":
        try:
            return [
                Detection(str(one["label"]), float(one.get("score", 1.0)), _box(one["box_px"]))
                for one in json.loads(text)
            ]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f'expected a list of {{"label", "box_px", "score"}}, found {text[:60]!r} ({error!r})'
            ) from error
    detections = []
    for line in filter(None, map(str.strip, text.splitlines())):
        words = line.split()
        if len(words) < 15:
            raise ValueError(f"expected JSON that begins with [, or KITTI's 15 columns a line, found {line[:60]!r}")
        left, top, right, bottom = map(float, words[4:8])
        if words[0] != "DontCare":
            score = float(words[15]) if len(words) > 15 else 1.0
            detections.append(Detection(words[0].lower(), score, (left, top, right - left, bottom - top)))
    return detections


def _box(box_px: Sequence[float]) -> tuple[float, float, float, float]:
    left, top, width, height = map(float, box_px)
    if not (width > 0 and height > 0 and math.isfinite(left + top + width + height)):
        raise ValueError(f"box {box_px} has no area")
    return left, top, width, height


def _rows(output: npt.NDArray[np.generic]) -> Floats:
    """(1, n, c) or (n, c) → (n, c) float32."""
    return np.asarray(output, np.float32).reshape(-1, output.shape[-1])


def _named(outputs: Mapping[str, object]) -> dict[str, str]:
    """Role of an SSD's output → its name, which exporters may end with ":0"."""
    plain = {name.partition(":")[0]: name for name in outputs}
    return {what: plain[name] for what, names in _SSD_NAMES.items() for name in reversed(names) if name in plain}


def _cell_count(strides: Sequence[int], input_px: Size, rounded: Callable[[float], int]) -> int:
    return sum(rounded(input_px[0] / s) * rounded(input_px[1] / s) for s in strides)


def _cells(strides: Sequence[int], input_px: Size, rounded: Callable[[float], int]) -> tuple[Floats, Floats]:
    """Column and row of every cell, (n, 2), level by level and row by row; and its stride, (n, 1)."""
    columns, rows, stride = [], [], []
    for s in strides:
        row, column = np.mgrid[: rounded(input_px[1] / s), : rounded(input_px[0] / s)]
        columns.append(column.ravel())
        rows.append(row.ravel())
        stride.append(np.full(row.size, s))
    corners = np.column_stack([np.concatenate(columns), np.concatenate(rows)]).astype(np.float32)
    return corners, np.concatenate(stride).astype(np.float32)[:, None]
