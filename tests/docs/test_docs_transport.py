"""docs/transport.md: the reasons for drops are those that are counted, and the files it names exist."""

from __future__ import annotations

import re
from pathlib import Path

from pipeline.transport.drop_reasons import EDGE_REASONS

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "transport.md").read_text(encoding="utf-8")


def test_every_reason_for_a_drop_is_described() -> None:
    table = PAGE.partition("| reason | meaning |\n")[2].partition("\n\n")[0]
    assert re.findall(r"^\| ([a-z][^|]*?) \|", table, re.MULTILINE) == list(EDGE_REASONS)


def test_files_that_the_page_names_exist() -> None:
    named = re.findall(r"`(\w+\.py)`", PAGE)
    assert named
    assert [name for name in named if not (ROOT / "pipeline" / "transport" / name).is_file()] == []
