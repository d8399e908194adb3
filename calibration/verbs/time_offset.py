"""calibrate time: the offset between two sensors' timestamps in ms, with its interval, or "unknown" with the reason.

The number is ADDED to the sensor's capture times to align them with the camera's (pipeline/rig/rig.py: TimeOffset). A
node
reads it from the rig file: `microphone: {use: microphone, rig: rig.yaml}`.

Example:
    python run_pipeline.py calibrate time clip.mp4 --out rig.yaml                     # sound and picture of one file
    python run_pipeline.py calibrate time session.mcap --out rig.yaml
    python run_pipeline.py calibrate time session.mcap --sensor lidar --rig rig.yaml  # camera and lidar: turn the rig
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from calibration.moments import picture_of, points_of
from calibration.time.answer import Answer
from calibration.time.audio_video import AudioVideo, face_tracker
from calibration.time.turning import CameraTurns, LidarTurns, turning_answer
from calibration.verdict import Check, Level, Verdict, judge
from pipeline.errors import ConfigError
from pipeline.frame import Frame
from pipeline.rig.rig import Rig, TimeOffset
from pipeline.rig.rig_file import load_rig, save_rig
from pipeline.sensors import media
from pipeline.sensors.camera.picture import to_bgr

SOUND_HZ = 16000
METHODS = ("auto", "claps")
TURN_HINT = "turn the rig left and right by 20° or more for half a minute, irregularly, with walls in view"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, help="clip with picture and sound, or recording.mcap")
    parser.add_argument(
        "--camera",
        default="camera",
        help="the reference: name of the camera in the rig and in a recording (default: camera)",
    )
    parser.add_argument(
        "--sensor", default="microphone", help="the sensor whose offset is measured (default: microphone)"
    )
    parser.add_argument(
        "--method", default="auto", choices=METHODS, help="auto: claps or flashes, else a mouth and its voice"
    )
    parser.add_argument("--rig", type=Path, metavar="RIG.yaml", help="for a lidar: contains the camera's intrinsics")
    parser.add_argument(
        "--out", type=Path, metavar="RIG.yaml", help="the offset is written there; the rest of the file stays"
    )


def run(args: argparse.Namespace) -> Verdict:
    answer = _sound(args) if _is_sound(args) else _lidar(args)
    print(f"  {args.sensor} against {args.camera}: {answer}")
    check = answer.check()
    if not _is_sound(args):
        check = Check(Level.FAIL, check.finding, TURN_HINT) if answer.unknown else Check(Level.PASS, _plain(answer))
    if args.out and not answer.unknown:
        rig = load_rig(args.out) if args.out.exists() else Rig()
        offset = TimeOffset(args.sensor, args.camera, round(answer.offset_ms, 3), round(answer.sigma_ms, 3))
        save_rig(rig.with_time_offset(offset, f"{answer.how} in {args.source.name}"), args.out)
        print(f"  rig: {args.out}")
        print(f"  in a config: nodes.{args.sensor}.rig={args.out}")
    elif args.out:
        print(f"  {args.out} was not written")
    verdict = judge([check])
    print(verdict)
    return verdict


def _is_sound(args: argparse.Namespace) -> bool:
    """Whether the sensor is a microphone: always, except for a recording's stream of points."""
    if args.source.suffix != ".mcap":
        return True
    from pipeline.recording.reader import Reader

    with Reader(args.source) as reader:
        info = reader.streams.get(args.sensor)
    if info is None:
        raise ConfigError(
            f"{args.source}: no stream '{args.sensor}'. Select one with --sensor: {', '.join(reader.streams) or 'none'}"
        )
    return info.encoding == "pcm_f32"


def _plain(answer: Answer) -> str:
    low, high = answer.interval_ms
    return f"{answer.offset_ms:+.1f} ms ({low:+.1f} to {high:+.1f}, 95 %) by {answer.how}"


def _sound(args: argparse.Namespace) -> Answer:
    meter = AudioVideo(None if args.method == "claps" else face_tracker())
    if args.source.suffix == ".mcap":
        for frame in _frames(args.source, args.camera, args.sensor):
            if frame.stream == args.sensor:
                meter.sound(frame.data, frame.capture_ns, frame.duration_ns)
            elif (image := picture_of(frame)) is not None:
                meter.picture(image, frame.capture_ns)
    else:
        _feed_file(meter, args.source)
    return meter.answer()


def _feed_file(meter: AudioVideo, path: Path) -> None:
    """Sound and picture of one file share one time base."""
    import av

    with media.open_file(str(path), "video", where="calibrate time") as opened:
        for frame in opened.frames():
            if frame is not None and (time_ns := opened.time_ns(frame)) is not None:
                meter.picture(to_bgr(frame, (None, None)), time_ns)
    with media.open_file(str(path), "audio", where="calibrate time") as opened:
        resampler = av.AudioResampler(format="flt", layout="mono", rate=SOUND_HZ)
        for decoded in opened.frames():
            for part in _resampled(resampler, decoded):
                if (time_ns := opened.time_ns(part)) is not None:
                    samples = part.to_ndarray()[0]
                    meter.sound(samples, time_ns, len(samples) * 1_000_000_000 // SOUND_HZ)


def _resampled(resampler: Any, frame: Any) -> Iterator[Any]:
    if frame is not None:
        yield from resampler.resample(frame)


def _frames(path: Path, *streams: str) -> Iterator[Frame]:
    from pipeline.recording.reader import Reader

    with Reader(path) as reader:
        for _, frame, _ in reader.messages(list(streams)):
            if isinstance(frame, Frame) and frame.encoding != "none":
                yield frame


def _lidar(args: argparse.Namespace) -> Answer:
    if args.rig is None:
        raise ConfigError(f"{args.source}: --rig is needed: a camera's rotation is measured with its intrinsics")
    rig = load_rig(args.rig)
    camera, lidar = CameraTurns(intrinsics=rig.camera(args.camera)), LidarTurns()
    for frame in _frames(args.source, args.camera, args.sensor):
        if frame.stream == args.camera:
            if (image := picture_of(frame)) is not None:
                camera.add(image, frame.capture_ns)
        elif (points := points_of(frame, rig, args.sensor)) is not None:
            lidar.add(points, frame.capture_ns + frame.duration_ns // 2)
    return turning_answer(camera, lidar)
