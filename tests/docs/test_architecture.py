"""Files and folders that ARCHITECTURE.md, CONTRIBUTING.md and SECURITY.md name exist, and every package has its row."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
PAGES = ["ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md"]


def code_words(page: str) -> set[str]:
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)
    return {word for code in re.findall(r"`([^`\n]+)`", text) for word in code.split()}


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_is_named_exists(page: str) -> None:
    """A name without its folder may be anywhere; `node` of `pipeline/node.py` counts as prose."""
    named = {word for word in code_words(page) if re.fullmatch(r"[\w./-]+\.(py|md|toml|yaml|txt)", word)}
    assert [name for name in sorted(named) if not any(f"/{file}".endswith(f"/{name}") for file in FILES)] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_folder_that_is_named_exists(page: str) -> None:
    folders = {f"/{file}"[: f"/{file}".rindex("/") + 1] for file in FILES}
    named = {word for word in code_words(page) if re.fullmatch(r"[\w./-]+/", word)}
    assert [name for name in sorted(named) if not any(f"/{name}" in folder for folder in folders)] == []


def test_every_package_has_its_row() -> None:
    packages = {f"pipeline/{Path(file).parts[1]}/" for file in FILES if re.match(r"pipeline/\w+/", file)}
    rows = re.findall(r"^\| `([\w/]+/)`", (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(packages - set(rows)) == []


@pytest.mark.parametrize("page", [*PAGES, "README.md", "CHANGELOG.md"])
def test_every_link_to_a_file_works(page: str) -> None:
    """The pages in docs/ and the cards are checked by `make docs`."""
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", (ROOT / page).read_text(encoding="utf-8"))
    assert [link for link in links if "://" not in link and not (ROOT / link).exists()] == []
