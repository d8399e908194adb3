"""A host proves its identity with a file that only its owner can read, and trusts the hosts that a folder names."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.errors import ConfigError
from pipeline.transport import keys
from pipeline.transport.keys import Keyring, RunKeys, leaves_host, write_new
from pipeline.transport.network import new_keys


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "keys"


def keyring_of(folder: Path, name: str) -> Keyring:
    write_new(name, *new_keys(), folder)
    return Keyring.load(name, folder)


def test_new_key_is_readable_by_its_owner_only(folder: Path) -> None:
    keyring_of(folder, "front")
    assert (folder / "front.secret").stat().st_mode & 0o777 == 0o600
    assert folder.stat().st_mode & 0o777 == 0o700


def test_secret_is_in_neither_the_public_file_nor_the_text_of_the_keyring(folder: Path) -> None:
    keyring = keyring_of(folder, "front")
    assert keyring.secret not in (folder / "front.public").read_text()
    assert keyring.secret not in repr(keyring)


def test_a_key_is_never_replaced(folder: Path) -> None:
    before = keyring_of(folder, "front")
    with pytest.raises(ConfigError, match="has a key already"):
        write_new("front", *new_keys(), folder)
    assert Keyring.load("front", folder) == before


@pytest.mark.parametrize("name", ["", "../front", "a b", "front.public", "x" * 65])
def test_name_that_could_be_a_path_is_refused(folder: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be a host's name"):
        write_new(name, *new_keys(), folder)


def test_missing_key_names_the_command_that_creates_it(folder: Path) -> None:
    with pytest.raises(ConfigError, match="python run_pipeline.py keys new front"):
        Keyring.load("front", folder)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_secret_that_others_can_read_is_refused_with_the_fix(folder: Path, mode: int) -> None:
    keyring_of(folder, "front")
    (folder / "front.secret").chmod(mode)
    with pytest.raises(ConfigError, match=r"chmod 600 .*front.secret"):
        Keyring.load("front", folder)


@pytest.mark.parametrize("name", [".", "allowed"])
def test_folder_that_others_can_write_to_is_refused_with_the_fix(folder: Path, name: str) -> None:
    keyring_of(folder, "front")
    (folder / name).chmod(0o777)
    with pytest.raises(ConfigError, match="chmod 700"):
        Keyring.load("front", folder)


@pytest.mark.parametrize(
    "text", ["", "hello", "sensorium-public short front", "-----BEGIN OPENSSH PRIVATE KEY-----\n\x00"]
)
def test_file_that_is_no_key_says_what_was_expected(folder: Path, text: str) -> None:
    keyring_of(folder, "front")
    (folder / "front.secret").write_text(text)
    with pytest.raises(ConfigError, match="not a key: expected one line 'sensorium-secret"):
        Keyring.load("front", folder)


def test_who_may_connect_is_who_lies_in_the_folder_at_that_moment(folder: Path, tmp_path: Path) -> None:
    front, brain = keyring_of(folder, "front"), keyring_of(tmp_path / "elsewhere", "brain")
    assert front.name_of(brain.public) is None
    allowed = folder / "allowed" / "brain.public"
    allowed.write_bytes((tmp_path / "elsewhere" / "brain.public").read_bytes())
    (folder / "allowed" / "broken.public").write_text("not a key")
    assert front.name_of(brain.public) == "brain"
    assert front.public_of("brain") == brain.public
    allowed.unlink()
    assert front.name_of(brain.public) is None


def test_host_whose_key_is_not_here_names_the_nearest(folder: Path) -> None:
    front = keyring_of(folder, "front")
    (folder / "allowed" / "brain.public").write_text((folder / "front.public").read_text())
    with pytest.raises(ConfigError, match=r"copy its brian.public into .*allowed/.*Did you mean 'brain'\?"):
        front.public_of("brian")


def test_folder_can_be_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SENSORIUM_KEYS", str(folder))
    assert keys.keys_folder() == folder
    keyring_of(folder, "front")
    assert Keyring.for_addresses("front", ["ipc:///x", "tcp://127.0.0.1:1"]) is None
    assert Keyring.for_addresses("front", ["ipc:///x", "tcp://10.0.0.1:1"]) is not None


@pytest.mark.parametrize(
    ("address", "leaves"),
    [
        ("ipc:///run/x.sock", False),
        ("tcp://127.0.0.1:7700", False),
        ("tcp://127.8.0.1:7700", False),
        ("tcp://localhost:7700", False),
        ("tcp://[::1]:7700", False),
        ("tcp://10.0.0.1:7700", True),
        ("tcp://0.0.0.0:7700", True),
        ("tcp://*:7700", True),
        ("tcp://front.local:7700", True),
        ("tcp://localhost.evil.example:7700", True),
    ],
)
def test_only_the_loopback_needs_no_key(address: str, leaves: bool) -> None:
    assert leaves_host(address) is leaves


# --- who could have written the files ---------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_allowed_key_that_others_can_write_to_is_refused_with_the_fix(folder: Path, mode: int) -> None:
    front, brain = keyring_of(folder, "front"), new_keys()[0]
    allowed = folder / "allowed" / "brain.public"
    allowed.write_text(f"sensorium-public {brain} brain\n")
    allowed.chmod(0o644)
    assert front.name_of(brain) == "brain"
    allowed.chmod(mode)
    assert front.name_of(brain) is None
    for refused in (lambda: front.public_of("brain"), lambda: Keyring.load("front", folder)):
        with pytest.raises(ConfigError, match="brain.public: others can write to it.*chmod 600"):
            refused()


def test_nobody_may_connect_once_others_can_write_to_the_folder(folder: Path) -> None:
    front, brain = keyring_of(folder, "front"), new_keys()[0]
    (folder / "allowed" / "brain.public").write_text(f"sensorium-public {brain} brain\n")
    (folder / "allowed" / "brain.public").chmod(0o644)
    (folder / "allowed").chmod(0o777)
    assert front.name_of(brain) is None


@pytest.mark.skipif(os.name != "posix" or os.getuid() != 0, reason="giving a file to another user needs root")
def test_allowed_key_of_another_user_is_refused_with_the_fix(folder: Path) -> None:
    front, brain = keyring_of(folder, "front"), new_keys()[0]
    allowed = folder / "allowed" / "brain.public"
    allowed.write_text(f"sensorium-public {brain} brain\n")
    os.chown(allowed, 1, 1)
    assert front.name_of(brain) is None
    with pytest.raises(ConfigError, match="belongs to another user. Make it yours: sudo chown"):
        Keyring.load("front", folder)


def test_file_that_would_wait_or_never_end_is_refused(folder: Path) -> None:
    front = keyring_of(folder, "front")
    os.mkfifo(folder / "allowed" / "pipe.public", 0o600)
    (folder / "allowed" / "zero.public").symlink_to("/dev/zero")
    assert front.name_of(new_keys()[0]) is None
    with pytest.raises(ConfigError, match="it is no file"):
        front.public_of("pipe")


# --- a run's own ------------------------------------------------------------------------------------------------------


def test_keys_of_a_run_are_for_its_user_alone(tmp_path: Path) -> None:
    created = RunKeys.create(tmp_path, *new_keys())
    assert RunKeys.load(tmp_path) == created
    assert (tmp_path / "keys.json").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["keys.json"]
    assert created.secret not in repr(created)
    assert created.name_of(created.public) and created.name_of(new_keys()[0]) is None
    (tmp_path / "keys.json").chmod(0o644)
    with pytest.raises(ConfigError, match="others can read it.*chmod 600"):
        RunKeys.load(tmp_path)


def test_keys_that_are_there_already_are_shared(tmp_path: Path) -> None:
    assert RunKeys.create(tmp_path, *new_keys()) == RunKeys.create(tmp_path, *new_keys())


@pytest.mark.parametrize("text", ["", "[]", '{"public": 1}', "[" * 5000, "x" * 10_000])
def test_file_that_holds_no_keys_of_a_run_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "keys.json").write_text(text)
    (tmp_path / "keys.json").chmod(0o600)
    with pytest.raises(ConfigError, match="keys.json"):
        RunKeys.load(tmp_path)
