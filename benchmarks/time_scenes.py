"""Pictures and sound with a known offset: claps, flashes, a person who talks, a rig that turns.

The talking face is a drawing: a mouth on a plain face that opens with the loudness of a real recorded voice if the
speech data are available (SENSORIUM_DATA), else with that of noise in syllables; it follows late and imperfectly, as
mouths do. No freely usable clip with a talking face and its true sound is packaged, so the transfer to people is not
shown.

Example:
    pictures, microphone, true_ms = flashes(seed=0)          # 20 events at 30 fps
    mouth, voice, true_ms = talk(seed=0, seconds=20)
"""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np

from calibration.pose import Floats
from calibration.time.claps import ClapDetector, FlashDetector
from calibration.time.mouth_voice import MOUTH_LEADS_MS, Mouth, Voice
from calibration.time.turning import CameraTurns, LidarTurns
from pipeline.rig.intrinsics import Intrinsics

SOUND_HZ = 16000
DATA = Path(os.environ.get("SENSORIUM_DATA") or Path(__file__).resolve().parents[1].parent / "shared" / "data")
LANDMARKS = np.array([[62.0, 50], [98, 50], [80, 70], [66, 88], [94, 88]], np.float32)
PANORAMA_LENS = Intrinsics("radtan", 320, 120, 280.0, 280.0, 159.5, 59.5)


