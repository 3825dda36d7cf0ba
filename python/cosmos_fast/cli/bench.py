"""``cosmos-fast bench``: how fast this machine is, beside the rivals, with the ceilings."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Final

from cosmos_fast.cli.exits import ExitCode, MissingPartError
from cosmos_fast.cli.flags import Choice, Flag, Location, parse_flags, takes

BENCHES: Final = ("kernels", "attention", "forward", "vae", "run")
"""In this order by default: from the smallest piece to the whole."""

BENCH_FLAGS: Final = (
    Flag("only", Choice(BENCHES), "One bench. Default: all, one after the other."),
    Flag("save", Location(), "Folder for one JSON file a bench."),
    Flag(
        "checkpoints",
        Location(),
        "Folder of random checkpoints for whole runs; made where missing.",
    ),
    Flag("tiny", None, "Small networks that run on a CPU: shows that it works, measures nothing."),
    Flag("debug", None, "Show the traceback of an error."),
)


@takes(BENCH_FLAGS)
def bench(**given: object) -> int:
    """Measure kernels, one forward, the VAE and whole runs, ours beside the rivals.

    Each contender is checked against an exact result first; what is wrong is refused. The benches
    live in the source tree, with what they compare with (requirements/dev.in).
    """
    flags = parse_flags(BENCH_FLAGS, given)
    folder = _folder()
    chosen = [str(flags["only"])] if flags.get("only") else list(BENCHES)
    tiny = bool(flags.get("tiny"))
    for name in chosen:
        if _run(folder, name, _arguments(name, flags, tiny=tiny)):
            return ExitCode.FAILED
    return ExitCode.OK


def _arguments(name: str, flags: dict[str, object], *, tiny: bool) -> list[str]:
    arguments: list[str] = []
    if tiny:
        arguments += {
            "attention": ["--dry", "--check-seconds", "20", "--seconds", "0.2"],
        }.get(name, ["--tiny"])
        if name in ("kernels", "forward", "vae"):
            arguments += ["--long", "0.2"]
    if name == "run" and flags.get("checkpoints"):
        arguments += ["--checkpoints", str(flags["checkpoints"])]
    if flags.get("save"):
        target = Path(str(flags["save"])) / f"{name}_{_machine()}.json"
        target.parent.mkdir(parents=True, exist_ok=True)
        arguments += ["--out" if name == "attention" else "--save", str(target)]
    return arguments


def _machine() -> str:
    """The device in a word, for the name of a file."""
    import torch

    if not torch.cuda.is_available():
        return "cpu"
    name = torch.cuda.get_device_name().lower().removeprefix("nvidia").strip()
    return "-".join(name.split())


def _folder() -> Path:
    """The benches of the source tree that this package was installed from."""
    folder = Path(__file__).resolve().parents[3] / "benches"
    if not (folder / "contest.py").is_file():
        raise MissingPartError(
            "bench needs the source tree of cosmos-fast: the benches and their rivals are not part "
            "of the wheel; clone the repository and call `make bench` there"
        )
    return folder


def _run(folder: Path, name: str, arguments: list[str]) -> int:
    """One bench, as its own program would run."""
    program = folder / f"bench_{name}.py"
    before, path = sys.argv, list(sys.path)
    sys.argv = [f"benches/{program.name}", *arguments]
    sys.path.insert(0, str(folder))
    try:
        runpy.run_path(str(program), run_name="__main__")
    except SystemExit as end:
        return int(end.code or 0) if not isinstance(end.code, str) else 1
    finally:
        sys.argv, sys.path[:] = before, path
    return 0
