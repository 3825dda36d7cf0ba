"""Downloads that go wrong, through the command: what is said, what is kept, what is never used."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from attacks.checkpoints.fake_hub import FakeHub
from cosmos_fast.cli import main
from cosmos_fast.errors import CheckpointError, GatedRepoError
from cosmos_fast.weights import find_checkpoint
from cosmos_fast.weights import transfer as transferring
from cosmos_fast.weights.download import download, plan_download
from cosmos_fast.weights.hub import HubAccess

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TWO = "nvidia/Cosmos-Predict2-2B-Video2World"
WORLD = "someone/world"
DIT = "model-720p-16fps.pt"
VAE = "tokenizer/tokenizer.pth"
FILES = {DIT: bytes(range(256)) * 200, VAE: b"vae" * 500}
COMMAND = [
    "download", "--model_sizes", "2B", "--leave_text_encoder", "--leave_guardrail",
    "--leave_upsampler", "--checkpoint_dir",
]  # fmt: skip


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """The hub that the client library speaks to, without a token."""
    from huggingface_hub import constants

    with FakeHub({TWO: dict(FILES), WORLD: dict(FILES)}) as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.endpoint)
        template = running.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nonexistent/token")
        yield running


def there(folder: Path) -> dict[str, bytes]:
    """Files under names that something could load; parts on their way are hidden."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.parts)
    }


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, ["401", "hf auth login", f"https://huggingface.co/{TWO}"]),
        (403, ["403", "Accept the terms at", f"https://huggingface.co/{TWO}"]),
        (404, ["not on the hub (404)"]),
        (429, ["429, too many requests", "wait some minutes"]),
        (500, ["500", "run again later"]),
    ],
)
def test_the_command_says_what_the_hub_refused(
    hub: FakeHub,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    status: int,
    words: list[str],
) -> None:
    hub.status[TWO] = status
    assert main([*COMMAND, str(tmp_path / "there")]) == 1
    captured = capfd.readouterr()
    error = captured.err.splitlines()[-1]
    assert captured.out == ""
    assert error.startswith(f"error: {TWO}")
    for word in words:
        assert word in error
    assert not (tmp_path / "there").exists()


def test_the_command_names_what_no_server_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from huggingface_hub import constants

    with FakeHub({}) as gone:
        monkeypatch.setattr(constants, "ENDPOINT", gone.endpoint)
    assert main([*COMMAND, str(tmp_path)]) == 1
    error = capfd.readouterr().err
    assert "no connection to the hub" in error
    assert error.endswith("; check the network\n"), "of nothing that this command cannot do"


def test_the_command_respects_an_offline_client(
    hub: FakeHub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert main([*COMMAND, str(tmp_path)]) == 1
    assert capfd.readouterr().err.endswith("is set to offline (HF_HUB_OFFLINE); unset that\n")
    assert hub.fetched() == []


def test_a_link_that_falls_silent_is_left_and_continued(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transferring, "_SILENCE_SECONDS", 0.3)
    hub.cut_after[DIT], hub.silent = 10_000, True
    access = HubAccess(endpoint=hub.endpoint)
    plan = plan_download(["2B"], text_encoder=False, checkpoint_dir=tmp_path, access=access)
    start = time.monotonic()
    download(plan, wait=0.01)
    assert time.monotonic() - start < 20
    assert there(tmp_path) == {f"{TWO}/{name}": content for name, content in FILES.items()}
    ranges = [h.get("Range") for m, p, h in hub.requests if m == "GET" and p.endswith(DIT)]
    assert ranges == [None, "bytes=10000-"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_download_leaves_nothing_to_load_and_goes_on(
    hub: FakeHub, tmp_path: Path, number: signal.Signals
) -> None:
    folder = tmp_path / "checkpoints"
    hub.slow = 0.05
    process = subprocess.Popen(
        [sys.executable, "-m", "cosmos_fast", *COMMAND, str(folder)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home")},
    )
    deadline = time.monotonic() + 60
    while not any(part.stat().st_size for part in folder.rglob("*.part")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(number)
    assert process.wait(30) != 0
    assert there(folder) == {}
    with pytest.raises(CheckpointError, match="no transformer there"):
        find_checkpoint(folder)
    hub.slow = 0.0
    hub.requests.clear()
    assert main([*COMMAND, str(folder)]) == 0
    assert there(folder) == {f"{TWO}/{name}": content for name, content in FILES.items()}
    first = next(h for m, p, h in hub.requests if m == "GET" and p.endswith(DIT))
    assert first["Range"].startswith("bytes=")


def test_two_downloads_do_not_write_into_one_another(hub: FakeHub, tmp_path: Path) -> None:
    access = HubAccess(endpoint=hub.endpoint)
    first = plan_download(["2B"], text_encoder=False, checkpoint_dir=tmp_path, access=access)
    second = plan_download(["2B"], text_encoder=False, checkpoint_dir=tmp_path, access=access)
    refused: list[str] = []

    def meanwhile(_: object) -> None:
        with pytest.raises(CheckpointError, match="another download is filling it") as caught:
            download(second)
        refused.append(str(caught.value))

    download(first, on_file=meanwhile)
    assert len(refused) == len(FILES)
    hub.requests.clear()
    download(second)
    assert hub.fetched() == [], "the other one has brought them"
    assert there(tmp_path) == {f"{TWO}/{name}": content for name, content in FILES.items()}


# from_pretrained's way: the hub client's own cache


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize(
    ("status", "kind", "words"),
    [
        (401, GatedRepoError, "hf auth login"),
        (403, GatedRepoError, "Accept the terms"),
        (404, CheckpointError, "404"),
        (429, CheckpointError, "429, too many requests"),
        (500, CheckpointError, "500"),
    ],
)
@pytest.mark.parametrize("where", ["listing", "file"])
def test_a_refused_file_of_a_repository_is_an_error_with_its_words(
    hub: FakeHub,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    kind: type[Exception],
    words: str,
    where: str,
) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)  # the client library's patience
    hub.status[WORLD if where == "listing" else f"{WORLD}/{DIT}"] = status
    with pytest.raises(kind, match=words) as caught:
        find_checkpoint(WORLD, variant="720p-16fps", endpoint=hub.endpoint)
    assert WORLD in str(caught.value)


def test_a_file_that_is_cut_short_is_never_in_the_cache(
    hub: FakeHub, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)
    hub.cut_after[DIT], hub.cuts = 700, 10_000
    options: dict[str, Any] = {"variant": "720p-16fps", "endpoint": hub.endpoint}
    with pytest.raises(CheckpointError, match=rf"{WORLD}: no connection to the hub"):
        find_checkpoint(WORLD, **options)
    assert not [path for path in cache.rglob(DIT) if path.exists()]
    with pytest.raises(CheckpointError):
        find_checkpoint(WORLD, local_files_only=True, **options)


def test_a_file_with_another_digest_is_refused(hub: FakeHub, cache: Path) -> None:
    hub.altered.add(DIT)
    with pytest.raises(CheckpointError, match="the copy is damaged"):
        find_checkpoint(WORLD, variant="720p-16fps", endpoint=hub.endpoint)
