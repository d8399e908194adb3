"""ROS bags without ROS: ROS 1 .bag, ROS 2 .db3 and .mcap, alone or in the folder with their metadata.yaml.

rosbags reads the files; messages are read by their type's name (ros_messages.py), with the definitions in the bag
itself; bags without definitions are read with those of ROS 2 and of the common lidar drivers. Topics of other types
are listed, not guessed.
"""

from __future__ import annotations

import contextlib
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.bounded_yaml import MAX_BYTES, load
from pipeline.clock import NS
from pipeline.errors import ConfigError, missing_package
from pipeline.files import read_text
from pipeline.frame import Frame, StreamInfo
from pipeline.recording.importers.mcap_topics import topics_of
from pipeline.recording.importers.ros_bounds import bound_rosbags
from pipeline.recording.importers.ros_messages import DRIVER_TYPES, PCM, Topic, converter
from pipeline.recording.importers.source import ImportSource, numbered, stream_name

AUDIO_INFO = "audio_common_msgs/msg/AudioInfo"
FIXES = {
    "not indexed": "The bag was not closed: repair it with `rosbag reindex`.",
    "missing": "Copy all files of the bag.",
    "malformed": "The file is damaged: copy it again, or repair it with `sqlite3 IN.db3 .recover`.",
    "Profile": "It is not a ROS bag.",
}


def open_ros(path: Path) -> ImportSource:
    """path: a .bag, .db3 or .mcap, or a folder with metadata.yaml.

    Raises ConfigError with rosbags' reason when it cannot be read.
    """
    try:
        bound_rosbags()
    except ModuleNotFoundError as error:
        raise missing_package("rosbags", f"import {path}") from error
    opened = ImportSource("ROS bag", {}, iter(()))
    frames = _frames(path, opened)
    # Open the bag now, so that errors are raised before anything is written.
    with _errors(path):
        next(frames)
    opened.frames = numbered(frame for frame in frames if frame is not None)
    return opened


@contextlib.contextmanager
def _errors(path: Path) -> Iterator[None]:
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:  # a damaged file raises any error of rosbags and its codecs, also assertions
        reason = str(error) or type(error).__name__
        fix = next(
            (fix for word, fix in FIXES.items() if word in reason), "Check it with `ros2 bag info` or `rosbag info`."
        )
        raise ConfigError(f"{path}: cannot be read as a ROS bag: {reason[:200]}. {fix}") from error


def _frames(path: Path, opened: ImportSource) -> Iterator[Frame | None]:
    """None once the bag is open; then its frames in the order of the bag."""
    with contextlib.ExitStack() as stack:
        with _errors(path):
            reader, is_ros2 = _reader(path, stack)
            store = _types(reader, is_ros2)
            read = store.deserialize_cdr if is_ros2 else store.deserialize_ros1
            opened.format, opened.expected = "ROS 2 bag" if is_ros2 else "ROS 1 bag", reader.message_count
            topics = _topics(reader, store, opened)
            _sounds(reader, read, topics)
            messages = reader.messages()
        yield None
        while True:
            with _errors(path):
                if (entry := next(messages, None)) is None:
                    break
            connection, log_ns, raw = entry
            if (entry_of_topic := topics.get(connection.topic)) is None:
                opened.left_out[connection.topic][f"{connection.msgtype}: this type is not supported"] += 1
                continue
            topic, convert = entry_of_topic
            try:
                yield from convert(read(raw, connection.msgtype), topic, log_ns)
            except ConfigError as error:
                opened.left_out[connection.topic][str(error)] += 1
            except Exception as error:  # a damaged message raises any error of rosbags
                opened.left_out[connection.topic][f"messages that cannot be decoded ({type(error).__name__})"] += 1
        opened.notes += [f"{name}: {note}" for name, (topic, _) in topics.items() for note in topic.notes]


def _reader(path: Path, stack: contextlib.ExitStack) -> tuple[Any, bool]:
    from rosbags import rosbag1, rosbag2

    if (described := path / "metadata.yaml").is_file():
        _check_metadata(described)
    if path.suffix == ".bag":
        return stack.enter_context(rosbag1.Reader(path)), False
    # rosbags opens a bag's file without its metadata.yaml from 0.11 on.
    if not path.is_dir() and path.suffix not in rosbag2.Reader.STORAGE_PLUGINS:
        path = _with_metadata(path, Path(stack.enter_context(tempfile.TemporaryDirectory())))
    return stack.enter_context(rosbag2.Reader(path)), True


def _check_metadata(path: Path) -> None:
    """Raises ValueError or ConfigError for a description without bounds, or of files that lie elsewhere."""
    tree = load(read_text(path, most=MAX_BYTES), name=path.name)
    about = tree.get("rosbag2_bagfile_information") if isinstance(tree, dict) else None
    files = about.get("relative_file_paths") if isinstance(about, dict) else None
    for name in files if isinstance(files, list) else ():
        if not (path.parent / str(name)).resolve().is_relative_to(path.parent.resolve()):
            raise ConfigError(f"{path}: its file '{name}' lies outside of the bag's folder. Correct the path")


def _with_metadata(path: Path, folder: Path) -> Path:
    """A folder with the metadata.yaml that a ROS 2 bag's single file lacks, and a link to the file."""
    import yaml

    topics, storage = (_topics_of_db3(path), "sqlite3") if path.suffix == ".db3" else (topics_of(path), "mcap")
    (folder / path.name).symlink_to(path.resolve())
    metadata = {
        "version": 5,
        "storage_identifier": storage,
        "duration": {"nanoseconds": 0},
        "starting_time": {"nanoseconds_since_epoch": 0},
        "message_count": sum(count for _, _, count in topics),
        "compression_format": "",
        "compression_mode": "",
        "relative_file_paths": [path.name],
        "topics_with_message_count": [
            {
                "topic_metadata": {
                    "name": name,
                    "type": kind,
                    "serialization_format": "cdr",
                    "offered_qos_profiles": "",
                },
                "message_count": n,
            }
            for name, kind, n in topics
        ],
    }
    (folder / "metadata.yaml").write_text(yaml.safe_dump({"rosbag2_bagfile_information": metadata}))
    return folder


def _topics_of_db3(path: Path) -> list[tuple[str, str, int]]:
    with contextlib.closing(sqlite3.connect(f"file:{path.resolve()}?immutable=1", uri=True)) as database:
        query = "SELECT name, type, (SELECT count(*) FROM messages WHERE topic_id = topics.id) FROM topics"
        return [(str(name), str(kind), int(count)) for name, kind, count in database.execute(query)]


def _types(reader: Any, is_ros2: bool) -> Any:
    """The types by the bag's own definitions; for types without one, those of ROS 2 Humble and of the drivers."""
    from rosbags.typesys import Stores, TypesysError, get_types_from_idl, get_types_from_msg, get_typestore

    store = get_typestore(Stores.ROS2_HUMBLE if is_ros2 else Stores.ROS1_NOETIC)
    types: dict[str, Any] = {}
    if is_ros2:
        for name, definition in DRIVER_TYPES.items():
            types |= get_types_from_msg(definition, name)
    for connection in reader.connections:
        # Text in rosbags 0.9, (format, text) from 0.10 on.
        definition = connection.msgdef if isinstance(connection.msgdef, str) else connection.msgdef.data
        if not definition:
            continue
        separator = "=" * 80 + "\n"
        if definition.startswith(f"{separator}IDL: "):
            for part in definition.split(separator)[1:]:
                types |= get_types_from_idl(part.split("\n", 1)[1])
        else:
            types |= get_types_from_msg(definition, connection.msgtype)
    try:
        store.register(types)
        return store
    except TypesysError:  # the bag defines a type with other fields, of an older ROS: the bag's definitions hold
        own = get_typestore(Stores.EMPTY)
        own.register({**_definitions(store), **types})
        return own


def _definitions(store: Any) -> dict[str, Any]:
    """Each known type's (constants, fields). rosbags 0.9 spells the attribute in capitals."""
    definitions: dict[str, Any] = store.fielddefs if hasattr(store, "fielddefs") else store.FIELDDEFS
    return definitions


def _topics(reader: Any, store: Any, opened: ImportSource) -> dict[str, tuple[Topic, Any]]:
    topics, definitions = {}, _definitions(store)
    for name, info in reader.topics.items():
        fields = [str(field[0]) for field in definitions[info.msgtype][1]] if info.msgtype in definitions else []
        readable = info.msgtype and info.msgtype != AUDIO_INFO
        if not readable or (match := converter(info.msgtype, fields)) is None:
            continue
        convert, encoding = match
        stream = stream_name(name, opened.infos)
        topics[name] = (Topic(stream, opened.left_out[name]), convert)
        rate_hz = (
            round((info.msgcount - 1) * NS / reader.duration, 3)
            if info.msgcount > 1 and reader.duration > NS // 10
            else None
        )
        rate_hz = None if encoding == "packet" else rate_hz  # a message holds many packets
        opened.infos[stream] = StreamInfo(stream, encoding, rate_hz, 1, stream, f"{name} ({info.msgtype})")
    return topics


def _sounds(reader: Any, read: Any, topics: dict[str, tuple[Topic, Any]]) -> None:
    """Set `sound` of each audio topic: from the AudioInfo of its own namespace, else from the only one."""
    formats: dict[str, tuple[int, int, str]] = {}
    connections = [c for c in reader.connections if c.msgtype == AUDIO_INFO]
    if not connections:
        return
    for connection, _, raw in reader.messages(connections=connections):
        info = read(raw, connection.msgtype)
        if (
            str(info.sample_format) in PCM
            and str(info.coding_format).lower() in ("wave", "wav", "raw", "")
            and info.sample_rate > 0
        ):
            formats[connection.topic.rpartition("/")[0]] = (
                int(info.sample_rate),
                int(info.channels),
                str(info.sample_format),
            )
    for name, (topic, _) in topics.items():
        topic.sound = formats.get(name.rpartition("/")[0]) or (
            next(iter(formats.values())) if len(formats) == 1 else None
        )
