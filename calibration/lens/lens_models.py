"""The distortion models that can be estimated, their free parameters, and projection with its derivatives.

Example:
    lens = as_model(Intrinsics("radtan", 640, 480, 500, 500, 319.5, 239.5), "radtan4")
    pixels, by_lens, by_pose = project(lens, points_m, np.zeros(3), np.zeros(3))
"""

from __future__ import annotations

import cv2
import numpy as np

from pipeline.rig.intrinsics import MODELS, Intrinsics

# The rig's models, and radtan with its higher coefficients fixed at 0; in order of their number of free parameters.
LENS_MODELS = {
    "radtan2": ("radtan", ("k1", "k2")),
    "radtan4": ("radtan", ("k1", "k2", "p1", "p2")),
    "fisheye": ("fisheye", MODELS["fisheye"]),
    "radtan": ("radtan", MODELS["radtan"]),
    "rational": ("rational", MODELS["rational"]),
}


def as_model(lens: Intrinsics, model: str) -> Intrinsics:
    """The lens as that key of LENS_MODELS; coefficients that the model does not free are 0."""
    kind, names = LENS_MODELS[model]
    known = dict(zip(MODELS[lens.model], lens.distortion, strict=True))
    if "fisheye" in (kind, lens.model) and kind != lens.model:
        known = {}  # fisheye's k1 … have another meaning than radtan's
    coefficients = tuple(known.get(name, 0.0) if name in names else 0.0 for name in MODELS[kind])
    return Intrinsics(kind, *lens.size, lens.fx_px, lens.fy_px, lens.cx_px, lens.cy_px, coefficients)


def with_parameters(lens: Intrinsics, parameters: np.ndarray) -> Intrinsics:
    fx_px, fy_px, cx_px, cy_px, *distortion = map(float, parameters)
    return Intrinsics(lens.model, lens.width_px, lens.height_px, fx_px, fy_px, cx_px, cy_px, tuple(distortion))


def model_family(model: str) -> str:
    return "fisheye" if LENS_MODELS[model][0] == "fisheye" else "radtan2"


def free_parameters(model: str) -> list[int]:
    """Indices into lens.parameters of the parameters that the key of LENS_MODELS estimates."""
    kind, names = LENS_MODELS[model]
    return [0, 1, 2, 3, *(4 + i for i, name in enumerate(MODELS[kind]) if name in names)]


def project(
    lens: Intrinsics, points_m: np.ndarray, vector: np.ndarray, moved: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(pixels (n, 2), derivative by the parameters (2n, p), derivative by rotation vector and translation (2n, 6))."""
    shape, distortion = np.ascontiguousarray(points_m, np.float64).reshape(-1, 1, 3), np.array(lens.distortion)
    if lens.model == "fisheye":
        pixels, j = cv2.fisheye.projectPoints(shape, vector, moved, lens.matrix, distortion)
        return pixels.reshape(-1, 2), j[:, :8], j[:, 8:14]
    pixels, j = cv2.projectPoints(shape, vector, moved, lens.matrix, distortion)
    return pixels.reshape(-1, 2), j[:, 6 : 10 + len(distortion)], j[:, :6]
