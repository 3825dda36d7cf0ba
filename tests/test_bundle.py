"""What the benches' wheels are packed into, by the real pip, from a folder in place of an index."""

from __future__ import annotations

import re
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def write_wheel(folder: Path, name: str, tag: str, *needs: str) -> None:
    """A wheel of one module that says which tag it is for."""
    about = f"{name}-1.0.dist-info"
    required = "".join(f"Requires-Dist: {one}\n" for one in needs)
    files = {
        f"{name}.py": f"TAG = {tag!r}\n",
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{required}",
        f"{about}/WHEEL": f"Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: {tag}\n",
    }
    record = f"{about}/RECORD"
    files[record] = "".join(f"{file},,\n" for file in [*files, record])
    with zipfile.ZipFile(folder / f"{name}-1.0-{tag}.whl", "w") as wheel:
        for file, text in files.items():
            wheel.writestr(file, text)


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where pip looks, and nowhere else; the one group to pack is ``packed``."""
    monkeypatch.syspath_prepend(str(ROOT / "benches"))
    import bundle

    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setattr(bundle, "GROUPS", {"small": ("packed==1.0",)})
    return folder


def bundled(target: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    import bundle

    monkeypatch.setattr(sys, "argv", ["bundle.py", str(target), *words])
    return bundle.main()


@pytest.mark.parametrize(
    "tag",
    [
        "py3-none-any",
        "cp310-abi3-manylinux2014_x86_64",
        "cp312-cp312-manylinux_2_28_x86_64",
        "cp312-cp312-manylinux_2_17_x86_64.manylinux2014_x86_64",
    ],
)
def test_wheels_of_that_machine_are_packed(
    tag: str, wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_wheel(wheels, "packed", tag, "torch")  # what it needs is there already
    target = tmp_path / "made" / "bundle"
    assert bundled(target, monkeypatch) == 0
    assert [file.name for file in target.iterdir()] == ["small.tar.xz"]
    with tarfile.open(target / "small.tar.xz") as tar:
        tar.extractall(tmp_path / "site", filter="data")
    assert (tmp_path / "site" / "packed.py").read_text("utf-8") == f"TAG = {tag!r}\n"
    assert (tmp_path / "site" / "packed-1.0.dist-info" / "METADATA").is_file()


@pytest.mark.parametrize(
    "tag",
    [
        "cp311-cp311-manylinux_2_28_x86_64",
        "cp312-cp312-manylinux_2_41_x86_64",
        "cp312-cp312-manylinux_2_28_aarch64",
        "cp312-cp312-win_amd64",
    ],
)
def test_wheels_of_other_machines_are_not_and_the_last_archive_stays(
    tag: str, wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    write_wheel(wheels, "packed", tag)
    (tmp_path / "small.tar.xz").write_bytes(b"of the last time")
    assert bundled(tmp_path, monkeypatch) != 0
    assert "bundle: pip found not all of packed==1.0" in capsys.readouterr().err
    assert (tmp_path / "small.tar.xz").read_bytes() == b"of the last time"
    assert not (tmp_path / ".small.tar.xz").exists()


def test_another_python_takes_its_own_wheels(
    wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_wheel(wheels, "packed", "cp311-cp311-manylinux_2_28_x86_64")
    assert bundled(tmp_path, monkeypatch, "--python", "3.11", "--group", "small") == 0


def test_a_group_that_is_not_there_is_refused(
    wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    with pytest.raises(SystemExit, match="2"):
        bundled(tmp_path, monkeypatch, "--group", "large")
    assert "invalid choice: 'large'" in capsys.readouterr().err


def test_what_is_packed_is_pinned_as_the_tests_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benches"))
    from bundle import GROUPS

    pinned = [one.partition("==")[::2] for group in GROUPS.values() for one in group]
    assert all(name and version for name, version in pinned)
    lock = (ROOT / "requirements" / "dev.lock").read_text("utf-8")
    locked = dict(re.findall(r"^([a-z0-9-]+)==([^ ;]+)", lock, re.MULTILINE))
    apart = {name for name, version in pinned if locked.get(name.lower(), version) != version}
    assert apart == {"imageio-ffmpeg"}  # for its size, as bundle.py says
