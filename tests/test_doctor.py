"""``doctor`` as a process: against a hub of our own, and on a machine where things are amiss."""

from __future__ import annotations

import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import cosmos_fast
from cosmos_fast.cli.checks_of_hub import GATED_REPOSITORIES
from cosmos_fast.cli.checks_of_machine import disks
from cosmos_fast.imports import install_extra

if TYPE_CHECKING:
    from collections.abc import Iterator

TWO_B, FOURTEEN_B, GUARDRAIL, LLAMA = GATED_REPOSITORIES


@contextmanager
def hub(answers: dict[str, int], asked: list[str] | None = None) -> Iterator[str]:
    """A hub on this machine that answers each path with a status; its address.

    What it was asked is noted in ``asked``.
    """

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.removeprefix("/api/models/").removesuffix("/auth-check")
            status = answers.get(name, 404)
            if asked is not None:
                asked.append(self.path)
            body = json.dumps({"name": "ferry"} if status == 200 else {"error": "no"}).encode()
            self.send_response(status)
            if status in (401, 403):
                self.send_header("X-Error-Code", "GatedRepo")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def doctor(
    home: Path, *flags: str, **environment: str
) -> tuple[subprocess.CompletedProcess[str], dict[str, dict[str, str]]]:
    """Runs it with a login of its own: the process, and its checks by name."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    done = subprocess.run(
        [sys.executable, "-m", "cosmos_fast", "doctor", "--json", *flags],
        capture_output=True,
        text=True,
        timeout=120,
        env={**clean, "HF_HOME": str(home), **environment},
    )
    document = json.loads(done.stdout)
    assert document["exit_code"] == done.returncode
    return done, {check["name"]: check for check in document["checks"]}


def test_each_answer_of_the_hub_has_its_own_cure(tmp_path: Path) -> None:
    answers = {TWO_B: 200, FOURTEEN_B: 403, GUARDRAIL: 401, LLAMA: 500, "/api/whoami-v2": 200}
    with hub(answers) as address:
        _, checks = doctor(tmp_path, HF_ENDPOINT=address, HF_TOKEN="hf_ferry")
    assert checks["hub token"]["finding"] == "known to the hub as ferry"
    assert checks[f"access: {TWO_B}"]["verdict"] == "ok"
    forbidden = checks[f"access: {FOURTEEN_B}"]
    assert forbidden["verdict"] == "warn"
    assert forbidden["finding"].startswith("403")
    assert forbidden["cure"] == f"accept the terms at https://huggingface.co/{FOURTEEN_B}"
    unknown = checks[f"access: {GUARDRAIL}"]
    assert unknown["finding"].startswith("401")
    assert "hf auth login" in unknown["cure"]
    assert f"https://huggingface.co/{GUARDRAIL}" in unknown["cure"]
    assert "500" in checks[f"access: {LLAMA}"]["finding"]


def test_a_token_that_the_hub_does_not_know(tmp_path: Path) -> None:
    with hub({"/api/whoami-v2": 401}) as address:
        _, checks = doctor(tmp_path, HF_ENDPOINT=address, HF_TOKEN="hf_old")
    assert checks["hub token"]["verdict"] == "warn"
    assert checks["hub token"]["finding"] == "the hub refuses it (401)"
    assert "hf_old" not in json.dumps(checks)


def test_no_connection_is_no_failure(tmp_path: Path) -> None:
    with hub({}) as address:
        pass
    done, checks = doctor(tmp_path, HF_ENDPOINT=address, HF_TOKEN="hf_ferry")
    assert done.stderr == ""
    assert checks[f"access: {TWO_B}"]["verdict"] == "warn"
    for repository in GATED_REPOSITORIES:
        check = checks[f"access: {repository}"]
        assert check["finding"].startswith("no connection to the hub (ConnectError")
        assert check["cure"] == "check the network"
        assert repository not in check["finding"]
    assert checks["hub token"]["finding"].startswith("no connection to the hub")
    assert "local_files_only" not in done.stdout


def test_a_healthy_machine_passes_and_offline_asks_nobody(tmp_path: Path) -> None:
    asked: list[str] = []
    with hub({}, asked) as address:
        done, checks = doctor(tmp_path, "--offline", HF_ENDPOINT=address)
    assert asked == []
    assert (done.returncode, done.stderr) == (0, "")
    names = {"gpu" if name.startswith("gpu") else name for name in checks}
    assert {"python", "core", "torch", "gpu", "triton", "ffmpeg", "RAM"} <= names
    assert not [name for name in names if name.startswith("access")]
    assert checks["ffmpeg"]["finding"].endswith("writes mp4")
    assert checks["hub token"]["finding"] == "there is none"
    amiss = [check for check in checks.values() if check["verdict"] != "ok"]
    assert [check["name"] for check in amiss if not check["cure"]] == []


def test_on_a_machine_where_much_is_amiss_each_check_still_speaks(tmp_path: Path) -> None:
    """An ffmpeg that cannot write, no C compiler, a Triton that cannot be imported."""
    ffmpeg = tmp_path / "ffmpeg"
    ffmpeg.write_text("#!/bin/sh\nexit 1\n")
    ffmpeg.chmod(0o755)
    (tmp_path / "triton.py").write_text("raise ImportError('libtriton.so is not here')\n")
    done, checks = doctor(
        tmp_path,
        "--offline",
        COSMOS_FAST_FFMPEG=str(ffmpeg),
        PATH=str(tmp_path / "nothing"),
        PYTHONPATH=os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]),
        CC="",
    )
    assert done.returncode == 1
    assert checks["ffmpeg"]["verdict"] == "fail"
    assert "imageio-ffmpeg" in checks["ffmpeg"]["cure"]
    assert checks["C compiler"]["verdict"] == checks["triton"]["verdict"] == "warn"
    assert "gcc" in checks["C compiler"]["cure"]
    assert "libtriton.so is not here" in checks["triton"]["finding"]
    assert checks["RAM"]["finding"]


def test_lines_for_people(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cosmos_fast", "doctor", "--offline"],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "HF_HOME": str(tmp_path)},
    )
    lines = [line for line in done.stdout.splitlines() if not line.startswith(" ")]
    assert {line.split()[0] for line in lines} <= {"ok", "warn", "fail"}
    assert any(line.startswith("ok    torch: ") for line in lines)


@pytest.mark.parametrize("there", [(), ("nvidia/Cosmos-Predict2-2B-Video2World/text_encoder",)])
def test_the_room_that_is_wanted_is_told_with_what_it_is_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    for place in there:
        Path("checkpoints", place).mkdir(parents=True)
    real = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: real._replace(free=18 * 2**30))
    found = {check.name: check for check in disks()}
    check = found["disk: checkpoints"]
    assert (check.verdict, check.finding) == ("warn", "18.0 GiB free at checkpoints")
    if there:
        assert check.cure.startswith("35.0 GiB are wanted, ")
        assert "(guardrail 19.0, prompt upsampler 16.0)" in check.cure
    else:
        assert check.cure.startswith("48.0 GiB are wanted, ")
        assert "model and VAE 4.0, T5 9.0, guardrail 19.0" in check.cure
    assert found["disk: hub cache"].verdict == found["disk: here"].verdict == "ok"
    monkeypatch.setattr(shutil, "disk_usage", lambda _: real._replace(free=49 * 2**30))
    assert next(disks()).verdict == "ok"


def test_no_cure_asks_for_a_package_that_nobody_has_published() -> None:
    sources = Path(cosmos_fast.__file__).parent.rglob("*.py")
    wrong = [
        path for path in sources if re.search(r"pip install[^.\n]*cosmos[-_]fast", path.read_text())
    ]
    assert wrong == []
    assert install_extra("ray").startswith("pip install '.[ray]' in a clone")
