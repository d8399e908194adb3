"""Sensorium's command line: one function per verb, heavy imports inside the verb.

    python run_pipeline.py                     webcam + microphone → emotion; it prints the page's address
    python run_pipeline.py demo                the same on a packaged clip; --scene: what is around, on a rendered drive
    python run_pipeline.py run CONFIG --for 10s --out predictions.jsonl --set nodes.camera.device=1

The verbs and their options are declared in pipeline/cli/command_line.py. Exit codes: 0 done, 1 our bug, 2 the user's
config or input, 3 a device, 4 two things that were compared are not alike, 5 a node was given up, or
nothing was predicted.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import credentials
from pipeline.cli import command_line
from pipeline.cli.command_line import CALIBRATED, DEMO, EVALUATED, SCENE_DEMO, TRAINED
from pipeline.installation import COMMAND, setup_command

if TYPE_CHECKING:
    from pipeline.runtime.config import Config

HERE = Path(__file__).resolve().parent


# --- run --------------------------------------------------------------------------------------------------------------


def run(args: argparse.Namespace) -> None:
    _, summary = _run(args)
    _require_complete(summary)


def _require_complete(summary: dict[str, Any]) -> None:
    from pipeline.errors import IncompleteError

    if summary["incomplete"]:
        raise IncompleteError("; ".join(summary["incomplete"]))


def _run(
    args: argparse.Namespace, change: Callable[[Config], Config] = lambda config: config
) -> tuple[Config, dict[str, Any]]:
    """Run the config of the command line; returns it as it was loaded, and the summary.

    Args:
        args: The parsed command line.
        change: Applied to the config after `--set`, before `--out` and the like.
    """
    from pipeline.cli.consent import require_consent, with_consent
    from pipeline.cli.out_option import add_summary, with_metrics, with_out
    from pipeline.cli.terminal import print_notice, print_page, print_summary
    from pipeline.runtime.config import load, without
    from pipeline.runtime.launcher import launch

    loaded = load(args.config, args.set)
    config = change(loaded)
    if args.no_dashboard:
        config = without(config, "dashboard")
    if args.out:
        config = with_out(config, args.out, args.host)
    if args.metrics is not None:
        config = with_metrics(config, args.metrics, args.host)
    if args.auto_time:
        from pipeline.cli.auto_time import with_auto_time

        config = with_auto_time(config, args.host)
    config = with_consent(config, args.consent)
    require_consent(config)
    print_notice(config)
    summary = launch(
        config,
        host=args.host,
        name=args.name,
        for_s=args.for_s,
        warm=True,
        on_begin=lambda plan: print_page(plan, open_it=args.open),
    )
    print_summary(summary)
    if args.out:
        add_summary(args.out, summary)
    return loaded, summary


def demo(args: argparse.Namespace) -> None:
    from pipeline import assets

    def report(line: str) -> None:
        if "fetching" in line:
            print(f"  {line}", flush=True)

    if not args.scene:
        assets.pull(["demo-clip", "centerface", "silero-vad"], progress=report)
    args.config = SCENE_DEMO if args.scene else DEMO
    run(args)


def record(args: argparse.Namespace) -> None:
    from pipeline.cli.record import RecordOptions, finish_recording, repair_recording, with_recorder
    from pipeline.errors import ConfigError

    if args.repair:
        return print(repair_recording(args.repair))
    if args.recording is None:
        raise ConfigError(f"record: into which file? {COMMAND} record CONFIG OUT.mcap")
    options = RecordOptions(args.streams, args.jpeg, args.consent, args.features_only, args.compression, *args.split)
    _, summary = _run(args, lambda config: with_recorder(config, args.recording, options, args.host))
    print(finish_recording(args.recording, summary))
    _require_complete(summary)


def replay(args: argparse.Namespace) -> None:
    import tempfile

    from pipeline.cli.replay import replay_config, report
    from pipeline.recording.replay_session import ReplaySession

    session = ReplaySession(
        args.recording,
        from_s=args.from_s,
        to_s=args.to_s,
        realign=args.realign,
        unclosed=args.unclosed,
        fault=args.fault,
    )
    with tempfile.TemporaryDirectory(prefix="sensorium-") as folder:
        if session.faults and not args.out:
            args.out = str(Path(folder) / "predictions.jsonl")  # the report of faults compares predictions
        config, summary = _run(
            args, lambda config: replay_config(session, config, speed=args.speed, labels=not args.no_dashboard)
        )
        report(session, config, summary, Path(args.out) if args.out else None)
    _require_complete(summary)


def runs(args: argparse.Namespace) -> None:
    from pipeline.cli.terminal import print_runs

    print_runs()


# --- files ------------------------------------------------------------------------------------------------------------


def diff(args: argparse.Namespace) -> None:
    from pipeline.recording.diff import report

    report(args.a, args.b, within=args.within)


def check(args: argparse.Namespace) -> None:
    """Everything that can be verified without opening a device or binding a socket."""
    from pipeline.cli.consent import require_consent, stored_files
    from pipeline.runtime.config import instantiate, load
    from pipeline.runtime.graph import check_graph

    config = load(args.config, args.set)
    check_graph(config)
    for node in config.nodes.values():
        instantiate(node.use, node.options, where=node.where, inputs=[e.source for e in node.inputs])
    for node in config.nodes.values():
        inputs = ", ".join(f"{e.source}{f' (queue: {e.queue})' if e.queue else ''}" for e in node.inputs)
        optional = "  optional" if node.optional else ""
        optional += f"  on {node.host}" if node.host else ""
        print(f"  {node.name:<12} {node.use:<12} {'← ' + inputs if inputs else ''}{optional}")
    require_consent(config)
    for name, stored in stored_files(config):
        print(f"  {name} stores {stored.what} in {stored.path}")
    print(f"{config.path}: {len(config.nodes)} nodes, no errors. Nothing was opened: `doctor` looks at the devices.")


def verify(args: argparse.Namespace) -> None:
    from pipeline.cli.verify import report, report_event_log

    if args.events.suffix == ".mcap":
        report(args.events, plot=args.plot, config=args.config)
    else:
        report_event_log(args.events, config=args.config)


def import_(args: argparse.Namespace) -> None:
    from pipeline.cli.import_source import import_source

    import_source(args.source, args.out, mapping=args.map, raw=args.raw)


def label(args: argparse.Namespace) -> None:
    from pipeline.recording.labels import add_labels

    count = add_labels(args.recording, args.intervals, args.out, stream=args.stream)
    print(f"  {args.out}: {args.recording.name} with {count} labels. See: {COMMAND} export {args.out} FOLDER --dataset")


def sample(args: argparse.Namespace) -> None:
    from pipeline.cli.sample import make_sample

    make_sample(args.out)


def export(args: argparse.Namespace) -> None:
    from pipeline.errors import ConfigError

    if args.precision:
        from pipeline.training.export.precision import export

        export(str(args.paths[0]), precision=args.precision, out=args.paths[1] if len(args.paths) > 1 else None)
        return
    from pipeline.recording.dataset_export import export_dataset
    from pipeline.recording.export import export_recording

    *sources, out = args.paths
    if not sources or (len(sources) > 1 and not args.dataset):
        raise ConfigError("export: REC.mcap FOLDER, or REC.mcap … FOLDER --dataset")
    if args.dataset:
        return export_dataset(sources, out, labels=args.labels, task=args.task)
    export_recording(sources[0], out)


# --- this machine -----------------------------------------------------------------------------------------------------


def keys(args: argparse.Namespace) -> None:
    from pipeline.transport.keys import write_new
    from pipeline.transport.network import new_keys

    public = write_new(args.name, *new_keys())
    print(f"  {public.with_suffix('.secret')}   stays on this machine, readable by you only")
    print(f"  {public}   copy it into {public.parent.name}/allowed/ of every host that '{args.name}' talks to,")
    print(f"  and their .public files into {public.parent}/allowed/ here. Then: run CONFIG --host {args.name}")


def doctor(args: argparse.Namespace) -> None:
    from pipeline.cli.doctor import examine

    section = ""
    marks = {True: "ok", False: "--", None: "?"}
    for where, finding in examine(gpu=args.gpu):
        if where != section:
            print(where)
            section = where
        print(f"  {marks[finding.works]:<3} {finding.what}{': ' + finding.fix if finding.fix else ''}")


def nodes(args: argparse.Namespace) -> None:
    from pipeline.cli.describe import print_described, print_list
    from pipeline.node import Node

    print_described(args.name, Node) if args.name else print_list(Node)


def tasks(args: argparse.Namespace) -> None:
    from pipeline.cli.describe import print_described, print_list
    from pipeline.task import Task

    print_described(args.name, Task) if args.name else print_list(Task)


def models(args: argparse.Namespace) -> None:
    from pipeline import assets
    from pipeline.cli.models import print_manifests, print_models

    if args.action == "pull":
        assets.pull(args.names or None, progress=print)
    elif args.action == "info":
        print_manifests(args.names)
    else:
        print_models()


# --- measure and learn ------------------------------------------------------------------------------------------------


def calibrate(args: argparse.Namespace) -> None:
    import importlib

    module = importlib.import_module(f"calibration.verbs.{CALIBRATED[args.kind]}")
    parser = command_line.Parser(
        prog=f"{command_line.PROGRAM} calibrate {args.kind}", description=(module.__doc__ or "").partition("\n")[0]
    )
    module.arguments(parser)
    verdict = module.run(parser.parse_args(args.rest))
    if verdict is not None and verdict.failed:
        sys.exit(2)


def train(args: argparse.Namespace) -> None:
    from pipeline.cli.train_evaluate import call

    call(*TRAINED[args.what], args, verb="train")


def evaluate(args: argparse.Namespace) -> None:
    from pipeline.cli.train_evaluate import call

    result = call(*EVALUATED[args.what], args, verb="evaluate")
    if args.what in ("face", "stream"):  # the others print a table and write it as JSON and as a picture
        print(json.dumps(result, indent=2))


def bench(args: argparse.Namespace) -> None:
    import runpy

    from pipeline.errors import ConfigError, nearest

    here = sorted(
        path.stem for path in (HERE / "benchmarks").glob("*.py") if "__main__" in path.read_text(encoding="utf-8")
    )
    if not here:
        raise ConfigError("bench: the benchmarks come with the checkout, not with the installed package")
    if args.what not in here:
        problem = f"no benchmark called '{args.what}'." if args.what else "which one?"
        raise ConfigError(f"bench: {problem} Here: {', '.join(here)}.{nearest(args.what, here)}")
    sys.argv = [f"bench {args.what}", *args.options]
    runpy.run_module(f"benchmarks.{args.what}", run_name="__main__")


# --- main -------------------------------------------------------------------------------------------------------------

VERBS: dict[str, Callable[[argparse.Namespace], None]] = {
    "demo": demo,
    "run": run,
    "record": record,
    "replay": replay,
    "diff": diff,
    "check": check,
    "runs": runs,
    "verify": verify,
    "import": import_,
    "label": label,
    "sample": sample,
    "export": export,
    "keys": keys,
    "doctor": doctor,
    "nodes": nodes,
    "tasks": tasks,
    "models": models,
    "calibrate": calibrate,
    "train": train,
    "evaluate": evaluate,
    "bench": bench,
}


def parser() -> argparse.ArgumentParser:
    return command_line.parser(VERBS)


def main() -> int:
    credentials.log_without_them()
    sys.path.append(os.getcwd())  # where a user's own nodes are, named module:Name
    args = parser().parse_args()
    if args.function in (run, record, replay, demo):
        # Before numpy is loaded: else every process of the graph has a pool of BLAS threads, and the launcher cannot
        # fork.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        from pipeline import subscribe  # noqa: F401  # with it what every verb needs: msgspec, numpy, ZeroMQ
        from pipeline.errors import SensoriumError
    except ModuleNotFoundError as error:
        print(
            f"error: the Python package '{error.name}' is not installed. Install it with: {setup_command()}",
            file=sys.stderr,
        )
        return 2

    is_terminal = sys.stdout.isatty()
    try:
        args.function(args)
    except SensoriumError as error:
        print(f"error: {credentials.without_credentials(str(error))}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        # `| head`, or a terminal that was closed: nobody reads on, which is no error.
        if not (error.errno == errno.EPIPE or (error.errno == errno.EIO and is_terminal and not sys.stdout.isatty())):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:  # while it was still being loaded
        sys.exit(130)
