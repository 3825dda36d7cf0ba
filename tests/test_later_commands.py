"""Every flag of the later tool's scripts, run to its end on small models of the real classes."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image
from tools.random_companions import SENTENCES

from commands import ran
from cosmos_fast.media import VideoWriter, read_frames
from cosmos_fast.types import Size
from released_folders import NEGATIVE, make_released_folders

if TYPE_CHECKING:
    from collections.abc import Callable

SMALL = "--height 32 --width 48 --num_video_frames 9 --num_steps 1"
PLAIN = "--disable_guardrail --disable_prompt_refiner"
PROMPT = "A crane turns."
INPUT = f"--input_path start.png --prompt '{PROMPT}'"


@dataclass(frozen=True)
class Done:
    """A command that came to its end."""

    code: int
    told: dict[str, Any]
    """The JSON object of stdout."""
    err: str

    @property
    def report(self) -> dict[str, Any]:
        found: dict[str, Any] = self.told["report"]
        return found

    @property
    def arguments(self) -> dict[str, Any]:
        found: dict[str, Any] = self.report["arguments"]
        return found

    @property
    def manifest(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(Path(self.told["manifest"]).read_bytes())
        return found

    @property
    def sidecar(self) -> str:
        return Path(self.told["sidecar"]).read_text("utf-8")


@pytest.fixture(scope="module")
def checkpoints(companions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_released_folders(tmp_path_factory.mktemp("released") / "checkpoints", companions)


@pytest.fixture(scope="module", autouse=True)
def _folder(checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One working directory for all commands of this file."""
    place = tmp_path_factory.mktemp("place")
    (place / "checkpoints").symlink_to(checkpoints)
    noise = np.random.default_rng(0).integers(0, 256, (9, 40, 60, 3), dtype=np.uint8)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        Image.fromarray(noise[0]).save("start.png")
        with VideoWriter("start.mp4", size=Size(40, 60), fps=16) as video:
            video.write(noise)
        yield


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Callable[[str], Done]:
    """Runs a command line of ``cosmos-fast`` with ``--json``."""

    def call(line: str) -> Done:
        code, out, err = ran(capfd, [*shlex.split(line), "--json"])
        return Done(code, json.loads(out), err)

    return call


@pytest.fixture(scope="module")
def standard() -> dict[str, Done]:
    """What the command without a further flag made; filled by the first test that asks."""
    return {}


def latents(done: Done) -> str:
    digest: str = done.report["latents_sha256"]
    return digest


def differs(done: Done, standard: Done) -> bool:
    return latents(done) != latents(standard)


def equal(done: Done, standard: Done) -> bool:
    return latents(done) == latents(standard)


def model(name: str, variant: str) -> Callable[[Done, Done], bool]:
    def check(done: Done, standard: Done) -> bool:
        found = done.report["model"]
        read = next(iter(found["sha256"]))
        fits = (found["name"], read) == (name, f"dit/model-{variant}.pt")
        return fits and differs(done, standard)

    return check


