"""Downloads from a hub on the loopback device: the right words each time, nothing half is used."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from attacks.checkpoints.fake_hub import COMMIT, FakeHub
from attacks.checkpoints.small import MODEL, small_checkpoint
from cosmos_fast.errors import CheckpointError, GatedRepoError, InputError
from cosmos_fast.weights import find_checkpoint, load_dit, load_text_encoder
from cosmos_fast.weights.download import DownloadPlan, download, plan_download
from cosmos_fast.weights.hub import HubAccess

TWO = "nvidia/Cosmos-Predict2-2B-Video2World"
FOURTEEN = "nvidia/Cosmos-Predict2-14B-Video2World"
DREAMS = "nvidia/Cosmos-Predict2-14B-Sample-GR00T-Dreams-GR1"
T5 = "google-t5/t5-11b"
DIT = "model-720p-16fps.pt"
VAE = "tokenizer/tokenizer.pth"


def contents(size: int = 5000) -> dict[str, bytes]:
    """A repository as NVIDIA's: both layouts, every variant."""
    names = [f"model-{r}p-{f}fps.pt" for r in (480, 720) for f in (10, 16)]
    names += ["model-720p-16fps-natten.pt", "README.md", "model_index.json", VAE]
    names += ["transformer/config.json", "transformer/diffusion_pytorch_model.safetensors"]
    names += ["vae/config.json", "vae/diffusion_pytorch_model.safetensors", "scheduler/config.json"]
    names += ["text_encoder/config.json", "text_encoder/model.safetensors.index.json"]
    names += [f"text_encoder/model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    names += ["text_encoder/pytorch_model.bin", "tokenizer/tokenizer.json"]
    names += ["tokenizer/spiece.model", "tokenizer/tokenizer_config.json"]
    return {name: f"{name} ".encode() * (size // (len(name) + 1)) for name in names}


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with FakeHub({TWO: contents(), FOURTEEN: contents(7000), DREAMS: contents(3000)}) as running:
        yield running


@pytest.fixture(autouse=True)
def _own_hub_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: Any) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path_factory.mktemp("hub")))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nonexistent/token")


def plan(hub: FakeHub, folder: Path, **given: Any) -> DownloadPlan:
    token = given.pop("token", None)
    options: dict[str, Any] = {"model_sizes": ["2B"], "text_encoder": False} | given
    access = HubAccess(token=token, endpoint=hub.endpoint)
    return plan_download(checkpoint_dir=folder, access=access, **options)


def names(of: DownloadPlan) -> list[str]:
    return [f"{file.repo_id}/{file.name}" for file in of.files]


def there(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_only_what_is_needed_is_planned_and_fetched(hub: FakeHub, tmp_path: Path) -> None:
    told: list[str] = []
    arrived: list[int] = []
    planned = plan(hub, tmp_path / "checkpoints")
    assert not (tmp_path / "checkpoints").exists(), "planning writes nothing"
    assert names(planned) == [f"{TWO}/{DIT}", f"{TWO}/{VAE}"]
    expected = {name: contents()[name] for name in (DIT, VAE)}
    assert planned.total_bytes == planned.missing_bytes == sum(map(len, expected.values()))
    download(planned, on_file=lambda file: told.append(file.name), on_bytes=arrived.append)
    assert told == [DIT, VAE] == hub.fetched()
    assert sum(arrived) == planned.total_bytes
    assert there(tmp_path / "checkpoints") == {f"{TWO}/{n}": c for n, c in expected.items()}
    assert all(COMMIT in path for _, path, _ in hub.requests if "/resolve/" in path)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"model_sizes": ["2B", "14B"], "model_types": ["Video2World"]},
         [f"{TWO}/{DIT}", f"{TWO}/{VAE}", f"{FOURTEEN}/{DIT}", f"{FOURTEEN}/{VAE}"]),
        ({"fps": ["10", "16"], "resolution": ["480"]},
         [f"{TWO}/model-480p-10fps.pt", f"{TWO}/model-480p-16fps.pt", f"{TWO}/{VAE}"]),
        ({"model_sizes": ["14B"], "model_types": ["sample_gr00t_dreams_gr1"]},
         [f"{DREAMS}/model-480p-16fps.pt", f"{DREAMS}/{VAE}"]),
    ],
    ids=["original flags", "later flags", "GR00T"],
)  # fmt: skip
def test_flags_of_both_generations(
    hub: FakeHub, tmp_path: Path, options: dict[str, Any], expected: list[str]
) -> None:
    assert names(plan(hub, tmp_path, **options)) == expected


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"model_sizes": ["7B"]}, "7B"),
        ({"model_sizes": []}, "model_sizes"),
        ({"model_types": ["Image2World"]}, "image2world"),
        ({"model_types": ["text2image"]}, "text2image: not supported"),
        ({"model_types": ["multiview"]}, "not supported"),
        ({"model_types": ["sample_action_conditioned"]}, "not supported"),
        ({"model_types": ["sample_gr00t_dreams_gr1"], "model_sizes": ["2B"]}, "no such model"),
        ({"model_sizes": ["0.6B"]}, "no such model"),
        ({"fps": ["4"]}, "fps = 4: choose of 10, 16"),
        ({"resolution": ["1080"]}, "resolution"),
        ({"natten": True}, "natten"),
    ],
)
def test_choices_that_cannot_be_are_refused_without_a_connection(
    hub: FakeHub, tmp_path: Path, options: dict[str, Any], word: str
) -> None:
    with pytest.raises(InputError, match=word):
        plan(hub, tmp_path, **options)
    assert not hub.requests


def test_the_converted_text_encoder_is_fetched_once(hub: FakeHub, tmp_path: Path) -> None:
    planned = plan(hub, tmp_path, model_sizes=["2B", "14B"], text_encoder=True)
    text = [name for name in names(planned) if DIT not in name and VAE not in name]
    assert text == [
        f"{TWO}/text_encoder/config.json",
        f"{TWO}/text_encoder/model.safetensors.index.json",
        f"{TWO}/text_encoder/model-00001-of-00002.safetensors",
        f"{TWO}/text_encoder/model-00002-of-00002.safetensors",
        f"{TWO}/tokenizer/tokenizer.json",
        f"{TWO}/tokenizer/spiece.model",
        f"{TWO}/tokenizer/tokenizer_config.json",
    ]
    assert not any(T5 in path for _, path, _ in hub.requests)


def test_t5_itself_is_fetched_only_where_no_encoder_is(hub: FakeHub, tmp_path: Path) -> None:
    hub.repositories[TWO] = {n: c for n, c in contents().items() if "text_encoder" not in n}
    t5 = ["config.json", "spiece.model", "tokenizer.json", "pytorch_model.bin", "tf_model.h5"]
    hub.repositories[T5] = {name: name.encode() for name in t5}
    planned = plan(hub, tmp_path, text_encoder=True)
    assert names(planned)[2:] == [
        f"{T5}/{n}" for n in ("config.json", "tokenizer.json", "spiece.model", "pytorch_model.bin")
    ]


def test_an_encoder_that_is_there_is_not_fetched_again(hub: FakeHub, tmp_path: Path) -> None:
    small_checkpoint(tmp_path)
    assert names(plan(hub, tmp_path, text_encoder=True)) == [f"{TWO}/{DIT}", f"{TWO}/{VAE}"]


def test_companions_are_fetched_whole_where_they_are_asked_for(
    hub: FakeHub, tmp_path: Path
) -> None:
    guard, llama = "nvidia/Cosmos-Guardrail1", "meta-llama/Llama-Guard-3-8B"
    hub.repositories[guard] = {
        "README.md": b"-", ".gitattributes": b"-", "figures/a.png": b"-",
        "blocklist/custom/words": b"a\n", "video_content_safety_filter/safety_filter.pt": b"pt",
    }  # fmt: skip
    hub.repositories[llama] = {
        "config.json": b"{}", "model.safetensors": b"st", "original/consolidated.00.pth": b"no",
    }  # fmt: skip
    assert not [name for name in names(plan(hub, tmp_path)) if "uard" in name]
    planned = plan(hub, tmp_path, companions=[guard, llama])
    download(planned)
    found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert {name for name in found if "uard" in name} == {
        f"{guard}/blocklist/custom/words",
        f"{guard}/video_content_safety_filter/safety_filter.pt",
        f"{llama}/config.json",
        f"{llama}/model.safetensors",
    }
    with pytest.raises(InputError, match="choose of nvidia/Cosmos-Guardrail1"):
        plan(hub, tmp_path, companions=["someone/else"])


def test_what_is_there_is_not_fetched_again(hub: FakeHub, tmp_path: Path) -> None:
    download(plan(hub, tmp_path))
    again = plan(hub, tmp_path)
    assert again.missing == ()
    hub.requests.clear()
    download(again)
    assert not hub.requests
    (tmp_path / TWO / VAE).unlink()
    assert [file.name for file in plan(hub, tmp_path).missing] == [VAE]


def test_a_file_that_differs_is_never_overwritten(hub: FakeHub, tmp_path: Path) -> None:
    path = tmp_path / TWO / DIT
    path.parent.mkdir(parents=True)
    path.write_bytes(b"my own weights")
    with pytest.raises(CheckpointError, match=r"move or delete") as refusal:
        plan(hub, tmp_path)
    assert str(path) in str(refusal.value)
    assert path.read_bytes() == b"my own weights"


def test_a_cut_connection_is_continued(hub: FakeHub, tmp_path: Path) -> None:
    hub.cut_after[DIT] = 1500
    hub.cuts = 2
    download(plan(hub, tmp_path), wait=0.01)
    assert there(tmp_path)[f"{TWO}/{DIT}"] == contents()[DIT]
    ranges = [h.get("Range") for m, p, h in hub.requests if m == "GET" and p.endswith(DIT)]
    assert ranges == [None, "bytes=1500-", "bytes=3000-"]


def test_a_connection_that_keeps_breaking_leaves_a_part_to_go_on_from(
    hub: FakeHub, tmp_path: Path
) -> None:
    hub.cut_after[DIT] = 0
    hub.cuts = 1000
    with pytest.raises(CheckpointError, match=r"no connection|ends after"):
        download(plan(hub, tmp_path), wait=0.001)
    assert not (tmp_path / TWO).exists()
    # Some bytes arrive, then the process ends; the next one asks only for the rest.
    hub.cut_after[DIT] = 2000
    part = plan(hub, tmp_path)
    digest = part.missing[0].sha256
    part.staging.mkdir(exist_ok=True)
    (part.staging / f"{digest}.part").write_bytes(contents()[DIT][:2000])
    hub.cuts = 0
    hub.requests.clear()
    assert part.missing_bytes == part.total_bytes - 2000
    download(part, wait=0.001)
    assert ("GET", "bytes=2000-") in [(m, h.get("Range")) for m, _, h in hub.requests]
    assert there(tmp_path)[f"{TWO}/{DIT}"] == contents()[DIT]
    assert not part.staging.exists()


def test_a_server_without_ranges_starts_again(hub: FakeHub, tmp_path: Path) -> None:
    hub.no_ranges = True
    hub.cut_after[DIT] = 1500
    arrived: list[int] = []
    planned = plan(hub, tmp_path)
    download(planned, on_bytes=arrived.append, wait=0.01)
    assert there(tmp_path)[f"{TWO}/{DIT}"] == contents()[DIT]
    assert sum(arrived) == planned.total_bytes
    assert hub.fetched().count(DIT) == 2


def test_a_wrong_digest_is_refused_and_nothing_kept(hub: FakeHub, tmp_path: Path) -> None:
    hub.altered.add(DIT)
    with pytest.raises(CheckpointError, match="another digest"):
        download(plan(hub, tmp_path))
    assert there(tmp_path) == {}


def test_a_damaged_part_is_fetched_anew(hub: FakeHub, tmp_path: Path) -> None:
    planned = plan(hub, tmp_path)
    planned.staging.mkdir()
    (planned.staging / f"{planned.missing[0].sha256}.part").write_bytes(b"x" * 100)
    (planned.staging / f"{planned.missing[1].sha256}.part").write_bytes(b"x" * 10**6)
    download(planned)
    assert there(tmp_path) == {f"{TWO}/{name}": contents()[name] for name in (DIT, VAE)}


