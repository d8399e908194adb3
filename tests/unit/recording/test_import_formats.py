"""Every format that an import reads, on small recordings by tests/support/importing.py: times, numbers and names."""

from __future__ import annotations

import json

import cv2
import importing
import numpy as np
import pytest
from importing import MS, NS, START_NS, imported, shade

from pipeline.cli.import_source import import_source
from pipeline.errors import ConfigError
from pipeline.recording.importers.file_frames import time_ns
from pipeline.recording.importers.formats import open_source
from pipeline.runtime.config import load
from pipeline.runtime.graph import check_graph


def import_checked(source, out, *mapping, **options):
    """The report of an import, whose config must be valid."""
    lines: list[str] = []
    import_source(source, out, mapping=mapping, say=lines.append, **options)
    check_graph(load(out.with_suffix(".yaml")))
    return "\n".join(lines)


def refused(source, out):
    with pytest.raises(ConfigError) as caught:
        import_source(source, out, say=lambda line: None)
    assert not out.exists()
    return str(caught.value)


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out.mcap"


# --- folders ----------------------------------------------------------------------------------------------------------


def test_euroc_has_its_pictures_its_imu_in_our_order_and_its_calibration(tmp_path, out):
    import_checked(importing.euroc(tmp_path / "mh01"), out)
    pictures, imu = imported(out, "cam0"), imported(out, "imu0")
    assert [f.capture_ns for f in pictures] == [START_NS + i * 50 * MS for i in range(4)]
    assert (pictures[2].data == shade(2)[:, :, 2:3]).all() and pictures[0].encoding == "bgr8"
    assert len(imu) == 40 and imu[7].data.tolist() == [9.1, 9.2, 7, 0.1, 0.2, 0.3]
    assert b"458.654" in imported(out, "cam0/sensor")[0].data.tobytes()


def test_tum_has_depth_in_millimetres_and_times_to_the_microsecond(tmp_path, out):
    import_checked(importing.tum(tmp_path / "desk"), out)
    assert [int(f.data[0, 0]) for f in imported(out, "depth")] == [1000, 1001, 1002]
    assert imported(out, "rgb")[1].capture_ns == 1305031453_359681_000
    assert imported(out, "groundtruth")[0].data.tolist() == [1.5, 2, 3, 0, 0, 0, 1]


def test_a_kitti_drive_has_each_sensors_time_stamps_and_the_sweeps_length(tmp_path, out):
    import_checked(importing.kitti_raw(tmp_path / "kitti"), out, "velodyne_points=lidar")
    first_ns = time_ns("2011-09-26 13:02:25", where="")
    sweep, picture = imported(out, "lidar")[0], imported(out, "image_02")[0]
    assert (sweep.capture_ns - first_ns, sweep.duration_ns) == (900_389_445, 99 * MS)
    assert picture.capture_ns - first_ns == 964_389_445 and sweep.data.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert imported(out, "oxts")[0].data.tolist() == [11, 12, 13, 17, 18, 19]
    assert b"P_rect_02" in imported(out, "calibration/calib_cam_to_cam")[0].data.tobytes()


def test_a_drive_with_fewer_times_than_frames_is_refused(tmp_path, out):
    drive = importing.kitti_raw(tmp_path / "kitti")
    (drive / "image_02/timestamps.txt").write_text("2011-09-26 13:02:25.0\n")
    assert "1 times, but there is a file number 2" in refused(drive, out)


def test_a_folder_of_jpegs_is_stored_byte_for_byte(tmp_path, out):
    folder = importing.pictures(tmp_path / "shots")
    import_checked(folder, out, "shots=camera")
    frames = imported(out, "camera")
    assert [f.data.tobytes() for f in frames] == [p.read_bytes() for p in sorted(folder.glob("*.jpg"))]
    assert [f.capture_ns for f in frames] == [0, 40 * MS, 80 * MS] and frames[0].encoding == "jpeg"


