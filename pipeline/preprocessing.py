"""Frames → the input tensors of the networks. Live tasks and training call these same functions, so that a network gets
live exactly the input it was trained on.

Pure: numpy and OpenCV in, numpy out. It knows no torch, no model, no file and no clock.

Example:
    grey = face_crop(frame.data, box_px, landmarks_px)     # (48, 48) uint8
    logits = engine.run({"face": face_tensor(grey)[None]})["logits"]
"""

from __future__ import annotations

import math
from functools import lru_cache

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.clock import NS
from pipeline.frame import POINTS, Frame
from pipeline.rig.intrinsics import Intrinsics

FACE_PX = 48

# The crop's side in units of the detector box's geometric mean side. FER2013's pictures were framed by another
# detector: CenterFace boxes on them give a median of 1.21 (quartiles 1.12 and 1.30) with the same centre. When they are
# detected and cropped again, held-back faces are recognised equally well from 1.0 to 1.3; a tighter crop has less hair
# and background.
FACE_SIDE_PER_BOX = 1.1

# Heads tilted further than the network's training rotation (15°) are turned upright by their eyes; beyond this the
# detector's eye points, which are noisy on a profile, are not reliable.
MAX_ROLL_DEG = 45.0

# A face's contrast is divided out, but not below this many grey levels: a nearly flat picture (a covered lens, fog)
# would otherwise turn sensor noise into a face-like pattern of full strength.
CONTRAST_FLOOR = 4.0


def face_crop(
    image_bgr: npt.NDArray[np.uint8], box_px: npt.NDArray[np.float32], landmarks_px: npt.NDArray[np.float32] | None
) -> npt.NDArray[np.uint8]:
    """Cut one face out of a picture, framed as FER2013 frames its faces, and upright when its landmarks are known.

    image_bgr: (h, w, 3). box_px: (4,) left, top, width, height; it may reach outside the picture, whose border is then
    repeated. landmarks_px: (5, 2) x, y of left eye, right eye, nose and mouth corners, left and right as the picture
    shows them. Returns (48, 48) grey. Raises ValueError for a box without area.
    """
    left, top, width, height = (float(value) for value in box_px)
    if not (width > 0 and height > 0 and math.isfinite(left + top + width + height)):
        raise ValueError(f"face box {(left, top, width, height)} px has no area")
    side_px = FACE_SIDE_PER_BOX * math.sqrt(width * height)
    roll_rad = 0.0 if landmarks_px is None else _roll_rad(landmarks_px)

    # One bilinear sample per target pixel would skip pixels of a large face, and the aliasing would look like movement:
    # sample finely first, then average down.
    fine = max(1, min(8, round(side_px / FACE_PX)))
    fine_px = FACE_PX * fine
    step_px = side_px / fine_px
    cos, sin = math.cos(roll_rad) * step_px, math.sin(roll_rad) * step_px
    middle = (fine_px - 1) / 2
    # A box edge at 0 is the outer edge of pixel 0, whose centre has the coordinate 0: hence the halves.
    centre_x_px, centre_y_px = left + width / 2 - 0.5, top + height / 2 - 0.5
    picture_from_crop = np.array(
        [
            [cos, -sin, centre_x_px - (cos - sin) * middle],
            [sin, cos, centre_y_px - (sin + cos) * middle],
        ]
    )
    patch = cv2.warpAffine(
        image_bgr,
        picture_from_crop,
        (fine_px, fine_px),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )
    grey = cv2.cvtColor(patch, cv2.COLOR_BGR2GRAY)
    if fine > 1:
        grey = cv2.resize(grey, (FACE_PX, FACE_PX), interpolation=cv2.INTER_AREA)
    return np.asarray(grey, dtype=np.uint8)


