"""The command line: its verbs, their options, and the errors for wrong ones. Loads nothing that takes time.

It does not know what a verb does: run_pipeline.py has a function for each.

Example:
    args = parser({"run": run, "check": check, …}).parse_args(["run", "mine.yaml", "--for", "10s"])
    args.function is run, args.for_s == 10.0
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from pipeline.errors import nearest
from pipeline.installation import COMMAND

PROGRAM = COMMAND.removeprefix("python ")
LIVE, DEMO, SCENE_DEMO = "configs/emotion-live.yaml", "configs/emotion-demo.yaml", "configs/scene-demo.yaml"

# `calibrate` KIND → its module of calibration/, with `arguments(parser)` and `run(args) -> Verdict | None`.
CALIBRATED = {
    "camera": "camera",
    "stereo": "stereo",
    "board": "board",
    "convert": "convert",
    "extrinsics": "extrinsics",
    "ground": "ground",
    "time": "time_offset",
    "check": "check",
}

# `train` WHAT → its module under pipeline/ and the function.
TRAINED = {
    "face": ("training.face.train", "train"),
    "voice": ("training.voice.train", "train"),
    "fusion": ("training.fusion.train", "train"),
    "place": ("training.place.train", "train"),
    "sound": ("training.sound.train", "train"),
}

# `evaluate` WHAT → likewise.
EVALUATED = {
    "face": ("training.face.evaluate", "report_face"),
    "voice": ("training.voice.evaluate", "evaluate_voice"),
    "votes": ("training.fusion.evaluate_votes", "evaluate_votes"),
    "fusion": ("training.fusion.evaluate", "evaluate_fusion"),
    "faults": ("cli.fault_conditions", "evaluate_faults"),
    "place": ("training.place.evaluate", "report_place"),
    "sound": ("training.sound.evaluate", "evaluate_sound"),
    "degradation": ("training.fusion.degradation", "evaluate_degradation"),
    "stream": ("training.evaluation.stream", "evaluate_stream"),
}

Add = Callable[[str, str], argparse.ArgumentParser]  # a verb, and what it does


def parser(verbs: Mapping[str, Callable[[argparse.Namespace], None]]) -> argparse.ArgumentParser:
    """The parser of all verbs. verbs: name → its function, which becomes `.function` of the result. Default: run."""
    top = Parser(
        prog=PROGRAM,
        description="Sensors in, live predictions out. Without a verb: webcam + microphone → expressions.",
    )
    top.set_defaults(function=verbs["run"], config=LIVE)
    _running(top)
    known = top.add_subparsers(title="verbs", metavar="VERB")

    def add(name: str, does: str) -> argparse.ArgumentParser:
        verb = known.add_parser(name, help=does)
        verb.set_defaults(function=verbs[name])
        return verb

    _add_runs(add)
    _add_files(add)
    _add_here(add)
    _add_measured(add)
    return top


class Parser(argparse.ArgumentParser):
    """argparse, with errors like all others here: one line, with the nearest name."""

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            path = (
                f" Did you mean: run {value}?"
                if str(value).endswith((".yaml", ".yml"))
                else nearest(value, action.choices)
            )
            raise argparse.ArgumentError(action, f"there is no '{value}'. Known: {', '.join(action.choices)}.{path}")

    def error(self, message: str) -> NoReturn:
        print(
            f"error: {message.removeprefix('argument ')}\nSee: {COMMAND}{self.prog.removeprefix(PROGRAM)} --help",
            file=sys.stderr,
        )
        sys.exit(2)


def _running(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--for", dest="for_s", type=_seconds, metavar="10s", help="stop after this long")
    verb.add_argument("--out", metavar="P.jsonl", help="write one JSON object per prediction, the summary last")
    verb.add_argument("--set", action="append", default=[], metavar="nodes.camera.device=1", help="change the config")
    verb.add_argument("--host", default="", metavar="NAME", help="which host of the config this machine is")
    verb.add_argument("--consent", default="", metavar="NOTE", help="who agreed to be recorded, and to what")
    verb.add_argument("--name", default="", help="what programs call this run (default: the config's name)")
    verb.add_argument("--metrics", type=int, metavar="PORT", help="serve /healthz and /metrics there, without a page")
    verb.add_argument("--no-dashboard", action="store_true", help="without the dashboard node")
    verb.add_argument("--open", action="store_true", help="open the dashboard in the browser")
    verb.add_argument(
        "--auto-time",
        action="store_true",
        help="measure the offset between sound and picture, print the correction at the end",
    )


def _add_runs(add: Add) -> None:
    _running(demo := add("demo", "the emotion pipeline on a packaged real clip"))
    demo.add_argument("--scene", action="store_true", help="the scene pipeline on a drive that is rendered, not real")

    _running(run := add("run", "run a config"))
    run.add_argument("config", nargs="?", default=LIVE, help="a YAML file (default: emotion-live.yaml)")

    _running(record := add("record", "run a config and record all its messages in a file"))
    record.add_argument("config", nargs="?", default=LIVE, help="a YAML file (default: emotion-live.yaml)")
    record.add_argument("recording", nargs="?", type=Path, metavar="OUT.mcap", help="the file to write")
    record.add_argument("--features-only", action="store_true", help="embeddings and predictions; no picture, no sound")
    record.add_argument(
        "--streams", type=_names, default=(), metavar="camera,emotion", help="only these (default: all)"
    )
    record.add_argument(
        "--jpeg", type=_names, default=(), metavar="camera", help="record these pictures as JPEG, not as captured"
    )
    record.add_argument(
        "--compression", choices=("none", "lz4", "zstd"), default="lz4", help="of what the file holds (default: lz4)"
    )
    record.add_argument(
        "--split", type=_split, default=(None, None), metavar="1GB|10m", help="start a new file after this size or time"
    )
    record.add_argument(
        "--repair", type=Path, metavar="FILE.mcap", help="write a closed copy of a file whose writer was killed"
    )

    _running(replay := add("replay", "run a config on a recording in place of its sources"))
    replay.add_argument("config", help="a YAML file; the recording's streams take its sources' place by name")
    replay.add_argument("recording", type=Path, metavar="REC.mcap", help="what record or import wrote")
    replay.add_argument("--speed", type=float, default=1.0, help="1: real time; 0: as fast as possible (default: 1)")
    replay.add_argument(
        "--from", dest="from_s", type=_seconds, metavar="10s", help="start at this time of the recording"
    )
    replay.add_argument("--to", dest="to_s", type=_seconds, metavar="20s", help="end at this time of the recording")
    replay.add_argument("--realign", action="store_true", help="align again, instead of by the recorded arrival times")
    replay.add_argument(
        "--fault",
        action="append",
        default=[],
        metavar="'microphone: drop=5%%'",
        help="degrade a stream: delay, offset, drift, drop, noise, cut (docs/import.md)",
    )
    replay.add_argument("--unclosed", action="store_true", help="replay a file whose recorder was killed, as it is")


def _add_files(add: Add) -> None:
    diff = add("diff", "compare what --out wrote in two runs; exit 4 if any prediction differs")
    diff.add_argument("a", type=Path, metavar="A.jsonl", help="of the one run")
    diff.add_argument("b", type=Path, metavar="B.jsonl", help="of the other")
    diff.add_argument(
        "--within",
        type=float,
        default=0.0,
        metavar="1e-4",
        help="largest difference of probabilities that counts as equal",
    )

    check = add("check", "verify a config; opens no device")
    check.add_argument("config", help="a YAML file")
    check.add_argument("--set", action="append", default=[], metavar="nodes.camera.device=1", help="change the config")

    verify = add("verify", "audit a recording or an event log: derive every aligned set again and compare")
    verify.add_argument(
        "events", type=Path, metavar="REC.mcap", help="a recording, or EVENTS.jsonl, which nodes.align.event_log wrote"
    )
    verify.add_argument("--plot", type=Path, metavar="OUT.svg", help="a picture of a recording's timeline")
    verify.add_argument(
        "--config", metavar="CONFIG.yaml", help="your config of that run, if it has sync policies of your own"
    )

    import_ = add("import", "convert other recordings: video, pictures, KITTI, EuRoC, TUM, ROS bags, pcap")
    import_.add_argument("source", type=Path, help="a file or a folder (docs/import.md lists the formats)")
    import_.add_argument("out", type=Path, metavar="OUT.mcap", help="the recording to write")
    import_.add_argument("--map", action="append", default=[], metavar="/velodyne_points=lidar", help="rename a stream")
    import_.add_argument(
        "--raw", action="store_true", help="of a media file: lossless pictures, sound at its own rate (large)"
    )

    label = add("label", "add a CSV of intervals (start_s,end_s,label) to a copy of a recording, as a stream")
    label.add_argument("recording", type=Path, metavar="REC.mcap", help="the recording to copy")
    label.add_argument("intervals", type=Path, metavar="INTERVALS.csv", help="start_s,end_s,label, from its beginning")
    label.add_argument("out", type=Path, metavar="OUT.mcap", help="the copy to write")
    label.add_argument("--stream", default="label", help="name of the stream")

    sample = add("sample", "a small real recording with labels, made from the packaged clip")
    sample.add_argument("out", type=Path, metavar="OUT.mcap", help="the recording to write")

    export = add("export", "a recording → mp4, wav and CSV, or labelled rows; a model → another precision")
    export.add_argument(
        "paths",
        type=Path,
        nargs="+",
        metavar="REC.mcap … FOLDER | MODEL [OUT.onnx]",
        help="recordings and the folder to write, or a model and its file",
    )
    export.add_argument("--dataset", action="store_true", help="aligned, labelled rows; one group per recording")
    export.add_argument("--labels", metavar="NAME", help="which stream of labels, where there are several")
    export.add_argument("--task", metavar="NAME", help="which stream of predictions, where there are several")
    export.add_argument(
        "--precision", choices=("fp32", "fp16", "int8"), help="convert a model that comes along to this precision"
    )


def _add_here(add: Add) -> None:
    add("runs", "what runs on this host, with the addresses of its pages")
    keys = add("keys", "create the key pair of this host: new NAME")
    keys.add_argument("action", choices=("new",), help="create a pair, and print the next step")
    keys.add_argument("name", help="of this host, as in `hosts:` of the config")
    doctor = add("doctor", "what works on this machine, and how to fix the rest")
    doctor.add_argument("--gpu", action="store_true", help="also what is missing for a GPU")
    nodes = add("nodes", "list the nodes, or describe one with all its options")
    nodes.add_argument("name", nargs="?", help="of a node, or module:Name")
    tasks = add("tasks", "list the tasks, or describe one with all its options")
    tasks.add_argument("name", nargs="?", help="of a task, or module:Name")
    models = add("models", "the models and clips: list, pull, info")
    models.add_argument("action", nargs="?", choices=("list", "pull", "info"), default="list", help="default: list")
    models.add_argument("names", nargs="*", help="of models or clips (default: all)")


def _add_measured(add: Add) -> None:
    calibrate = add("calibrate", "estimate a rig: " + ", ".join(CALIBRATED))
    calibrate.add_argument("kind", choices=tuple(CALIBRATED), help="what is estimated")
    calibrate.add_argument("rest", nargs=argparse.REMAINDER, help="see: calibrate KIND --help")

    train = add("train", "train a model: " + ", ".join(TRAINED))
    train.add_argument("what", choices=tuple(TRAINED), help="which model")
    train.add_argument(
        "--data", type=Path, help="a folder of data sets, or of rows or clips of your own; default: SENSORIUM_DATA"
    )
    train.add_argument("--out", type=Path, help="where to write the model or the run")
    train.add_argument("--epochs", type=int, help="passes over the training data")
    train.add_argument("--seed", type=int, help="of all that is random")
    train.add_argument("--resume", action="store_true", help="continue after the last epoch")
    train.add_argument("--start", type=Path, help="for face: start from this model instead of random weights")
    train.add_argument("--lr", type=float, help="for face: the peak learning rate")
    train.add_argument("--workers", type=int, help="for face: number of processes")
    train.add_argument("--family", help="for fusion, on data of your own: cross, transformer, stacked …")
    train.add_argument(
        "--format", help="of that data: aligned (as export --dataset writes), cmu-csd, arrays, dialogues, crema-d …"
    )
    train.add_argument("--ship", action="store_true", help="for face: train nothing, export the best epoch so far")

    evaluate = add("evaluate", "measure on held-out data: " + ", ".join(EVALUATED))
    evaluate.add_argument("what", choices=tuple(EVALUATED), help="which model or study")
    evaluate.add_argument("--model", type=Path, help="a model file; for stream: the file that --out wrote")
    evaluate.add_argument("--family", help="for fusion: names separated by commas; default: all")
    evaluate.add_argument(
        "--format", help="for fusion, of the data: aligned, cmu-csd, arrays, dialogues, votes, crema-d, ravdess, emodb"
    )
    evaluate.add_argument("--epochs", type=int, help="for fusion")
    evaluate.add_argument("--truth", type=Path, help="for stream: CSV of seconds,label: when each expression began")
    evaluate.add_argument(
        "--data", type=Path, help="data sets, or a recording, rows or clips of your own; default: SENSORIUM_DATA"
    )
    evaluate.add_argument("--out", type=Path, help="a JSON file; a chart is written beside it")
    evaluate.add_argument("--seed", type=int, help="of all that is random")

    bench = add("bench", "measure on this machine: align, transport, infer, scene …")
    bench.add_argument("what", nargs="?", default="", help="a file of benchmarks/; without one, lists them")
    bench.add_argument("options", nargs=argparse.REMAINDER, help="of the benchmark: bench infer --help")


def _names(text: str) -> tuple[str, ...]:
    return tuple(filter(None, (name.strip() for name in text.split(","))))


def _split(text: str) -> tuple[float | None, float | None]:
    """(megabytes, seconds), one of them."""
    for unit, megabytes in (("GB", 1000.0), ("MB", 1.0)):
        if text.upper().endswith(unit) and text[:-2].strip().replace(".", "", 1).isdigit():
            return float(text[:-2]) * megabytes, None
    return None, _seconds(text)


def _seconds(text: str) -> float:
    units = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "": 1.0}
    number = text.rstrip("abcdefghijklmnopqrstuvwxyz ")
    try:
        seconds = float(number) * units[text[len(number) :].strip()]
    except (ValueError, KeyError):
        raise argparse.ArgumentTypeError(f"found '{text}', expected a time such as 10s or 2m") from None
    if seconds <= 0:
        raise argparse.ArgumentTypeError(f"found '{text}', expected more than zero")
    return seconds
