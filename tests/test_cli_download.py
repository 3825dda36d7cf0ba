"""The commands that bring and rewrite checkpoints: ``download`` and ``convert``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from attacks.checkpoints.fake_hub import FakeHub
from commands import process, ran
from cosmos_fast.cli.download import companions_of
from cosmos_fast.weights import find_checkpoint, load_dit
from documented import furnish, make_released

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Run = Callable[..., tuple[int, str, str]]

GUARD, LLAMA = "nvidia/Cosmos-Guardrail1", "meta-llama/Llama-Guard-3-8B"
QWEN, REASON1 = "Qwen/Qwen2.5-VL-7B-Instruct", "nvidia/Cosmos-Reason1-7B"
DOWNLOADS = [
    ("--model_sizes 2B 14B --model_types Video2World --checkpoint_dir there", ["2B", "14B"], QWEN),
    ("--model-sizes 2B --model-types video2world --fps 16 --resolution 720", ["2B"], REASON1),
]
"""The original document's command, and the later tool's."""


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process: exit code, stdout, stderr."""

    def call(*arguments: str) -> tuple[int, str, str]:
        return ran(capfd, arguments)

    return call


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_released(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture
def place(tmp_path: Path, released: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory in which every path of the original's commands exists."""
    monkeypatch.chdir(tmp_path)
    furnish(tmp_path, released)
    return tmp_path


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub with what the two commands fetch."""
    from huggingface_hub import constants

    names = ["model-720p-16fps.pt", "model-480p-16fps.pt", "tokenizer/tokenizer.pth"]
    contents = {name: name.encode() * 50 for name in names}
    repositories = {f"nvidia/Cosmos-Predict2-{s}-Video2World": contents for s in ("2B", "14B")}
    for repository in (GUARD, LLAMA, QWEN, REASON1):
        repositories[repository] = {"config.json": repository.encode(), "README.md": b"-"}
    with FakeHub(repositories) as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.endpoint)
        template = running.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nonexistent/token")
        yield running


@pytest.mark.parametrize(("line", "sizes", "upsampler"), DOWNLOADS, ids=["original", "later"])
def test_download_of_both_generations(
    run: Run,
    hub: FakeHub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    line: str,
    sizes: list[str],
    upsampler: str,
) -> None:
    """All that the generation's commands need, so that they run right afterwards."""
    monkeypatch.chdir(tmp_path)
    arguments = ["download", *line.split(), "--leave_text_encoder"]
    code, listed, err = run(*arguments, "--dry-run")
    assert code == 0, err
    folder = "there" if "there" in line else "checkpoints"
    assert not Path(folder).exists()
    code, out, err = run(*arguments, "--json")
    assert code == 0, err
    expected = [
        f"{folder}/nvidia/Cosmos-Predict2-{size}-Video2World/{name}"
        for size in sizes
        for name in ("model-720p-16fps.pt", "tokenizer/tokenizer.pth")
    ]
    expected += [f"{folder}/{beside}/config.json" for beside in (GUARD, LLAMA, upsampler)]
    document = json.loads(out)
    assert sorted(file["path"] for file in document["files"]) == sorted(expected)
    for path in expected:
        assert path in listed
        repository, name = path.removeprefix(f"{folder}/").split("/", 2)[:2], path.split("/", 3)[3]
        assert Path(path).read_bytes() == hub.repositories["/".join(repository)][name]


@pytest.mark.parametrize(
    ("flags", "beside"),
    [
        ("", [GUARD, LLAMA, REASON1]),
        ("--guardrail --prompt_refiner --prompt_upsampler", [GUARD, LLAMA, QWEN, REASON1]),
        ("--prompt_upsampler", [GUARD, LLAMA, QWEN]),
        ("--leave_guardrail", [REASON1]),
        ("--leave_upsampler", [GUARD, LLAMA]),
        ("--leave_upsampler --leave_guardrail --checkpoint_dir x", []),
        ("--checkpoint_dir x", [GUARD, LLAMA, QWEN]),
        ("--checkpoint_dir x --fps 10", [GUARD, LLAMA, REASON1]),
        ("--model_types sample_gr00t_dreams_gr1", [GUARD, LLAMA]),
    ],
)
def test_what_is_fetched_beside_the_model(flags: str, beside: list[str]) -> None:
    values = {word.removeprefix("--"): True for word in flags.split() if word.startswith("--")}
    if "model_types" in values:
        values["model_types"] = flags.split()[1:]  # type: ignore[assignment]
    assert companions_of(values) == beside


def test_download_fetches_the_rest_where_the_hub_refuses_the_guardrail(
    run: Run, hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    hub.status[LLAMA] = 403
    arguments = ["download", "--model_sizes", "2B", "--leave_text_encoder"]
    code, out, err = run(*arguments, "--dry_run")
    assert code == 1
    assert "to fetch" in out
    assert "Accept the terms at https://huggingface.co/meta-llama/Llama-Guard-3-8B" in err
    code, out, err = run(*arguments, "--json")
    assert code == 1
    document = json.loads(out)
    assert (document["status"], document["error"]["type"]) == ("failed", "GatedRepoError")
    assert err.splitlines()[-1] == f"error: {document['error']['message']}"
    for repository in (GUARD, REASON1):
        assert Path("checkpoints", repository, "config.json").is_file()
    assert Path("checkpoints/nvidia/Cosmos-Predict2-2B-Video2World/model-720p-16fps.pt").is_file()
    assert not Path("checkpoints", LLAMA).exists()
    del hub.status[LLAMA]
    assert run(*arguments)[0] == 0
    assert Path("checkpoints", LLAMA, "config.json").is_file()


def test_download_says_what_the_hub_refused(tmp_path: Path) -> None:
    repository = "nvidia/Cosmos-Predict2-2B-Video2World"
    with FakeHub({repository: {}}, status={repository: 403}) as hub:
        done = process(
            "download", "--model_sizes", "2B", at=tmp_path,
            HF_ENDPOINT=hub.endpoint, HF_HOME=str(tmp_path / "home"),
        )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    error = done.stderr.splitlines()[-1]
    assert error.startswith("error: nvidia/Cosmos-Predict2-2B-Video2World: the hub answers 403")
    assert "Accept the terms at https://" in error


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--model_sizes 7B", "--model_sizes: '7B' is not one of its choices; expected 0.6B, 2B or"),
        ("--model_types Text2Image", "text2image: not supported"),
        ("--natten", "natten: sparse-attention checkpoints are not supported"),
        ("--fps 4", "--fps: '4' is not one of its choices; expected 10 or 16"),
        ("--guardrail --leave_guardrail", "--leave_guardrail and --guardrail contradict each"),
        ("--prompt_refiner --leave_upsampler", "--leave_upsampler and --prompt_refiner contradict"),
    ],
)
def test_download_refuses(run: Run, line: str, message: str) -> None:
    code, out, err = run("download", *line.split())
    assert (code, out) == (2, "")
    assert message in err.splitlines()[-1]


@pytest.mark.parametrize(
    ("destination", "flags", "made"),
    [
        ("there", ["--to", "nvidia"], "model.pt"),
        ("there", [], "transformer/diffusion_pytorch_model.safetensors"),
        ("one.safetensors", [], "../one.safetensors"),
        ("one.pt", ["--plain-names"], "../one.pt"),
    ],
)
def test_convert_writes_what_loads_with_the_same_weights(
    run: Run, place: Path, destination: str, flags: list[str], made: str
) -> None:
    source = place / "checkpoints" / "Cosmos-Predict2-2B-Video2World"
    code, out, err = run("convert", str(source), destination, *flags, "--json")
    assert code == 0, err
    assert json.loads(out)["destination"] == destination
    assert (place / destination / made).resolve().is_file()
    before, after = find_checkpoint(source), find_checkpoint(destination, vae=source / "vae")
    assert after.profile == before.profile
    old = load_dit(before, "cpu", torch.float32)
    new = load_dit(after, "cpu", torch.float32)
    assert old.keys() == new.keys()
    assert all(torch.equal(old[name], new[name]) for name in old)


def test_convert_refuses_what_is_there(run: Run, place: Path) -> None:
    source = place / "checkpoints" / "Cosmos-Predict2-2B-Video2World"
    code, out, err = run("convert", str(source), "assets")
    assert (code, out) == (2, "")
    assert "destination = assets exists" in err
    code, _, err = run("convert", "none/at all", "there")
    assert code == 1
    assert "none/at all: no checkpoint there" in err
