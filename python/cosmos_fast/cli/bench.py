"""``cosmos-fast bench``: how fast this machine is, beside the rivals, with the ceilings."""

from __future__ import annotations

import runpy
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cosmos_fast.cli.exits import ExitCode, MissingPartError, UsageError
from cosmos_fast.cli.flags import Choice, Flag, Location, Number, Word, parse_flags, takes
from cosmos_fast.cli.progress import PlainDisplay, telling_warnings

if TYPE_CHECKING:
    from collections.abc import Mapping

BENCHES: Final = ("kernels", "attention", "linear", "forward", "vae", "text", "run")
"""In this order by default: from the smallest piece to the whole."""

TAKERS: Final = {
    "shape": ("kernels", "linear", "forward", "vae", "run"),
    "seconds": ("kernels", "attention", "linear", "forward", "vae", "text"),
    "without": ("forward", "run"),
}
"""Which benches know a flag that is passed on to them."""

_LONG: Final = ("kernels", "attention", "linear", "forward", "vae")
"""Who holds the first shape longer than the others."""

_HELD: Final = {
    "attention": ("--long", "30"),
    "linear": ("--long", "30"),
    "text": ("--seconds", "30"),
}
"""One row of every table is held for so many seconds: where a program's own default is less."""

BENCH_FLAGS: Final = (
    Flag("only", Choice(BENCHES), "One bench. Default: all, one after the other."),
    Flag(
        "shape",
        Word("SHAPE"),
        "Shapes of the bench named by --only, which lists them under --help. Default: all; of "
        "whole runs those of BENCHMARKS.md.",
        several=True,
    ),
    Flag(
        "seconds",
        Number(above=True),
        "How long each contender is held at each shape. Default: each bench's own, with the first "
        "shape held longer.",
    ),
    Flag(
        "without",
        Word("RIVAL"),
        "Rivals of the forward and of whole runs that stay out, as the tables name them.",
        several=True,
    ),
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
    live in the source tree, with what they compare with (requirements/dev.in); each is a program
    with more options than these: python benches/bench_forward.py --help.
    """
    flags = parse_flags(BENCH_FLAGS, given)
    _check(flags)
    folder = _folder()
    chosen = [str(flags["only"])] if flags.get("only") else list(BENCHES)
    tiny = bool(flags.get("tiny"))
    if not tiny and _machine() == "cpu":
        raise UsageError(
            "bench measures a CUDA device, and torch sees none; --tiny shows on a CPU that it works"
        )
    return run_all(folder, {name: _arguments(name, flags, tiny=tiny) for name in chosen})


def run_all(folder: Path, programs: Mapping[str, list[str]]) -> ExitCode:
    """Each bench of ``folder`` with its arguments; one that fails does not keep back the others."""
    failed = []
    for name, arguments in programs.items():
        problem = _run(folder, name, arguments)
        if problem:
            print(f"bench {name} failed: {problem}", file=sys.stderr, flush=True)
            failed.append(name)
    if not failed:
        return ExitCode.OK
    saved = any("--save" in arguments for arguments in programs.values())
    print(
        f"cosmos-fast bench: {len(failed)} of {len(programs)} failed: {', '.join(failed)}"
        + "; what was measured before they did is kept" * saved,
        file=sys.stderr,
    )
    return ExitCode.FAILED


def _check(flags: dict[str, object]) -> None:
    """
    Raises:
        UsageError: a flag that no chosen bench takes, or shapes without the bench they belong to.
    """
    only = flags.get("only")
    if flags.get("shape") and not only:
        raise UsageError(
            "--shape without --only: each bench has shapes of its own; name the bench, as in "
            "--only forward --shape 2b_480p_81"
        )
    for flag, takers in TAKERS.items():
        if flags.get(flag) and only and only not in takers:
            raise UsageError(f"--{flag}: bench {only} has none; those that do: {', '.join(takers)}")


def _arguments(name: str, flags: dict[str, object], *, tiny: bool) -> list[str]:
    arguments: list[str] = []
    if tiny:
        arguments.append("--dry" if name == "attention" else "--tiny")
    seconds = flags.get("seconds") or (0.2 if tiny else None)
    if seconds and name in TAKERS["seconds"]:
        arguments += ["--seconds", f"{seconds:g}"]
        if name in _LONG:
            arguments += ["--long", f"{seconds:g}"]
    elif not seconds:
        arguments += _HELD.get(name, ())
    for shape in _texts(flags.get("shape")):
        arguments += ["--shape", shape]
    if name in TAKERS["without"] and flags.get("without"):
        arguments += ["--without", *_texts(flags["without"])]
    if name == "run" and flags.get("checkpoints"):
        arguments += ["--checkpoints", str(flags["checkpoints"])]
    if flags.get("save"):
        target = Path(str(flags["save"])) / f"{name}_{_machine()}.json"
        target.parent.mkdir(parents=True, exist_ok=True)
        arguments += ["--save", str(target)]
    return arguments


def _texts(given: object) -> tuple[str, ...]:
    """The values of a flag that takes several."""
    return given if isinstance(given, tuple) else ()


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


def _run(folder: Path, name: str, arguments: list[str]) -> str:
    """One bench, as its own program would run; why it failed, or an empty text."""
    program = folder / f"bench_{name}.py"
    before, path = sys.argv, list(sys.path)
    sys.argv = [f"benches/{program.name}", *arguments]
    sys.path.insert(0, str(folder))
    try:
        with telling_warnings(PlainDisplay()):
            runpy.run_path(str(program), run_name="__main__")
    except SystemExit as end:
        if isinstance(end.code, str):
            return end.code or "it gave no reason"
        return f"exit code {end.code}" if end.code else ""
    except Exception as problem:  # the others are measured all the same
        traceback.print_exc()
        return f"{type(problem).__name__}: {problem}"
    finally:
        sys.argv, sys.path[:] = before, path
    return ""
