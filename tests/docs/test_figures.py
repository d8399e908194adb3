"""Figures in the documents are those that commands printed: `make figures`, manifests, or a dated entry by hand."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import figures  # noqa: E402  (scripts/figures.py)

TABLE = figures.table()
FIGURES = TABLE["figure"]
BY_HAND = TABLE["by_hand"]
PAGES = [
    "docs/figures.md",
    "docs/emotion.md",
    "docs/scene.md",
    "docs/lidar.md",
    "docs/time.md",
    "docs/transport.md",
    "docs/engines.md",
    "docs/recording.md",
    "docs/calibration.md",
    "docs/calibration-sensors.md",
    *sorted(f"models/{card.name}" for card in (ROOT / "models").glob("*.md")),
]
# Tables with numbers that nobody measured, by their first row.
NO_FIGURES = {
    "| | largest difference in an output, of its largest value |": "limits of the parity gate",
    "| what | how |": "how the live task decides",
}


def page(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


@pytest.mark.parametrize("figure", FIGURES, ids=[figure["name"] for figure in FIGURES])
def test_a_figure_stands_in_the_documents_as_it_was_collected(figure):
    if "model" in figure:
        values = figures.in_manifest(figure)
    else:
        entry = figures.collected().get(figure["name"])
        assert entry, f"not in docs/figures.json: make figures (or scripts/figures.py --only {figure['name']!r})"
        assert entry["command"] == figure["command"]
        values = entry["values"]
    assert figures.mismatch(figure, values, page(figure["page"])) == ""


def test_names_of_figures_are_unique():
    names = [figure["name"] for figure in FIGURES]
    assert sorted(set(names)) == sorted(names)


@pytest.mark.parametrize("entry", BY_HAND, ids=lambda entry: f"{entry['page']} {entry['table'][:30]}")
def test_a_table_by_hand_exists_and_its_page_names_the_command(entry):
    text = page(entry["page"])
    assert any(entry["table"] in line for line in text.splitlines() if line.startswith("|"))
    assert entry["command"] in text


@pytest.mark.parametrize("path", PAGES)
def test_every_table_of_figures_has_a_command(path):
    """A table with three figures or more has an entry in scripts/figures.toml."""
    missing = []
    for rows in re.findall(r"(?:^\|.*\n)+", page(path), re.MULTILINE):
        head, *body = rows.splitlines()
        measured = re.findall(r"\d ?(?:%|ms|µs|°|mm|px|MB)|\| *\**\d+\.\d+", "\n".join(body))
        entered = any(entry["page"] == path and entry["table"] in head for entry in BY_HAND)
        entered |= any(f["page"] == path and f["text"].split("{")[0].strip() in rows for f in FIGURES)
        if len(measured) >= 3 and not entered and not any(head.startswith(start) for start in NO_FIGURES):
            missing.append(head)
    assert missing == []


def test_a_wrong_figure_on_a_page_is_reported():
    figure = {"name": "x", "page": "docs/x.md", "text": "| accuracy | {0:.1p} |"}
    assert figures.mismatch(figure, [0.673], "| accuracy | 67.3 % |") == ""
    assert "67.3 %" in figures.mismatch(figure, [0.673], "| accuracy | 68.3 % |")
    timed = {"name": "y", "page": "docs/x.md", "text": "| join | {0:.2f} % | {1:.2f} |", "loose": [1], "within": 2.0}
    assert figures.mismatch(timed, [0.02, 1.0], "| join | 0.02 % | 1.90 |") == ""
    assert figures.mismatch(timed, [0.02, 1.0], "| join | 0.02 % | 2.10 |") != ""
    assert figures.mismatch(timed, [0.02, 1.0], "| join | 0.03 % | 1.00 |") != ""
