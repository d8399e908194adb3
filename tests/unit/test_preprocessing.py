"""face_crop frames a face as the training pictures are framed; face_tensor takes the light out of it."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from pipeline.preprocessing import FACE_SIDE_PER_BOX, face_crop, face_tensor


def picture_with_face(*, centre_px: tuple[float, float], side_px: float, roll_deg: float = 0.0) -> np.ndarray:
    """A grey 640×360 picture with a stand-in for a face: two dark eyes and a bright mouth, as in FER2013."""
    image = np.full((360, 640, 3), 128, np.uint8)
    for (x, y), level in (((15.5, 19.5), 0), ((32.0, 19.5), 0), ((24.0, 36.0), 255)):
        across, down = (x - 24) / 48 * side_px, (y - 24) / 48 * side_px
        cos, sin = np.cos(np.radians(roll_deg)), np.sin(np.radians(roll_deg))
        spot = (round(centre_px[0] + cos * across - sin * down), round(centre_px[1] + sin * across + cos * down))
        cv2.circle(image, spot, round(side_px * 0.06), (level, level, level), -1)
    return image


def box_around(centre_px: tuple[float, float], side_px: float) -> np.ndarray:
    """The detector box of such a face: upright, a little taller than wide."""
    width, height = side_px / FACE_SIDE_PER_BOX * 0.92, side_px / FACE_SIDE_PER_BOX / 0.92
    return np.array([centre_px[0] - width / 2, centre_px[1] - height / 2, width, height], np.float32)


def darkest_and_brightest(grey: np.ndarray) -> tuple[tuple[float, float], tuple[float, float]]:
    """The middle (x, y) of the dark pixels and of the bright ones."""
    ys, xs = np.nonzero(grey < 60)
    yb, xb = np.nonzero(grey > 200)
    return (xs.mean(), ys.mean()), (xb.mean(), yb.mean())


@pytest.mark.parametrize("side_px", [40.0, 96.0, 300.0])
def test_face_of_any_size_lands_at_the_same_place(side_px: float) -> None:
    grey = face_crop(picture_with_face(centre_px=(320, 180), side_px=side_px), box_around((320, 180), side_px), None)
    eyes, mouth = darkest_and_brightest(grey)
    assert grey.shape == (48, 48) and grey.dtype == np.uint8
    assert eyes == pytest.approx((23.75, 19.5), abs=1.0)
    assert mouth == pytest.approx((24.0, 36.0), abs=1.0)


def test_tilted_face_is_turned_upright_by_its_eyes() -> None:
    image = picture_with_face(centre_px=(320, 180), side_px=200, roll_deg=25)
    cos, sin = np.cos(np.radians(25)), np.sin(np.radians(25))
    eyes = [(320 + cos * x - sin * -19, 180 + sin * x + cos * -19) for x in (-35, 33)]
    landmarks_px = np.array([*eyes, (320, 180), (310, 230), (330, 230)], np.float32)
    (eye_x, eye_y), (mouth_x, mouth_y) = darkest_and_brightest(
        face_crop(image, box_around((320, 180), 200), landmarks_px)
    )
    assert (eye_x, eye_y) == pytest.approx((23.75, 19.5), abs=1.0)
    assert (mouth_x, mouth_y) == pytest.approx((24.0, 36.0), abs=1.0)


def test_eyes_that_make_no_sense_do_not_turn_the_face() -> None:
    image, box_px = picture_with_face(centre_px=(320, 180), side_px=200), box_around((320, 180), 200)
    swapped = np.array([(353, 161), (285, 161), (320, 180), (310, 230), (330, 230)], np.float32)
    assert np.array_equal(face_crop(image, box_px, swapped), face_crop(image, box_px, None))


def test_face_at_the_edge_repeats_the_border_instead_of_going_black() -> None:
    image = np.full((360, 640, 3), 200, np.uint8)
    grey = face_crop(image, np.array([-60.0, -80.0, 100.0, 120.0], np.float32), None)
    assert (grey == 200).all()


def test_box_without_area_is_refused() -> None:
    with pytest.raises(ValueError, match="no area"):
        face_crop(np.zeros((360, 640, 3), np.uint8), np.array([10.0, 10.0, 0.0, 20.0], np.float32), None)


def test_crop_leaves_the_picture_as_it_was() -> None:
    image = np.random.default_rng(0).integers(0, 256, (360, 640, 3), dtype=np.uint8)
    image.setflags(write=False)  # a frame's data is read-only: other readers share it
    before = image.copy()
    face_crop(image, np.array([100.0, 100.0, 80.0, 90.0], np.float32), None)
    assert np.array_equal(image, before)


def test_tensor_is_the_same_in_dim_and_in_bright_light() -> None:
    face = np.random.default_rng(0).integers(60, 140, (48, 48)).astype(np.float32)
    dim, bright = face_tensor(face * 0.5), face_tensor(face * 1.5 + 20)
    assert dim.shape == (1, 48, 48) and dim.dtype == np.float32
    assert dim == pytest.approx(bright, abs=1e-4)
    assert dim.mean() == pytest.approx(0, abs=1e-4) and dim.std() == pytest.approx(1, abs=1e-3)


def test_flat_picture_is_not_blown_up_into_a_face() -> None:
    flat = np.full((48, 48), 90, np.uint8)
    flat[::2] += 1  # one grey level of noise
    assert np.abs(face_tensor(flat)).max() < 0.2
    assert np.isfinite(face_tensor(np.zeros((48, 48), np.uint8))).all()


def test_many_faces_at_once_give_what_each_gives_alone() -> None:
    faces = np.random.default_rng(0).integers(0, 256, (3, 48, 48), dtype=np.uint8)
    together = face_tensor(faces)
    assert together.shape == (3, 1, 48, 48)
    assert together == pytest.approx(np.stack([face_tensor(face) for face in faces]), abs=1e-6)
