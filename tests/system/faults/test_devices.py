"""A camera and a microphone are unplugged and plugged in again; the wall clock is set."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest
from fault_runs import GRAPH, REPEATS, fault_run
from live_runs import FailingCamera
from sound_server import SoundServer, environment, why_not

from pipeline.clock import NS

pytestmark = [pytest.mark.system, pytest.mark.paced, pytest.mark.parametrize("repeat", range(REPEATS))]

CAMERA = "camera: {use: synthetic, encoding: bgr8, rate_hz: 20, width_px: 320, height_px: 200}"
SOUND = 'sound: {use: "faulty_nodes:Steady", rate_hz: 50}'


def test_camera_unplugged(folder: Path, free_port: int, lens: FailingCamera, demo_models: None, repeat: int) -> None:
    graph = GRAPH.replace(CAMERA, f'camera: {{use: camera, device: "{lens.url}"}}').replace(
        "anchor: camera", "anchor_rate_hz: 20"
    )
    picture = lens.picture
    with fault_run(folder, free_port, graph=graph, more=["--consent", "nobody is in the picture"]) as run:
        fault = run.fault(
            "camera unplugged for 5 s",
            lambda: setattr(lens, "picture", None),
            lambda: setattr(lens, "picture", picture),
            for_s=5.0,
        )
        run.detected(fault, "camera")
        during = [p for _, p in run.predictions.since(fault.began_ns)]
        assert any(p.missing == ("camera",) for p in during)
        run.recovered(fault)
        run.finish(fault)


def test_microphone_unplugged(
    folder: Path, free_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repeat: int
) -> None:
    if missing := why_not():
        pytest.skip(missing)
    for name, value in environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    server = SoundServer(tmp_path)
    graph = GRAPH.replace(SOUND, "sound: {use: microphone}")
    try:
        with fault_run(folder, free_port, graph=graph, more=["--consent", "nobody speaks"]) as run:
            fault = run.fault("microphone unplugged for 5 s", server.unplug, server.plug_in, for_s=5.0)
            run.detected(fault, "sound")
            assert any(p.missing == ("sound",) for _, p in run.predictions.since(fault.began_ns))
            run.recovered(fault)
            run.finish(fault)
    finally:
        server.stop()


def test_wall_clock_is_set(folder: Path, free_port: int, tmp_path: Path, repeat: int) -> None:
    libraries = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
    if not libraries or shutil.which("faketime") is None:
        pytest.skip("setting the wall clock of a run needs faketime: apt-get install faketime")
    clock, other = tmp_path / "clock", tmp_path / "other"
    clock.write_text("+0\n")
    other.write_text("-1d\n")
    inside = [
        "env",
        f"LD_PRELOAD={libraries[0]}",
        f"FAKETIME_TIMESTAMP_FILE={clock}",
        "FAKETIME_CACHE_DURATION=1",
        "FAKETIME_DONT_FAKE_MONOTONIC=1",
    ]
    with fault_run(folder, free_port, inside=inside) as run:
        fault = run.fault("wall clock set back by a day", lambda: other.rename(clock), lambda: None, for_s=3.0)
        run.recovered(fault)
        during = [p for _, p in run.predictions.since(fault.began_ns)]
        assert len(during) >= 0.9 * 3 * 20
        assert all(fault.began_ns - NS < p.capture_ns < time.monotonic_ns() for p in during)
        # The library that falsifies the clock delays a frame now and then, whether the clock is set or not.
        assert sum(bool(p.missing) for p in during) < 0.25 * len(during)
        fault.page.append("nothing: no stamp depends on it")
        run.finish(fault)
