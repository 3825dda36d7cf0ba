"""The command line as a whole: what people type, what it answers, and with which exit code."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from commands import process, ran
from cosmos_fast import __version__
from cosmos_fast.cli import FLAGS_OF
from cosmos_fast.cli.future_commands import FUTURE_COMMANDS
from cosmos_fast.cli.video2world_flags import VIDEO2WORLD_FLAGS

if TYPE_CHECKING:
    from collections.abc import Callable

    Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process: exit code, stdout, stderr."""

    def call(*arguments: str) -> tuple[int, str, str]:
        return ran(capfd, arguments)

    return call


@pytest.mark.parametrize("flag", [flag.name for flag in VIDEO2WORLD_FLAGS if flag.kind])
def test_a_flag_without_its_value_is_a_usage_error(run: Run, flag: str) -> None:
    code, out, err = run("video2world", f"--{flag}")
    assert (code, out) == (2, "")
    assert f"--{flag}" in err
    assert "requires an argument" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["video2world", "--seed", "x"], "--seed: 'x' is not a whole number from 0 to 4294967295"),
        (["video2world", "--num-steps=0"], "--num_steps: '0' is not a whole number from 1 to 1000"),
        (
            ["video2world", "--fit", "crop"],
            "--fit: 'crop' is not one of its choices; expected cover or stretch",
        ),
        (["video2world"], "no input: give a picture or a video with --input_path"),
        (["video2world", "--nonsense", "1"], "No such option: --nonsense"),
        (["video2world", "--promt", "1"], "No such option: --promt; did you mean --prompt?"),
        (["plan", "--card", "x"], "No such option: --card. See cosmos-fast plan --help."),
        (["video2world", "--save_path", "."], "--save_path: '.' is a folder; name the file in it"),
        (["video2world", "a.png"], "the picture comes after --input_path and the words after"),
        (["video3world"], "No such command 'video3world'. Did you mean video2world? See"),
        (["doctor", "a"], "unexpected extra argument(s) (a). See cosmos-fast doctor --help."),
        (
            [
                "video2world",
                "--model",
                "ballworld",
                "--prompt",
                "p",
                "--input_path",
                "http://a/b.png",
            ],
            "addresses are not read: fetch the file",
        ),
        (["doctor", "--nonsense"], "No such option: --nonsense"),
        (["video2world", "--config", "none.toml"], "'none.toml' cannot be read"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_usage_errors(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*arguments, "--json")
    assert code == 2
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1
    document = json.loads(out)
    assert (document["status"], document["exit_code"]) == ("usage", 2)
    assert message in document["error"]["message"]


@pytest.mark.parametrize("name", FUTURE_COMMANDS)
def test_a_command_that_does_not_exist_yet_names_its_part(run: Run, name: str) -> None:
    for spelling in (name, name.replace("-", "_")):
        code, out, err = run(spelling, "--num_chunks", "6", "--guidance=3", "x")
        assert (code, out) == (2, "")
        assert err == (
            f"error: {name} needs the {FUTURE_COMMANDS[name]}, which does not exist yet; "
            "video2world makes one video\n"
        )


@pytest.mark.parametrize("command", FLAGS_OF)
def test_help_of_every_command_fits_a_terminal(
    run: Run, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """Whole names of all flags in 80 columns, and nothing else cut either."""
    monkeypatch.setenv("COLUMNS", "80")
    code, out, err = run(command, "--help")
    assert (code, err) == (0, "")
    assert f"cosmos-fast {command}" in out
    assert [flag.name for flag in FLAGS_OF[command] if f"--{flag.name} " not in out] == []
    assert "…" not in out
    assert max(map(len, out.splitlines())) <= 80
    prose = [line.strip() for line in out.partition("╭")[0].splitlines()[3:]]
    for line, following in itertools.pairwise(prose):
        if line and following and not line.startswith("Usage"):
            assert len(line) + len(following.split()[0]) > 70, (line, following)


def test_module_is_the_program() -> None:
    done = process("video2world", "--help")
    assert done.returncode == 0
    assert "cosmos-fast video2world" in done.stdout


def test_the_command_line_adds_nothing_heavy_to_the_package() -> None:
    """``--help`` and completion, which runs at every press of a key, need none of it."""
    probe = """
import sys
import cosmos_fast
before = set(sys.modules)
from cosmos_fast.cli import FLAGS_OF, main
main(["video2world", "--help"])
print(*sorted(set(sys.modules) - before), file=sys.stderr)
"""
    done = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0
    added = {name.partition(".")[0] for name in done.stderr.split()}
    assert "typer" in added
    assert not {"torch", "transformers", "triton", "huggingface_hub", "safetensors"} & added


def test_version(run: Run) -> None:
    assert run("--version") == (0, f"cosmos-fast {__version__}\n", "")


def test_help_is_a_command_too(run: Run) -> None:
    assert run("help") == run("--help")
    assert run("help", "demo") == run("demo", "--help")


def test_no_command_shows_the_help(run: Run) -> None:
    code, out, err = run()
    assert (code, err) == (0, "")
    assert "video2world" in out


def test_shell_completion_offers_flags_and_choices() -> None:
    done = process(
        _COSMOS_FAST_COMPLETE="complete_bash",
        COMP_WORDS="cosmos-fast video2world --aspect",
        COMP_CWORD="2",
    )
    assert "--aspect_ratio" in done.stdout
    done = process(
        _COSMOS_FAST_COMPLETE="complete_bash",
        COMP_WORDS="cosmos-fast video2world --fit ",
        COMP_CWORD="3",
    )
    assert done.stdout.split() == ["cover", "stretch"]


def test_a_closed_stdout_is_no_traceback() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "cosmos_fast", "doctor", "--offline", "--json"],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        timeout=120,
    )
    os.close(writer)
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr
