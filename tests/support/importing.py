"""Small recordings in every format that import reads, written by the formats' own writers where there is one."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from pipeline.frame import Frame
from pipeline.recording.reader import Reader

NS, MS = 1_000_000_000, 1_000_000
START_NS = 1_700_000_000 * NS


def imported(out: Path, stream: str | None = None) -> list[Frame]:
    with Reader(out) as reader:
        return [
            message for _, message, _ in reader.messages([stream] if stream else None) if isinstance(message, Frame)
        ]


def shade(i: int, *, width: int = 48, height: int = 32) -> np.ndarray:
    """A picture whose colour depends on its number."""
    image = np.zeros((height, width, 3), np.uint8)
    image[:, :, 0], image[:, : width // 2, 2] = 10 * i, 200
    return image


def euroc(folder: Path, count: int = 4) -> Path:
    for sensor in ("cam0", "imu0"):
        (folder / "mav0" / sensor / "data").mkdir(parents=True)
    rows = []
    for i in range(count):
        cv2.imwrite(str(folder / f"mav0/cam0/data/{START_NS + i * 50 * MS}.png"), shade(i)[:, :, 2])
        rows.append(f"{START_NS + i * 50 * MS},{START_NS + i * 50 * MS}.png")
    (folder / "mav0/cam0/data.csv").write_text("#timestamp [ns],filename\n" + "\n".join(rows))
    (folder / "mav0/cam0/sensor.yaml").write_text("rate_hz: 20\nintrinsics: [458.654, 457.296, 367.215, 248.375]\n")
    imu = "\n".join(f"{START_NS + i * 5 * MS},0.1,0.2,0.3,9.1,9.2,{i}" for i in range(10 * count))
    (folder / "mav0/imu0/data.csv").write_text("#timestamp [ns],w_x,w_y,w_z,a_x,a_y,a_z\n" + imu)
    return folder


def tum(folder: Path, count: int = 3) -> Path:
    for kind in ("rgb", "depth"):
        (folder / kind).mkdir(parents=True)
    for i in range(count):
        cv2.imwrite(str(folder / f"rgb/{i}.png"), shade(i))
        cv2.imwrite(str(folder / f"depth/{i}.png"), np.full((32, 48), 5000 + 5 * i, np.uint16))
    (folder / "rgb.txt").write_text(
        "# color images\n" + "\n".join(f"1305031453.35968{i} rgb/{i}.png" for i in range(count))
    )
    (folder / "depth.txt").write_text("\n".join(f"1305031453.37411{i} depth/{i}.png" for i in range(count)))
    (folder / "groundtruth.txt").write_text("# timestamp tx ty tz qx qy qz qw\n1305031453.4 1.5 2 3 0 0 0 1\n")
    return folder


def kitti_raw(folder: Path, count: int = 3) -> Path:
    drive = folder / "2011_09_26" / "2011_09_26_drive_0001_sync"
    for sensor in ("image_02", "velodyne_points", "oxts"):
        (drive / sensor / "data").mkdir(parents=True)

    def times(sensor: str, name: str, late_ms: int) -> None:
        lines = [f"2011-09-26 13:02:{25 + i}.{late_ms:03d}389445" for i in range(count)]
        (drive / sensor / name).write_text("\n".join(lines) + "\n")

    for i in range(count):
        cv2.imwrite(str(drive / f"image_02/data/{i:010d}.png"), shade(i))
        np.arange(8, dtype="<f4").tofile(drive / f"velodyne_points/data/{i:010d}.bin")
        (drive / f"oxts/data/{i:010d}.txt").write_text(" ".join(str(float(n)) for n in range(30)) + "\n")
    times("image_02", "timestamps.txt", 964)
    times("velodyne_points", "timestamps.txt", 950)
    times("velodyne_points", "timestamps_start.txt", 900)
    times("velodyne_points", "timestamps_end.txt", 999)
    times("oxts", "timestamps.txt", 100)
    (folder / "2011_09_26" / "calib_cam_to_cam.txt").write_text("calib_time: 09-Jan-2012\nP_rect_02: 1 2 3\n")
    return drive


def pictures(folder: Path, count: int = 3) -> Path:
    folder.mkdir(parents=True)
    for i in range(count):
        cv2.imwrite(str(folder / f"{i:03d}.jpg"), shade(i))
    (folder / "timestamps.txt").write_text("\n".join(f"{i * 0.04:.2f}" for i in range(count)))
    return folder


def video(path: Path, count: int = 25, *, codec: str = "mpeg4") -> Path:
    import av

    with av.open(str(path), "w") as container:
        pictures_, sound = container.add_stream(codec, rate=25), container.add_stream("aac", rate=16000)
        pictures_.width, pictures_.height, pictures_.pix_fmt = 48, 32, "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for i in range(count):
            container.mux(pictures_.encode(av.VideoFrame.from_ndarray(shade(i % 20), format="bgr24")))
            chunk = av.AudioFrame.from_ndarray(np.full((1, 640), 0.25, np.float32), format="fltp", layout="mono")
            chunk.sample_rate, chunk.pts = 16000, i * 640
            container.mux(sound.encode(chunk))
        container.mux(pictures_.encode(None))
        container.mux(sound.encode(None))
    return path


def udp_packet(body: bytes, *, port: int = 2368, id: int = 1) -> bytes:
    """A packet of Ethernet, IPv4 and UDP."""
    udp = struct.pack(">4H", port, port, 8 + len(body), 0) + body
    return b"\0" * 12 + b"\x08\x00" + ip_packet(udp, id=id)


def ip_packet(payload: bytes, *, id: int = 1, offset: int = 0, more: bool = False, protocol: int = 17) -> bytes:
    flags = (0x2000 if more else 0) | offset // 8
    head = struct.pack(
        ">BBHHHBBH4s4s",
        0x45,
        0,
        20 + len(payload),
        id,
        flags,
        64,
        protocol,
        0,
        bytes([10, 0, 0, 2]),
        bytes([10, 0, 0, 1]),
    )
    return head + payload


def pcap(path: Path, packets: list[bytes], *, magic: int = 0xA1B2C3D4, link: int = 1) -> Path:
    parts = [struct.pack("<IHHiIII", magic, 2, 4, 0, 0, 1 << 16, link)]
    for i, packet in enumerate(packets):
        parts += [struct.pack("<4I", 1_700_000_000, 1000 * i, len(packet), len(packet)), packet]
    path.write_bytes(b"".join(parts))
    return path


def ros_store(*, ros1: bool) -> Any:
    from rosbags.typesys import Stores, get_types_from_msg, get_typestore

    store = get_typestore(Stores.ROS1_NOETIC if ros1 else Stores.ROS2_HUMBLE)
    store.register(get_types_from_msg("uint8[] data", "audio_common_msgs/msg/AudioData"))
    fields = "uint8 channels\nuint32 sample_rate\nstring sample_format\nuint32 bitrate\nstring coding_format"
    store.register(get_types_from_msg(fields, "audio_common_msgs/msg/AudioInfo"))
    store.register(get_types_from_msg("std_msgs/Header header\nmy_msgs/Parcel[] packets", "my_msgs/msg/Fleet"))
    store.register(
        get_types_from_msg(f"{'time' if ros1 else 'builtin_interfaces/Time'} stamp\nuint8[] data", "my_msgs/msg/Parcel")
    )
    return store


def ros_messages(store: Any, *, ros1: bool) -> list[tuple[str, str, Any]]:
    """(topic, type, message): one of each type that an import reads, and one that it does not."""
    types = store.types

    def header(ns: int = 5) -> Any:
        fields = {"stamp": types["builtin_interfaces/msg/Time"](sec=1_700_000_000, nanosec=ns), "frame_id": "here"}
        return types["std_msgs/msg/Header"](**fields, **({"seq": 0} if ros1 else {}))

    raw = lambda array: np.ascontiguousarray(array).view(np.uint8).reshape(-1)  # noqa: E731
    picture = shade(3)
    jpeg = cv2.imencode(".jpg", picture)[1].reshape(-1)
    vector = types["geometry_msgs/msg/Vector3"]
    field = types["sensor_msgs/msg/PointField"]
    points = np.array(
        [(1, 2, 3, 51, 7), (4, 5, 6, 255, 8), (np.nan, 0, 0, 0, 9)],
        np.dtype([("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("intensity", "<f4"), ("ring", "<u2")]),
    )
    fields = [
        field(name=n, offset=4 * i, datatype=7 if n != "ring" else 4, count=1)
        for i, n in enumerate(("x", "y", "z", "intensity", "ring"))
    ]
    cov = np.zeros(9)
    parcel = types["my_msgs/msg/Parcel"]
    parcels = [
        parcel(
            stamp=types["builtin_interfaces/msg/Time"](sec=1_700_000_000, nanosec=100 + i), data=np.full(5, i, np.uint8)
        )
        for i in range(3)
    ]
    roi = types["sensor_msgs/msg/RegionOfInterest"](x_offset=0, y_offset=0, height=0, width=0, do_rectify=False)
    sizes = {"d": 5, "k": 9, "r": 9, "p": 12}
    numbers = {name.upper() if ros1 else name: np.arange(size, dtype=np.float64) for name, size in sizes.items()}
    return [
        (
            "/camera/image",
            "sensor_msgs/msg/Image",
            types["sensor_msgs/msg/Image"](
                header=header(),
                height=32,
                width=48,
                encoding="rgb8",
                is_bigendian=0,
                step=48 * 3 + 4,
                data=raw(np.pad(picture[:, :, ::-1].reshape(32, -1), ((0, 0), (0, 4)))),
            ),
        ),
        (
            "/depth",
            "sensor_msgs/msg/Image",
            types["sensor_msgs/msg/Image"](
                header=header(),
                height=2,
                width=3,
                encoding="32FC1",
                is_bigendian=0,
                step=12,
                data=raw(np.array([[1, 2.0004, np.nan], [0.5, 0, 70]], "<f4")),
            ),
        ),
        (
            "/camera/compressed",
            "sensor_msgs/msg/CompressedImage",
            types["sensor_msgs/msg/CompressedImage"](header=header(), format="jpeg", data=jpeg),
        ),
        (
            "/velodyne_points",
            "sensor_msgs/msg/PointCloud2",
            types["sensor_msgs/msg/PointCloud2"](
                header=header(),
                height=1,
                width=3,
                fields=fields,
                is_bigendian=False,
                point_step=18,
                row_step=54,
                data=raw(points),
                is_dense=False,
            ),
        ),
        (
            "/scan",
            "sensor_msgs/msg/LaserScan",
            types["sensor_msgs/msg/LaserScan"](
                header=header(),
                angle_min=0.0,
                angle_max=1.5,
                angle_increment=float(np.pi / 2),
                time_increment=0.01,
                scan_time=0.02,
                range_min=0.1,
                range_max=10.0,
                ranges=np.array([2, np.inf], np.float32),
                intensities=np.zeros(0, np.float32),
            ),
        ),
        (
            "/imu",
            "sensor_msgs/msg/Imu",
            types["sensor_msgs/msg/Imu"](
                header=header(),
                orientation=types["geometry_msgs/msg/Quaternion"](x=0.0, y=0.0, z=0.0, w=1.0),
                orientation_covariance=cov,
                angular_velocity=vector(x=4.0, y=5.0, z=6.0),
                angular_velocity_covariance=cov,
                linear_acceleration=vector(x=1.0, y=2.0, z=3.0),
                linear_acceleration_covariance=cov,
            ),
        ),
        (
            "/camera/camera_info",
            "sensor_msgs/msg/CameraInfo",
            types["sensor_msgs/msg/CameraInfo"](
                header=header(),
                height=32,
                width=48,
                distortion_model="plumb_bob",
                binning_x=0,
                binning_y=0,
                roi=roi,
                **numbers,
            ),
        ),
        ("/fleet", "my_msgs/msg/Fleet", types["my_msgs/msg/Fleet"](header=header(), packets=parcels)),
        (
            "/audio/audio_info",
            "audio_common_msgs/msg/AudioInfo",
            types["audio_common_msgs/msg/AudioInfo"](
                channels=2, sample_rate=16000, sample_format="S16LE", bitrate=0, coding_format="wave"
            ),
        ),
        (
            "/audio/audio",
            "audio_common_msgs/msg/AudioData",
            types["audio_common_msgs/msg/AudioData"](data=raw(np.tile(np.array([16384, 0], "<i2"), 160))),
        ),
        ("/said", "std_msgs/msg/String", types["std_msgs/msg/String"](data="hello")),
        ("/pose", "geometry_msgs/msg/Quaternion", types["geometry_msgs/msg/Quaternion"](x=0.0, y=0.0, z=0.0, w=1.0)),
    ]


def ros1_bag(path: Path) -> Path:
    from rosbags.rosbag1 import Writer

    store = ros_store(ros1=True)
    with Writer(path) as writer:
        for i, (topic, kind, message) in enumerate(ros_messages(store, ros1=True)):
            connection = writer.add_connection(topic, kind, typestore=store)
            writer.write(connection, START_NS + i * MS, bytes(store.serialize_ros1(message, kind)))
    return path


def ros2_bag(path: Path) -> Path:
    """A folder with metadata.yaml and a .db3."""
    from inspect import signature

    from rosbags.rosbag2 import Writer

    store = ros_store(ros1=False)
    version: dict[str, Any] = (
        {"version": 8} if "version" in signature(Writer).parameters else {}
    )  # rosbags 0.9 writes 8 only
    with Writer(path, **version) as writer:
        for i, (topic, kind, message) in enumerate(ros_messages(store, ros1=False)):
            connection = writer.add_connection(topic, kind, typestore=store)
            writer.write(connection, START_NS + i * MS, bytes(store.serialize_cdr(message, kind)))
    return path


def ros2_mcap(path: Path) -> Path:
    """The file alone, as `ros2 bag record -s mcap` writes it, with the definitions in it."""
    from mcap.writer import Writer

    store = ros_store(ros1=False)
    with path.open("wb") as file:
        writer = Writer(file)
        writer.start(profile="ros2")
        for i, (topic, kind, message) in enumerate(ros_messages(store, ros1=False)):
            definition = store.generate_msgdef(kind, ros_version=2)[0].encode()
            schema = writer.register_schema(kind, "ros2msg", definition)
            channel = writer.register_channel(topic, "cdr", schema)
            at_ns = START_NS + i * MS
            writer.add_message(channel, at_ns, bytes(store.serialize_cdr(message, kind)), at_ns)
        writer.finish()
    return path


def foxglove_mcap(path: Path) -> Path:
    """A file with Foxglove's schemas, as another program writes it."""
    from foxglove_schemas_protobuf.PointCloud_pb2 import PointCloud
    from foxglove_schemas_protobuf.RawImage_pb2 import RawImage
    from foxglove_schemas_protobuf.SceneUpdate_pb2 import SceneUpdate
    from mcap_protobuf.writer import Writer

    with path.open("wb") as file, Writer(file) as writer:
        image = RawImage(width=48, height=32, encoding="bgr8", step=144, data=shade(4).tobytes(), frame_id="cam")
        image.timestamp.FromNanoseconds(START_NS)
        cloud = PointCloud(point_stride=16, data=np.arange(8, dtype="<f4").tobytes(), frame_id="lidar")
        for i, name in enumerate(("x", "y", "z", "intensity")):
            cloud.fields.add(name=name, offset=4 * i, type=7)
        cloud.timestamp.FromNanoseconds(START_NS + MS)
        for i, (topic, message) in enumerate((("/cam", image), ("/points", cloud), ("/scene", SceneUpdate()))):
            writer.write_message(topic, message, START_NS + i * MS, START_NS + i * MS)
    return path
