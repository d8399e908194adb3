"""The web page without its server: options it refuses, what it says of a stream, and whom headers let in."""

from typing import Any

import numpy as np
import pytest
from browsing import MS, picture

from nodes.dashboard.dashboard import FLOOR_DB, Dashboard, StreamView, shrunk
from pipeline.errors import ConfigError
from pipeline.frame import Frame, silence
from pipeline.web.server import refusal

# ---- options, without a server ----


def test_an_address_beyond_this_machine_needs_a_token() -> None:
    with pytest.raises(ConfigError, match=r"token"):
        Dashboard(address="0.0.0.0")
    with pytest.raises(ConfigError, match=r"8 characters"):
        Dashboard(address="0.0.0.0", token="")
    Dashboard(address="0.0.0.0", token="a long secret")
    Dashboard(address="::1")


@pytest.mark.parametrize("options", [{"port": 70000}, {"port": -1}, {"max_rate_hz": 0.0}, {"width_px": 0}])
def test_impossible_options_are_refused_by_name(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        Dashboard(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{"camera": "camra"}, {"points": ["lida"]}])
def test_a_stream_it_does_not_read_is_named_with_the_nearest(options: dict[str, Any]) -> None:
    with pytest.raises(
        ConfigError, match=rf"{next(iter(options))}: .*is not one of its inputs.*Did you mean '(camera|lidar)'"
    ):
        Dashboard(port=0, **options).check_inputs(("camera", "lidar"))


# ---- what a stream looks like ----


def test_level_and_peak_of_a_sine_are_those_of_a_sine() -> None:
    sine = (0.5 * np.sin(np.arange(1600) * 0.3)).astype(np.float32)
    view = StreamView().after(Frame("microphone", 0, 0, "pcm_f32", sine, duration_ns=100 * MS), 100 * MS)
    assert view.level_db == pytest.approx(20 * np.log10(0.5 / np.sqrt(2)), abs=0.1)
    assert view.peak_db == pytest.approx(20 * np.log10(0.5), abs=0.1)


def test_peak_falls_slowly_and_silence_is_the_floor() -> None:
    clap = StreamView().after(Frame("microphone", 0, 0, "pcm_f32", np.ones(160, np.float32)), 0)
    later = clap.after(Frame("microphone", 1, 500 * MS, "pcm_f32", np.zeros(160, np.float32)), 500 * MS)
    assert (later.level_db, later.peak_db) == (FLOOR_DB, -10.0)


def test_rate_and_latency_are_the_sources_own_when_frames_were_skipped_on_the_way() -> None:
    view = StreamView()
    for seq in range(0, 60, 5):
        view = view.after(picture(seq, 16, 16), seq * 40 * MS + 12 * MS)
    assert view.rate_hz == pytest.approx(25.0)
    assert view.latency_ns == 12 * MS


def test_a_silence_keeps_its_reason_until_the_next_frame() -> None:
    view = StreamView().after(picture(3), 0).after(silence("camera", 200 * MS, "unplugged"), 0)
    assert (view.reason, view.rate_hz, view.encoding, view.seq) == ("unplugged", None, "bgr8", 3)
    assert view.after(picture(9), 0).reason == ""


def test_pictures_shrink_to_the_width_and_never_grow() -> None:
    assert shrunk(np.zeros((720, 1280, 3), np.uint8), 960).shape == (540, 960, 3)
    assert shrunk(np.zeros((2160, 3840, 3), np.uint8), 960).shape == (540, 960, 3)
    small = np.zeros((36, 64, 3), np.uint8)
    assert shrunk(small, 960).shape == small.shape and not np.shares_memory(shrunk(small, 960), small)


# ---- who may look: headers alone ----


@pytest.mark.parametrize("host", ["127.0.0.1:8080", "localhost:8080", "localhost", "[::1]:8080", "127.0.0.1:9000"])
def test_this_machines_own_names_are_let_in(host: str) -> None:
    assert refusal({"host": host}, presented="", token=None) is None
    assert refusal({"host": host, "origin": f"http://{host}"}, presented="", token=None) is None


@pytest.mark.parametrize(
    "host", ["evil.example:8080", "127.0.0.1.evil.example", "localhost.evil.example", "", "[", "192.168.1.7:8080"]
)
def test_another_name_for_this_machine_is_refused(host: str) -> None:
    assert refusal({"host": host}, presented="", token=None) is not None


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example",
        "null",
        "",
        "http://localhost:3000",
        "http://127.0.0.1:8080.evil.example",
        "http://[",
        "file://",
    ],
)
def test_the_page_of_another_site_is_refused(origin: str) -> None:
    refused = refusal({"host": "127.0.0.1:8080", "origin": origin}, presented="", token=None)
    assert refused is not None and refused[0] in (400, 403)


def test_with_a_token_the_token_decides_and_the_origin_still_counts() -> None:
    assert refusal({"host": "rig.lan"}, presented="a long secret", token="a long secret") is None
    assert refusal({"host": "rig.lan"}, presented="", token="a long secret") == refusal(
        {"host": "rig.lan"}, presented="ä", token="a long secret"
    )
    assert (
        refusal({"host": "rig.lan", "origin": "http://evil.example"}, presented="a long secret", token="a long secret")
        is not None
    )
