"""One-line faults in the core, each of which a test must notice: `make mutants`, `python -m tests.mutants [NAME…]`.

mutants.toml lists them: a file, a line of it, what stands there instead, and the tests closest to it. Each is put into
a copy of the project, where those tests are run. Exit code 1: one survived, that is, all of its tests passed; 2: a line
is no longer in its file exactly once, so that the list has to follow the code.

    --list      the names
    --every N   only every Nth
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LIST = Path(__file__).with_name("mutants.toml")
LIMIT_S = 180  # a fault that makes a test wait for ever is noticed too


@dataclass(frozen=True)
class Mutant:
    """old → new, in one file; `tests` must fail."""

    name: str
    file: str
    old: str
    new: str
    tests: list[str]

    def applied(self) -> str:
        """The file's text with the fault. Raises ValueError when the line is not there exactly once."""
        text = (ROOT / self.file).read_text(encoding="utf-8")
        if (count := text.count(self.old)) != 1:
            raise ValueError(f"{self.name}: {self.file} holds {self.old!r} {count} times, expected once")
        return text.replace(self.old, self.new)


def mutants() -> list[Mutant]:
    with LIST.open("rb") as file:
        return [Mutant(name, **fields) for name, fields in tomllib.load(file).items()]


def survives(mutant: Mutant, copy: Path) -> bool:
    """Whether all of its tests pass in a copy of the project that has the fault."""
    path = copy / mutant.file
    whole = path.read_text(encoding="utf-8")
    path.write_text(mutant.applied(), encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *mutant.tests]
    # Its modules must be those of the copy, compiled there; a change within a second has the same time of day.
    environment = os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, timeout=LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        return False
    finally:
        path.write_text(whole, encoding="utf-8")
    if done.returncode not in (0, 1):
        raise RuntimeError(f"{mutant.name}: its tests could not be run:\n{done.stdout.decode()[-2000:]}")
    return done.returncode == 0


def copied(folder: Path) -> Path:
    """A copy of the project's tracked files, and of nothing else."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    for name in filter(None, listed.decode().split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    return folder


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", help="only these")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="only every Nth")
    parser.add_argument("--list", action="store_true", help="print the names")
    options = parser.parse_args()
    chosen = [m for m in mutants() if not options.names or m.name in options.names][:: options.every]
    if options.list:
        print("\n".join(mutant.name for mutant in chosen))
        return 0
    try:
        for mutant in chosen:
            mutant.applied()
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    survivors = []
    with tempfile.TemporaryDirectory(prefix="sensorium-mutants-") as folder:
        copy = copied(Path(folder))
        for mutant in chosen:
            began_s = time.monotonic()
            survived = survives(mutant, copy)
            survivors += [mutant.name] * survived
            verdict = "SURVIVED" if survived else "noticed"
            print(f"  {verdict:<9}{time.monotonic() - began_s:6.1f} s  {mutant.name}", flush=True)
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} noticed" + "".join(f"\n  SURVIVED {s}" for s in survivors))
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
