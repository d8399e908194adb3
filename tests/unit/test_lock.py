"""constraints.txt holds what pyproject.toml asks for: exact versions with hashes, and no address of an index."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
LOCK = (ROOT / "constraints.txt").read_text()
ENTRY = re.compile(
    r"# (?P<users>.+)\n(?P<name>[\w.-]+)==(?P<version>[^\s;]+)(?P<marker> ; .+?)? \\\n(?P<hashes>(?: .+\n)+)"
)
NOT_LOCKED_EXTRAS, NOT_LOCKED_PACKAGES = {"gpu", "ouster"}, {"torch"}


def requirements() -> list[tuple[str, str]]:
    """(extra, requirement) of pyproject.toml, as far as the lock holds them; core is an extra here."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    every = [("core", r) for r in project["dependencies"]]
    for extra, asked in project["optional-dependencies"].items():
        every += [(extra, r) for r in asked if extra not in NOT_LOCKED_EXTRAS]
    return [(extra, r) for extra, r in every if re.split(r"[<>=!~ ]", r)[0] not in NOT_LOCKED_PACKAGES]


def entries() -> list[re.Match[str]]:
    return list(ENTRY.finditer(LOCK))


def test_every_line_belongs_to_an_entry_with_hashes() -> None:
    head = LOCK[: entries()[0].start()]
    assert all(line.startswith("#") for line in head.splitlines())
    assert head + "".join(e[0] for e in entries()) == LOCK
    assert all(re.fullmatch(r"(    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+", e["hashes"]) for e in entries())


def test_no_address_of_an_index_or_of_this_machine_is_in_it() -> None:
    assert not re.search(r"://|--(extra-)?index-url|--find-links|\.org|\.com|@ ", LOCK)


@pytest.mark.parametrize(("extra", "requirement"), requirements(), ids=lambda value: value)
def test_the_lock_holds_each_requirement_in_a_version_it_allows(extra: str, requirement: str) -> None:
    asked = Requirement(requirement)
    locked = [e for e in entries() if e["name"] == asked.name.lower().replace("_", "-")]
    assert locked, f"constraints.txt lacks {requirement}: make lock"
    for entry in locked:
        assert asked.specifier.contains(entry["version"], prereleases=True), f"{entry['version']}: make lock"
        assert {extra, "core"} & set(entry["users"].split()), f"{asked.name} is not in the lock for {extra}: make lock"


def test_torch_and_the_extras_that_conflict_are_left_out() -> None:
    assert not [e["name"] for e in entries() if re.match(r"torch|nvidia|tensorrt-cu13|ouster", e["name"])]
