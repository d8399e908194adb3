"""Draws a cloud into a picture, coloured by range, which shows at a glance whether a rig is right.

Depth edges of the cloud must coincide with the edges of objects in the picture.

Example:
    picture = draw_points(image_bgr, points_m, intrinsics, camera_from_lidar)
"""

from __future__ import annotations

import cv2
import numpy as np

from calibration.pose import Floats
from pipeline.rig.intrinsics import Intrinsics

NEAREST_M = 0.3
DOT_PX = 2


def draw_points(
    image: np.ndarray,
    points_m: Floats,
    intrinsics: Intrinsics,
    camera_from_lidar: Floats,
    *,
    farthest_m: float | None = None,
) -> np.ndarray:
    """image: (h, w, 3) BGR, unchanged.

    Red is near and blue far. farthest_m: range of blue, by default from the cloud.
    """
    pixels, depth_m, visible = intrinsics.project_from(camera_from_lidar, points_m)
    visible &= depth_m > NEAREST_M
    # The picture is darkened: dots must stand out, and its edges must stay visible.
    drawn = (image * 0.55).astype(np.uint8)
    if not visible.any():
        return drawn
    at, depth = np.rint(pixels[visible]).astype(int), depth_m[visible]
    far_m = farthest_m or max(float(np.percentile(depth, 95)), NEAREST_M * 2)
    # Logarithmic: centimetres matter near the camera, metres far away.
    share = np.log(np.clip(depth, NEAREST_M, far_m) / NEAREST_M) / np.log(far_m / NEAREST_M)
    colours = cv2.applyColorMap((255 * (1 - share)).astype(np.uint8)[:, None], cv2.COLORMAP_TURBO)[:, 0]
    radius = max(1, round(DOT_PX * image.shape[1] / 1920))
    for index in np.argsort(-depth):  # near ones on top
        x, y = at[index]
        cv2.circle(drawn, (int(x), int(y)), radius, colours[index].tolist(), -1, cv2.LINE_AA)
    return drawn


def draw_board(
    image: np.ndarray, points_m: Floats, intrinsics: Intrinsics, camera_from_lidar: Floats, corners_px: Floats
) -> np.ndarray:
    """The lidar's points of a board, and the corners detected in the picture."""
    drawn = draw_points(image, points_m, intrinsics, camera_from_lidar)
    for x, y in corners_px:
        cv2.drawMarker(drawn, (round(x), round(y)), (255, 255, 255), cv2.MARKER_TILTED_CROSS, 8, 1, cv2.LINE_AA)
    return drawn
