"""The installed command `sensorium`: from a wheel, far from the checkout, with files of the same names in the way."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from running import last_line

from pipeline import assets

pytestmark = [pytest.mark.system, pytest.mark.xdist_group("wheel")]

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("pipeline", "nodes", "calibration")
STRANGE = 'raise SystemExit("a file of the current folder was imported")\n'


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("setuptools", minversion="77", reason="building a wheel needs setuptools 77: scripts/setup")
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # a copy: a build leaves files in its tree
    for name in (*PACKAGES, "models", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "setup.py", "MANIFEST.in", "LICENSE", "run_pipeline.py", "sensorium.py"):
        shutil.copy(ROOT / file, source)
    stale = source / "build/lib/pipeline/renamed_since.py"
    stale.parent.mkdir(parents=True)
    stale.touch()
    _pip("wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(folder), str(source))
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def site(wheel: Path) -> Path:
    """A folder with the wheel's content, as pip lays it out; the command is bin/sensorium."""
    _pip("install", "--no-deps", "--no-index", "--target", str(wheel.parent / "site"), str(wheel))
    return wheel.parent / "site"


@pytest.fixture
def folder_in_the_way(tmp_path: Path) -> Path:
    for name in ("pipeline", "nodes", "run_pipeline"):
        (tmp_path / f"{name}.py").write_text(STRANGE)
    return tmp_path


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    subprocess.run(command, check=True, timeout=110)


def sensorium(site: Path, folder: Path, *arguments: str, path: str = "") -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [path, str(site)]))}
    command = [str(site / "bin/sensorium"), *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=100)


def test_the_wheel_takes_no_name_that_is_not_a_package_of_ours(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    top = {name.partition("/")[0] for name in names}
    assert {t for t in top if not t.endswith(".dist-info")} == {*PACKAGES, "run_pipeline.py", "sensorium.py"}
    assert not any("renamed_since" in name or "__pycache__" in name for name in names)
    shipped = {p.relative_to(ROOT) for f in ("models", "configs") for p in (ROOT / f).rglob("*") if p.is_file()}
    assert {f"pipeline/{path}" for path in shipped} <= set(names)
    assert all(name in names for name in ("nodes/dashboard/page.html", "calibration/verbs/camera_live.html"))


def test_configs_and_models_have_a_bare_name_in_any_folder(site: Path, folder_in_the_way: Path) -> None:
    for name in ("emotion-live.yaml", "configs/scene-demo.yaml"):
        done = sensorium(site, folder_in_the_way, "check", name)
        assert done.returncode == 0 and f"{site}/pipeline/configs/" in done.stdout, done.stderr
    info = sensorium(site, folder_in_the_way, "models", "info", "face-expression.onnx", "place")
    assert info.returncode == 0 and '"name": "face-expression"' in info.stdout, info.stderr


def test_hints_name_the_command_that_was_used(site: Path, tmp_path: Path) -> None:
    help_text = sensorium(site, tmp_path, "--help").stdout
    wrong = sensorium(site, tmp_path, "rnu").stderr
    missing = sensorium(site, tmp_path, "verify", "absent.mcap").stderr
    unnamed = sensorium(site, tmp_path, "models", "info").stderr
    assert help_text.startswith("usage: sensorium ") and "See: sensorium --help" in wrong
    assert "sensorium models list" in unnamed
    assert "run_pipeline.py" not in help_text + wrong + missing + unnamed


def test_the_demo_runs_where_files_of_our_names_lie(site: Path, folder_in_the_way: Path) -> None:
    if missing := [name for name in ("demo-clip", "centerface", "silero-vad") if not assets.local(assets.entry(name))]:
        pytest.skip(f"{', '.join(missing)}: not fetched; python run_pipeline.py models pull")
    done = sensorium(site, folder_in_the_way, "demo", "--for", "4s", "--no-dashboard", "--out", "out.jsonl")
    assert done.returncode == 0, done.stderr
    assert last_line(folder_in_the_way / "out.jsonl")["predictions"] > 10


@pytest.mark.parametrize("name", ["pipeline", "nodes"])
def test_a_module_of_our_name_on_the_python_path_is_named_in_one_line(site: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / f"{name}.py").write_text(STRANGE)
    done = sensorium(site, tmp_path, "check", "emotion-live.yaml", path=str(tmp_path))
    assert done.returncode == 2 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {tmp_path}/{name}.py is imported in place of") and "Rename it" in line


def test_import_sensorium_is_the_public_surface_or_says_what_is_in_the_way(site: Path, tmp_path: Path) -> None:
    program = "import sensorium, pipeline; assert sensorium.subscribe is pipeline.subscribe; print(sensorium.__all__)"
    environment = os.environ | {"PYTHONPATH": str(site)}
    options = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True, "timeout": 60}
    done = subprocess.run([sys.executable, "-c", program], **options)  # type: ignore[call-overload]
    assert done.returncode == 0 and "'subscribe'" in done.stdout, done.stderr
    (tmp_path / "pipeline.py").write_text("")
    done = subprocess.run([sys.executable, "-c", "from sensorium import subscribe"], **options)  # type: ignore[call-overload]
    assert f"ImportError: {tmp_path}/pipeline.py is imported in place of" in done.stderr.splitlines()[-1]
