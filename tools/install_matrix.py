"""Installs the wheel into empty environments, runs doctor and makes a video, without a compiler.

Where dependencies are new, the kernels for Hopper are compiled too, with the Triton that came. One
row per Python and set of dependencies: the newest that the ranges allow, the oldest, and the
pins of two programs that people embed cosmos-fast beside. Downloads many gigabytes. The last line
of the output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from email.parser import Parser
from pathlib import Path
from typing import Final, NamedTuple


class Row(NamedTuple):
    """One environment: its Python, its name, and what else it asks of the resolver."""

    python: str
    name: str
    resolution: str
    pins: tuple[str, ...] = ()


ROWS: Final = (
    Row("3.11", "newest", "highest"),
    Row("3.11", "oldest", "lowest-direct"),
    Row("3.12", "newest", "highest"),
    Row("3.12", "oldest", "lowest-direct"),
    Row("3.12", "Isaac Lab 3.0.0", "highest", ("torch==2.11.0", "transformers==5.10.4")),
    Row(
        "3.12",
        "LeRobot 0.6.1",
        "highest",
        ("torch<2.12", "numpy<2.3", "huggingface-hub<2.0"),
    ),
)
ROOT: Final = Path(__file__).resolve().parent.parent
SHOWN: Final = ("torch", "triton", "numpy", "transformers", "huggingface-hub", "safetensors")


def run(*command: str | Path, folder: Path, path: str | None = None) -> str:
    """Standard output of ``command``; its error output is the message when it fails."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("COSMOS_FAST_", "PYTHON", "VIRTUAL_ENV", "CONDA"))
    }
    done = subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env=environment if path is None else {"PATH": path, "HOME": str(folder), "LANG": "C.UTF-8"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        tail = (done.stderr or done.stdout).strip()[-1500:]
        raise RuntimeError(f"{' '.join(map(str, command))}: exit {done.returncode}\n{tail}")
    return done.stdout


def requirements(wheel: Path) -> list[str]:
    """What ``wheel`` requires, to be asked for by name: only then does "lowest-direct" mean it."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(archive.read(name).decode())
    return [one for one in metadata.get_all("Requires-Dist", []) if "extra ==" not in one]


def try_row(row: Row, wheel: Path, interpreter: str, folder: Path) -> dict[str, str]:
    """Versions that were installed, by name.

    Raises:
        RuntimeError: a step failed; the message holds the command and the end of what it said.
    """
    uv = Path(sys.executable).with_name("uv")
    environment = folder / "environment"
    python = environment / "bin" / "python"
    run(uv, "venv", "--no-python-downloads", "--python", interpreter, environment, folder=folder)
    install = ("pip", "install", "--python", python, "--only-binary", ":all:")
    wanted: list[str | Path] = [wheel, *requirements(wheel), *row.pins]
    run(uv, *install, "--resolution", row.resolution, *wanted, folder=folder)
    run(uv, "pip", "check", "--python", python, folder=folder)
    listed = json.loads(
        run(uv, "pip", "list", "--python", python, "--format", "json", folder=folder)
    )
    bare = str(environment / "bin")  # no compiler, no cargo, no ffmpeg on this PATH
    run(
        python,
        "-W",
        "error",
        "-c",
        "import cosmos_fast, cosmos_fast._core",
        folder=folder,
        path=bare,
    )
    program = environment / "bin" / "cosmos-fast"
    _hear_doctor(run(program, "doctor", "--offline", "--json", folder=folder, path=bare))
    run(program, "demo", "--num_steps", "6", folder=folder, path=bare)
    videos = list(folder.glob("outputs/**/*.mp4"))
    if not videos or not all(video.stat().st_size for video in videos):
        raise RuntimeError("the demo ended well and left no video")
    if row.resolution == "highest":  # the oldest Triton has another Gluon, and is told so
        compiling = ROOT / "tools" / "compile_hopper.py"
        run("env", f"PYTHONPATH={ROOT / 'tests'}", python, compiling, folder=folder)
    return {item["name"]: item["version"] for item in listed}


def _hear_doctor(told: str) -> None:
    """
    Raises:
        RuntimeError: it finds a fault, or the environment other than it is.
    """
    verdicts = {check["name"]: check["verdict"] for check in json.loads(told)["checks"]}
    expected = {"packages": "ok", "core": "ok", "torch": "ok", "ffmpeg": "ok", "toy worlds": "ok"}
    expected["C compiler"] = "warn"
    found = {name: verdicts.get(name) for name in expected}
    if found != expected:
        raise RuntimeError(f"doctor: {found} where {expected} was expected")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("wheel", type=Path)
    parser.add_argument(
        "--interpreter", action="append", default=[], help="path of a Python to use for its version"
    )
    parser.add_argument("--only", default="", help="rows whose 'python name' contains this")
    arguments = parser.parse_args()
    interpreters = {"3.11": "python3.11", "3.12": "python3.12"}
    for path in arguments.interpreter:
        version = run(path, "--version", folder=Path.cwd())
        if match := re.search(r"3\.\d+", version):
            interpreters[match[0]] = path
    results: list[dict[str, str | bool]] = []
    for row in ROWS:
        if arguments.only not in f"{row.python} {row.name}":
            continue
        start = time.monotonic()
        folder = Path(tempfile.mkdtemp(prefix="cosmos-fast-matrix-"))
        try:
            versions = try_row(row, arguments.wheel.resolve(), interpreters[row.python], folder)
            shown: dict[str, str | bool] = {
                name: versions[name] for name in SHOWN if name in versions
            }
            results.append({"python": row.python, "row": row.name, "ok": True, **shown})
            print(
                f"ok    {row.python} {row.name}: "
                f"{', '.join(f'{name} {version}' for name, version in shown.items())} "
                f"({time.monotonic() - start:.0f} s)",
                flush=True,
            )
        except RuntimeError as error:
            results.append({"python": row.python, "row": row.name, "ok": False})
            print(f"FAIL  {row.python} {row.name}: {error}", flush=True)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    size = arguments.wheel.stat().st_size
    print(json.dumps({"wheel": arguments.wheel.name, "bytes": size, "rows": results}))
    return int(not results or not all(result["ok"] for result in results))


if __name__ == "__main__":
    sys.exit(main())
