"""What a user meets at the terminal: each mistake one clear line, the right exit code, and never a traceback."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path

import pytest
from running import COMMAND, a_file, environment, finished, running, wait_for

pytestmark = pytest.mark.system

ROOT = Path(__file__).resolve().parents[2]
SOURCE = "camera: {use: synthetic, encoding: series_f32, rate_hz: 50}"
NOBODY = "http://127.0.0.1:9/"  # the discard port: refused at once


def refused(folder: Path, *arguments: str, exit_code: int, **more: str) -> str:
    """The one line that says what is wrong."""
    done = finished(folder, *arguments, **more)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == exit_code, done.stderr
    assert len(errors) == 1, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    return errors[0].removeprefix("error: ")


def missing(folder: Path, package: str, error: str) -> str:
    """A folder for PYTHONPATH in which `package` cannot be imported."""
    (folder / "without").mkdir()
    (folder / "without" / f"{package}.py").write_text(f"raise {error}\n")
    return str(folder / "without")


# --- words ------------------------------------------------------------------------------------------------------------


def test_unknown_verb_names_the_nearest(folder: Path) -> None:
    assert "there is no 'rnu'" in (message := refused(folder, "rnu", exit_code=2)) and "Did you mean 'run'?" in message


def test_config_without_a_verb_says_run(folder: Path) -> None:
    assert "Did you mean: run configs/emotion-live.yaml?" in refused(folder, "configs/emotion-live.yaml", exit_code=2)


@pytest.mark.parametrize("time", ["never", "0s", "10 parsecs", "nan", ""])
def test_for_that_is_no_time_says_what_one_is(folder: Path, time: str) -> None:
    assert "--for: found" in refused(folder, "run", "--for", time, exit_code=2)


def test_bench_without_a_name_lists_them(folder: Path) -> None:
    assert "which one? Here: align, calibration" in refused(folder, "bench", exit_code=2)


def test_ctrl_c_while_the_program_is_loaded_ends_without_a_traceback(folder: Path) -> None:
    done = finished(folder, "nodes", PYTHONPATH=missing(folder, "zmq", "KeyboardInterrupt"))
    assert done.returncode == 130 and done.stderr == ""


def test_config_error_is_one_line(folder: Path) -> None:
    message = refused(folder, "run", str(ROOT / "tests/configs/invalid-unknown-key.yaml"), exit_code=2)
    assert message.endswith("Did you mean 'width_px'?")


def test_cycle_is_detected_before_anything_starts(folder: Path) -> None:
    assert "first → second → first" in refused(
        folder, "run", str(ROOT / "tests/configs/invalid-cycle.yaml"), exit_code=2
    )


def test_missing_config_is_named(folder: Path) -> None:
    assert "nope.yaml: there is no such file" in refused(folder, "run", "nope.yaml", exit_code=2)


# --- devices and files ------------------------------------------------------------------------------------------------


def camera(folder: Path, device: object) -> str:
    nodes = f"camera: {{use: camera, device: {device}}}\nalign: {{use: align, inputs: [camera], anchor: camera}}"
    return a_file(folder, nodes)


def test_no_camera_says_what_to_do_and_exits_with_3(folder: Path) -> None:
    message = refused(folder, "run", camera(folder, 77), exit_code=3)
    assert message.startswith("camera 'camera': no camera at /dev/video77") and "Plug one in" in message


def test_missing_video_file_is_named(folder: Path) -> None:
    assert "no file clip.mp4" in refused(folder, "run", camera(folder, "clip.mp4"), exit_code=2)


def test_broken_video_file_is_named(folder: Path) -> None:
    (folder / "clip.mp4").write_bytes(b"\x00\x00\x00\x18ftypmp42" + bytes(range(256)) * 40)
    assert "clip.mp4" in refused(folder, "run", camera(folder, "clip.mp4"), exit_code=2)


MICROPHONE = "microphone: {use: microphone}\nalign: {use: align, inputs: [microphone], anchor: microphone}"


@pytest.mark.parametrize(
    "error",
    [
        "ModuleNotFoundError('No module', name='pyaudio')",
        "ImportError('libportaudio.so.2: cannot open shared object file')",
    ],
    ids=["no PyAudio", "no PortAudio"],
)
def test_microphone_without_portaudio_says_how_to_get_it(folder: Path, error: str) -> None:
    without = missing(folder, "pyaudio", error)
    assert "scripts/setup mic" in refused(folder, "run", a_file(folder, MICROPHONE), exit_code=3, PYTHONPATH=without)


def test_optional_microphone_without_portaudio_is_reported_and_the_run_continues(folder: Path) -> None:
    without = missing(folder, "pyaudio", "ModuleNotFoundError('No module', name='pyaudio')")
    nodes = f"""{SOURCE}
        microphone: {{use: microphone, optional: true}}
        align: {{use: align, inputs: [camera, microphone], anchor: camera}}
    """
    done = finished(folder, "run", a_file(folder, nodes), "--for", "300ms", PYTHONPATH=without)
    assert done.returncode == 0
    assert done.stderr.count("scripts/setup mic") == 1
    assert "unaccounted: none" in done.stdout


def test_port_that_is_taken_is_named(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        graph = a_file(folder, f"{SOURCE}\npage: {{use: dashboard, inputs: [camera], port: {port}}}")
        assert f"{port}" in refused(folder, "run", graph, exit_code=2)


@pytest.mark.parametrize("path", ["no/such/folder/p.jsonl", "."])
def test_out_that_cannot_be_written_is_named(folder: Path, path: str) -> None:
    nodes = f"{SOURCE}\nalign: {{use: align, inputs: [camera], anchor: camera}}\n"
    nodes += 'mood: {use: infer, task: "third_party:Mood", inputs: [align]}'
    message = refused(
        folder, "run", a_file(folder, nodes), "--out", path, exit_code=2, PYTHONPATH=str(ROOT / "tests" / "support")
    )
    assert message.startswith(f"--out {path}: cannot be written")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a disk without room")
def test_out_on_a_full_disk_is_counted_and_the_run_goes_on_to_its_summary(folder: Path) -> None:
    nodes = f"{SOURCE}\nalign: {{use: align, inputs: [camera], anchor: camera}}\n"
    nodes += 'mood: {use: infer, task: "third_party:Mood", inputs: [align]}'
    done = finished(
        folder,
        "run",
        a_file(folder, nodes),
        "--out",
        "/dev/full",
        "--for",
        "500ms",
        PYTHONPATH=str(ROOT / "tests" / "support"),
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert (
        done.stderr.count("--out /dev/full: No space left on device. Predictions are counted, not written, until") == 1
    )
    assert "error: --out /dev/full: the summary could not be written: No space left on device" in done.stderr
    assert "disk full" in done.stdout and "unaccounted: none" in done.stdout


def test_out_of_a_graph_without_predictions_is_refused(folder: Path) -> None:
    graph = a_file(folder, f"{SOURCE}\nalign: {{use: align, inputs: [camera], anchor: camera}}")
    assert "sends predictions" in refused(folder, "run", graph, "--out", "p.jsonl", exit_code=2)


# --- models, assets, packages -----------------------------------------------------------------------------------------


def test_asset_without_a_network_says_where_to_put_the_file(folder: Path) -> None:
    offline = {
        "SENSORIUM_CACHE": str(folder / "cache"),
        "PIP_INDEX_URL": NOBODY,
        "PIP_EXTRA_INDEX_URL": "",
        "PIP_FIND_LINKS": "",
    }
    message = refused(folder, "demo", "--no-dashboard", exit_code=2, SENSORIUM_ASSETS="", **offline)
    assert "asset 'demo-clip'" in message and "set SENSORIUM_ASSETS" in message


def test_asset_with_another_hash_is_not_used(folder: Path) -> None:
    (folder / "silero_vad.onnx").write_bytes(b"another model")
    other = {"SENSORIUM_CACHE": str(folder / "cache"), "SENSORIUM_ASSETS": str(folder)}
    message = refused(folder, "models", "pull", "silero-vad", exit_code=2, **other)
    assert "is not the pinned file: expected sha256 1a153a22" in message


def test_ctrl_c_while_an_asset_is_fetched_ends_at_once(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as index:  # takes the call, and never answers
        url = f"http://127.0.0.1:{index.getsockname()[1]}/"
        more = {"PIP_INDEX_URL": url, "PIP_EXTRA_INDEX_URL": "", "PIP_FIND_LINKS": "", "SENSORIUM_ASSETS": ""}
        with running(folder, "demo", SENSORIUM_CACHE=str(folder / "cache"), **more) as run:
            index.settimeout(20)
            call, _ = index.accept()
            run.interrupt()
            assert run.wait(3) == 130
            wait_for(lambda: not run.children(), "the end of pip", give_up_s=3)
            call.close()
            assert "Traceback" not in run.err


def test_missing_package_of_a_node_names_setup(folder: Path) -> None:
    without = missing(folder, "onnxruntime", "ModuleNotFoundError('No module', name='onnxruntime')")
    nodes = (
        f"{SOURCE}\nalign: {{use: align, inputs: [camera], anchor: camera}}\nemotion: {{use: infer, inputs: [align]}}"
    )
    message = refused(folder, "run", a_file(folder, nodes), exit_code=2, PYTHONPATH=without)
    assert "'onnxruntime' is not installed. Install it with: scripts/setup" in message


def test_missing_package_of_the_core_names_setup(folder: Path) -> None:
    without = missing(folder, "zmq", "ModuleNotFoundError('No module', name='zmq')")
    assert "'zmq' is not installed. Install it with: scripts/setup" in refused(
        folder, "nodes", exit_code=2, PYTHONPATH=without
    )


# --- looking around ---------------------------------------------------------------------------------------------------


def test_nodes_lists_every_node_with_a_line(folder: Path) -> None:
    listed = finished(folder, "nodes").stdout
    assert all(
        f"\n  {name} " in f"\n{listed}" for name in ("align", "camera", "console", "dashboard", "infer", "microphone")
    )


def test_nodes_name_shows_its_options(folder: Path) -> None:
    assert "rate_hz: float" in finished(folder, "nodes", "synthetic").stdout


def test_unknown_node_names_the_nearest(folder: Path) -> None:
    assert "Did you mean 'camera'?" in refused(folder, "nodes", "camra", exit_code=2)


def test_models_lists_ours_and_those_of_others_with_their_licences(folder: Path) -> None:
    listed = finished(folder, "models").stdout
    assert "centerface" in listed and "MIT" in listed


def test_unknown_model_is_refused(folder: Path) -> None:
    assert "no such model" in refused(folder, "models", "info", "nope", exit_code=2)


def test_check_opens_nothing(folder: Path) -> None:
    done = finished(folder, "check", camera(folder, 77))
    assert (done.returncode, "2 nodes, no errors" in done.stdout) == (0, True)


def test_doctor_says_once_how_to_get_the_microphone(folder: Path) -> None:
    without = missing(folder, "pyaudio", "ModuleNotFoundError('No module', name='pyaudio')")
    assert finished(folder, "doctor", PYTHONPATH=without).stdout.count("scripts/setup mic") == 1


def test_doctor_says_what_works(folder: Path) -> None:
    done = finished(folder, "doctor")
    assert done.returncode == 0, done.stderr
    assert "Linux" in done.stdout and "onnxruntime" in done.stdout


def test_notice_is_printed_once_in_full(folder: Path) -> None:
    graph = a_file(folder, f"{SOURCE}\nalign: {{use: align, inputs: [camera], anchor: camera}}")
    first = finished(folder, "run", graph, "--for", "50ms", SENSORIUM_CACHE=str(folder / "cache")).stdout
    second = finished(folder, "run", graph, "--for", "50ms", SENSORIUM_CACHE=str(folder / "cache")).stdout
    assert "Tell the people in view that they are being watched" in first
    assert "tell the people in view" in second and len(second) < len(first)


def test_summary_is_the_last_output(folder: Path) -> None:
    graph = a_file(folder, f"{SOURCE}\nalign: {{use: align, inputs: [camera], anchor: camera}}")
    assert finished(folder, "run", graph, "--for", "100ms").stdout.splitlines()[-1] == "  unaccounted: none"


def test_command_works_from_any_folder(folder: Path) -> None:
    done = finished(folder, "check", "configs/emotion-live.yaml")
    assert done.returncode == 0, done.stderr


def test_output_that_nobody_reads_to_the_end_is_no_error(folder: Path) -> None:
    command = [*COMMAND, "nodes"]
    with subprocess.Popen(
        command, cwd=folder, env=environment(folder), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as run:
        assert run.stdout is not None and run.stderr is not None
        run.stdout.close()  # as `| head` does
        assert (run.wait(20), run.stderr.read()) == (0, b"")
