"""The table of `make faults`: every fault with how soon the run was whole again, what was lost and what was said.

python tests/support/fault_table.py rows.jsonl         # Markdown, for docs/faults.md
"""

from __future__ import annotations

import json
import re
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

MARK = "<!-- faults -->"
HEAD = (
    "| fault | recovery p50 | p95 | detected after | lost | the page says | the summary says |\n"
    "|---|---|---|---|---|---|---|"
)


def table(rows: list[dict[str, Any]]) -> str:
    by_fault: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        by_fault[row["fault"]].append(row)
    lines = [HEAD]
    for fault, repeats in by_fault.items():
        recovery = [row["recovery_s"] for row in repeats]
        detected = [row["detection_s"] for row in repeats if row["detection_s"] is not None]
        last = repeats[-1]
        cells = [
            fault,
            f"{np.percentile(recovery, 50):.2f} s",
            f"{np.percentile(recovery, 95):.2f} s",
            f"{np.percentile(detected, 50):.1f} s" if detected else "–",
            last["lost"],
            without_paths(last["page"]) or "–",
            without_paths(last["summary"]),
        ]
        lines.append("| " + " | ".join(cell.replace("|", "/").replace("\n", " ") for cell in cells) + " |")
    repeats = max(map(len, by_fault.values()), default=0)
    return "\n".join([*lines, "", f"{len(by_fault)} faults, each up to {repeats} times."])


def without_paths(text: str) -> str:
    """Folders and ports of a test say nothing to a reader."""
    text = re.sub(r"/\S*/(\w[\w.-]*)", r"\1", text)
    return re.sub(r"http:(//)?[\w.:]*/?", "http://…/", text)


if __name__ == "__main__":
    text = table([json.loads(line) for line in Path(sys.argv[1]).read_text().splitlines()])
    if len(sys.argv) > 2:
        before, _, after = Path(sys.argv[2]).read_text().split(MARK)
        Path(sys.argv[2]).write_text(f"{before}{MARK}\n\n{text}\n\n{MARK}{after}")
    else:
        print(text)
