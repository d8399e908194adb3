"""Fixtures that all tests share. Everything heavier belongs to the test that needs it."""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from idle_control import figure_of_time

ROOT = Path(__file__).resolve().parents[1]
CHROMIUM = Path("/usr/bin/chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """A figure of time that fails where the cores are busy with other programs ends undecided, and says so."""
    if item.get_closest_marker("paced") is None:
        return (yield)
    with figure_of_time():
        return (yield)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real data sets (its README.md lists them); none of it is in the repository."""
    folder = Path(os.environ.get("SENSORIUM_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no data at {folder}: set SENSORIUM_DATA to the folder that holds faces/, speech/, driving/ …")
    return folder


@pytest.fixture
def free_port() -> int:
    """A TCP port of 127.0.0.1 that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def folder() -> Iterator[Path]:
    """An empty folder like tmp_path, with a name short enough for sockets below it (104 characters on some systems)."""
    path = Path(tempfile.mkdtemp(prefix="sensorium-test-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    if importlib.util.find_spec("playwright") is None:
        pytest.skip("Playwright is not installed: scripts/setup dev")
    if not CHROMIUM.exists():
        pytest.skip(f"no browser at {CHROMIUM}: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def opened(chromium: Any) -> Iterator[Callable[..., Any]]:
    """opened(url, ready): a page, once `ready`, a function of its script, says so.

    Any error in a page's script fails the test.
    """
    pages, errors = [], list[str]()

    def open_page(url: str, ready: str, *, width_px: int = 1280, height_px: int = 800, **options: Any) -> Any:
        page = chromium.new_page(viewport={"width": width_px, "height": height_px}, **options)
        pages.append(page)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(url)
        page.wait_for_function(ready, timeout=15_000)
        return page

    yield open_page
    for page in pages:
        page.close()
    assert errors == []