def test_pictures_get_times_from_a_table_or_from_their_names(tmp_path, out):
    for folder in ("table", "names"):
        (tmp_path / folder).mkdir()
    cv2.imwrite(str(tmp_path / "table/b.png"), shade(1))
    (tmp_path / "table/when.csv").write_text("file,time\nb.png,12.5\n")
    import_checked(tmp_path / "table", out)
    assert imported(out)[0].capture_ns == 12_500 * MS
    cv2.imwrite(str(tmp_path / "names/1403636579763555584.png"), shade(1))
    import_checked(tmp_path / "names", tmp_path / "names.mcap")
    assert imported(tmp_path / "names.mcap")[0].capture_ns == 1403636579763555584


def test_streams_called_like_a_number_or_like_the_configs_own_nodes_have_a_config_too(tmp_path, out):
    import_checked(importing.pictures(tmp_path / "shots"), out, "shots=align")
    assert load(out.with_suffix(".yaml")).nodes["align-of-out"].options["anchor"] == "align"
    import_checked(importing.pictures(tmp_path / "2024"), tmp_path / "b.mcap")
    assert "2024" in load(tmp_path / "b.yaml").nodes


def test_pictures_without_times_are_refused_with_the_fix(tmp_path, out):
    folder = importing.pictures(tmp_path / "shots")
    (folder / "timestamps.txt").write_text("0.0\n")
    assert "1 times for 3 pictures. Put a timestamps.txt" in refused(folder, out)
    (folder / "timestamps.txt").unlink()
    assert "its 3 pictures have no times. Put a timestamps.txt" in refused(folder, out)


def test_a_damaged_picture_is_listed_and_the_rest_is_imported(tmp_path, out):
    folder = importing.euroc(tmp_path / "mh01")
    broken = sorted((folder / "mav0/cam0/data").iterdir())[1]
    broken.write_bytes(broken.read_bytes()[:50])
    report = import_checked(folder, out)
    assert len(imported(out, "cam0")) == 3 and f"{broken}: a picture that cannot be decoded" in report


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        ("12.5", 12_500 * MS),
        ("1305031453.359684", 1305031453_359684_000),
        ("1403636579763555584", 1403636579763555584),
        ("1700000000123", 1700000000_123_000_000),
        ("1700000000123456", 1700000000_123456_000),
        ("2011-09-26 13:02:25.964389445", 1317042145_964389445),
        ("2011-09-26T15:02:25+02:00", 1317042145 * NS),
    ],
)
def test_times_are_read_exactly_however_people_write_them(text, ns):
    assert time_ns(text, where="here") == ns


@pytest.mark.parametrize("text", ["", "soon", "nan", "1e400", "2011-13-45 10:00:00", "12:30"])
def test_invalid_times_are_refused(text):
    with pytest.raises(ConfigError, match="here: "):
        time_ns(text, where="here")


# --- media files ------------------------------------------------------------------------------------------------------


def test_a_video_has_picture_and_sound_on_one_time_line(tmp_path, out):
    import_checked(importing.video(tmp_path / "clip.mp4"), out, raw=True)
    pictures, sound = imported(out, "camera"), imported(out, "microphone")
    assert [f.capture_ns for f in pictures] == [i * 40 * MS for i in range(25)] and pictures[0].encoding == "bgr8"
    assert sound[0].duration_ns == 20 * MS and len(sound[0].data) == 320
    assert sum(f.duration_ns for f in sound) == pytest.approx(NS, abs=70 * MS) and sound[
        20
    ].data.mean() == pytest.approx(0.25, abs=0.02)
    assert "emotion" in load(out.with_suffix(".yaml")).nodes


def test_the_pictures_of_an_mjpeg_file_stay_unchanged(tmp_path, out):
    import av

    clip = importing.video(tmp_path / "clip.mkv", codec="mjpeg")
    import_checked(clip, out)
    with av.open(str(clip)) as container:
        packets = [bytes(p) for p in container.demux(container.streams.video[0]) if p.size]
    assert [f.data.tobytes() for f in imported(out, "camera")] == packets and len(packets) == 25


# --- captures ---------------------------------------------------------------------------------------------------------


