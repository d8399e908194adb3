"""Each tests/configs/invalid-*.yaml is refused with a message that names the place, what was found, and the fix."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pipeline.errors import ConfigError
from pipeline.plugins import check_options
from pipeline.runtime.config import instantiate, load, parse, resolve
from pipeline.runtime.graph import check_graph
from pipeline.task import find_task

ROOT = Path(__file__).resolve().parents[3]
CONFIGS = ROOT / "tests" / "configs"

# file → what its error must say, in this order
INVALID = {
    "unknown-node": [
        "nodes.microphone.use: no node called 'microphne'",
        "Known: align, align_replay, auto_time, camera",
        "Did you mean 'microphone'?",
    ],
    "unknown-key": [
        "nodes.camera: unknown key 'width_pix'",
        "Camera takes: device, width_px",
        "Did you mean 'width_px'?",
    ],
    "unknown-top-key": ["unknown key 'node'", "Known here: nodes, hosts, portable", "Did you mean 'nodes'?"],
    "wrong-type": ["nodes.camera.rate_hz: found 'fast', expected float"],
    "missing-option": ["nodes.file: 'path' is missing"],
    "missing-use": ["nodes.camera.use: missing", "camera, console", "module:Name"],
    "duplicate-key": ["'device' is given twice", "line 2"],
    "node-given-twice": ["'camera' is given twice", "line 3"],
    "queue": ["nodes.align.inputs[0].queue: found 'newest'", "all, latest, or how many"],
    "queue-nothing": ["nodes.align.inputs[0].queue: found 0", "all, latest, or how many"],
    "input-key": ["nodes.align.inputs[0]: unknown key 'queu'", "Known here: from, queue", "Did you mean 'queue'?"],
    "renamed-input-key": ["nodes.align.inputs[0]: 'keep' is now called 'queue'"],
    "renamed-task-option": ["nodes.scene.options: 'own_m' is now called 'ego_box_m'"],
    "renamed-sync": ["nodes.align: 'pick' is now called 'sync'"],
    "input-not-a-name": ["nodes.align.inputs[0]: found 3", "{from: camera, queue: latest}"],
    "inputs-not-a-list": ["nodes.align.inputs: found str 'camera'", "a list such as"],
    "unknown-input": [
        "nodes.align.inputs[0]: no node called 'mikrophone'",
        "Nodes here: microphone",
        "Did you mean 'microphone'?",
    ],
    "missing-inputs": ["nodes.align.inputs: missing", "Here: camera"],
    "source-with-inputs": ["nodes.microphone.inputs: 'synthetic' is a source", "Remove the key"],
    "sink-as-input": ["nodes.align.inputs[0]: 'console' sends nothing: it is a sink"],
    "frames-to-infer": [
        "nodes.emotion.inputs[0]: 'camera' sends Frame, but infer reads AlignedSet",
        "Put an align node between",
    ],
    "cycle": ["nodes.first.inputs: a cycle: first → second → first"],
    "reads-itself": ["nodes.first.inputs: a cycle: first → first"],
    "optional": ["nodes.camera.optional: found 'maybe', expected true or false"],
    "process": ["nodes.camera.process: found 3, expected a name"],
    "host": ["nodes.camera.host: 'robot' has no address", "hosts: {robot: 192.168.1.20}"],
    "host-unknown": ["nodes.camera.host: no host called 'fornt'", "Hosts here: front, brain", "Did you mean 'front'?"],
    "host-missing": ["nodes.camera.host: missing", "Hosts here: front, brain"],
    "hosts": ["hosts: found list", "expected a table such as {front: 192.168.1.20"],
    "hosts-address": ["hosts.front: found '192.168.1.20:seven'", "expected an address such as 192.168.1.20:7700"],
    "shared": ["nodes.camera.shared: this host has no address", "hosts: {robot: 192.168.1.20}"],
    "shared-sink": ["nodes.console.shared: 'console' sends nothing: it is a sink"],
    "portable": ["portable: found 'sometimes', expected true or false"],
    "node-name": ["'left camera' cannot be a node's name", "letters, digits"],
    "node-name-taken": ["'health' cannot be a node's name", "taken"],
    "node-name-not-text": ["nodes.True: YAML reads this name as bool True", "in quotes"],
    "node-not-a-table": ["nodes.camera: found int 0", "{use: NODE, …}"],
    "no-nodes": ["nodes: found dict {}, expected a table of nodes"],
    "list": ["the file holds list", "expected 'nodes:'"],
    "empty": ["the file holds nothing", "expected 'nodes:'"],
    "not-yaml": ["not valid YAML", 'invalid-not-yaml.yaml", line'],
    "tab": ["not valid YAML", "'\\t'", "line 2"],
    "key-not-a-name": ["not valid YAML: a key must be a name", "line 2"],
    "executes-code": ["not valid YAML", "python/object/apply:os.system"],
    "no-module": ["nodes.camera.use:", "there is no Python module 'no_such_module'"],
    "no-class": ["nodes.mood.use:", "module 'third_party' has no 'Smother'", "Did you mean 'Smoother'?"],
    "not-a-node": ["nodes.path.use:", "Path is not a subclass of pipeline.node.Node"],
    "sync-policy": ["nodes.align: sync.sound.policy: no sync policy called 'windw'", "Did you mean 'window'?"],
    "sync-option": ["nodes.align: sync.sound: unknown key 'before'", "Did you mean 'before_ms'?"],
    "sync-input": ["nodes.align: sync.sonud: 'sonud' is not one of its inputs: camera, sound", "Did you mean 'sound'?"],
    "anchor": ["nodes.align: anchor: 'camra' is not one of its inputs: camera", "Did you mean 'camera'?"],
    "backend": ["nodes.emotion: no backend called 'tensort'", "Did you mean 'tensorrt'?"],
    "asset": ["nodes.camera: no asset called 'demo-clp'", "Did you mean 'demo-clip'?"],
    "asset-sound": ["nodes.microphone: no asset called 'demo-clp'", "Did you mean 'demo-clip'?"],
    "option-of-a-task": ["nodes.emotion: unknown key 'voice'", "one level below: options: {voice: …}"],
    "task": ["nodes.emotion: no task called 'emotoin'", "Did you mean 'emotion'?"],
    "task-option": [
        "nodes.mood: options of task 'third_party:Mood': unknown key 'treshold'",
        "Did you mean 'threshold'?",
    ],
}


def verify(path: Path, overrides: tuple[str, ...] = ()) -> None:
    """As `check` does."""
    config = load(path, overrides)
    check_graph(config)
    for node in config.nodes.values():
        instantiate(node.use, node.options, where=node.where, inputs=[edge.source for edge in node.inputs])


@pytest.mark.parametrize("name", INVALID)
def test_invalid_config_is_refused_with_the_place_and_the_fix(name: str) -> None:
    path = CONFIGS / f"invalid-{name}.yaml"
    with pytest.raises(ConfigError) as caught:
        verify(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert re.search(".*".join(map(re.escape, INVALID[name])), str(caught.value), re.DOTALL), str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import math\ndef x(:\n", "own_mood.py, line 2: invalid syntax"),
        ("import math\n\nRATE = 1 / 0\n", "own_mood.py, line 3: ZeroDivisionError: division by zero"),
        ("int('many')\n", "own_mood.py, line 1: ValueError: invalid literal"),
        ("import no_such_package\n", "-m pip install no_such_package"),
    ],
)
def test_a_user_module_that_cannot_be_imported_is_reported_with_its_line(
    text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_mood.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="nodes.mood.use: node 'own_mood:Mood': .*" + re.escape(message)):
        parse({"nodes": {"mood": {"use": "own_mood:Mood"}}}, "graph.yaml")


def test_set_reaches_below_a_node_what_its_table_does_not_hold_yet() -> None:
    config = load(
        ROOT / "configs/emotion-demo.yaml",
        ["nodes.emotion.options.voice=none", "nodes.align.sync.camera.policy=latest"],
    )
    assert config.nodes["emotion"].options["options"] == {"voice": "none"}
    assert config.nodes["align"].options["sync"]["camera"] == {"policy": "latest"}
    with pytest.raises(ConfigError, match="there is no 'nodes.emotoin' in the config. Did you mean 'emotion'?"):
        load(ROOT / "configs/emotion-demo.yaml", ["nodes.emotoin.options.voice=none"])


@pytest.mark.parametrize(("text", "message"), [(b"\x89PNG", "it holds no text"), (None, "it is a folder")])
def test_what_is_no_text_is_no_config(text: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "graph.yaml"
    path.mkdir() if text is None else path.write_bytes(text)
    with pytest.raises(ConfigError, match=f"{message}.*A config is a YAML file"):
        load(path)


def test_every_invalid_config_has_its_message_here() -> None:
    assert {p.stem.removeprefix("invalid-") for p in CONFIGS.glob("invalid-*.yaml")} == set(INVALID)


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.stem)
def test_configs_that_ship_are_valid(path: Path) -> None:
    verify(path)


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("configs/emotion-lif.yaml", "configs/emotion-live.yaml"),
        ("emotion-live", "configs/emotion-live.yaml"),
        ("porhc.yml", "porch.yaml"),
    ],
)
def test_missing_file_names_what_was_looked_for_and_the_nearest(
    path: str, meant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "porch.yaml").write_text("nodes: {camera: {use: camera}}")
    with pytest.raises(ConfigError) as raised:
        load(path)
    assert str(raised.value).startswith(f"{path}: there is no such file in {tmp_path}. Did you mean '{meant}'?")
    load(meant)  # what is meant can be given just so


def test_missing_file_like_none_there_is_lists_those_that_ship(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        load(tmp_path / "xyzzy.yaml")
    message = str(raised.value)
    assert message.startswith(f"{tmp_path}/xyzzy.yaml: there is no such file. Those that come with Sensorium")
    assert all(f"configs/{path.name}" in message for path in (ROOT / "configs").glob("*.yaml"))


def test_folder_instead_of_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path)


def test_binary_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(b"\x00\x00\x00\x18ftyp\xff\xfe")
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path / "clip.mp4")


def a_config(folder: Path) -> Path:
    path = folder / "graph.yaml"
    path.write_text("nodes:\n  camera: {use: camera, device: 0}\n")
    return path


def test_set_changes_an_option(tmp_path: Path) -> None:
    assert load(a_config(tmp_path), ["nodes.camera.device=1"]).nodes["camera"].options["device"] == 1


def test_set_adds_an_option(tmp_path: Path) -> None:
    assert load(a_config(tmp_path), ["nodes.camera.rate_hz=15"]).nodes["camera"].options["rate_hz"] == 15


def test_set_adds_a_key_of_the_graph(tmp_path: Path) -> None:
    assert load(a_config(tmp_path), ["portable=true"]).portable


def test_set_value_may_hold_an_equals_sign(tmp_path: Path) -> None:
    config = load(a_config(tmp_path), ["nodes.camera.device=rtsp://host/?a=b"])
    assert config.nodes["camera"].options["device"] == "rtsp://host/?a=b"


def test_set_of_an_unknown_node_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"--set nodes.camra.device=1: there is no 'nodes.camra'.*Did you mean 'camera'"
    ):
        load(a_config(tmp_path), ["nodes.camra.device=1"])


def test_set_of_an_unknown_option_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown key 'devise'.*Did you mean 'device'"):
        load(a_config(tmp_path), ["nodes.camera.devise=1"])


@pytest.mark.parametrize("override", ["nodes.camera.device", "nodes..device=1", "=1", ""])
def test_set_without_a_path_and_a_value_says_what_is_expected(tmp_path: Path, override: str) -> None:
    with pytest.raises(ConfigError, match="such as nodes.camera.device=1"):
        load(a_config(tmp_path), [override])


def test_set_below_a_value_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'nodes.camera.device' is not a table"):
        load(a_config(tmp_path), ["nodes.camera.device.index=1"])


def test_set_to_broken_yaml_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the value is not valid YAML"):
        load(a_config(tmp_path), ["nodes.camera.device=[1"])


def test_options_are_converted_once_also_those_of_a_task(tmp_path: Path) -> None:
    config = load(ROOT / "configs/emotion-demo.yaml", ["nodes.emotion.options.uncertain_below=0"])
    align, task = config.nodes["align"].options, config.nodes["emotion"].options["options"]
    assert isinstance(align["max_wait_ms"], float) and isinstance(task["uncertain_below"], float)
    assert check_options(resolve("align", ""), align, "") is align
    assert check_options(find_task("emotion"), task, "") is task


def test_whole_number_is_taken_for_a_float(tmp_path: Path) -> None:
    config = load(a_config(tmp_path), ["nodes.camera.rate_hz=30"])
    instantiate(config.nodes["camera"].use, config.nodes["camera"].options, where="")