def test_a_slow_link_is_waited_for(hub: FakeHub, tmp_path: Path) -> None:
    hub.slow = 0.05
    download(plan(hub, tmp_path))
    assert there(tmp_path)[f"{TWO}/{DIT}"] == contents()[DIT]


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, ["401", "hf auth login", f"https://huggingface.co/{TWO}"]),
        (403, ["403", "Accept the terms", f"https://huggingface.co/{TWO}"]),
        (404, ["404"]),
        (429, ["429", "too many requests"]),
        (500, ["500", "later"]),
    ],
)
@pytest.mark.parametrize("where", ["listing", "file"])
def test_each_refusal_has_its_words(
    hub: FakeHub, tmp_path: Path, status: int, words: list[str], where: str
) -> None:
    planned = None
    if where == "listing":
        hub.status[TWO] = status
    else:
        planned = plan(hub, tmp_path)
        hub.status[f"{TWO}/{DIT}"] = status
    with pytest.raises(CheckpointError) as refusal:
        download(planned or plan(hub, tmp_path), wait=0.001)
    for word in (*words, TWO):
        assert word in str(refusal.value)
    assert isinstance(refusal.value, GatedRepoError) == (status in (401, 403))
    if isinstance(refusal.value, GatedRepoError):
        assert (refusal.value.status, refusal.value.repo_id) == (status, TWO)
    assert there(tmp_path) == {}


@pytest.mark.parametrize(("token", "status"), [(None, 401), ("wrong", 401), ("known", 403)])
def test_access_is_told_before_anything_is_fetched(
    hub: FakeHub, tmp_path: Path, token: str | None, status: int
) -> None:
    hub.tokens[FOURTEEN] = "secret"
    with pytest.raises(GatedRepoError) as refusal:
        plan(hub, tmp_path, model_sizes=["2B", "14B"], token=token)
    assert (refusal.value.status, refusal.value.repo_id) == (status, FOURTEEN)
    assert "secret" not in str(refusal.value)
    assert not hub.fetched()
    download(plan(hub, tmp_path, model_sizes=["14B"], token="secret"))
    assert there(tmp_path)[f"{FOURTEEN}/{DIT}"] == contents(7000)[DIT]


def test_a_token_does_not_follow_a_redirect_elsewhere(hub: FakeHub, tmp_path: Path) -> None:
    with FakeHub({TWO: contents()}) as elsewhere:
        hub.tokens[TWO] = "secret"
        planned = plan(hub, tmp_path, token="secret")
        hub.redirect = elsewhere.endpoint
        download(planned)
        assert there(tmp_path)[f"{TWO}/{DIT}"] == contents()[DIT]
        assert elsewhere.requests
        for _, _, headers in elsewhere.requests:
            assert "secret" not in str(headers)


def test_too_small_a_disk_is_told_before_anything_is_fetched(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    real = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: real._replace(free=1000))
    with pytest.raises(CheckpointError, match="nothing was fetched"):
        download(plan(hub, tmp_path))
    assert not hub.fetched()


def test_no_server_at_all(tmp_path: Path) -> None:
    with FakeHub({}) as gone:
        endpoint = gone.endpoint
    with pytest.raises(CheckpointError, match="no connection"):
        plan_download(["2B"], checkpoint_dir=tmp_path, access=HubAccess(endpoint=endpoint))


def test_a_file_name_that_leads_out_is_refused(hub: FakeHub, tmp_path: Path) -> None:
    hub.repositories[TWO] = contents() | {"text_encoder/../../../x.safetensors": b"x"}
    with pytest.raises(CheckpointError, match="leads out"):
        plan(hub, tmp_path, text_encoder=True)


def test_a_missing_file_is_named(hub: FakeHub, tmp_path: Path) -> None:
    del hub.repositories[TWO][DIT]
    with pytest.raises(CheckpointError, match=f"holds no {DIT}"):
        plan(hub, tmp_path)


# from_pretrained's way: the hub client's own cache


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("checkpoints")
    small_checkpoint(root)
    return root


def repository(made: Path) -> dict[str, bytes]:
    """The small checkpoint as a hub repository with both layouts."""
    folder = made / "diffusers" / MODEL
    files = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    files["model-480p-16fps.pt"] = (made / MODEL / "model.pt").read_bytes()
    files[VAE] = (made / "Wan-AI/Wan2.1-T2V-1.3B/Wan2.1_VAE.pth").read_bytes()
    return files


