"""What a run prints: the notice for the people in view, the address of the page, and the summary at the end.

Example:
    print_notice(config)
    summary = launch(config, on_begin=lambda plan: print_page(plan, open_it=False))
    print_summary(summary)
"""

from __future__ import annotations

import time
from typing import Any

from pipeline.assets import cache_folder
from pipeline.cli.consent import stored_files
from pipeline.runtime.config import Config
from pipeline.runtime.graph import Plan
from pipeline.runtime.run_folder import announced_runs
from pipeline.web.access import NO_TOKEN

SCENE_TASKS = ("scene", "place", "obstacles", "objects", "sounds")

NOTICE = """\
  Sensorium reads expressions, not feelings: what a face shows is not what a person feels.
  Tell the people in view that they are being watched. Not for decisions about work, education,
  hiring, policing or truthfulness. Nothing is stored or sent unless you ask for it.
"""


def print_notice(config: Config) -> None:
    """What the run is not for, and what it stores."""
    files = [f"{stored.what} in {stored.path}" for _, stored in stored_files(config)]
    storing = f"Stored: {'; '.join(files)}." if files else "Nothing is stored."
    if any(node.options.get("task") in SCENE_TASKS for node in config.nodes.values()):
        print(f"  A prototype, not a safety function. {storing}", flush=True)
        return
    marker = cache_folder().parent / "notice-was-shown"
    if files or marker.exists():
        print(f"  Expressions, not feelings; tell the people in view. {storing}", flush=True)
        return
    print(NOTICE, flush=True)
    try:
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.touch()
    except OSError:
        pass  # shown again next time: better once too often


def print_page(plan: Plan, *, open_it: bool) -> None:
    for node in plan.nodes:
        if node.use == "dashboard":
            token = node.options.get("token")
            host = node.options.get("address", "127.0.0.1")
            url = f"http://{f'[{host}]' if ':' in host else host}:{node.options.get('port', 8080)}/"
            url += f"?token={token}" if token != NO_TOKEN else ""
            print(f"  Page: {url}   (Ctrl-C ends the run)", flush=True)
            if open_it:
                import webbrowser

                webbrowser.open(url)


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
            # A replay that is faster than the recorded run has no latency.
            if name in timing and timing[name]["p95"] > 0.002:
                print(f"  {label:<28}" + "".join(f"{timing[name][p]:8.1f}" for p in ("p50", "p95", "p99")))
    first = next(iter(summary["frames_in"].values()), 0)
    per_frame = f"   {1000 * summary['cpu_s'] / first:.1f} ms a frame, start-up included" if first else ""
    print(f"  CPU: {summary['cpu_s']:.1f} s{per_frame}")
    for node, sources in summary["dropped"].items():
        for source, reasons in sources.items():
            counts = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
            print(f"  {node}: of {source}: {counts}")
    for edge, facts in summary.get("from_other_hosts", {}).items():
        print(f"  {edge}: {facts['sent']} sent by host '{facts['host']}'; {facts['clock'] or 'not here yet'}")
    for node, count in summary["restarts"].items():
        print(f"  {node}: started again {count} times")
    for node, reason in summary["given_up"].items():
        print(f"  {node}: given up: {reason}")
    lost = summary["unaccounted"]
    print(f"  unaccounted: {', '.join(f'{edge}: {n}' for edge, n in lost.items()) if lost else 'none'}")


def print_runs() -> None:
    """What runs on this host, as this user, with the addresses of its pages."""
    for run in announced_runs():
        began = time.strftime("%H:%M:%S", time.localtime(run["began_s"]))
        print(f"  {run['name']:<20} since {began}  pid {run['pid']}  {run['config']}")
        print(f"  {'':<20} {', '.join(run['streams'])}")
        for node, address in run["pages"].items():
            print(f"  {'':<20} {node}: {address}")
