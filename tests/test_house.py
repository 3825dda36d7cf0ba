"""The rules that hold the house up, and proof that each of them can say no."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "python" / "cosmos_fast"
KERNELS = ROOT / "kernels" / "cosmos_fast_kernels"


def imported_roots(source: str) -> set[str]:
    roots = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            roots |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            roots.add(node.module.split(".")[0])
    return roots


def test_the_kernels_are_reached_through_a_relative_link() -> None:
    link = ROOT / "python" / "cosmos_fast_kernels"
    assert link.readlink() == Path("../kernels/cosmos_fast_kernels")
    assert link.resolve() == KERNELS


def test_kernels_is_a_folder_and_not_a_package() -> None:
    # Another distribution owns the import name `kernels`; transformers would import ours instead.
    assert not (ROOT / "kernels" / "__init__.py").exists()


def test_the_kernels_depend_on_torch_and_triton_only() -> None:
    allowed = sys.stdlib_module_names | {"torch", "triton", "cosmos_fast_kernels"}
    foreign = {
        file.name: imported_roots(file.read_text("utf-8")) - allowed
        for file in KERNELS.rglob("*.py")
    }
    assert not {name: roots for name, roots in foreign.items() if roots}


def test_one_call_unpickles_checkpoints_and_it_refuses_code() -> None:
    calls = [
        (file.relative_to(PACKAGE).parts[0], ast.unparse(node))
        for file in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load"
    ]
    assert len(calls) == 1, calls
    assert calls[0][0] == "weights", calls
    assert "weights_only=True" in calls[0][1], calls


@pytest.mark.parametrize(
    ("code", "rule"),
    [
        pytest.param("import os\n\nHOME = os.environ['HOME']\n", "TID251", id="environment"),
        pytest.param("from os import getenv\n\ngetenv('HOME')\n", "TID251", id="getenv"),
        pytest.param("import ffmpeg\n\nffmpeg.input('a')\n", "TID251", id="ffmpeg"),
        pytest.param("import torch\n\ntorch.load('a.pt')\n", "TID251", id="torch.load"),
        pytest.param("import pickle\n\npickle.loads(b'')\n", "TID251", id="pickle"),
        pytest.param("import subprocess\n\nsubprocess.run([])\n", "TID251", id="processes"),
        pytest.param("import torch\n\ntorch.manual_seed(0)\n", "TID251", id="random state"),
        pytest.param("print('loading')\n", "T201", id="print"),
        pytest.param("from . import config\n\nconfig.x()\n", "TID252", id="relative import"),
    ],
)
def test_lint_refuses_it_in_the_library(code: str, rule: str) -> None:
    options = "check --no-cache --output-format concise --stdin-filename"
    planted = "python/cosmos_fast/model/planted.py"
    run = subprocess.run(
        [sys.executable, "-m", "ruff", *options.split(), planted, "-"],
        input=code,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 1, run.stdout + run.stderr
    assert rule in run.stdout


@pytest.mark.parametrize(
    ("module", "code", "contract"),
    [
        pytest.param(
            "cosmos_fast/sampling/planted.py",
            "import cosmos_fast.weights\n",
            "rooms on one floor do not know each other",
            id="a neighbour",
        ),
        pytest.param(
            "cosmos_fast/media/planted.py",
            "import cosmos_fast.engine\n",
            "Imports go down the floors only",
            id="a floor above",
        ),
        pytest.param(
            "cosmos_fast/attic.py", "", "must be declared as a layer", id="a room nobody declared"
        ),
        pytest.param(
            "cosmos_fast/sampling/planted.py",
            "import cosmos_fast_kernels\n",
            "Only model/ops knows",
            id="a kernel past ops",
        ),
        pytest.param(
            "cosmos_fast/model/planted.py",
            "import cosmos_fast.model.ops.kernels\n",
            "model/ops is used through its front door",
            id="a file of ops",
        ),
        pytest.param(
            "cosmos_fast_kernels/planted.py",
            "import cosmos_fast.errors\n",
            "The kernels know nothing of cosmos_fast",
            id="the package from a kernel",
        ),
    ],
)
def test_the_floors_refuse_it(module: str, code: str, contract: str, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "python", tmp_path, dirs_exist_ok=True, ignore=only_python)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / module).write_text(code, "utf-8")
    linter = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    run = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, '.'); {linter}", "--no-cache"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 1, run.stdout + run.stderr
    broken = run.stdout.split("Broken contracts", 1)[-1]
    assert contract in " ".join(broken.split()), run.stdout


def test_no_room_but_the_command_line_uses_the_front_door() -> None:
    for file in PACKAGE.rglob("*.py"):
        if "cli" in file.relative_to(PACKAGE).parts:
            continue
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                assert "cosmos_fast" not in {alias.name for alias in node.names}, file
            elif isinstance(node, ast.ImportFrom) and node.module == "cosmos_fast":
                assert {alias.name for alias in node.names} <= {"_core"}, file


def only_python(folder: str, names: list[str]) -> set[str]:
    return {name for name in names if not (Path(folder, name).is_dir() or name.endswith(".py"))} | {
        "__pycache__"
    }


def test_the_version_is_written_once() -> None:
    cargo = tomllib.loads((ROOT / "Cargo.toml").read_text("utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert "version" not in project
    assert project["dynamic"] == ["version"]
    assert metadata.version("cosmos-fast") == cargo["workspace"]["package"]["version"]


def test_the_lock_is_exact_and_names_no_host() -> None:
    lock = (ROOT / "requirements" / "dev.lock").read_text("utf-8")
    assert "://" not in lock
    assert "--index" not in lock
    entries = re.split(r"\n(?=[a-z0-9])", re.sub(r"^#.*\n", "", lock, flags=re.M).strip())
    for entry in entries:
        assert re.match(r"[a-z0-9._-]+(\[[a-z,]+\])?==\S+", entry), entry
        assert "--hash=sha256:" in entry, entry
    names = {entry.split("==")[0] for entry in entries}
    assert {"torch", "triton", "pytest", "ruff", "maturin"} <= names


def test_the_planted_test_module_would_run_if_it_were_imported(tmp_path: Path) -> None:
    (tmp_path / "test.py").write_text("open('ran', 'w').close()\n", "utf-8")
    subprocess.run(
        [sys.executable, "-c", "import sys; sys.path.insert(0, ''); import test"],
        cwd=tmp_path,
        check=True,
    )
    assert (tmp_path / "ran").exists()


def test_ffmpeg_python_never_reaches_the_flagged_part_of_future(tmp_path: Path) -> None:
    # CVE-2025-50817: future.standard_library runs `import test`, whatever test.py that finds.
    (tmp_path / "test.py").write_text("open('ran', 'w').close()\n", "utf-8")
    code = (
        "import sys; sys.path.insert(0, '')\n"
        "import ffmpeg\n"
        "import numpy, cosmos_fast.media as media\n"
        "line = ffmpeg.input('in.mp4').filter('scale', 4, 4).output('out.mp4', crf=1).compile()\n"
        "assert line[-1] == 'out.mp4', line\n"
        "media.write_png('a.png', numpy.zeros((8, 8, 3), numpy.uint8))\n"
        "with media.VideoWriter('a.mp4', size=(8, 8), fps=4) as writer:\n"
        "    writer.write(numpy.zeros((5, 8, 8, 3), numpy.uint8))\n"
        "for name in ('a.png', 'a.mp4'):\n"
        "    media.read_frames(name, size=(8, 8), num_frames=1)\n"
        "print(*sys.modules, sep='\\n')\n"
    )
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    )
    modules = set(run.stdout.split())
    assert "past.builtins" in modules  # the dependency is there: the test looks at the real thing
    assert "future.standard_library" not in modules
    assert "test" not in modules
    assert not (tmp_path / "ran").exists()