def flashes(
    seed: int, *, count: int = 20, fps: float = 30.0, hands: bool = False, silent: bool = False, regular: bool = False
) -> tuple[FlashDetector, ClapDetector, float]:
    """(pictures, sound, true offset in ms). A rolling shutter with an exposure of 2 to 25 ms; or hands."""
    draw = np.random.default_rng(seed)
    offset_s = draw.uniform(-0.2, 0.2)
    exposure, readout = draw.uniform(0.002, 0.025), draw.uniform(0.001, 0.008)
    gaps = np.full(count, 0.8) if regular else draw.uniform(0.6, 1.5, count)
    events = 1.0 + np.cumsum(gaps)
    flash_detector, clap_detector = FlashDetector(), ClapDetector()
    rows, columns = np.arange(48), np.arange(64)
    for when in np.arange(0, events[-1] + 1, 1 / fps) + draw.uniform(0, 1 / fps):
        picture = np.full((48, 64), 60.0)
        if hands:
            since = when - events[np.argmin(np.abs(events - when))]
            gap = min(20.0, -since * 100) if since < 0 else 0.0 if since < 0.15 else min(20.0, (since - 0.15) * 50)
            for a, b in ((32 - gap / 2 - 8, 32 - gap / 2), (32 + gap / 2, 32 + gap / 2 + 8)):
                picture[15:35] += 100 * np.clip(np.minimum(columns + 1, b) - np.maximum(columns, a), 0, 1)
        else:
            opens = when - exposure / 2 + (rows / 48 - 0.5) * readout
            for event in events[np.abs(events - when) < 0.5]:
                lit = (
                    np.clip(np.minimum(opens + exposure, event + 0.1) - np.maximum(opens, event), 0, exposure)
                    / exposure
                )
                picture[:, 20:50] += 120 * lit[:, None]
        flash_detector.add(
            np.clip(picture + draw.normal(0, 2, picture.shape), 0, 255).astype(np.uint8), round(when * 1e9)
        )
    sound = draw.normal(0, 0.002, int((events[-1] + 1) * SOUND_HZ))
    for event in () if silent else events - offset_s:
        first = int(event * SOUND_HZ)
        if 0 <= first < len(sound) - 1600:
            sound[first : first + 1600] += draw.normal(0, 0.4, 1600) * np.exp(-np.arange(1600) / 240)
    for chunk in range(0, len(sound) - 320, 320):
        clap_detector.add(sound[chunk : chunk + 320].astype(np.float32), chunk * 1_000_000_000 // SOUND_HZ, 20_000_000)
    return flash_detector, clap_detector, 1000 * offset_s


def talk(seed: int, *, seconds: float = 20.0, fps: float = 30.0, unrelated: bool = False) -> tuple[Mouth, Voice, float]:
    """(mouth, voice, true offset in ms). unrelated: the sound is another voice than the mouth's."""
    draw = np.random.default_rng(seed)
    offset_ms = draw.uniform(-200, 200)
    speech = voice_samples(seed, seconds + 2)
    mouth, voice = Mouth(), Voice()
    spoken = speech if not unrelated else voice_samples(seed + 1000, seconds + 2)
    power = np.convolve(spoken.astype(np.float64) ** 2, np.ones(800) / 800, "same")
    opening = np.convolve(power**0.25, np.hanning(1600) / 800, "same")
    opening /= np.percentile(opening, 98)
    knots = np.arange(0, len(opening), 8000)
    slow = np.interp(np.arange(len(opening)), knots, draw.normal(0, 0.15, len(knots)))
    for when in np.arange(0.5, seconds + 0.5, 1 / fps):
        at = int((when + MOUTH_LEADS_MS / 1000) * SOUND_HZ)
        wide = float(np.clip(opening[at] + slow[at] + draw.normal(0, 0.08), 0, 1.2))
        mouth.add(face(wide, draw), LANDMARKS + draw.normal(0, 0.5, (5, 2)).astype(np.float32), round(when * 1e9))
    for chunk in range(0, len(speech) - 320, 320):
        capture_ns = round(chunk / SOUND_HZ * 1e9 - offset_ms * 1e6)
        voice.add(speech[chunk : chunk + 320], capture_ns, 20_000_000)
    return mouth, voice, offset_ms


def face(wide: float, draw: np.random.Generator) -> np.ndarray:
    """(140, 160, 3) a plain face; wide: opening of the mouth, 0 to 1."""
    picture = np.full((140, 160, 3), 90.0)
    cv2.ellipse(picture, (80, 68), (44, 56), 0, 0, 360, (150, 165, 190), -1)
    for x in (62, 98):
        cv2.circle(picture, (x, 50), 4, (40, 40, 40), -1)
    cv2.ellipse(picture, (80, 89), (15, 3 + round(9 * wide)), 0, 0, 360, (80, 80, 150), -1)
    cv2.ellipse(picture, (80, 89), (12, max(1, round(9 * wide))), 0, 0, 360, (30, 25, 45), -1)
    return np.clip(picture + draw.normal(0, 4, picture.shape), 0, 255).astype(np.uint8)


def voice_samples(seed: int, seconds: float) -> np.ndarray:
    """(n,) float32 at 16 kHz: acted sentences of one speaker one after the other, or syllables of noise."""
    draw, length = np.random.default_rng(seed), int(seconds * SOUND_HZ)
    clips = sorted((DATA / "speech" / "ravdess").glob("*.flac"))
    if not clips:
        syllables = np.repeat(draw.gamma(1.0, 1.0, length // 2400 + 1) * (draw.random(length // 2400 + 1) < 0.7), 2400)[
            :length
        ]
        return (0.05 * draw.normal(0, 1, length) * np.convolve(syllables, np.hanning(2400) / 1200, "same")).astype(
            np.float32
        )
    import av

    parts: list[np.ndarray] = []
    while sum(map(len, parts)) < length:
        with av.open(str(clips[int(draw.integers(len(clips)))])) as opened:
            resampler = av.AudioResampler(format="flt", layout="mono", rate=SOUND_HZ)
            parts += [part.to_ndarray()[0] for frame in opened.decode(audio=0) for part in resampler.resample(frame)]
    return np.concatenate(parts)[:length].astype(np.float32)


def turning(seed: int, *, seconds: float = 20.0, still: bool = False) -> tuple[CameraTurns, LidarTurns, float]:
    """(camera, lidar, true offset in ms): both look around in a room of boxes, 30 pictures and 10 sweeps a second."""
    draw = np.random.default_rng(seed)
    offset_ms = draw.uniform(-150, 150)
    grid = np.arange(0, seconds + 1.01, 0.01)
    rate = np.convolve(draw.normal(0, 1, len(grid)), np.hanning(60) / 8, "same") * (0.0 if still else 0.25)
    heading = np.cumsum(rate) * 0.01
    azimuth = np.linspace(-np.pi, np.pi, 2880, endpoint=False)
    walls = np.minimum(6 / np.maximum(np.abs(np.cos(azimuth)), 1e-6), 4 / np.maximum(np.abs(np.sin(azimuth)), 1e-6))
    for at, width, near in zip(
        draw.uniform(-3, 3, 9), draw.uniform(0.1, 0.3, 9), draw.uniform(1.5, 3.5, 9), strict=True
    ):
        walls[np.abs(azimuth - at) < width] = near
    texture = cv2.GaussianBlur(draw.integers(0, 255, (120, 2200)).astype(np.uint8), (0, 0), 1.5)
    camera, lidar = CameraTurns(intrinsics=PANORAMA_LENS), LidarTurns()
    x, down = (np.arange(320) - 159.5) / 280.0, np.repeat(np.arange(120, dtype=np.float32)[:, None], 320, 1)
    for when in np.arange(0.5, seconds + 0.5, 1 / 30):
        # Columns of a cylinder of 280 px a radian, as the camera sees them; a turn to the left moves them to the right.
        column = (np.arctan(x) - np.interp(when, grid, heading)) * 280.0 + 1100
        across = np.tile(column.astype(np.float32), (120, 1))
        camera.add(cv2.remap(texture, across, down, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP), round(when * 1e9))
    for when in np.arange(0.5, seconds + 0.5, 0.1):
        turned = azimuth + np.interp(when, grid, heading)
        ranges = np.interp(turned, azimuth, walls, period=2 * np.pi) + draw.normal(0, 0.02, len(azimuth))
        points: Floats = np.column_stack([ranges * np.cos(azimuth), ranges * np.sin(azimuth), np.zeros(len(azimuth))])
        lidar.add(points, round(when * 1e9 - offset_ms * 1e6))
    return camera, lidar, offset_ms
