"""The messages of the graph: Frame, AlignedSet, Prediction, Health.

Owns the meaning of every field; knows nothing of sockets, files or devices. All times are int nanoseconds of the rig's
monotonic clock. Three of them are never mixed: `capture_ns` (when it happened in the world), `publish_ns` (when the
node sent it), and the reader's own `arrival_ns` (see Arrival).

Example:
    frame = Frame(stream="camera", seq=7, capture_ns=clock.now_ns(), encoding="bgr8", data=image)
    frame.end_ns                      # capture_ns + duration_ns
    msgspec.json.encode(prediction.record())   # one line of --out

The types that are created for every frame are left out of garbage collection (gc=False): frozen values form no cycle.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import msgspec
import numpy as np

from pipeline.scene_state import SceneState

Encoding = Literal[
    "bgr8",  # (h, w, 3) uint8
    "jpeg",  # (n,) uint8, a JFIF file
    "pcm_f32",  # (n,) float32 in [-1, 1], mono
    "depth_u16_mm",  # (h, w) uint16, millimetres, 0 = no reading
    "points_xyzi_f32",  # (n, 4) float32: metres, metres, metres, reflectance in [0, 1]
    "points_xyzit_f32",  # (n, 5) float32: the same, and seconds since capture_ns at which each point was measured
    "depth_png",  # (n,) uint8, depth_u16_mm between hosts (transport/compression.py)
    "points_zlib",  # (n,) uint8, points_xyzi_f32 between hosts
    "points_t_zlib",  # (n,) uint8, points_xyzit_f32 between hosts
    "imu_f64",  # (6,) float64: m/s² x3, rad/s x3
    "series_f32",  # (n,) float32, any numeric series
    "text_utf8",  # (n,) uint8
    "label",  # (n,) uint8, UTF-8
    "packet",  # (n,) uint8, one network packet of a sensor, as received; its decoder knows the format
    "calibration",  # (n,) uint8, UTF-8: a sensor's calibration as recorded (calib.txt, camera_info as JSON)
    "none",  # (0,) uint8: nothing happened until capture_ns (a watermark)
]

ENCODINGS = frozenset(get_args(Encoding))
POINTS = ("points_xyzi_f32", "points_xyzit_f32", "depth_u16_mm")  # encodings from which 3D points are computed

ReceiptState = Literal[
    "exact",  # the sample's time is the anchor's, or a window is covered to the last sample
    "nearest",  # nearest frame within the tolerance
    "held",  # the latest frame before the anchor
    "interpolated",  # a value between two samples, computed for the anchor's time
    "partial",  # a window with gaps
    "predicted",  # sent early; right unless the stream's next frame came before its learned minimum period
    "late",  # the stream is alive, but the frame that was needed came after the deadline
    "absent",  # no frame near the anchor exists
    "silent",  # the stream has stopped, or its source sent a watermark
    "bad",  # it arrived and cannot be used: dark, torn, undecodable
]

# The watermark of a source that has ended: no frame will follow.
FOREVER_NS = 1 << 62

NO_DATA = np.empty(0, np.uint8)
NO_DATA.setflags(write=False)
NO_EMBEDDING = np.empty(0, np.float32)
NO_EMBEDDING.setflags(write=False)


class StreamInfo(msgspec.Struct, frozen=True, array_like=True, tag="StreamInfo"):
    """What a stream is; sent once, when a reader connects, and stored in a recording."""

    stream: str  # the name of the node that sends it
    encoding: str  # of its frames, one of Encoding
    rate_hz: float | None = None  # None: not known, or irregular
    channels: int = 1  # of sound: 1, mono
    sensor: str = ""  # the sensor's name in the rig file
    description: str = ""  # for people: "clip.mp4, 640×360 at 23.98 Hz"


class Frame(msgspec.Struct, frozen=True, array_like=True, tag="Frame", eq=False, gc=False):
    """One measurement. `data` is read-only: other readers share it."""

    stream: str  # the name of the node that sent it
    seq: int  # +1 per frame, set by the loop that runs the node: a gap is a drop
    capture_ns: int  # mid-exposure, first sample, sweep start
    encoding: Encoding  # what `data` holds
    data: np.ndarray = NO_DATA  # shape and type by the encoding
    duration_ns: int = 0  # 0 for an instant; the length of an audio chunk or of a lidar sweep
    publish_ns: int = 0  # when it left the node
    clock_error_ns: int = 0  # bound on the error of capture_ns against the rig's clock
    reason: str = ""  # of an encoding "none": why nothing happened ("muted", "unplugged"); else what is wrong with it

    def __post_init__(self) -> None:
        try:
            self.data.setflags(write=False)
        except AttributeError:
            problem = f"data is {type(self.data).__name__}, expected a numpy array"
            raise TypeError(f"Frame of '{self.stream}': {problem}, such as np.array([20.5], np.float32)") from None

    @property
    def end_ns(self) -> int:
        return self.capture_ns + self.duration_ns


# Encoding → the type of its numbers, how many dimensions, and the last one's size (0: any).
_LAYOUTS = {
    "bgr8": ("|u1", (3, 2), (3, 0)),
    "pcm_f32": ("<f4", (1,), (0,)),
    "depth_u16_mm": ("<u2", (2,), (0,)),
    "points_xyzi_f32": ("<f4", (2,), (4,)),
    "points_xyzit_f32": ("<f4", (2,), (5,)),
    "imu_f64": ("<f8", (1,), (6,)),
    "series_f32": ("<f4", (1,), (0,)),
}


def misfit(frame: Frame) -> str:
    """Why `data` is not what the encoding says, as in a recording of others; "" where it is."""
    dtype, dimensions, last = _LAYOUTS.get(frame.encoding, ("|u1", (1,), (0,)))
    shape = frame.data.shape
    fits = any(len(shape) == n and size in (0, shape[-1]) for n, size in zip(dimensions, last, strict=True))
    is_picture = frame.encoding in ("bgr8", "depth_u16_mm")
    if frame.data.dtype.str == dtype and fits and (frame.data.size or not is_picture):
        return ""
    return f"data of {frame.data.dtype} {shape}, which is no {frame.encoding}"


def silence(stream: str, until_ns: int, reason: str) -> Frame:
    """A watermark: nothing happened on `stream` until `until_ns`."""
    return Frame(stream, -1, until_ns, "none", reason=reason)


class Receipt(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """How one stream of one aligned set was matched to the anchor."""

    stream: str  # the name of the node
    state: ReceiptState  # how it was matched, or why it is missing
    seq: tuple[int, ...] = ()  # every frame used
    span_ns: int = 0  # time from the first to the end of the last frame used
    skew_ns: int = 0  # capture − anchor, of the frame nearest to the anchor
    age_ns: int = 0  # set sent − newest capture
    clock_error_ns: int = 0  # the largest of the frames used
    reason: str = ""  # why it is missing or less than exact, for people

    @property
    def present(self) -> bool:
        return self.state not in ("late", "absent", "silent", "bad")


class AlignedSet(msgspec.Struct, frozen=True, array_like=True, tag="AlignedSet", eq=False, gc=False):
    """The frames of all streams that belong to one moment. A missing stream is not in `frames`: nothing is made up."""

    anchor: str  # the anchor stream's name, or "" for a tick of a fixed rate
    anchor_ns: int  # the moment that all streams are matched to
    frames: dict[str, tuple[Frame, ...]]  # stream → the frames that belong to the moment, oldest first
    receipts: tuple[Receipt, ...]  # one for each stream
    missing: tuple[str, ...] = ()  # streams without a frame in this set
    arrival_ns: int = 0  # when the anchor arrived (or ticked) at the aligner
    sent_ns: int = 0  # when the aligner sent the set


class Subject(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One face track or object."""

    id: int  # the same as long as it is in view
    box_px: tuple[float, float, float, float]  # x, y, width, height in the captured picture
    probs: tuple[float, ...]  # in the order of Prediction.labels; empty where those describe something else
    score: float = 1.0  # of the detection, in [0, 1]
    voice: str = ""  # "own": the voice counts as this face's; "shared": it may be another's; "": it did not count
    label: str = ""  # of an object: its class, where Prediction.labels describe something else
    range_m: float | None = None  # of an object: from the camera to its nearest surface; None: not measured
    position_m: tuple[float, ...] = ()  # of that surface, x, y, z in the base frame; empty: not measured
    closing_mps: float | None = None  # by how much range_m shrinks per second; None: not known yet


