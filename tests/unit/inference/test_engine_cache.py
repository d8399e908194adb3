"""Built engines on disk: reused only where all is the same, loaded only if this user wrote them, built once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.inference.cache import KEEP_ENTRIES, Cache, Key

ROOT = Path(__file__).resolve().parents[3]
KEY = Key(
    onnx_sha256="ab" * 32,
    backend="tensorrt",
    version="11.1",
    gpu="L4",
    capability="8.9",
    driver="13.0",
    precision="fp16",
    profiles="[]",
    flags="no TF32",
)


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "engines")


def built(cache: Cache, content: bytes = b"an engine", key: Key = KEY) -> Path:
    cache.build(key, lambda: content)
    return cache.folder / f"{key.name}.engine"


def test_an_engine_is_built_once_and_then_read(cache: Cache) -> None:
    built(cache)
    assert cache.get(KEY) == b"an engine"
    assert cache.build(KEY, lambda: pytest.fail("built again")) == b"an engine"


@pytest.mark.parametrize("what", [field for field in Key.__dataclass_fields__])
def test_an_engine_is_built_again_whatever_changes_of_what_it_depends_on(cache: Cache, what: str) -> None:
    built(cache)
    assert cache.get(replace(KEY, **{what: "another"})) is None


@pytest.mark.parametrize("left", [0, 1, 8])
def test_a_file_cut_short_is_removed_and_built_again(cache: Cache, left: int, caplog: pytest.LogCaptureFixture) -> None:
    path = built(cache)
    path.write_bytes(b"an engine"[:left])
    assert cache.get(KEY) is None and not path.exists() and "cut short or altered: it is built again" in caplog.text
    assert cache.build(KEY, lambda: b"another") == b"another"


def test_a_note_that_cannot_be_read_or_is_another_engines_is_refused(cache: Cache) -> None:
    note = built(cache).with_suffix(".json")
    note.write_text("{")
    assert cache.get(KEY) is None
    note = built(cache).with_suffix(".json")
    entry = json.loads(note.read_text())
    note.write_text(json.dumps(entry | {"key": entry["key"] | {"driver": "12.0"}}))
    assert cache.get(KEY) is None


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX's")
@pytest.mark.parametrize("which", ["engine", "json", "folder"])
def test_what_others_could_have_written_is_not_loaded(
    cache: Cache, which: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = built(cache)
    target = cache.folder if which == "folder" else path.with_suffix(f".{which}")
    target.chmod(0o777)
    assert cache.get(KEY) is None and "can be written by others" in caplog.text


@pytest.mark.skipif(
    os.name != "posix" or not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give files away"
)
def test_what_belongs_to_another_user_is_not_loaded(cache: Cache) -> None:
    os.chown(built(cache), 65534, -1)
    assert cache.get(KEY) is None


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX's")
def test_files_are_for_their_owner_alone(cache: Cache) -> None:
    path = built(cache)
    assert [p.stat().st_mode & 0o777 for p in (cache.folder, path, path.with_suffix(".json"))] == [0o700, 0o600, 0o600]


def test_a_build_that_fails_leaves_nothing_and_the_next_one_begins(cache: Cache) -> None:
    def broken() -> bytes:
        raise ValueError("no")

    with pytest.raises(ValueError):
        cache.build(KEY, broken)
    assert cache.get(KEY) is None and built(cache).exists()


def test_parity_figures_stay_with_their_engine_and_go_with_it(cache: Cache) -> None:
    built(cache)
    assert cache.parity_figures(KEY) == {}
    cache.approve(KEY, {"samples": 256})
    assert cache.parity_figures(KEY) == {"samples": 256} and cache.get(KEY) == b"an engine"
    cache.discard(KEY)
    assert cache.parity_figures(KEY) == {} and cache.get(KEY) is None


def test_two_threads_that_want_the_same_engine_build_it_once(cache: Cache) -> None:
    builds, both = [], threading.Barrier(2)

    def want() -> None:
        both.wait()
        cache.build(KEY, lambda: builds.append(1) or b"an engine")  # type: ignore[func-returns-value]

    threads = [threading.Thread(target=want) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert builds == [1]


def test_two_processes_that_want_the_same_engine_build_it_once(tmp_path: Path) -> None:
    program = f"""
import os, sys, time
from pathlib import Path
sys.path.insert(0, {str(ROOT)!r})
from pipeline.inference.cache import Cache, Key
def make():
    Path({str(tmp_path)!r}, f"built-by-{{os.getpid()}}").touch()
    time.sleep(0.5)
    return b"an engine"
key = Key(*"abcdefgh")
assert Cache(Path({str(tmp_path / "engines")!r})).build(key, make) == b"an engine"
"""
    running = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(3)]
    assert [process.wait(60) for process in running] == [0, 0, 0]
    assert len(list(tmp_path.glob("built-by-*"))) == 1


def test_a_process_killed_while_it_builds_holds_nobody_up(tmp_path: Path) -> None:
    program = f"""
import sys, time
from pathlib import Path
sys.path.insert(0, {str(ROOT)!r})
from pipeline.inference.cache import Cache, Key
def make():
    print("building", flush=True)
    time.sleep(60)
Cache(Path({str(tmp_path / "engines")!r})).build(Key(*"abcdefgh"), make)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "building\n"
        process.kill()
    assert Cache(tmp_path / "engines").build(Key(*"abcdefgh"), lambda: b"mine") == b"mine"


def test_only_the_newest_entries_stay(cache: Cache) -> None:
    for index in range(KEEP_ENTRIES + 3):
        note = built(cache, key=replace(KEY, driver=str(index))).with_suffix(".json")
        os.utime(note, (index, index))
    built(cache)
    assert len(list(cache.folder.glob("*.engine"))) == KEEP_ENTRIES and cache.get(KEY) is not None
