"""No password and no token is stored, logged or shown."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from pipeline.credentials import log_without_them, without_credentials


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("rtsp://ada:secret@cam:554/live", "rtsp://…@cam:554/live"),
        ("rtsp://ada@cam/live", "rtsp://…@cam/live"),
        ("http://a:p@ss@host/x", "http://…@host/x"),
        ("http://host/x?password=p&size=3", "http://host/x?password=…&size=3"),
        ("http://host/x?access_token=abc", "http://host/x?access_token=…"),
        ("http://host/x?user=ada&API_KEY=abc#top", "http://host/x?user=ada&API_KEY=…#top"),
        ("camera: rtsp://u:p@h/1 refused; trying http://h/?token=t again", None),
        ("user@example.org", "user@example.org"),
        ("a plain note, 3 = 3", "a plain note, 3 = 3"),
        ("http://[::1]:8080/", "http://[::1]:8080/"),
    ],
)
def test_addresses_lose_their_user_part_and_what_their_query_hides(text: str, hidden: str | None) -> None:
    expected = "camera: rtsp://…@h/1 refused; trying http://h/?token=… again" if hidden is None else hidden
    assert without_credentials(text) == expected


def test_tables_lose_the_values_of_telling_names_at_any_depth() -> None:
    options: dict[str, Any] = {
        "device": "rtsp://a:b@c",
        "options": [{"camera_password": "x", "rate_hz": 3}],
        "token": None,
    }
    assert without_credentials(options) == {
        "device": "rtsp://…@c",
        "options": [{"camera_password": "…", "rate_hz": 3}],
        "token": None,
    }


def test_no_log_record_shows_them(capfd: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    before = root.handlers[:]
    root.handlers.clear()
    try:
        log_without_them()
        logging.getLogger("camera").warning("%s is %s", "rtsp://ada:secret@cam", "off")
    finally:
        root.handlers[:] = before
    assert "secret" not in (err := capfd.readouterr().err) and "rtsp://…@cam is off" in err