class Opinion(msgspec.Struct, frozen=True, array_like=True, eq=False):
    """The answer of one modality alone, and how much it counted."""

    modality: str  # "face", "voice"
    stream: str  # where it came from
    weight: float  # presence and quality, in [0, 1]; 0: it did not count
    probs: tuple[float, ...] = ()  # in the order of Prediction.labels; empty where it has no answer
    reason: str = ""  # why the weight is below 1: "blurred", "nobody speaks"
    embedding: np.ndarray = NO_EMBEDDING  # (d,) float32, the network's; empty unless the task's option asks for it


class Prediction(msgspec.Struct, frozen=True, array_like=True, tag="Prediction", eq=False):
    """One answer of a task, with the receipts of the streams it used."""

    task: str  # its name: "emotion", "scene"
    capture_ns: int  # the anchor's
    labels: tuple[str, ...]  # what `probs` are the probabilities of
    probs: np.ndarray  # (n,) float32, sums to 1; uniform where there is no evidence
    label: str | None  # None: no evidence, so no answer; "uncertain": no probability is high enough
    model: str  # "face-expression@1a2b3c4d"
    subjects: tuple[Subject, ...] = ()  # faces or objects in view
    used: tuple[str, ...] = ()  # streams that the answer rests on
    missing: tuple[str, ...] = ()  # streams that it should rest on and could not
    receipts: tuple[Receipt, ...] = ()  # of every stream of the aligned set
    speaking: bool | None = None  # None: no microphone
    timing_ns: dict[str, int] = {}  # wait (anchor's arrival → set), infer (the task), total (capture → published)
    opinions: tuple[Opinion, ...] = ()  # behind `probs`, one per modality
    disagree: bool = False  # two of the opinions are certain of different labels
    agreement: float | None = None  # -1 to 1: how well the modalities fit together; None: the fusion has no such output
    surroundings: SceneState | None = None  # what is around the rig; None: the task does not estimate it

    def record(self) -> dict[str, Any]:
        """The JSON object of `--out`, of the page's WebSocket and of docs/prediction.schema.json."""
        return {
            "task": self.task,
            "capture_ns": self.capture_ns,
            "label": self.label,
            "probs": dict(zip(self.labels, (round(float(p), 6) for p in self.probs), strict=True)),
            "subjects": [
                {
                    "id": s.id,
                    "box_px": [round(v, 1) for v in s.box_px],
                    "score": round(s.score, 4),
                    "voice": s.voice,
                    "probs": dict(zip(self.labels, (round(p, 6) for p in s.probs), strict=True)) if s.probs else {},
                    **({"label": s.label} if s.label else {}),
                    **({} if s.range_m is None else {"range_m": round(s.range_m, 3)}),
                    **({"position_m": [round(v, 3) for v in s.position_m]} if s.position_m else {}),
                    **({} if s.closing_mps is None else {"closing_mps": round(s.closing_mps, 3)}),
                }
                for s in self.subjects
            ],
            "opinions": [
                {
                    "modality": o.modality,
                    "stream": o.stream,
                    "weight": round(o.weight, 4),
                    "probs": dict(zip(self.labels, (round(p, 6) for p in o.probs), strict=True)) if o.probs else {},
                    "reason": o.reason,
                    **({"embedding": [round(float(v), 6) for v in o.embedding]} if o.embedding.size else {}),
                }
                for o in self.opinions
            ],
            "disagree": self.disagree,
            **({} if self.agreement is None else {"agreement": round(self.agreement, 4)}),
            **({} if self.surroundings is None else {"surroundings": self.surroundings.record()}),
            "speaking": self.speaking,
            "used": list(self.used),
            "missing": list(self.missing),
            "receipts": [
                {
                    "stream": r.stream,
                    "seq": list(r.seq),
                    "span_ns": r.span_ns,
                    "skew_ns": r.skew_ns,
                    "age_ns": r.age_ns,
                    "clock_error_ns": r.clock_error_ns,
                    "state": r.state,
                    "reason": r.reason,
                }
                for r in self.receipts
            ],
            "timing_ms": {name: ns / 1e6 for name, ns in self.timing_ns.items()},
            "model": self.model,
        }


