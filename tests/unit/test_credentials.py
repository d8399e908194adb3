"""No password and no token is stored, logged or shown."""

from __future__ import annotations

import logging
import time
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
        ("http://host:8080/users/@ada", "http://host:8080/users/@ada"),
        ("rtsp://ada:s/cret@cam/1", "rtsp://…@cam/1"),
        ("http://host/x?accessKey=abc&pw=d", "http://host/x?accessKey=…&pw=…"),
        ("http://host/x?monkey=3&design=4", "http://host/x?monkey=3&design=4"),
        ("http://host/x#token=abc", "http://host/x#token=…"),
        ("rtsp://cam/user=ada_password=abc_channel=1", "rtsp://cam/user=ada_password=…"),
        ("Authorization: Bearer abc", "Authorization: Bearer …"),
        ("options: {'password': 'a b', 'rate_hz': 3}", "options: {'password': …, 'rate_hz': 3}"),
        ('{"token": 1234}', '{"token": …}'),
        ("nodes.page.token: found 3, expected a text", "nodes.page.token: found 3, expected a text"),
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


@pytest.mark.parametrize(
    "secret",
    [
        {"password": 1234},
        {"auth": {"user": "ada", "x": "1234"}},
        {"tokens": ["1234"]},
        {"headers": {"Authorization": "Bearer 1234"}},
        {"authToken": "1234"},
        {"rtsp://ada:1234@cam": 1},
    ],
)
def test_secrets_of_every_type_are_hidden(secret: dict[str, Any]) -> None:
    assert "1234" not in str(without_credentials(secret))


@pytest.mark.parametrize(
    "plain", [{"max_tokens": 128}, {"auth": True}, {"token": ""}, {"keyboard": "a"}, {"pass": None}]
)
def test_what_is_no_secret_stays(plain: dict[str, Any]) -> None:
    assert without_credentials(plain) == plain


@pytest.mark.parametrize("piece", ["_", "'", "a@", "://a:", "authorization:", "'token' "])
def test_a_long_text_takes_no_long_time(piece: str) -> None:
    """A message may quote a file of others: time grows with the length, not with its square."""
    times_s = []
    for length in (20_000, 80_000):
        text = (piece * length)[:length] + "=:"
        began_s = time.process_time()
        without_credentials(text)
        times_s.append(time.process_time() - began_s)
    assert times_s[1] < 8 * times_s[0] + 0.05, times_s


def test_no_log_record_shows_them(capfd: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    before = root.handlers[:]
    root.handlers.clear()
    try:
        log_without_them()
        logging.getLogger("camera").warning("%s is %s", "rtsp://ada:secret@cam", "off")
        try:
            raise ValueError("rtsp://ada:secret@door refused")
        except ValueError:
            logging.getLogger("camera").exception("failed")
    finally:
        root.handlers[:] = before
    assert "secret" not in (err := capfd.readouterr().err) and "rtsp://…@cam is off" in err
    assert "rtsp://…@door refused" in err
