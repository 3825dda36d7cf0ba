"""The command line ``cosmos-fast``: one file a command; parses, calls the public API, prints.

Nothing here imports torch before a command needs it, so that ``--help`` answers at once.
"""

from __future__ import annotations

import difflib
import os
import re
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Any, Final, NoReturn

import typer

from cosmos_fast.cli.batch import BATCH_FLAGS, batch
from cosmos_fast.cli.bench import BENCH_FLAGS, bench
from cosmos_fast.cli.best_of_n import BEST_OF_N_FLAGS, best_of_n
from cosmos_fast.cli.convert import CONVERT_FLAGS, convert
from cosmos_fast.cli.demo import DEMO_FLAGS, demo
from cosmos_fast.cli.doctor import DOCTOR_FLAGS, doctor
from cosmos_fast.cli.download import DOWNLOAD_FLAGS, SEVERAL_VALUES, download
from cosmos_fast.cli.exits import ExitCode, ToldByFirst, exit_code_of, message_of
from cosmos_fast.cli.flags import in_flags, nearest, spread_values
from cosmos_fast.cli.future_commands import add_future_commands
from cosmos_fast.cli.interrupt import Interrupted, interruptible
from cosmos_fast.cli.launch import is_first
from cosmos_fast.cli.output import print_json
from cosmos_fast.cli.plan import PLAN_FLAGS, plan
from cosmos_fast.cli.rollout import ROLLOUT_FLAGS, rollout
from cosmos_fast.cli.video2world import video2world
from cosmos_fast.cli.video2world_action import ACTION_FLAGS, video2world_action
from cosmos_fast.cli.video2world_flags import VIDEO2WORLD_FLAGS

_PROGRAM = "cosmos-fast"
FLAGS_OF: Final = {
    "video2world": VIDEO2WORLD_FLAGS,
    "batch": BATCH_FLAGS,
    "rollout": ROLLOUT_FLAGS,
    "best-of-n": BEST_OF_N_FLAGS,
    "demo": DEMO_FLAGS,
    "download": DOWNLOAD_FLAGS,
    "convert": CONVERT_FLAGS,
    "plan": PLAN_FLAGS,
    "doctor": DOCTOR_FLAGS,
    "bench": BENCH_FLAGS,
    "video2world-action": ACTION_FLAGS,
}
"""The flags of every command; the last is one of the reference's, and not in --help."""


def build_app() -> typer.Typer:
    """The application with all its commands."""
    app = typer.Typer(
        name=_PROGRAM,
        help="One picture or a few frames, and a prompt, become a video.",
        epilog="Exit codes: 0 ok, 1 failed, 2 usage, 3 blocked by a guardrail, "
        "4 part of a batch failed, 130 interrupted (143 by SIGTERM).",
        pretty_exceptions_enable=False,
        context_settings={
            "help_option_names": ["--help", "-h"],
            "token_normalize_func": lambda name: name.replace("-", "_"),
            "max_content_width": 100,
        },
    )
    app.callback()(_program)
    app.command()(video2world)
    app.command()(batch)
    app.command()(rollout)
    app.command("best-of-n")(best_of_n)
    for name in ("video2world-lvg", "video2world_lvg"):
        app.command(name, hidden=True)(rollout)
    for name in ("video2world-action", "video2world_action"):
        app.command(name, hidden=True)(video2world_action)
    for name in ("best_of_n", "video2world-bestofn", "video2world_bestofn"):
        app.command(name, hidden=True)(best_of_n)
    app.command()(demo)
    app.command()(download)
    app.command()(convert)
    app.command()(plan)
    app.command()(doctor)
    app.command()(bench)
    add_future_commands(app)
    return app


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit code of the process.

    Args:
        arguments: the command line without the program's name; None is this process's own.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["help"]:
        given = [*given[1:2], "--help"]
    ends = arguments is None
    try:
        with interruptible() as stop_raising:
            try:
                return _invoke(spread_values(given, SEVERAL_VALUES))
            except (Exception, Interrupted) as error:
                stop_raising()  # torchrun ends what is left of a command that is failing
                return _tell(error, given, ends)
    except Interrupted as interrupted:  # in the last moment
        return _tell(interrupted, given, ends)