NodeState = Literal[
    "starting",
    "ready",
    "running",
    "silent",
    "muted",
    "absent",
    "not answering",  # no sign of life: it is started again if none comes
    "restarting",
    "given up",  # it failed more often than `restarts` allows
    "finished",
    "stopped",
    "failed",
]


class NodeHealth(msgspec.Struct, frozen=True, array_like=True):
    """The last report of one node."""

    node: str  # its name in the config
    state: NodeState  # such as "running", "muted", "silent"
    note: str = ""  # why, for people: "unplugged, trying again in 4 s"
    pid: int = 0  # of its process
    restarts: int = 0  # how often its process was started again
    cpu_s: float = 0.0  # of the node's process so far, user + system
    produced: int = 0  # messages sent
    received: dict[str, int] = {}  # by source
    dropped: dict[str, dict[str, int]] = {}  # source → reason → count
    latency_ms: dict[str, dict[str, float]] = {}  # name → p50, p95, p99
    facts: dict[str, str] = {}  # "engine face-expression": "onnxruntime 1.27, 1 thread"
    promised: dict[str, int] = {}  # by source in another process: messages sent since the connection, by their seq
    before: dict[str, int] = {}  # by source in another process: messages sent before the connection, by their seq
    events: int = 0  # texts sent as the stream NAME.events
    used: dict[str, int] = {}  # of an aligner, by source: frames that are in a set
    unused: dict[str, int] = {}  # of an aligner, by source: frames that no set wanted


