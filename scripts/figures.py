"""Collects the figures that commands print, for the documents: `make figures` writes docs/figures.json.

    make figures                          the commands that take minutes
    .venv/bin/python scripts/figures.py --long            the long ones as well
    .venv/bin/python scripts/figures.py --only align      figures whose command or name contains this

What is collected, and where it stands in the documents, is in figures.toml beside this file. The figures inside the
models need no command: training wrote them into the manifest of each file. tests/docs/test_figures.py compares the
documents with both. Data sets are looked up in SENSORIUM_DATA. A command that fails, or whose data is missing, leaves
the figures as they were collected last.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "scripts" / "figures.toml"
COLLECTED = ROOT / "docs" / "figures.json"


class Value(float):
    """A float that formats as a percentage, too: "{0:.1p}" is 0.673 as "67.3 %", "{0:.1q}" as "67.3"."""

    def __format__(self, spec: str) -> str:
        if spec.endswith(("p", "q")):
            return format(100 * float(self), f"{spec[:-1]}f") + (" %" if spec.endswith("p") else "")
        return super().__format__(spec)


def table() -> dict[str, list[dict[str, Any]]]:
    loaded: dict[str, list[dict[str, Any]]] = tomllib.loads(TABLE.read_text(encoding="utf-8"))
    return loaded


def collected() -> dict[str, dict[str, Any]]:
    return json.loads(COLLECTED.read_text(encoding="utf-8")) if COLLECTED.is_file() else {}


def in_manifest(figure: dict[str, Any]) -> list[float]:
    from pipeline.inference.manifest import Manifest

    metrics = Manifest.read(ROOT / "models" / f"{figure['model']}.onnx").metrics
    return [metrics[name] for name in figure["metrics"]]


def match_printed(figure: dict[str, Any], printed: str) -> list[float]:
    """Raises ValueError where the pattern is not in what the command printed."""
    match = re.search(figure["pattern"], printed)
    if match is None:
        raise ValueError(f"{figure['name']}: {figure['command']} printed nothing that fits {figure['pattern']!r}")
    return [float(group) for group in match.groups()]


def mismatch(figure: dict[str, Any], values: Sequence[float], page: str) -> str:
    """What is wrong with the figure on its page; "" where it stands there as it was collected."""
    text = figure["text"]
    expected = text.format(*map(Value, values))
    page = re.sub(r"\s+", " ", page)
    if expected in page:
        return ""
    loose = figure.get("loose", [])
    fields = [int(field) for field in re.findall(r"\{(\d+)[^}]*\}", text)]
    parts = re.split(r"\{\d+[^}]*\}", text)
    # A percentage is formatted with its sign; exact fields are part of the pattern, loose ones are compared as numbers.
    pattern = re.escape(parts[0])
    for field, spec, part in zip(fields, re.findall(r"\{\d+(?::([^}]*))?\}", text), parts[1:], strict=True):
        shown = format(Value(values[field]), spec)
        pattern += (r"([\d.]+)" if field in loose else re.escape(shown)) + re.escape(part)
    numbers = [float(group) for match in re.finditer(pattern, page) for group in match.groups()]
    if not numbers or len(loose) != 1:
        return f"{figure['page']} should hold: {expected}"
    value, within = values[loose[0]], figure["within"]
    if any(value / within <= number <= value * within for number in numbers):
        return ""
    return f"{figure['page']} says {numbers}, measured was {value:g}: {expected}"


def machine() -> str:
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        )
        if Path("/proc/cpuinfo").is_file()
        else iter(()),
        platform.processor() or "unknown processor",
    )
    load = os.getloadavg()[0]
    return f"{os.cpu_count()} × {cpu}, {platform.system()}, load {load:.0f}, Python {platform.python_version()}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--long", action="store_true", help="also the commands that take long")
    parser.add_argument("--only", default="", help="figures whose name or command contains this")
    args = parser.parse_args()
    commands: dict[str, list[dict[str, Any]]] = {}
    for figure in table()["figure"]:
        chosen = args.only in figure["name"] or args.only in figure["command"]
        if "pattern" in figure and chosen and (args.long or not figure.get("long")):
            commands.setdefault(figure["command"], []).append(figure)
    results, failed = collected(), False
    for command, figures in commands.items():
        print(f"figures: {command}", flush=True)
        words = [sys.executable, *shlex.split(command)[1:]]
        where, began = machine(), datetime.now(UTC)
        ran = subprocess.run(words, cwd=ROOT, text=True, capture_output=True)
        if ran.returncode:
            print(f"  exit code {ran.returncode}: {ran.stderr.strip()[-300:]}")
            failed = True
            continue
        for figure in figures:
            try:
                values = match_printed(figure, ran.stdout)
            except ValueError as error:
                print(f"  {error}")
                failed = True
                continue
            results[figure["name"]] = {
                "values": values,
                "command": command,
                "date": f"{began:%Y-%m-%d}",
                "machine": where,
            }
            page = (ROOT / figure["page"]).read_text(encoding="utf-8")
            print(f"  {figure['name']}: {values}  {mismatch(figure, values, page)}".rstrip())
    names = [figure["name"] for figure in table()["figure"]]
    results = {name: results[name] for name in names if name in results}
    COLLECTED.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"figures: {len(results)} in {COLLECTED.relative_to(ROOT)}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
