"""Sensorium's command line: one function per verb, heavy imports inside the verb.

    python run_pipeline.py                     webcam + microphone → emotion, page at http://127.0.0.1:8080
    python run_pipeline.py demo                the same on a packaged clip; --scene: what is around, on a rendered drive
    python run_pipeline.py run CONFIG --for 10s --out predictions.jsonl --set nodes.camera.device=1

Exit codes: 0 done, 1 our bug, 2 the user's config or input, 3 a device.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from pipeline.config import Config, NodeConfig
    from pipeline.graph import Plan

HERE = Path(__file__).resolve().parent
LIVE, DEMO, SCENE_DEMO = "configs/emotion-live.yaml", "configs/emotion-demo.yaml", "configs/scene-demo.yaml"

SCENE_TASKS = ("scene", "place", "obstacles", "objects", "sounds")

NOTICE = """\
  Sensorium reads expressions, not feelings: what a face shows is not what a person feels.
  Tell the people in view that they are being watched. Not for decisions about work, education,
  hiring, policing or truthfulness. Nothing is stored or sent unless you ask for it.
"""


# --- run --------------------------------------------------------------------------------------------------------------


def run(args: argparse.Namespace) -> None:
    _run(args)


def _run(args: argparse.Namespace, change: Callable[[Config], Config] = lambda config: config, *, stored: str = ""
         ) -> tuple[Config, dict[str, Any]]:  # fmt: skip
    """change: to the config, once the options of the command line are in it. stored: where what is seen will be kept."""
    from pipeline.config import load
    from pipeline.launch import launch

    config = change(load(args.config, args.set))
    if args.no_dashboard:
        config = _without(config, "dashboard")
    if args.out:
        config = _with_out(config, args.out, args.host)
    if args.auto_time:
        from pipeline.auto_time import with_auto_time

        config = with_auto_time(config, args.host)
    _print_notice(config, stored)
    summary = launch(config, host=args.host, for_s=args.for_s, warm=True, on_begin=lambda plan: _say_where(plan, open_page=args.open))
    if args.out:
        with Path(args.out).open("a") as file:
            file.write(json.dumps(summary) + "\n")
    print_summary(summary)
    return config, summary


def record(args: argparse.Namespace) -> None:
    from pipeline.errors import ConfigError
    from pipeline.recorder import Wanted, repaired, told, with_recorder

    if args.repair:
        return print(repaired(args.repair))
    if args.recording is None:
        raise ConfigError("record: into which file? python run_pipeline.py record CONFIG OUT.mcap")
    wanted = Wanted(args.streams, args.jpeg, args.consent, args.features_only, args.compression, *args.split)
    _, summary = _run(args, lambda config: with_recorder(config, args.recording, wanted, args.host), stored=str(args.recording))
    print(told(args.recording, summary))


def replay(args: argparse.Namespace) -> None:
    from pipeline.replay import Tape, conclude

    tape = Tape(args.recording, from_s=args.from_s, to_s=args.to_s, realign=args.realign, unclosed=args.unclosed, fault=args.fault)
    args.out = args.out or tape.scratch()
    config, summary = _run(args, lambda config: tape.replayed(config, speed=args.speed, labels=not args.no_dashboard))
    conclude(tape, config, summary, Path(args.out) if args.out else None)


def diff(args: argparse.Namespace) -> None:
    from pipeline.diff import report

    report(args.a, args.b, within=args.within)


def demo(args: argparse.Namespace) -> None:
    from pipeline import assets

    if not args.scene:
        assets.pull(["demo-clip", "centerface", "silero-vad"], progress=_progress_if_fetching())
    args.config = SCENE_DEMO if args.scene else DEMO
    run(args)


def check(args: argparse.Namespace) -> None:
    """Everything that can be verified without opening a device or binding a socket."""
    from pipeline.config import instantiate, load
    from pipeline.graph import check_graph

    config = load(args.config, args.set)
    check_graph(config)
    for node in config.nodes.values():
        instantiate(node.use, node.options, where=node.where)
    for node in config.nodes.values():
        inputs = ", ".join(f"{e.source}{f' (keep: {e.keep})' if e.keep else ''}" for e in node.inputs)
        optional = "  optional" if node.optional else ""
        optional += f"  on {node.host}" if node.host else ""
        print(f"  {node.name:<12} {node.use:<12} {'← ' + inputs if inputs else ''}{optional}")
    print(f"{config.path}: {len(config.nodes)} nodes, no errors. Nothing was opened: `doctor` looks at the devices.")


def _with_out(config: Config, path: str, host: str) -> Config:
    from pipeline.config import InputConfig, NodeConfig, resolve
    from pipeline.errors import ConfigError
    from pipeline.frame import Prediction

    predicting = [n for n in config.nodes.values() if resolve(n.use, n.where).produces is Prediction]
    if not predicting:
        raise ConfigError(f"--out {path}: no node of {config.path} makes predictions. Add one that does, such as infer")
    here = [n.name for n in predicting if n.host == host]
    if not here:  # they are made on another host: this one writes its summary alone
        Path(path).write_text("")
        return config
    name = "out" if "out" not in config.nodes else "--out"
    # A disk may pause for seconds: a minute of predictions may wait for it.
    inputs = tuple(InputConfig(name, 2000) for name in here)
    console = next((n.process or n.name for n in config.nodes.values() if n.use == "console" and n.host == host), "")
    out = NodeConfig(name, "jsonl", f"--out {path}", inputs, process=console, host=host, options={"path": path})
    return dataclasses.replace(config, nodes={**config.nodes, name: out})


def _without(config: Config, use: str) -> Config:
    kept: dict[str, NodeConfig] = {name: node for name, node in config.nodes.items() if node.use != use}
    return dataclasses.replace(config, nodes=kept)


def _say_where(plan: Plan, *, open_page: bool) -> None:
    for node in plan.nodes:
        if node.use == "dashboard":
            token = node.options.get("token")
            url = f"http://{node.options.get('address', '127.0.0.1')}:{node.options.get('port', 8080)}/"
            print(f"  Page: {url}{f'?token={token}' if token else ''}   (Ctrl-C ends the run)", flush=True)
            if open_page:
                import webbrowser

                webbrowser.open(url)


def _print_notice(config: Config, stored: str) -> None:
    from pipeline.assets import cache_folder

    if any(node.options.get("task") in SCENE_TASKS for node in config.nodes.values()):
        print(f"  A prototype's eyes, not a safety function. {f'Recording into {stored}.' if stored else 'Nothing is stored.'}", flush=True)
        return
    if stored:
        print(f"  Recording into {stored}. Expressions, not feelings; tell the people in view.", flush=True)
        return
    seen = cache_folder().parent / "notice-was-shown"
    if seen.exists():
        print("  Expressions, not feelings; tell the people in view. Nothing is stored.", flush=True)
        return
    print(NOTICE, flush=True)
    try:
        seen.parent.mkdir(parents=True, exist_ok=True)
        seen.touch()
    except OSError:
        pass  # shown again next time: better once too often


def print_summary(summary: dict[str, Any]) -> None:
    frames = ", ".join(f"{n} {count}" for n, count in summary["frames_in"].items())
    print(f"\n  {summary['seconds']:.1f} s   frames in: {frames}")
    print(f"  aligned sets: {summary['sets']}   predictions: {summary['predictions']}")
    timing = summary["timing_ms"]
    if timing:
        print(f"  {'ms':<28}{'p50':>8}{'p95':>8}{'p99':>8}")
        names = {
            "total": "capture → prediction",
            "wait": "  waiting for the others",
            "infer": "  models",
            "rest": "  everything else",
        }
        for name, label in names.items():
            if name in timing and timing[name]["p95"] > 0.002:  # a replay that is faster than it happened has no latency
                print(f"  {label:<28}" + "".join(f"{timing[name][p]:8.1f}" for p in ("p50", "p95", "p99")))
    first = next(iter(summary["frames_in"].values()), 0)
    per_frame = f"   {1000 * summary['cpu_s'] / first:.1f} ms a frame, start-up included" if first else ""
    print(f"  CPU: {summary['cpu_s']:.1f} s{per_frame}")
    for node, sources in summary["dropped"].items():
        for source, reasons in sources.items():
            told = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
            print(f"  {node}: of {source}: {told}")
    for edge, facts in summary.get("from_other_hosts", {}).items():
        print(f"  {edge}: {facts['sent']} sent by host '{facts['host']}'; {facts['clock'] or 'not here yet'}")
    for node, count in summary["restarts"].items():
        print(f"  {node}: started again {count} times")
    lost = summary["unaccounted"]
    print(f"  unaccounted: {', '.join(f'{edge}: {n}' for edge, n in lost.items()) if lost else 'none'}")


def keys(args: argparse.Namespace) -> None:
    from pipeline.keys import write_new
    from pipeline.network import new_keys

    public = write_new(args.name, *new_keys())
    print(f"  {public.with_suffix('.secret')}   stays on this machine, readable by you only")
    print(f"  {public}   copy it into {public.parent.name}/allowed/ of every host that '{args.name}' talks to,")
    print(f"  and their .public files into {public.parent}/allowed/ here. Then: run CONFIG --host {args.name}")


# --- look -------------------------------------------------------------------------------------------------------------


def doctor(args: argparse.Namespace) -> None:
    from pipeline.doctor import examine

    section = ""
    marks = {True: "ok", False: "--", None: "?"}
    for where, finding in examine():
        if where != section:
            print(where)
            section = where
        print(f"  {marks[finding.works]:<3} {finding.what}{': ' + finding.fix if finding.fix else ''}")


def verify(args: argparse.Namespace) -> None:
    from pipeline.errors import ConfigError

    if args.events.suffix == ".mcap":
        from pipeline.verify import report

        return report(args.events, plot=args.plot)
    from pipeline.eventlog import verify

    verdict = verify(args.events)
    for difference in verdict.differences:
        print(f"  {difference}")
    if verdict.differences:
        raise ConfigError(f"{args.events}: some of its {verdict.sets} sets do not follow from what arrived")
    print(f"{args.events}: all {verdict.sets} sets follow from the {verdict.events - verdict.sets} other events")


def import_(args: argparse.Namespace) -> None:
    from pipeline.importing import import_source

    import_source(args.source, args.out, mapping=args.map, raw=args.raw)


def label(args: argparse.Namespace) -> None:
    from pipeline.labels import add_labels

    count = add_labels(args.recording, args.intervals, args.out, stream=args.stream)
    print(f"  {args.out}: {args.recording.name} with {count} labels. See: python run_pipeline.py export {args.out} FOLDER --dataset")


def sample(args: argparse.Namespace) -> None:
    from pipeline.sample import make_sample

    make_sample(args.out)


def export(args: argparse.Namespace) -> None:
    from pipeline.errors import ConfigError

    if args.precision:
        from pipeline.training.precision import export

        export(str(args.paths[0]), precision=args.precision, out=args.paths[1] if len(args.paths) > 1 else None)
        return
    from pipeline.aligned_rows import export_dataset
    from pipeline.exporting import export_recording

    *sources, out = args.paths
    if not sources or (len(sources) > 1 and not args.dataset):
        raise ConfigError("export: REC.mcap FOLDER, or REC.mcap … FOLDER --dataset")
    if args.dataset:
        return export_dataset(sources, out, labels=args.labels, task=args.task)
    export_recording(sources[0], out)


def nodes(args: argparse.Namespace) -> None:
    import inspect

    from pipeline.named import all_named, find
    from pipeline.node import Node

    if args.name is None:
        for name, kind in all_named(Node, "nodes").items():
            first = (inspect.getmodule(kind).__doc__ or "").strip().splitlines()[0]  # type: ignore[union-attr]
            print(f"  {name:<12} {first}")
        print("  Your own: a class in any file, named module:Name in `use`.")
        return
    kind = find(args.name, Node, "nodes", what="node")
    print((inspect.getmodule(kind).__doc__ or "").strip())  # type: ignore[union-attr]
    print(f"\n{inspect.cleandoc(kind.__doc__ or '')}\n")
    for parameter in inspect.signature(kind).parameters.values():
        print(f"  {parameter.name}: {parameter.annotation} = {parameter.default!r}")


def models(args: argparse.Namespace) -> None:
    from pipeline import assets
    from pipeline.errors import ConfigError
    from pipeline.inference.manifest import Manifest

    if args.action == "pull":
        assets.pull(args.names or None, progress=print)
        return
    if args.action == "info":
        if not args.names:
            raise ConfigError("models info: of which model? Those there are: python run_pipeline.py models list")
        for name in args.names:
            manifest = Manifest.read(Path(name) if name.endswith(".onnx") else assets.MODELS / f"{name}.onnx")
            print(json.dumps(dataclasses.asdict(manifest), indent=2))
        return
    for model in sorted(assets.MODELS.glob("*.onnx")):
        manifest = Manifest.read(model)
        print(f"  {manifest.id:<28} ours; {manifest.licence}")
    for asset in assets.entries():
        here = "here" if assets.local(asset) else "not fetched"
        print(f"  {asset.name:<28} {asset.licence}; {here}; {asset.what}")


# --- calibrate --------------------------------------------------------------------------------------------------------

# What there is to calibrate → its module, with `arguments(parser)` and `run(args) -> Verdict | None`.
CALIBRATED = {"camera": "camera_intrinsics", "stereo": "stereo", "board": "board_pdf", "convert": "convert",
              "extrinsics": "sensor_extrinsics", "ground": "ground", "time": "time_offset", "check": "check"}  # fmt: skip


def calibrate(args: argparse.Namespace) -> None:
    import importlib

    module = importlib.import_module(f"calibration.{CALIBRATED[args.kind]}")
    told = _Parser(prog=f"run_pipeline.py calibrate {args.kind}", description=(module.__doc__ or "").partition("\n")[0])
    module.arguments(told)
    verdict = module.run(told.parse_args(args.rest))
    if verdict is not None and verdict.failed:
        sys.exit(2)


# --- learn ------------------------------------------------------------------------------------------------------------


def train(args: argparse.Namespace) -> None:
    import importlib

    from pipeline.errors import missing_package

    module, function = TRAINED[args.what]
    try:
        found = getattr(importlib.import_module(f"pipeline.training.{module}"), function)
    except ModuleNotFoundError as error:
        raise missing_package(error.name or "torch", "train", "train") from error
    names = ("data", "out", "epochs", "seed", "resume", "start", "lr", "workers", "ship", "family", "format")
    found(**_fitting(found, {name: getattr(args, name) for name in names if getattr(args, name)}))


# The words a `train` or `evaluate` function may take as options, as far as its signature names them.
OPTIONS = ("data", "out", "epochs", "seed", "resume", "start", "lr", "workers", "ship", "family", "format", "model", "truth")

# What there is to train → the module of pipeline/training and its function.
TRAINED = {"face": ("face", "train"), "voice": ("voice", "train"), "fusion": ("fusion", "train"), "place": ("place", "train"),
           "sound": ("sound", "train")}  # fmt: skip


def _fitting(function: Any, given: dict[str, Any]) -> dict[str, Any]:
    """Options that were given; ConfigError for one that this function has not."""
    import inspect

    from pipeline.errors import ConfigError

    known = inspect.signature(function).parameters
    here = ", ".join(f"--{n}" for n in known if n in OPTIONS)
    for name in given:
        if name not in known:
            raise ConfigError(f"--{name}: nothing here takes it. Options here: {here}")
    for name, parameter in known.items():
        if parameter.default is inspect.Parameter.empty and name not in given:
            raise ConfigError(f"--{name} is needed here. Options here: {here}")
    return given


def evaluate(args: argparse.Namespace) -> None:
    import importlib

    from pipeline.errors import missing_package

    module, function = EVALUATED[args.what]
    try:
        found = getattr(importlib.import_module(f"pipeline.training.{module}"), function)
    except ModuleNotFoundError as error:
        raise missing_package(error.name or "torch", "evaluate", "train") from error
    names = ("model", "data", "out", "seed", "truth", "family", "format", "epochs")
    given = {name: getattr(args, name) for name in names if getattr(args, name)}
    result = found(**_fitting(found, given))
    if args.what in ("face", "stream"):
        print(json.dumps(result, indent=2))


# What there is to measure → as in TRAINED. The others print a table and write it as JSON and as a picture.
EVALUATED = {"face": ("evaluate", "report_face"), "voice": ("voice_ship", "evaluate_voice"), "votes": ("fusion_votes", "judge"),
             "fusion": ("fusion_own", "evaluate_own"), "baseline": ("baseline", "evaluate_baseline"),
             "faults": ("fault_conditions", "evaluate_faults"), "place": ("place_evaluate", "report_place"),
             "sound": ("sound_ears", "evaluate_sound"),
             "degradation": ("degradation", "evaluate_degradation"), "stream": ("stream", "evaluate_stream")}  # fmt: skip


def bench(args: argparse.Namespace) -> None:
    import runpy

    from pipeline.errors import ConfigError, nearest

    here = sorted(path.stem for path in (HERE / "benchmarks").glob("*.py") if "__main__" in path.read_text(encoding="utf-8"))
    if not here:
        raise ConfigError("bench: the benchmarks come with the checkout, not with the installed package")
    if args.what not in here:
        raise ConfigError(f"bench: no benchmark called '{args.what}'. Here: {', '.join(here)}.{nearest(args.what, here)}")
    sys.argv = [f"bench {args.what}", *args.options]
    runpy.run_module(f"benchmarks.{args.what}", run_name="__main__")


# --- the words --------------------------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """argparse, with errors like all others here: one line, with the nearest name."""

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        from pipeline.errors import nearest

        if action.choices is not None and value not in action.choices:
            path = f" Did you mean: run {value}?" if str(value).endswith((".yaml", ".yml")) else nearest(value, action.choices)
            raise argparse.ArgumentError(action, f"there is no '{value}'. Known: {', '.join(action.choices)}.{path}")

    def error(self, message: str) -> NoReturn:
        print(f"error: {message.removeprefix('argument ')}\nSee: python {self.prog} --help", file=sys.stderr)
        sys.exit(2)


def parser() -> argparse.ArgumentParser:
    top = _Parser(prog="run_pipeline.py", description=(__doc__ or "").partition("\n")[0])
    top.set_defaults(function=run, config=LIVE)
    verbs = top.add_subparsers(title="verbs", metavar="VERB")

    def running(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--for", dest="for_s", type=_seconds, metavar="10s", help="stop after this long")
        sub.add_argument("--out", metavar="P.jsonl", help="write one JSON object per prediction, the summary last")
        sub.add_argument("--set", action="append", default=[], metavar="nodes.camera.device=1", help="change the config")
        sub.add_argument("--host", default="", metavar="NAME", help="of a config with hosts: which one this is")
        sub.add_argument("--no-dashboard", action="store_true", help="no page")
        sub.add_argument("--open", action="store_true", help="open the page in the browser")
        sub.add_argument("--auto-time", action="store_true", help="measure sound against picture, offer the correction at the end")

    running(top)
    running(verb := verbs.add_parser("demo", help="the emotion pipeline on a packaged real clip"))
    verb.add_argument("--scene", action="store_true", help="the scene pipeline on a drive that is rendered, not real")
    verb.set_defaults(function=demo)
    running(verb := verbs.add_parser("run", help="run a config"))
    verb.add_argument("config", nargs="?", default=LIVE)
    running(verb := verbs.add_parser("record", help="run a config and keep all that flows in a file"))
    verb.add_argument("config", nargs="?", default=LIVE)
    verb.add_argument("recording", nargs="?", type=Path, metavar="OUT.mcap")
    verb.add_argument("--consent", default="", metavar="NOTE", help="who agreed to be recorded, and to what; kept in the file")
    verb.add_argument("--features-only", action="store_true", help="embeddings and predictions; no picture, no sound")
    verb.add_argument("--streams", type=_names, default=(), metavar="camera,emotion", help="only these (default: all)")
    verb.add_argument("--jpeg", type=_names, default=(), metavar="camera", help="keep these pictures as JPEG, not as captured")
    verb.add_argument("--compression", choices=("none", "lz4", "zstd"), default="lz4")
    verb.add_argument("--split", type=_split, default=(None, None), metavar="1GB|10m", help="begin another file after so much")
    verb.add_argument("--repair", type=Path, metavar="FILE.mcap", help="close a file whose writer was killed")
    verb.set_defaults(function=record)
    running(verb := verbs.add_parser("replay", help="run a config on a recording in place of its sources"))
    verb.add_argument("config")
    verb.add_argument("recording", type=Path, metavar="REC.mcap")
    verb.add_argument("--speed", type=float, default=1.0, help="1: as it happened; 0: as fast as the machine can (default: 1)")
    verb.add_argument("--from", dest="from_s", type=_seconds, metavar="10s", help="begin there, since the recording's beginning")
    verb.add_argument("--to", dest="to_s", type=_seconds, metavar="20s", help="end there")
    verb.add_argument("--realign", action="store_true", help="decide afresh which frames belong together")
    verb.add_argument("--fault", action="append", default=[], metavar="'microphone: drop=5%%'",
                      help="make a stream worse: delay, offset, drift, drop, noise, cut (docs/import.md)")  # fmt: skip
    verb.add_argument("--unclosed", action="store_true", help="play what a killed recorder left, as it is")
    verb.set_defaults(function=replay)
    verb = verbs.add_parser("diff", help="compare what --out wrote in two runs; exit 4 if any prediction differs")
    verb.add_argument("a", type=Path, metavar="A.jsonl")
    verb.add_argument("b", type=Path, metavar="B.jsonl")
    verb.add_argument("--within", type=float, default=0.0, metavar="1e-4", help="by how much probabilities may differ")
    verb.set_defaults(function=diff)
    verb = verbs.add_parser("check", help="verify a config; opens no device")
    verb.add_argument("config")
    verb.add_argument("--set", action="append", default=[], metavar="nodes.camera.device=1")
    verb.set_defaults(function=check)
    verb = verbs.add_parser("verify", help="audit a recording, or an event log: derive every aligned set again")
    verb.add_argument("events", type=Path, metavar="REC.mcap", help="a recording, or EVENTS.jsonl, which nodes.align.event_log wrote")
    verb.add_argument("--plot", type=Path, metavar="OUT.svg", help="a picture of a recording's timeline")
    verb.set_defaults(function=verify)
    verb = verbs.add_parser("import", help="a recording of somebody else's → ours: video, pictures, KITTI, EuRoC, TUM, ROS bags, pcap")
    verb.add_argument("source", type=Path)
    verb.add_argument("out", type=Path, metavar="OUT.mcap")
    verb.add_argument("--map", action="append", default=[], metavar="/velodyne_points=lidar", help="what to call a stream")
    verb.add_argument("--raw", action="store_true", help="of a media file: pictures to the bit, sound at its own rate: large")
    verb.set_defaults(function=import_)
    verb = verbs.add_parser("label", help="a CSV of intervals (start_s,end_s,label) → a stream of a copy of a recording")
    verb.add_argument("recording", type=Path, metavar="REC.mcap")
    verb.add_argument("intervals", type=Path, metavar="INTERVALS.csv")
    verb.add_argument("out", type=Path, metavar="OUT.mcap")
    verb.add_argument("--stream", default="label", help="what the stream is called")
    verb.set_defaults(function=label)
    verb = verbs.add_parser("sample", help="a small real recording with labels, made from the packaged clip")
    verb.add_argument("out", type=Path, metavar="OUT.mcap")
    verb.set_defaults(function=sample)
    verb = verbs.add_parser("export", help="a recording → mp4, wav and CSV, or labelled rows; a model → another precision")
    verb.add_argument("paths", type=Path, nargs="+", metavar="REC.mcap … FOLDER | MODEL [OUT.onnx]")
    verb.add_argument("--dataset", action="store_true", help="aligned, labelled rows; a recording is a group")
    verb.add_argument("--labels", metavar="NAME", help="the stream of labels, where there are several")
    verb.add_argument("--task", metavar="NAME", help="the stream of predictions, where there are several")
    verb.add_argument("--precision", choices=("fp32", "fp16", "int8"), help="of a model of ours, for engines that run what is written")
    verb.set_defaults(function=export)
    verb = verbs.add_parser("keys", help="the key by which other hosts know this one: new NAME")
    verb.add_argument("action", choices=("new",))
    verb.add_argument("name")
    verb.set_defaults(function=keys)
    verb = verbs.add_parser("doctor", help="what works on this machine, and what to do about the rest")
    verb.set_defaults(function=doctor)
    verb = verbs.add_parser("nodes", help="the nodes there are, or one node's options")
    verb.add_argument("name", nargs="?")
    verb.set_defaults(function=nodes)
    verb = verbs.add_parser("models", help="the models and clips: list, pull, info")
    verb.add_argument("action", nargs="?", choices=("list", "pull", "info"), default="list")
    verb.add_argument("names", nargs="*")
    verb.set_defaults(function=models)
    verb = verbs.add_parser("calibrate", help="estimate a rig: " + ", ".join(CALIBRATED))
    verb.add_argument("kind", choices=tuple(CALIBRATED))
    verb.add_argument("rest", nargs=argparse.REMAINDER, help="see: calibrate KIND --help")
    verb.set_defaults(function=calibrate)
    verb = verbs.add_parser("train", help="train a model: " + ", ".join(TRAINED))
    verb.add_argument("what", choices=tuple(TRAINED))
    verb.add_argument("--data", type=Path)
    verb.add_argument("--out", type=Path)
    verb.add_argument("--epochs", type=int)
    verb.add_argument("--seed", type=int)
    verb.add_argument("--resume", action="store_true", help="go on after the last epoch")
    verb.add_argument("--start", type=Path, help="for face: a shipped model to train on, instead of random weights")
    verb.add_argument("--lr", type=float, help="for face: the highest learning rate")
    verb.add_argument("--workers", type=int, help="for face: processes that share the work")
    verb.add_argument("--family", help="for fusion, on data of your own: cross, transformer, stacked …")
    verb.add_argument("--format", help="of that data: aligned (as export --dataset writes), cmu-csd, arrays, dialogues, crema-d …")
    verb.add_argument("--ship", action="store_true", help="for face: train nothing, export the best epoch so far")
    verb.set_defaults(function=train)
    verb = verbs.add_parser("evaluate", help="measure on data that chose nothing: " + ", ".join(EVALUATED))
    verb.add_argument("what", choices=tuple(EVALUATED))
    verb.add_argument("--model", type=Path, help="a model file; for stream: the file that --out wrote")
    verb.add_argument("--family", help="for fusion: names with commas between; all unless said otherwise")
    verb.add_argument("--format", help="for fusion, of the data: aligned, cmu-csd, arrays, dialogues, votes, crema-d, ravdess, emodb")
    verb.add_argument("--epochs", type=int, help="for fusion")
    verb.add_argument("--truth", type=Path, help="for stream: CSV of seconds,label, where each expression began")
    verb.add_argument("--data", type=Path)
    verb.add_argument("--out", type=Path, help="a JSON file; a picture is put beside it")
    verb.add_argument("--seed", type=int)
    verb.set_defaults(function=evaluate)
    verb = verbs.add_parser("bench", help="measure on this machine: align, transport, infer, scene …")
    verb.add_argument("what", help="a file of benchmarks/")
    verb.add_argument("options", nargs=argparse.REMAINDER, help="of the benchmark: bench infer --help")
    verb.set_defaults(function=bench)
    return top


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
        raise argparse.ArgumentTypeError(f"found '{text}', expected more than nothing")
    return seconds


def _progress_if_fetching() -> Any:
    return lambda line: print(f"  {line}", flush=True) if "fetching" in line else None


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s", stream=sys.stderr)
    sys.path.append(os.getcwd())  # a user's own nodes, named module:Name
    args = parser().parse_args()
    if args.function in (run, record, replay, demo):
        # Before numpy is loaded: its pool of threads would be one for each process of the graph, and bars copying the launcher.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        from pipeline import subscribe  # noqa: F401  # with it what every verb needs: msgspec, numpy, ZeroMQ
        from pipeline.errors import SensoriumError
    except ModuleNotFoundError as error:
        print(f"error: the Python package '{error.name}' is not installed. Install it with: scripts/setup", file=sys.stderr)
        return 2

    try:
        args.function(args)
    except SensoriumError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # `| head` is not an error
    return 0


if __name__ == "__main__":
    sys.exit(main())