class Health(msgspec.Struct, frozen=True, array_like=True, tag="Health"):
    """All nodes of the run, published by the launcher as the stream `health`."""

    publish_ns: int  # when it was sent
    nodes: tuple[NodeHealth, ...]  # all nodes of the run
    run: str = ""  # the name of the run


Message = Frame | AlignedSet | Prediction | Health


@dataclass(frozen=True, slots=True)
class Arrival:
    """A message as a node received it."""

    source: str  # the node it came from
    message: Message  # what it sent
    arrival_ns: int  # when this process received it


def moved(message: Message, to_local: Callable[[int], tuple[int, int]]) -> Message:
    """A message of another host with its times converted to this host's clock, and its clock errors increased to match.

    Args:
        message: As received.
        to_local: Time of the other host → (time of this host, bound on the error of the conversion): see HostClock.
    """

    replace = msgspec.structs.replace

    def here(time_ns: int) -> int:
        return to_local(time_ns)[0] if 0 < time_ns < FOREVER_NS else time_ns  # 0: not set

    def frame_here(frame: Frame) -> Frame:
        error_ns = frame.clock_error_ns + (to_local(frame.capture_ns)[1] if frame.capture_ns < FOREVER_NS else 0)
        return replace(
            frame, capture_ns=here(frame.capture_ns), publish_ns=here(frame.publish_ns), clock_error_ns=error_ns
        )

    if isinstance(message, Frame):
        return frame_here(message)
    if isinstance(message, Health):
        return replace(message, publish_ns=here(message.publish_ns))
    when_ns = message.anchor_ns if isinstance(message, AlignedSet) else message.capture_ns
    when_here_ns, error_ns = to_local(when_ns)
    receipts = tuple(replace(r, clock_error_ns=r.clock_error_ns + error_ns) for r in message.receipts)
    if isinstance(message, Prediction):
        return replace(message, capture_ns=when_here_ns, receipts=receipts)
    frames = {name: tuple(frame_here(frame) for frame in frames) for name, frames in message.frames.items()}
    return replace(
        message,
        anchor_ns=when_here_ns,
        frames=frames,
        receipts=receipts,
        arrival_ns=here(message.arrival_ns),
        sent_ns=here(message.sent_ns),
    )


def left_ns(message: Message) -> int:
    """When its node sent it, where the message has that time; of a prediction, when its anchor was captured."""
    if isinstance(message, AlignedSet):
        return message.sent_ns
    return message.capture_ns if isinstance(message, Prediction) else message.publish_ns
