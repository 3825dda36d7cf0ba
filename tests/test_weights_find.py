"""From what a person writes to the files that are meant, or to what was looked for in vain."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import threading
from pathlib import Path

import pytest

from attacks.checkpoints.small import MODEL, small_checkpoint, tool
from cosmos_fast.errors import CheckpointError
from cosmos_fast.types import Size
from cosmos_fast.weights import digests, find_checkpoint, load_text_encoder
from cosmos_fast.weights.digest import digest, digest_all
from cosmos_fast.weights.layout import variants_among
from cosmos_fast.weights.released import (
    ARCHITECTURES,
    NEGATIVE_PROMPT,
    Family,
    family_of,
    released_profile,
)
from cosmos_fast.weights.sidecar import SIDECAR


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("checkpoints")
    small_checkpoint(root)
    return root


@pytest.fixture
def made(pristine: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return shutil.copytree(pristine, tmp_path / "checkpoints")


def later_layout(root: Path, *variants: str) -> Path:
    """Moves the original layout into the later one, with one transformer a variant."""
    folder = root / "nvidia" / MODEL
    folder.mkdir(parents=True)
    for variant in variants:
        shutil.copy(root / MODEL / "model.pt", folder / f"model-{variant}.pt")
    shutil.move(root / MODEL / SIDECAR, folder)
    (folder / "tokenizer").mkdir()
    shutil.move(root / "Wan-AI/Wan2.1-T2V-1.3B/Wan2.1_VAE.pth", folder / "tokenizer/tokenizer.pth")
    shutil.rmtree(root / MODEL)
    shutil.rmtree(root / "diffusers")
    return folder


def test_original_layout_by_root_and_name(made: Path) -> None:
    files = find_checkpoint(MODEL, checkpoint_root=made)
    assert files.layout == "nvidia"
    assert files.dit == made / MODEL / "model.pt"
    assert files.vae == made / "Wan-AI/Wan2.1-T2V-1.3B/Wan2.1_VAE.pth"
    assert files.text_encoder == files.tokenizer == made / "google-t5/t5-11b"
    assert files.profile == tool().TINY


@pytest.mark.parametrize(
    "source",
    [MODEL, f"{MODEL}/model.pt", f"diffusers/{MODEL}", f"diffusers/{MODEL}/transformer",
     f"diffusers/{MODEL}/transformer/diffusion_pytorch_model.safetensors", "diffusers"],
)  # fmt: skip
def test_folders_and_files_need_no_root(made: Path, source: str) -> None:
    files = find_checkpoint(made / source)
    assert files.profile == tool().TINY
    assert files.text_encoder is not None
    assert files.tokenizer is not None
    assert files.layout == ("diffusers" if "diffusers" in source else "nvidia")


def test_later_layout(made: Path) -> None:
    folder = later_layout(made, "480p-16fps")
    for source in (folder, made, made / "nvidia", folder / "model-480p-16fps.pt"):
        files = find_checkpoint(source)
        assert files.dit == folder / "model-480p-16fps.pt"
        assert files.vae == folder / "tokenizer" / "tokenizer.pth"
        assert files.text_encoder == made / "google-t5/t5-11b"
    # The name the original's command line gives, in a folder that was filled later.
    assert find_checkpoint(MODEL, checkpoint_root=made).dit == files.dit


def test_several_matches_are_listed_and_variant_picks(made: Path) -> None:
    folder = later_layout(made, "480p-16fps", "720p-10fps")
    with pytest.raises(CheckpointError, match="2 checkpoints match") as refusal:
        find_checkpoint(folder)
    assert "'480p-16fps' (model-480p-16fps.pt)" in str(refusal.value)
    assert "'720p-10fps' (model-720p-10fps.pt)" in str(refusal.value)
    assert find_checkpoint(folder, variant="720p-10fps").dit == folder / "model-720p-10fps.pt"
    with pytest.raises(CheckpointError, match=r"variant = '480p-10fps' is not there; found '480p"):
        find_checkpoint(folder, variant="480p-10fps")


def test_both_layouts_in_one_folder_are_two_matches(made: Path) -> None:
    for part in ("transformer", "vae", "tokenizer"):
        shutil.copytree(made / "diffusers" / MODEL / part, made / MODEL / part)
    with pytest.raises(CheckpointError, match="2 checkpoints match"):
        find_checkpoint(made / MODEL)
    assert find_checkpoint(made / MODEL, variant="diffusers").layout == "diffusers"
    assert find_checkpoint(made / MODEL, variant="model").layout == "nvidia"
    # Each takes the VAE of its own layout where both are there.
    assert find_checkpoint(made / MODEL, variant="diffusers").vae.parent.name == "vae"


def test_a_variant_cannot_contradict_a_file_name(made: Path) -> None:
    folder = later_layout(made, "480p-16fps")
    with pytest.raises(CheckpointError, match="variant = '720p-16fps' is not there"):
        find_checkpoint(folder / "model-480p-16fps.pt", variant="720p-16fps")


@pytest.mark.parametrize(
    ("remove", "cure"),
    [
        (MODEL + "/model.pt", "no transformer there"),
        ("Wan-AI", "Give vae="),
    ],
)
def test_missing_part_is_named_with_where_it_was_looked_for(
    made: Path, remove: str, cure: str
) -> None:
    path = made / remove
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(CheckpointError, match=cure) as refusal:
        find_checkpoint(made / MODEL)
    assert str(made) in str(refusal.value)


def test_missing_text_encoder_is_an_error_only_where_it_is_needed(made: Path) -> None:
    shutil.rmtree(made / "google-t5")
    shutil.rmtree(made / "diffusers")
    files = find_checkpoint(made / MODEL)
    assert files.text_encoder is None
    for need in (files.require_text, files.text_identity, lambda: load_text_encoder(files, "cpu")):
        with pytest.raises(CheckpointError, match="text_encoder=") as refusal:
            need()
        assert str(made / "google-t5/t5-11b") in str(refusal.value)


def test_missing_tokenizer_is_an_error_only_where_it_is_needed(made: Path) -> None:
    (made / "google-t5/t5-11b/tokenizer.json").unlink()
    files = find_checkpoint(made / MODEL)
    with pytest.raises(CheckpointError, match="tokenizer="):
        files.require_text()


def test_paths_given_by_hand_win(made: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    shutil.copytree(made / "google-t5/t5-11b", own / "t5")
    shutil.copytree(made / "diffusers" / MODEL / "vae", own / "vae")
    files = find_checkpoint(made / MODEL, vae=own, text_encoder=own / "t5", tokenizer=own / "t5")
    assert files.vae == own / "vae" / "diffusion_pytorch_model.safetensors"
    assert files.text_encoder == files.tokenizer == own / "t5"
    for wrong in ({"vae": own / "no"}, {"text_encoder": own}, {"tokenizer": own}):
        with pytest.raises(CheckpointError, match=str(own)):
            find_checkpoint(made / MODEL, **wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("source", ["nowhere", "./a/b/c", "a/b\0c", "", "-i", "../.."])
def test_what_is_no_checkpoint_says_what_would_be_one(source: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"looked for|no transformer there|cannot be read"):
        find_checkpoint(source, checkpoint_root=tmp_path, local_files_only=True)


def test_relative_paths_are_below_the_root_first(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    (here / MODEL).mkdir(parents=True)
    monkeypatch.chdir(here)
    assert find_checkpoint(MODEL, checkpoint_root=made).dit == made / MODEL / "model.pt"


def test_a_packaged_world_is_found_by_its_name(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cosmos_fast.weights import find, packaged_worlds

    monkeypatch.setattr(find, "_ASSETS", made / "diffusers")
    assert packaged_worlds() == (MODEL,)
    assert find_checkpoint(MODEL).vae.is_relative_to(made / "diffusers")


# What a checkpoint implies


def test_the_reference_negative_prompt_is_byte_for_byte() -> None:
    assert len(NEGATIVE_PROMPT) == 538
    assert hashlib.sha256(NEGATIVE_PROMPT.encode()).hexdigest().startswith("6d7ca93077e7e4a8")


@pytest.mark.parametrize("size", ["2B", "14B"])
@pytest.mark.parametrize(
    ("variant", "height", "width", "frames", "fps"),
    [
        ("480p-10fps", 432, 768, 61, 10),
        ("480p-16fps", 432, 768, 93, 16),
        ("720p-10fps", 704, 1280, 61, 10),
        ("720p-16fps", 704, 1280, 93, 16),
        ("model", 704, 1280, 121, 24),
        ("diffusers", 704, 1280, 93, 16),
    ],
)
def test_released_files(
    size: str, variant: str, height: int, width: int, frames: int, fps: int
) -> None:
    name = f"Cosmos-Predict2-{size}-Video2World"
    inferred = dataclasses.replace(ARCHITECTURES[size], rope_scale=(9.0, 9.0, 9.0))
    profile = released_profile(Path(name), variant, inferred, Family(name, size, "Video2World"))
    assert profile is not None
    assert (profile.size, profile.num_frames, profile.fps) == (Size(height, width), frames, fps)
    assert profile.dit.rope_scale == {"2B": (1, 3, 3), "14B": (20 / 24, 2, 2)}[size]
    assert (profile.num_steps, profile.guidance) == (35, 7.0)
    assert profile.conditional_frames == (1, 5)
    assert profile.negative_prompt == NEGATIVE_PROMPT
    assert not profile.toy


def test_a_released_file_away_from_its_folder_is_known_by_its_tensors() -> None:
    profile = released_profile(Path("x.pt"), "480p-16fps", ARCHITECTURES["14B"], None)
    assert profile is not None
    assert profile.name == "Cosmos-Predict2-14B-Video2World/480p-16fps"
    assert profile.dit.rope_scale == (20 / 24, 2, 2)


@pytest.mark.parametrize("variant", ["model", "diffusers", "mine", "480p-24fps", "720p"])
def test_without_a_telling_name_nothing_is_guessed(variant: str) -> None:
    assert released_profile(Path("x.pt"), variant, ARCHITECTURES["2B"], None) is None


def test_an_unknown_architecture_is_not_guessed() -> None:
    other = dataclasses.replace(ARCHITECTURES["2B"], num_layers=27)
    assert released_profile(Path("x.pt"), "480p-16fps", other, None) is None
    with pytest.raises(CheckpointError, match="num_layers = 27, expected 28"):
        released_profile(Path("x.pt"), "480p-16fps", other, Family("n", "2B", "Video2World"))


@pytest.mark.parametrize(
    ("folder", "known"),
    [
        ("nvidia/Cosmos-Predict2-2B-Video2World/model.pt", "2B"),
        ("Cosmos-Predict2-14B-Sample-GR00T-Dreams-GR1/model-480p-16fps.pt", "14B"),
        ("models--nvidia--Cosmos-Predict2-14B-Video2World/snapshots/abc/transformer/a.pt", "14B"),
        ("checkpoints/mine/model.pt", None),
    ],
)
def test_the_model_is_told_by_its_folder(folder: str, known: str | None) -> None:
    family = family_of(Path(folder))
    assert (family.size if family else None) == known


@pytest.mark.parametrize(
    "folder",
    ["Cosmos-Predict2-14B-Multiview", "Cosmos-Predict2-2B-Multiview",
     "Cosmos-Predict2-0.6B-Text2Image", "Cosmos-Predict2-14B-Text2Image"],
)  # fmt: skip
def test_models_that_are_not_supported_are_refused_by_name(folder: str) -> None:
    with pytest.raises(CheckpointError, match=f"{folder} is not supported"):
        family_of(Path(folder) / "model-480p-4fps.pt")


def test_sparse_variants_are_refused_with_a_word() -> None:
    with pytest.raises(CheckpointError, match="NATTEN"):
        released_profile(Path("x.pt"), "720p-16fps-natten", ARCHITECTURES["2B"], None)


def test_a_plain_file_with_no_description_is_an_error_with_cures(made: Path) -> None:
    (made / MODEL / SIDECAR).unlink()
    (made / MODEL).rename(made / "mine")
    with pytest.raises(CheckpointError, match="RoPE") as refusal:
        find_checkpoint(made / "mine")
    for cure in (str(made / "mine" / SIDECAR), "variant=", "profile="):
        assert cure in str(refusal.value)


def test_name_and_tensors_that_disagree_are_an_error(made: Path) -> None:
    (made / MODEL / SIDECAR).unlink()
    with pytest.raises(CheckpointError, match=r"num_layers = 2, expected 28"):
        find_checkpoint(made / MODEL)


def test_the_caller_may_say_what_it_is(made: Path) -> None:
    (made / MODEL / SIDECAR).unlink()
    given = dataclasses.replace(tool().TINY, name="given", fps=5.0)
    assert find_checkpoint(made / MODEL, profile=given).profile == given
    wrong = dataclasses.replace(given, dit=ARCHITECTURES["2B"])
    with pytest.raises(CheckpointError, match="does not fit the given profile"):
        find_checkpoint(made / MODEL, profile=wrong)


def test_variants_of_a_repository() -> None:
    names = [
        "README.md", "model_index.json", "model-480p-16fps.pt", "model-720p-16fps-natten.pt",
        "tokenizer/tokenizer.pth", "tokenizer/tokenizer.json", "transformer/config.json",
        "transformer/diffusion_pytorch_model-00001-of-00002.safetensors",
        "transformer/diffusion_pytorch_model.safetensors.index.json",
        "vae/diffusion_pytorch_model.safetensors",
    ]  # fmt: skip
    assert variants_among(names) == [
        ("diffusers", "transformer/diffusion_pytorch_model.safetensors.index.json"),
        ("480p-16fps", "model-480p-16fps.pt"),
        ("720p-16fps-natten", "model-720p-16fps-natten.pt"),
    ]


# Digests


def test_digests_are_sha256_of_every_file(made: Path) -> None:
    files = find_checkpoint(made / "diffusers" / MODEL)
    found = digests(files, text=True)
    assert found == {
        f"{part}/{path.name}": hashlib.sha256(path.read_bytes()).hexdigest()
        for part, path in (
            ("dit", files.dit),
            ("vae", files.vae),
            ("text_encoder", files.text_encoder / "model.safetensors"),  # type: ignore[operator]
            ("tokenizer", files.tokenizer / "tokenizer.json"),  # type: ignore[operator]
        )
    }


def test_a_digest_is_computed_once(tmp_path: Path, cache_dir: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    first = digest(path)
    notes = list(cache_dir.rglob("*.json"))
    assert len(notes) == 1
    # Told apart from a fresh computation by a value that no computation gives.
    note = json.loads(notes[0].read_text())
    notes[0].write_text(json.dumps(note | {"sha256": "f" * 64}))
    assert digest(path) == "f" * 64
    path.write_bytes(b"other")
    assert digest(path) == hashlib.sha256(b"other").hexdigest() != first
    assert list(cache_dir.rglob("*.json")) == notes


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"sha256": 3}', '{"path": "x"}'])
def test_a_damaged_note_is_computed_again(tmp_path: Path, cache_dir: Path, damage: str) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    expected = digest(path)
    (note,) = cache_dir.rglob("*.json")
    note.write_text(damage)
    assert digest(path) == expected


def test_digests_without_a_cache_folder(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert digest(path, blocked / "digests") == hashlib.sha256(b"one").hexdigest()


def test_digests_from_many_threads(tmp_path: Path, cache_dir: Path) -> None:
    paths = [tmp_path / str(i) for i in range(8)]
    for path in paths:
        path.write_bytes(path.name.encode() * 1000)
    expected = {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
    results: list[dict[Path, str]] = []
    threads = [threading.Thread(target=lambda: results.append(digest_all(paths))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [expected] * 8
    assert not list(cache_dir.rglob(".cosmos-fast-*"))


def test_text_identity_follows_the_encoder_and_the_tokenizer(made: Path) -> None:
    files = find_checkpoint(made / MODEL)
    identities = {files.text_identity()}
    for name in ("model.safetensors", "tokenizer.json"):
        path = made / "google-t5/t5-11b" / name
        path.write_bytes(path.read_bytes() + b" ")
        identities.add(files.text_identity())
    assert len(identities) == 3