def test_fragments_are_reassembled_and_an_incomplete_packet_is_counted(tmp_path, out):
    body = bytes(range(256)) * 12
    udp = importing.udp_packet(body)[34:]  # without Ethernet and IPv4
    parts = [(0, udp[:1480], True), (1480, udp[1480:2960], True), (2960, udp[2960:], False)]
    whole = [
        b"\0" * 12 + b"\x08\x00" + importing.ip_packet(p, id=7, offset=o, more=m)
        for o, p, m in (parts[2], parts[0], parts[1])
    ]
    lost = b"\0" * 12 + b"\x08\x00" + importing.ip_packet(udp[:1480], id=8, more=True)
    report = import_checked(
        importing.pcap(tmp_path / "x.pcap", [*whole, lost, importing.udp_packet(b"abc", port=9999)]), out
    )
    assert [f.data.tobytes() for f in imported(out, "lidar")] == [body]
    assert imported(out, "udp_9999")[0].data.tobytes() == b"abc" and "a missing fragment (1)" in report


def test_captures_in_nanoseconds_and_packets_that_are_not_udp(tmp_path, out):
    tcp = b"\0" * 12 + b"\x08\x00" + importing.ip_packet(b"\0" * 20, protocol=6)
    packets = [importing.udp_packet(b"abc"), tcp, importing.udp_packet(b"d")]
    report = import_checked(importing.pcap(tmp_path / "x.pcap", packets, magic=0xA1B23C4D), out)
    assert [f.capture_ns - START_NS for f in imported(out, "lidar")] == [0, 2000] and "not UDP (1)" in report


def test_a_pcapng_capture_is_refused_with_the_command_that_converts_it(tmp_path, out):
    (tmp_path / "x.pcapng").write_bytes(b"\x0a\x0d\x0d\x0a" + bytes(40))
    assert "editcap -F pcap" in refused(tmp_path / "x.pcapng", out)