def _invoke(arguments: list[str]) -> int:
    command = typer.main.get_command(build_app())
    outcome = command.main(arguments or ["--help"], prog_name=_PROGRAM, standalone_mode=False)
    return outcome if isinstance(outcome, int) else ExitCode.OK


def _tell(error: Exception | Interrupted, given: list[str], ends: bool) -> ExitCode:
    """Says why the command did not do what it was asked to, and returns its exit code.

    Args:
        ends: whether an interrupted process ends here.
    """
    if isinstance(error, Interrupted):
        code, cause = error.exit_code, error.cause or _lost_before(error)
        if is_first() or cause is not None:
            _fail(given, f"interrupted: {cause}" if cause else "interrupted", error, code)
        if ends:
            _end_at_once(code)
        return code
    if isinstance(error, ToldByFirst):
        return error.exit_code
    if isinstance(error, BrokenPipeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # silences the last flush
        return ExitCode.FAILED
    usage = _usage_message(error, given)
    if usage is not None:
        return _fail(given, usage, error, ExitCode.USAGE)
    if "--debug" in given:
        traceback.print_exception(error)
    message = in_flags(message_of(error), FLAGS_OF.get(given[0], ()) if given else ())
    return _fail(given, message, error, exit_code_of(error))


def _lost_before(interrupted: Interrupted) -> str | None:
    """The loss of a rank that this one was already failing from when the signal came."""
    from cosmos_fast.errors import RankLost

    error = interrupted.__context__
    while error is not None and not isinstance(error, RankLost):
        error = error.__context__
    return None if error is None else str(error)


def _usage_message(error: Exception, given: list[str]) -> str | None:
    """What the parser found wrong, or None where the error is not the parser's.

    Told by its shape: releases of typer differ in which module the parser's errors live in.
    """
    describe: Any = getattr(error, "format_message", None)
    if describe is None or not hasattr(error, "exit_code"):
        return None
    context: Any = getattr(error, "ctx", None)
    if context is not None:
        path = context.command_path
    else:
        path = " ".join([_PROGRAM, *(word for word in given[:1] if not word.startswith("-"))])
    message = re.split(r" Did you mean | \(Possible options: ", str(describe()))[0].rstrip(".")
    if option := re.fullmatch(r"No such option: (\S+)", message):
        question = nearest(option[1], FLAGS_OF.get(given[0], ()) if given else ())
        message += f"; {question}" if question else "."
    elif unknown := re.fullmatch(r"No such command '(.*)'", message):
        near = difflib.get_close_matches(unknown[1], FLAGS_OF, 1)
        message += f". Did you mean {near[0]}?" if near else "."
    elif "extra argument" in message and path == f"{_PROGRAM} video2world":
        message += "; the picture comes after --input_path and the words after --prompt, in quotes."
    else:
        message += "."
    return f"{message} See {path} --help."


def _fail(given: list[str], message: str, error: BaseException, code: ExitCode) -> ExitCode:
    message = "; ".join([message, *getattr(error, "__notes__", ())])
    print(f"error: {message}", file=sys.stderr)
    if "--json" in given and is_first():
        print_json(
            {
                "status": code.name.lower(),
                "exit_code": int(code),
                "error": {"type": type(error).__name__, "message": message},
                **({"guardrail": record} if (record := getattr(error, "record", None)) else {}),
                **({"plan": plan.as_dict()} if (plan := getattr(error, "plan", None)) else {}),
            }
        )
    return code


def _end_at_once(code: ExitCode) -> NoReturn:
    """Ends a process that was asked to end: taking torch down in good order takes seconds."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _show_version(asked: bool) -> None:
    if asked:
        from cosmos_fast import __version__

        print(f"{_PROGRAM} {__version__}")
        raise typer.Exit(ExitCode.OK)


def _program(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    """One picture or a few frames, and a prompt, become a video."""