def face_tensor(grey: npt.NDArray[np.uint8] | npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Standardise each face by its own mean and contrast, so that neither exposure nor gain reaches the network.

    grey: (..., 48, 48), 0 to 255. Returns (..., 1, 48, 48) float32 with mean 0 and standard deviation at most 1.
    """
    face = np.asarray(grey, dtype=np.float32)
    mean = face.mean(axis=(-2, -1), keepdims=True)
    contrast = face.std(axis=(-2, -1), keepdims=True)
    standard = (face - mean) / np.maximum(contrast, CONTRAST_FLOOR)
    return np.asarray(standard[..., None, :, :], dtype=np.float32)


def _roll_rad(landmarks_px: npt.NDArray[np.float32]) -> float:
    """Tilt of the head in the picture, clockwise positive, from the line between the eyes; 0: implausible."""
    (left_x, left_y), (right_x, right_y) = (float(x) for x in landmarks_px[0]), (float(x) for x in landmarks_px[1])
    roll_rad = math.atan2(right_y - left_y, right_x - left_x)
    return roll_rad if abs(roll_rad) <= math.radians(MAX_ROLL_DEG) else 0.0


# Sizes of the form 32k + 1 are halved five times without a remainder at the edge, as the place network's padding needs.
# 225 keeps all of its 200-pixel training pictures and takes less than 18 ms on one thread; 257 takes more.
PLACE_PX = 225

# The sides of a wide picture show much the same as its middle, but top and bottom show something else (sky, roofs,
# ground): so nothing is cut from a picture up to 3:2, and a wider one loses its sides. The rest is squeezed into a
# square; the training pictures are squeezed as much.
MAX_PLACE_ASPECT = 1.5


def place_tensor(image_bgr: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """The place network's input from a whole picture: its grey middle, squeezed into a square.

    image_bgr: (h, w, 3) or grey (h, w), of any size. Returns (1, 225, 225) float32, about -1 (black) to 1 (white).
    Colour is left out on purpose: the training pictures have none, and so a colour picture and its grey copy get the
    same answer.
    """
    height, width = image_bgr.shape[:2]
    rows, columns = min(height, round(MAX_PLACE_ASPECT * width)), min(width, round(MAX_PLACE_ASPECT * height))
    top, left = (height - rows) // 2, (width - columns) // 2
    middle = image_bgr[top : top + rows, left : left + columns]
    grey = middle if middle.ndim == 2 else cv2.cvtColor(middle, cv2.COLOR_BGR2GRAY)
    while min(grey.shape) >= 3 * PLACE_PX:  # OpenCV averages pairs many times faster than odd shares
        rows, columns = grey.shape[0] // 2, grey.shape[1] // 2
        grey = cv2.resize(grey[: 2 * rows, : 2 * columns], (columns, rows), interpolation=cv2.INTER_AREA)
    shrinks = min(grey.shape) > PLACE_PX
    square = cv2.resize(grey, (PLACE_PX, PLACE_PX), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return np.asarray((square.astype(np.float32) - 127) / 128)[None]


# Chunks are stamped by a fitted clock, whose timestamps vary by less than this while no sample is missing.
SEAM_NS = 5_000_000


def audio_window(
    frames: tuple[Frame, ...] | None, anchor_ns: int, *, before_ns: int, sample_rate_hz: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """The sound of [anchor − before, anchor), to the sample, and which of its samples were received.

    Chunks of consecutive seq are concatenated and placed at the median of their timestamps, so that no sample is used
    twice or lost because a timestamp varies.

    Args:
        frames: "pcm_f32" at `sample_rate_hz`, in rising seq. None or empty: no sound.
        anchor_ns: The end of the window.
        before_ns: Its length.
        sample_rate_hz: Of the frames.

    Returns:
        (n,) float32, zero where no sample was received, and (n,) bool, true where one was; n = before_ns ×
        sample_rate_hz.
    """
    begin_ns = anchor_ns - before_ns
    samples = np.zeros(round(before_ns * sample_rate_hz / NS), np.float32)
    valid = np.zeros(len(samples), bool)
    free = 0  # everything before this index is taken
    for run in _unbroken(frames or (), sample_rate_hz):
        counts = [len(frame.data) for frame in run]
        stamped = [(frame.capture_ns - begin_ns) * sample_rate_hz / NS for frame in run]
        first = round(float(np.median(np.array(stamped) - np.cumsum([0, *counts[:-1]]))))
        sound = np.concatenate([frame.data for frame in run])
        begin, end = max(first, free, 0), min(first + len(sound), len(samples))
        if begin < end:
            samples[begin:end] = sound[begin - first : end - first]
            valid[begin:end] = True
            free = end
    return samples, valid


def _unbroken(frames: tuple[Frame, ...], sample_rate_hz: int) -> list[list[Frame]]:
    """The frames, split where a chunk is missing."""
    runs: list[list[Frame]] = []
    for frame in frames:
        last = runs[-1][-1] if runs else None
        expected_ns = last.capture_ns + len(last.data) * NS // sample_rate_hz if last else 0
        if last and frame.seq == last.seq + 1 and abs(frame.capture_ns - expected_ns) < SEAM_NS:
            runs[-1].append(frame)
        else:
            runs.append([frame])
    return runs


VOICE_RATE_HZ = 16_000
VOICE_HOP = 160  # samples: a column every 10 ms
VOICE_WINDOW = 640  # 40 ms: long enough to keep a deep voice's harmonics apart, short enough for syllables
VOICE_BANDS = 64
VOICE_FRAMES = 300  # columns in the voice network's input: the last 3 s

# The level of the loudest tenth of the columns becomes 0, and anything further below it than this is cut off: room
# noise, a recorder's own noise and the gaps of MP3 would distinguish the recordings, not the voices.
VOICE_RANGE_DB = 60.0
_LN_PER_DB = math.log(10) / 10
_SILENCE = 1e-10  # power of an absent column, full scale = 1


def log_mel(
    samples: npt.NDArray[np.float32], *, sample_rate_hz: int = VOICE_RATE_HZ, bands: int = VOICE_BANDS
) -> npt.NDArray[np.float32]:
    """Log-mel spectrogram of one mono stream: column i is known once sample (i + 1) × hop has arrived.

    samples: (n,) float32 in [-1, 1]. Returns (bands, n // hop) float32, natural log of power, hop = 10 ms; a column
    looks back 40 ms and no further, so any stretch of a longer stream gives the same columns, but for its first three,
    which look back at nothing. Raises ValueError below one window. Filter shape: Slaney 1998, 50 Hz to the Nyquist
    frequency.
    """
    scale = sample_rate_hz / VOICE_RATE_HZ
    hop, window = round(VOICE_HOP * scale), round(VOICE_WINDOW * scale)
    if len(samples) < window:
        raise ValueError(f"{len(samples)} samples are fewer than one window of {window}")
    count = len(samples) // hop
    padded = np.concatenate([np.zeros(window - hop, np.float32), samples[: count * hop].astype(np.float32, copy=False)])
    columns = np.lib.stride_tricks.sliding_window_view(padded, window)[::hop]  # (count, window), no copy
    taper, filters = _mel_filters(sample_rate_hz, window, bands)
    # OpenCV transforms all rows in a tenth of numpy's time, and this is most of the function's time.
    spectrum = cv2.dft(columns * taper, flags=cv2.DFT_ROWS | cv2.DFT_COMPLEX_OUTPUT)[:, : window // 2 + 1]
    power = spectrum[..., 0] ** 2 + spectrum[..., 1] ** 2  # (count, bins)
    return np.asarray(np.log(power.astype(np.float32) @ filters + _SILENCE).T, dtype=np.float32)


def complete_columns(valid: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Which columns of `log_mel` rest on received samples only. valid: (n,) at 16 kHz. Returns (n // 160,)."""
    count = len(valid) // VOICE_HOP
    missing = np.concatenate([np.ones(VOICE_WINDOW - VOICE_HOP, bool), ~valid[: count * VOICE_HOP]])
    before = np.concatenate([[0], np.cumsum(missing)])
    ends = VOICE_WINDOW + VOICE_HOP * np.arange(count)
    return np.asarray(before[ends] == before[ends - VOICE_WINDOW])


def voice_tensor(samples: npt.NDArray[np.float32], valid: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
    """The voice network's input from the sound that ends now; both arguments as `audio_window` returns them.

    samples, valid: (n,) at 16 kHz; of more than 3 s the last 3 s are used, less is filled with invalid columns. Returns
    (2, 64, 300) float32 as `voice_columns` does. Raises ValueError below 40 ms.
    """
    return voice_columns(
        log_mel(samples[-VOICE_FRAMES * VOICE_HOP :]), complete_columns(valid[-VOICE_FRAMES * VOICE_HOP :])
    )


def voice_columns(mel: npt.NDArray[np.floating], valid: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
    """The last 300 columns of a log-mel spectrogram, normalised to their own level, so that gain has no effect.

    mel: (64, t) natural log of power. valid: (t,). Returns (2, 64, 300) float32: [0] from 0 (60 dB below the loudest
    tenth of the columns) to about 1, 0 in invalid columns; [1] is 1 in valid columns, else 0. Uses nothing outside
    the window.
    """
    mel, valid = mel[:, -VOICE_FRAMES:], valid[-VOICE_FRAMES:]
    tensor = np.zeros((2, VOICE_BANDS, VOICE_FRAMES), np.float32)
    if valid.any():
        level = np.log(np.exp(mel.astype(np.float32)).mean(axis=0) + _SILENCE)  # (t,)
        loudest = np.sort(level[valid])[-max(1, int(valid.sum()) // 10) :].mean()
        span = VOICE_RANGE_DB * _LN_PER_DB
        tensor[0, :, VOICE_FRAMES - len(valid) :] = np.where(valid, np.maximum(mel - loudest + span, 0) / span, 0)
        tensor[1, :, VOICE_FRAMES - len(valid) :] = valid
    return tensor


@lru_cache(maxsize=8)
def _mel_filters(
    sample_rate_hz: int, window: int, bands: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """The taper (window,), by which a full-scale sine has power 1, and the triangles (bins, bands), each of area 1."""

    def hz_from_mel(mel: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:  # linear below 1 kHz, logarithmic above
        return np.where(mel < 15, mel * 200 / 3, 1000 * np.exp(np.log(6.4) / 27 * (mel - 15)))

    low, high = 50.0 * 3 / 200, 15 + 27 / math.log(6.4) * math.log(sample_rate_hz / 2 / 1000)
    edges_hz = hz_from_mel(np.linspace(low, high, bands + 2))
    bins_hz = np.fft.rfftfreq(window, 1 / sample_rate_hz)
    rising = (bins_hz[:, None] - edges_hz[:-2]) / (edges_hz[1:-1] - edges_hz[:-2])
    falling = (edges_hz[2:] - bins_hz[:, None]) / (edges_hz[2:] - edges_hz[1:-1])
    triangles = np.maximum(0, np.minimum(rising, falling))
    taper = np.hanning(window + 1)[:-1]
    return (taper / (taper.sum() / 2)).astype(np.float32), (triangles / triangles.sum(axis=0)).astype(np.float32)


def cloud(
    frame: Frame,
    base_from_sensor: npt.NDArray[np.float64],
    lens: Intrinsics | None = None,
    *,
    stride_px: int = 2,
    ego_box_m: tuple[float, ...] = (),
) -> npt.NDArray[np.float32]:
    """The points of a sweep or a depth picture in the rig's base frame. (n, 3) float32; see `timed_cloud`."""
    return timed_cloud(frame, base_from_sensor, lens, stride_px=stride_px, ego_box_m=ego_box_m)[0]


def timed_cloud(
    frame: Frame,
    base_from_sensor: npt.NDArray[np.float64],
    lens: Intrinsics | None = None,
    *,
    stride_px: int = 2,
    ego_box_m: tuple[float, ...] = (),
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Points and their times: (n, 3) float32 metres, x forward, y left, z up; (n,) float32 seconds since capture_ns.

    Points that are not finite, or at the sensor itself, were not measured and are left out. Where a sweep has no times
    per point, each point gets the middle of its duration.

    Args:
        frame: One of POINTS.
        base_from_sensor: (4, 4).
        lens: Of a depth picture.
        stride_px: Of a depth picture, every n-th pixel of every n-th row is used (≥ 1).
        ego_box_m: x from, x to, y from, y to in the base frame: points in it are on the rig itself and are left out.

    Raises:
        ValueError: The frame has no points, or a depth picture does not fit its lens.
    """
    if frame.encoding not in POINTS:
        raise ValueError(f"'{frame.encoding}' has no points, expected one of {', '.join(POINTS)}")
    depth = frame.encoding == "depth_u16_mm"
    if depth and lens is None:
        raise ValueError("a depth picture needs its lens to become points")
    rows = _depth_points(frame.data, lens, stride_px) if lens is not None and depth else frame.data
    if rows.ndim != 2 or rows.shape[1] < (5 if frame.encoding == "points_xyzit_f32" else 3):
        raise ValueError(f"points of shape {rows.shape}, expected a row x y z … per point")
    local = np.ascontiguousarray(rows[:, :3], np.float32)  # in the sensor's frame
    # One pass of OpenCV: for a matrix product of this shape BLAS wakes all its threads, which costs more than it saves.
    points = cv2.transform(local[:, None], base_from_sensor[:3].astype(np.float32))[:, 0] if len(local) else local
    spread = np.abs(local[:, 0]) + np.abs(local[:, 1]) + np.abs(local[:, 2])
    keep = np.isfinite(spread) & (spread > 0)
    if ego_box_m:
        x, y = points[:, 0], points[:, 1]
        keep &= ~((x > ego_box_m[0]) & (x < ego_box_m[1]) & (y > ego_box_m[2]) & (y < ego_box_m[3]))
    if frame.encoding == "points_xyzit_f32":
        seconds = np.ascontiguousarray(rows[:, 4], np.float32)
    else:
        seconds = np.full(len(points), frame.duration_ns / (2 * NS), np.float32)
    return (points, seconds) if keep.all() else (points[keep], seconds[keep])


def _depth_points(depth_mm: npt.NDArray[np.uint16], lens: Intrinsics, stride_px: int) -> npt.NDArray[np.float32]:
    """(n, 3) in the camera's frame; (0, 0, 0) where nothing was measured."""
    if depth_mm.shape != (lens.height_px, lens.width_px):
        size, known = " × ".join(map(str, depth_mm.shape[::-1])), f"{lens.width_px} × {lens.height_px}"
        raise ValueError(f"a depth picture of {size} px, but its lens is known for {known}")
    thinned = depth_mm[::stride_px, ::stride_px].reshape(-1, 1).astype(np.float32)
    return np.asarray(thinned * np.float32(1e-3) * _depth_rays(lens, stride_px), np.float32)


@lru_cache(maxsize=8)
def _depth_rays(lens: Intrinsics, stride_px: int) -> npt.NDArray[np.float32]:
    v, u = np.mgrid[: lens.height_px : stride_px, : lens.width_px : stride_px]
    rays = lens.unproject(np.column_stack([u.ravel(), v.ravel()]), np.ones(u.size))
    return np.asarray(np.nan_to_num(rays), np.float32)


# As in the training of the published detectors: the grey of the border, and bilinear sampling also for shrinking.
BORDER_LEVEL = 114


def letterbox(
    image_bgr: npt.NDArray[np.uint8],
    size_px: tuple[int, int],
    *,
    rgb: bool = False,
    mean: tuple[float, ...] = (0.0, 0.0, 0.0),
    std: tuple[float, ...] = (1.0, 1.0, 1.0),
) -> tuple[npt.NDArray[np.float32], float]:
    """A detector's input: the picture as large as fits, in the upper left corner, the rest of one grey.

    image_bgr: (h, w, 3). size_px: width, height. rgb: the order of the channels, which mean and std are in, of 0 to
    255. Returns (1, 3, height, width) float32, and the scale: pixels of the tensor = scale × pixels of the picture.
    Source: `preproc` in yolox/data/data_augment.py of the YOLOX repository.
    """
    scale = min(size_px[0] / image_bgr.shape[1], size_px[1] / image_bgr.shape[0])
    width, height = max(1, int(image_bgr.shape[1] * scale)), max(1, int(image_bgr.shape[0] * scale))
    boxed = np.full((size_px[1], size_px[0], 3), BORDER_LEVEL, np.uint8)
    boxed[:height, :width] = cv2.resize(image_bgr, (width, height), interpolation=cv2.INTER_LINEAR)
    tensor = np.asarray(cv2.dnn.blobFromImage(boxed, swapRB=rgb), np.float32)
    if any(mean) or any(value != 1 for value in std):
        tensor -= np.array(mean, np.float32)[:, None, None]
        tensor /= np.array(std, np.float32)[:, None, None]
    return tensor, scale