# --- ROS bags and Foxglove files --------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["bag", "db3 folder", "db3 alone", "mcap"])
def ros(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ros")
    match request.param:
        case "bag":
            source = importing.ros1_bag(folder / "all.bag")
        case "mcap":
            source = importing.ros2_mcap(folder / "all.mcap")
        case _:
            source = importing.ros2_bag(folder / "all")
            source = source / "all.db3" if request.param == "db3 alone" else source
    return import_checked(source, folder / "out.mcap", "/velodyne_points=lidar"), folder / "out.mcap"


def test_bag_pictures_are_bgr_and_jpegs_stay_unchanged(ros):
    _, out = ros
    (picture,), (jpeg,) = imported(out, "camera/image"), imported(out, "camera/compressed")
    assert (picture.data == shade(3)).all() and picture.capture_ns == 1_700_000_000 * NS + 5
    assert jpeg.encoding == "jpeg" and jpeg.data.tobytes() == cv2.imencode(".jpg", shade(3))[1].tobytes()


def test_bag_depth_in_metres_becomes_millimetres_with_0_for_no_reading(ros):
    (depth,) = imported(ros[1], "depth")
    assert depth.encoding == "depth_u16_mm" and depth.data.tolist() == [[1000, 2000, 0], [500, 0, 65535]]


def test_bag_points_have_reflectance_in_0_to_1_and_what_is_left_out_is_listed(ros):
    report, out = ros
    (sweep,) = imported(out, "lidar")
    assert sweep.data.tolist() == [[1, 2, 3, np.float32(0.2)], [4, 5, 6, 1]]
    assert "not ring" in report and "reflectance = intensity / 255" in report and "without a position" in report


def test_bag_scans_imu_texts_and_calibration(ros):
    _, out = ros
    (scan,), (imu,), (text,), (info,) = (imported(out, name) for name in ("scan", "imu", "said", "camera/camera_info"))
    assert scan.data.tolist() == [[2, 0, 0, 0]] and scan.duration_ns == 20 * MS
    assert imu.data.tolist() == [1, 2, 3, 4, 5, 6] and text.data.tobytes() == b"hello"
    camera = json.loads(info.data.tobytes())
    assert camera["K"] == list(range(9)) and camera["width"] == 48 and camera["distortion_model"] == "plumb_bob"


def test_packets_of_a_type_that_only_the_bag_defines_are_stored_with_their_stamps(ros):
    frames = imported(ros[1], "fleet")
    assert [(f.capture_ns - START_NS, f.data.tobytes()) for f in frames] == [
        (100 + i, bytes([i] * 5)) for i in range(3)
    ]
    assert frames[0].publish_ns == START_NS + 7 * MS  # the bag's time


def test_bag_sound_is_mono_and_ends_at_the_bags_time(ros):
    (chunk,) = imported(ros[1], "audio/audio")
    assert len(chunk.data) == 160 and chunk.data[0] == 0.25 and chunk.duration_ns == 10 * MS
    assert chunk.end_ns == START_NS + 9 * MS == chunk.publish_ns


def test_a_topic_of_an_unsupported_type_is_listed(ros):
    assert "/pose: geometry_msgs/msg/Quaternion: this type is not supported (1)" in ros[0]


def test_a_foxglove_file_of_another_program_is_read_by_its_schemas(tmp_path, out):
    report = import_checked(importing.foxglove_mcap(tmp_path / "theirs.mcap"), out)
    (picture,), (sweep,) = imported(out, "cam"), imported(out, "points")
    assert (picture.data == shade(4)).all() and picture.capture_ns == START_NS
    assert sweep.data.shape == (2, 4) and sweep.data[1].tolist()[:3] == [4, 5, 6]
    assert "/scene: foxglove.SceneUpdate" in report


def test_a_recording_of_sensorium_is_not_imported(tmp_path, out):
    import_checked(importing.pictures(tmp_path / "shots"), out)
    assert "it is a recording already" in refused(out, tmp_path / "again.mcap")


def test_an_unsupported_source_is_refused_with_the_formats(tmp_path, out):
    (tmp_path / "letter.txt").write_text("dear")
    (tmp_path / "empty").mkdir()
    assert "Formats: media files" in refused(tmp_path / "letter.txt", out)
    assert "Formats: media files" in refused(tmp_path / "empty", out)
    assert "Did you mean 'letter.txt'" in refused(tmp_path / "leter.txt", out)


@pytest.mark.parametrize("time", ["9" * 30, "9" * 5000, "18446744073709551616", "٣"])
def test_a_time_that_is_never_reached_is_refused_with_its_line(tmp_path, time):
    folder = importing.euroc(tmp_path / "x")
    table = folder / "mav0/imu0/data.csv"
    table.write_text(f"{time},0.1,0.2,0.3,9.1,9.2,1\n")
    with pytest.raises(ConfigError, match=r"imu0/data\.csv:1: found '.*', expected"):
        list(open_source(folder).frames)


@pytest.mark.parametrize("time", ["9e99999999999999999", "1e400", "nan", "-inf", "9" * 5000, "10000-13-40", ""])
def test_seconds_that_are_never_reached_are_refused(time):
    with pytest.raises(ConfigError, match=r"times\.txt:3: found '.*', expected a time"):
        time_ns(time, where="times.txt:3")


@pytest.mark.parametrize("compression", ["bz2", "lz4"])
def test_a_chunk_of_a_bag_is_decompressed_within_bounds(tmp_path, compression, monkeypatch):
    """rosbags itself would fill memory with what a small chunk stands for."""
    from rosbags.rosbag1 import Writer

    from pipeline.recording import decompression

    store = importing.ros_store(ros1=True)
    with_zeros = tmp_path / "x.bag"
    writer = Writer(with_zeros)
    writer.set_compression(Writer.CompressionFormat[compression.upper()])
    with writer:
        text = store.types["std_msgs/msg/String"](data="0" * 4_000_000)
        connection = writer.add_connection("/text", "std_msgs/msg/String", typestore=store)
        writer.write(connection, START_NS, bytes(store.serialize_ros1(text, "std_msgs/msg/String")))
    assert [len(frame.data) for frame in open_source(with_zeros).frames] == [4_000_000]
    monkeypatch.setattr(decompression, "MAX_BYTES", 1 << 20)
    with pytest.raises(ConfigError, match=r"x\.bag: cannot be read as a ROS bag: it holds more bytes than the 1048576"):
        list(open_source(with_zeros).frames)
