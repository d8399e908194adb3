"""Labels of a CSV become a stream in a copy of the recording; data sets and exported files hold what was recorded."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

from pipeline.cli.import_source import import_source
from pipeline.errors import ConfigError
from pipeline.frame import Frame, Opinion, Prediction, Receipt, StreamInfo
from pipeline.recording import dataset
from pipeline.recording.dataset_export import export_dataset
from pipeline.recording.export import export_recording
from pipeline.recording.labels import Interval, Labels, add_labels, begin_ns, read_csv
from pipeline.recording.reader import Reader
from pipeline.recording.writer import Writer

MS, S = 1_000_000, 1_000_000_000
START_NS = 5 * S


def picture(seq):
    image = np.full((20, 30, 3), 5 * seq, np.uint8)
    return Frame("camera", seq, START_NS + seq * 100 * MS, "bgr8", image, publish_ns=START_NS + seq * 100 * MS)


def prediction(seq, *, embedding=True, voice=0.8):
    face = Opinion(
        "face", "camera", 0.9, (0.75, 0.25), "", np.float32([seq, 1, 2]) if embedding else np.empty(0, np.float32)
    )
    voice_opinion = Opinion(
        "voice", "microphone", voice, (0.5, 0.5), "", np.float32([7, seq]) if embedding else np.empty(0, np.float32)
    )
    receipts = (Receipt("camera", "exact", (seq,)), Receipt("microphone", "partial", (seq,), skew_ns=-3 * MS))
    at_ns = START_NS + seq * 100 * MS
    return Prediction(
        "emotion",
        at_ns,
        ("happy", "sad"),
        np.float32([0.75, 0.25]),
        "happy",
        "m@1",
        receipts=receipts,
        timing_ns={"total": 1},
        opinions=(face, voice_opinion),
    )


@pytest.fixture
def talk(tmp_path):
    return recorded(tmp_path / "talk.mcap")


def recorded(path, **options):
    """Two seconds: a picture, a chunk of sound and a prediction ten times a second, IMU and text."""
    with Writer(path, about={"run": path.stem, "utc_offset_ns": 7}) as writer:
        for name, encoding in (
            ("camera", "bgr8"),
            ("microphone", "pcm_f32"),
            ("imu", "imu_f64"),
            ("said", "text_utf8"),
        ):
            writer.stream(StreamInfo(name, encoding, 10.0))
        writer.stream(StreamInfo("emotion", ""))
        for seq in range(20):
            at_ns = START_NS + seq * 100 * MS
            sound = np.full(800, seq / 100, np.float32)
            writer.write("camera", picture(seq))
            writer.write("microphone", Frame("microphone", seq, at_ns, "pcm_f32", sound, 100 * MS, at_ns + 100 * MS))
            writer.write("imu", Frame("imu", seq, at_ns, "imu_f64", np.arange(6.0) + seq, publish_ns=at_ns))
            writer.write("emotion", prediction(seq, voice=0.8 if seq >= 5 else 0.0, **options))
        writer.write(
            "said", Frame("said", 0, START_NS, "text_utf8", np.frombuffer(b'he said "no",\nthen left', np.uint8))
        )
        writer.note("finished", {"dropped": {}})
    return path


def table(path, text):
    path.write_text(text)
    return path


# --- labels -----------------------------------------------------------------------------------------------------------


def test_a_csv_of_intervals_becomes_a_stream_and_the_rest_is_unchanged(talk, tmp_path):
    intervals = table(tmp_path / "talk.csv", "start_s,end_s,label\n0.0, 0.5,sad\n# a comment\n1.0,,happy\n")
    assert add_labels(talk, intervals, tmp_path / "out.mcap") == 2
    with Reader(talk) as before, Reader(tmp_path / "out.mcap") as after:
        old, new = list(before.messages()), [m for m in after.messages() if m.stream != "label"]
        assert [(m.stream, m.log_ns) for m in old] == [(m.stream, m.log_ns) for m in new] and len(new) == 81
        payloads = [
            [m.message.data.tobytes() for m in messages if isinstance(m.message, Frame)] for messages in (old, new)
        ]
        assert payloads[0] == payloads[1]
        assert (
            after.notes == before.notes
            and after.about["utc_offset_ns"] == 7
            and after.about["labelled_with"] == "talk.csv"
        )
        labels = Labels.read(after)
    at = [labels.at(START_NS + round(s * S)) for s in (0, 0.49, 0.5, 0.99, 1.0, 1.9)]
    assert at == ["sad", "sad", "", "", "happy", "happy"] and labels.at(0) == ""


def test_a_label_without_a_length_holds_until_the_next_and_an_empty_one_ends_it():
    pressed = [(0, "sad"), (10, "happy"), (20, "")]
    labels = Labels.of(
        Frame("label", i, at, "label", np.frombuffer(text.encode(), np.uint8)) for i, (at, text) in enumerate(pressed)
    )
    assert [labels.at(t) for t in (-1, 0, 9, 10, 19, 20, 99)] == ["", "sad", "sad", "happy", "happy", "", ""]
    assert labels.names == ("sad", "happy")


def test_of_two_intervals_the_later_one_holds():
    assert Labels((Interval(0, 100, "sad"), Interval(40, 60, "happy"))).at(50) == "happy"
    assert Labels((Interval(0, 100, "sad"), Interval(40, 60, "happy"))).at(70) == "sad"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("start_s,end_s,label\n", "it has no intervals"),
        ("0,1,sad\n0.5,2,happy\n", "two intervals overlap: 'sad' until 1 s, 'happy' from 0.5 s"),
        ("0,1,sad\nsoon,2,happy\n", r"talk.csv:2: found 'soon'"),
        ("2,1,sad\n", "ends at 1 s, before it begins"),
        ("0,1,\n", "expected start_s,end_s,label"),
        ("0,1,sad,anna\n", "expected start_s,end_s,label"),
        ("-1,1,sad\n", "found '-1'"),
        ("99,,sad\n", "'sad' begins at 99 s; the recording ends at 2.0 s"),
    ],
)
def test_an_invalid_interval_is_refused_with_its_line(talk, tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        add_labels(talk, table(tmp_path / "talk.csv", text), tmp_path / "out.mcap")
    assert not (tmp_path / "out.mcap").exists()


def test_the_table_of_evaluate_stream_is_read_too(tmp_path):
    intervals = read_csv(table(tmp_path / "t.csv", "seconds,label\n0.0,sad\n9.5,happy\n"))
    assert intervals == [Interval(0, None, "sad"), Interval(9_500 * MS, None, "happy")]


def test_seconds_count_from_the_first_picture(talk):
    with Reader(talk) as reader:
        assert begin_ns(reader) == START_NS


# --- the data set -----------------------------------------------------------------------------------------------------


def labelled(folder, name, **options):
    recorded(folder / f"raw-{name}.mcap", **options)
    add_labels(
        folder / f"raw-{name}.mcap", table(folder / "x.csv", "0,0.5,sad\n1,1.5,happy\n"), folder / f"{name}.mcap"
    )
    return folder / f"{name}.mcap"


def test_recordings_become_rows_with_labels_groups_and_modalities(tmp_path):
    output: list[str] = []
    export_dataset([labelled(tmp_path, "anna"), labelled(tmp_path, "ben")], tmp_path / "set", say=output.append)
    rows = dataset.load(tmp_path / "set")
    assert len(rows) == 40 and list(dict.fromkeys(rows.group)) == ["anna", "ben"] and rows.labels == ("happy", "sad")
    assert rows.label[:20].tolist() == [1] * 5 + [-1] * 5 + [0] * 5 + [-1] * 5
    face, voice = rows.modalities["face"], rows.modalities["voice"]
    assert face.kind == "embedding" and face.values[3].tolist() == [3, 1, 2] and face.present.all()
    assert voice.present[:20].tolist() == [False] * 5 + [True] * 15 and not voice.values[4].any()
    assert voice.offset_ns[6] == -3 * MS and voice.offset_ns[4] == 0
    assert "20 labelled" in output[0] and "present in 75% of the rows" in output[-1]


def test_without_embeddings_the_rows_hold_probabilities_and_the_report_says_how_to_get_them(tmp_path):
    output: list[str] = []
    export_dataset([labelled(tmp_path, "anna", embedding=False)], tmp_path / "set", say=output.append)
    assert dataset.load(tmp_path / "set").modalities["face"].kind == "probs" and "embeddings: true" in output[-1]


def test_a_recording_without_labels_names_the_command_that_adds_them(talk, tmp_path):
    with pytest.raises(ConfigError, match=r"it has no labels.*run_pipeline.py label"):
        export_dataset([talk], tmp_path / "set")


def test_recordings_of_different_models_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="differ in their labels or modalities"):
        export_dataset([labelled(tmp_path, "anna"), labelled(tmp_path, "ben", embedding=False)], tmp_path / "set")


# --- export -----------------------------------------------------------------------------------------------------------


def test_a_recording_becomes_films_sounds_and_tables(talk, tmp_path):
    import av

    export_recording(talk, tmp_path / "out", say=lambda line: None)
    names = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert names == [
        "camera.csv",
        "camera.mp4",
        "emotion.jsonl",
        "imu.csv",
        "microphone.csv",
        "microphone.wav",
        "said.csv",
    ]
    with av.open(str(tmp_path / "out/camera.mp4")) as film:
        pictures = list(film.decode(video=0))
    assert [round(float(p.time), 3) for p in pictures] == [round(i * 0.1, 3) for i in range(20)]
    assert abs(float(pictures[10].to_ndarray(format="bgr24").mean()) - 50) < 5  # lossy
    with av.open(str(tmp_path / "out/microphone.wav")) as sound:
        samples = np.concatenate([f.to_ndarray()[0] for f in sound.decode(audio=0)])
    assert samples.shape == (16_000,) and samples[800 * 7] == np.float32(0.07)
    rows = list(csv.reader((tmp_path / "out/imu.csv").open(newline="")))
    at = str(START_NS + 200 * MS)
    assert rows[0][-1] == "wz_rad_s" and rows[3] == ["2", at, "0", at, "0", *map(str, np.arange(6.0) + 2)]
    assert list(csv.reader((tmp_path / "out/said.csv").open(newline="")))[1][-1] == 'he said "no",\nthen left'
    assert json.loads((tmp_path / "out/emotion.jsonl").read_text().splitlines()[0])["label"] == "happy"


def test_where_sound_is_missing_the_file_is_silent(tmp_path):
    import av

    with Writer(tmp_path / "x.mcap", about={}) as writer:
        writer.stream(StreamInfo("mic", "pcm_f32", 10.0))
        for at_ms in (0, 100, 300):
            writer.write(
                "mic", Frame("mic", 0, at_ms * MS, "pcm_f32", np.full(800, 0.5, np.float32), 100 * MS, at_ms * MS + 1)
            )
    export_recording(tmp_path / "x.mcap", tmp_path / "out", say=lambda line: None)
    with av.open(str(tmp_path / "out/mic.wav")) as sound:
        samples = np.concatenate([f.to_ndarray()[0] for f in sound.decode(audio=0)])
    assert [samples[i * 800 + 5] for i in range(4)] == [0.5, 0.5, 0, 0.5]


def test_packets_leave_as_a_capture_that_comes_back_the_same(tmp_path):
    with Writer(tmp_path / "x.mcap", about={}) as writer:
        writer.stream(StreamInfo("lidar", "packet"))
        for i in range(3):
            writer.write(
                "lidar", Frame("lidar", i, START_NS + i, "packet", np.full(1206, i, np.uint8), publish_ns=START_NS + i)
            )
    export_recording(tmp_path / "x.mcap", tmp_path / "out", say=lambda line: None)
    import_source(tmp_path / "out/lidar.pcap", tmp_path / "again.mcap", say=lambda line: None)
    with Reader(tmp_path / "x.mcap") as one, Reader(tmp_path / "again.mcap") as other:
        packets = [
            [(m.message.capture_ns, m.message.data.tobytes()) for m in reader.messages(["lidar"])]
            for reader in (one, other)
        ]
    assert packets[0] == packets[1] and len(packets[0]) == 3


def test_a_folder_that_is_not_empty_is_refused(talk, tmp_path):
    with pytest.raises(ConfigError, match="not empty"):
        export_recording(talk, tmp_path)