TABLE: dict[str, tuple[str, Callable[[Done, Done], bool]]] = {
    "--model_size 14B": (PLAIN, model("14B", "720p-16fps")),
    "--resolution 480": (PLAIN, model("2B", "480p-16fps")),
    "--fps 10": (
        PLAIN,
        lambda done, standard: (
            done.manifest["video"]["fps"] == 10 and model("2B", "720p-10fps")(done, standard)
        ),
    ),
    "--dit_path checkpoints/nvidia/Cosmos-Predict2-14B-Video2World/model-720p-16fps.pt": (
        PLAIN,
        model("14B", "720p-16fps"),
    ),
    "--resolution 480 --fps 10 --load_ema": (
        PLAIN,
        lambda done, _: done.report["model"]["ema"] is True,
    ),
    "--negative_prompt Grey.": (
        PLAIN,
        lambda done, _: "\n[Negative Prompt]\nGrey." in done.sidecar,
    ),
    "--negative_prompt ''": (
        PLAIN,
        lambda done, standard: "[Negative Prompt]" not in done.sidecar and differs(done, standard),
    ),
    "--aspect_ratio 9:16 --resolution 480": (
        PLAIN,
        lambda done, _: done.told["settings"]["width"] == 48,
    ),
    "--num_conditional_frames 5 --input_path start.mp4": (
        PLAIN,
        lambda done, _: done.arguments["num_conditional_frames"] == 5,
    ),
    "--guidance 3 --seed 4 --save_path made/here.mp4": (
        PLAIN,
        lambda done, standard: (
            (done.arguments["guidance"], done.arguments["seed"]) == (3, 4)
            and done.told["video"] == "made/here.mp4"
            and differs(done, standard)
        ),
    ),
    "--disable_guardrail": (
        "--disable_prompt_refiner",
        lambda done, _: done.report["guardrail"]["reason"] == "--disable_guardrail",
    ),
    "--offload_guardrail": (
        "--disable_prompt_refiner",
        lambda done, standard: (
            done.report["guardrail"]["verdict"] == "safe" and equal(done, standard)
        ),
    ),
    "--disable_prompt_refiner": (
        "--disable_guardrail",
        lambda done, _: done.sidecar == f"[Prompt]\n{PROMPT}\n\n[Negative Prompt]\n{NEGATIVE}\n",
    ),
    "--offload_prompt_refiner": (
        "--disable_guardrail",
        lambda done, _: (
            done.report["upsampler"]["requested"] == "nvidia/Cosmos-Reason1-7B"
            and done.sidecar.startswith(f"[Prompt]\n{PROMPT}\n")
            and done.sidecar.endswith(f"[Refined Prompt]\n{done.report['upsampler']['prompt']}\n")
        ),
    ),
    "--offload_text_encoder": (PLAIN, equal),
    "--use_cuda_graphs": (
        PLAIN,
        lambda done, standard: (
            "CUDA graphs" in done.told["settings"]["notes"][0] and equal(done, standard)
        ),
    ),
    "--benchmark": (
        PLAIN,
        lambda done, standard: (
            len(done.told["benchmark"]["seconds"]) == 3
            and min(done.told["benchmark"]["seconds"]) <= done.told["benchmark"]["mean_seconds"]
            and "benchmark: " in done.err
            and equal(done, standard)
        ),
    ),
    "--downcast_text_encoder": (PLAIN, differs),
}


@pytest.mark.parametrize("flags", TABLE)
def test_a_flag_of_video2world(
    run: Callable[[str], Done], standard: dict[str, Done], flags: str
) -> None:
    if not standard:
        standard[""] = run(f"video2world {INPUT} {SMALL} {PLAIN} --save_path standard.mp4")
        assert standard[""].code == 0, standard[""].err
        assert standard[""].told["settings"]["generation"] == "later"
    others, holds = TABLE[flags]
    done = run(f"video2world {INPUT} {SMALL} {others} {flags}")
    assert done.code == 0, done.err
    assert done.told["settings"]["generation"] == "later"
    assert holds(done, standard[""])


def test_a_flag_whose_part_does_not_exist_is_refused(run: Callable[[str], Done]) -> None:
    done = run(f"video2world {INPUT} {SMALL} {PLAIN} --natten")
    assert done.code == 2
    assert "--natten needs the sparse-attention part, which does not exist yet" in done.err


def test_a_list_of_long_videos_is_refused_by_name(run: Callable[[str], Done]) -> None:
    done = run(f"video2world_lvg --batch_input_json list.json {SMALL} {PLAIN}")
    assert done.code == 2
    assert "--batch_input_json needs the lists-of-long-videos part" in done.err


def test_the_array_of_a_batch(run: Callable[[str], Done]) -> None:
    entries = [
        {"input_video": "start.png", "prompt": PROMPT, "output_video": "listed/a.mp4"},
        {"input_video": "start.mp4", "prompt": PROMPT},
        {"input_video": "start.png", "output_video": "listed/none.mp4"},
    ]
    Path("list.json").write_text(json.dumps(entries), "utf-8")
    done = run(f"video2world --batch_input_json list.json {SMALL} {PLAIN}")
    assert done.code == 4, done.err
    [row] = done.told["summary"]["failures"]
    assert (row["index"], row["code"]) == (2, 2)
    assert "no prompt" in row["message"]
    assert sorted(path.name for path in Path("listed").iterdir()) == ["a.json", "a.mp4", "a.txt"]
    assert Path("output_1.mp4").exists()


def test_the_long_video_of_the_later_tool(run: Callable[[str], Done]) -> None:
    done = run(
        f"video2world_lvg {INPUT} {SMALL} --disable_guardrail --num_chunks 2 --save_path long.mp4"
    )
    assert done.code == 0, done.err
    assert len(read_frames("long.mp4", size=Size(32, 48), num_frames=17)) == 17
    told = Path("long.txt").read_text("utf-8")
    for chunk in range(2):
        assert f"[Refined Prompt for chunk {chunk}]\n{SENTENCES[0][:12]}" in told
    assert "seam PSNR" in done.err