def test_a_repository_by_its_id(
    made: Path, hub: FakeHub, capfd: pytest.CaptureFixture[str]
) -> None:
    hub.repositories["someone/world"] = repository(made)
    with pytest.raises(CheckpointError, match=r"2 checkpoints match.*'diffusers'.*'480p-16fps'"):
        find_checkpoint("someone/world", endpoint=hub.endpoint)
    assert not hub.fetched()
    files = find_checkpoint("someone/world", variant="480p-16fps", endpoint=hub.endpoint)
    assert sorted(hub.fetched()) == ["cosmos_fast.json", "model-480p-16fps.pt", VAE]
    assert files.revision == COMMIT
    assert files.text_encoder is None
    assert files.text_identity() == f"someone/world@{COMMIT}"
    ours = load_dit(files, "cpu", files_dtype())
    stored = load_dit(find_checkpoint(made / MODEL), "cpu", files_dtype())
    assert all((ours[name] == stored[name]).all() for name in stored)
    # The text encoder comes when it is needed, without the VAE that lies in the tokenizer's folder.
    hub.requests.clear()
    load_text_encoder(files, "cpu")
    assert capfd.readouterr() == ("", ""), "the library prints nothing"
    assert sorted(hub.fetched()) == [
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json",
    ]


def files_dtype() -> Any:
    import torch

    return torch.bfloat16


def test_offline_makes_no_connection(made: Path, hub: FakeHub) -> None:
    hub.repositories["someone/world"] = repository(made)
    options: dict[str, Any] = {"variant": "diffusers", "endpoint": hub.endpoint}
    with pytest.raises(CheckpointError, match="not in the hub cache"):
        find_checkpoint("someone/world", local_files_only=True, **options)
    assert not hub.requests
    online = find_checkpoint("someone/world", **options)
    hub.requests.clear()
    offline = find_checkpoint("someone/world", local_files_only=True, **options)
    assert not hub.requests
    assert (offline.dit, offline.vae, offline.revision) == (online.dit, online.vae, COMMIT)
    with pytest.raises(CheckpointError, match="text_encoder="):
        load_text_encoder(offline, "cpu")
    assert not hub.requests


def test_a_damaged_cache_is_refused(made: Path, hub: FakeHub) -> None:
    hub.repositories["someone/world"] = repository(made)
    options: dict[str, Any] = {"variant": "480p-16fps", "endpoint": hub.endpoint}
    files = find_checkpoint("someone/world", **options)
    content = files.dit.read_bytes()
    files.dit.resolve().write_bytes(content[:-1] + b"?")
    assert files.dit.resolve().name == hashlib.sha256(content).hexdigest()
    with pytest.raises(CheckpointError, match="the copy is damaged"):
        find_checkpoint("someone/world", **options)


@pytest.mark.parametrize(
    ("options", "status", "kind", "word"),
    [
        ({"revision": "nowhere"}, None, CheckpointError, "no such revision"),
        ({}, 404, CheckpointError, "404"),
        ({}, 401, GatedRepoError, "401"),
        ({}, 403, GatedRepoError, "403"),
    ],
)
def test_refusals_of_a_repository(
    made: Path, hub: FakeHub, options: dict[str, Any], status: int | None, kind: Any, word: str
) -> None:
    hub.repositories["someone/world"] = repository(made)
    if status is not None:
        hub.status["someone/world"] = status
    with pytest.raises(kind, match=word):
        find_checkpoint("someone/world", variant="diffusers", endpoint=hub.endpoint, **options)


def test_a_token_is_not_shown(made: Path, hub: FakeHub) -> None:
    hub.repositories["someone/world"] = repository(made)
    files = find_checkpoint(
        "someone/world", variant="diffusers", token="secret", endpoint=hub.endpoint
    )
    assert any(h.get("Authorization") == "Bearer secret" for _, _, h in hub.requests)
    assert "secret" not in repr(files)


def test_an_unknown_repository(hub: FakeHub) -> None:
    with pytest.raises(GatedRepoError, match="there is no such repository"):
        find_checkpoint("someone/nothing", endpoint=hub.endpoint)
