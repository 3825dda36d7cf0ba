"""The wheel and the sdist, built and looked into."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parent.parent
KERNELS = ROOT / "kernels" / "cosmos_fast_kernels"
SPEC = importlib.util.spec_from_file_location("check_wheel", ROOT / "tools" / "check_wheel.py")
assert SPEC
assert SPEC.loader
check_wheel = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(check_wheel)


def maturin(*arguments: str, folder: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "maturin", *arguments],
        cwd=folder,
        env=os.environ | {"CARGO_TARGET_DIR": str(ROOT / "target"), "PYO3_PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr


def only(folder: Path, pattern: str) -> Path:
    (found,) = folder.glob(pattern)
    return found


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel of this tree and its sdist."""
    folder = tmp_path_factory.mktemp("dist")
    maturin("build", "--release", "--locked", "--sdist", "--out", str(folder), folder=ROOT)
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    return only(built, "*.whl")


def contents(wheel: Path) -> dict[str, bytes]:
    """Every file of ``wheel`` but what differs by build: binary, digests, bill of materials."""
    with zipfile.ZipFile(wheel) as archive:
        return {
            name: archive.read(name)
            for name in archive.namelist()
            if not name.endswith((".so", "/RECORD", ".cyclonedx.json"))
        }


def test_the_wheel_is_whole(wheel: Path, measured: Callable[[str], None]) -> None:
    assert check_wheel.faults(wheel) == []
    measured(check_wheel.sizes(wheel))


def test_the_wheel_holds_every_kernel(wheel: Path) -> None:
    kernels = {f"cosmos_fast_kernels/{file.name}" for file in KERNELS.glob("*.py")}
    assert "cosmos_fast_kernels/__init__.py" in kernels
    assert kernels <= contents(wheel).keys()


def rewritten(wheel: Path, folder: Path, drop: str, add: str | None = None) -> Path:
    """``wheel`` again, without the files whose name matches ``drop``, with ``add`` added."""
    copy = folder / wheel.name
    with zipfile.ZipFile(wheel) as source, zipfile.ZipFile(copy, "w") as target:
        for item in source.infolist():
            if not re.fullmatch(drop, item.filename):
                target.writestr(item, source.read(item.filename))
        if add:
            target.writestr(add, b"")
    return copy


@pytest.mark.parametrize(
    ("drop", "add", "complaint"),
    [
        pytest.param(
            r"cosmos_fast_kernels/.*", None, "missing: cosmos_fast_kernels/", id="kernels"
        ),
        pytest.param(r".*\.pyi", None, "missing: cosmos_fast/_core.pyi", id="stub"),
        pytest.param(r".*py\.typed", None, "missing: cosmos_fast/py.typed", id="py.typed"),
        pytest.param(r".*/NOTICE", None, "missing licence: NOTICE", id="notice"),
        pytest.param("", "tests/test_x.py", "no place in a wheel: tests/test_x.py", id="a test"),
        pytest.param("", "kernels/__init__.py", "no place in a wheel: kernels", id="kernels root"),
    ],
)
def test_a_wheel_that_is_not_whole_is_noticed(
    drop: str, add: str | None, complaint: str, wheel: Path, tmp_path: Path
) -> None:
    found = check_wheel.faults(rewritten(wheel, tmp_path, drop, add))
    assert any(complaint in fault for fault in found), found


@pytest.mark.slow
def test_the_sdist_builds_the_same_wheel(wheel: Path, built: Path, tmp_path: Path) -> None:
    with tarfile.open(only(built, "*.tar.gz")) as archive:
        archive.extractall(tmp_path, filter="data")
    source = only(tmp_path, "cosmos_fast-*")
    assert not (source / "tests").exists()
    maturin("build", "--release", "--locked", "--out", str(tmp_path), folder=source)
    assert contents(only(tmp_path, "*.whl")) == contents(wheel)


@pytest.mark.slow
def test_the_wheel_runs_without_the_tree(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    code = (
        "import cosmos_fast, cosmos_fast_kernels, cosmos_fast._core as core\n"
        "print(cosmos_fast.__file__, cosmos_fast_kernels.__file__, core.__file__, sep='\\n')\n"
    )
    # -I and an explicit path: the editable install of this tree must not answer for the wheel.
    start = f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r})\n"
    run = subprocess.run(
        [sys.executable, "-I", "-c", start + code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    places = [Path(line) for line in run.stdout.split()]
    assert len(places) == 3
    assert all(place.is_relative_to(tmp_path / "site") for place in places), places


def test_the_build_needs_cargo_and_says_so(tmp_path: Path) -> None:
    """``make`` without cargo stops with a sentence, before maturin's own traceback."""
    for name in ("Makefile", "Cargo.toml", "Cargo.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "requirements").mkdir()
    (tmp_path / "requirements" / "dev.lock").touch()
    shutil.copytree(ROOT / "tools", tmp_path / "tools", ignore=shutil.ignore_patterns("*.py"))
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / ".dependencies").touch()
    binaries = tmp_path / "bin"
    binaries.mkdir()
    for name in ("make", "bash", "sh", "find", "env", "touch", "sed"):
        if found := shutil.which(name):
            (binaries / name).symlink_to(found)
    run = subprocess.run(
        ["make", "SHELL=" + str(binaries / "bash"), "setup"],
        cwd=tmp_path,
        env={"PATH": str(binaries)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 2
    assert "cargo is missing" in run.stderr
