"""Worlds: states that are values, on a small action-conditioned engine of random weights."""

from __future__ import annotations

import gc
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import cosmos_fast as cf
from action_world import CHUNK, HEIGHT, WIDTH, action_engine, actions, pictures
from cosmos_fast.world import advance
from cosmos_fast.world.noise import chunk_noise
from world_steps import pixels, started

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from pathlib import Path


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> cf.Video2World:
    return action_engine(tmp_path_factory.mktemp("world"))


def test_a_picture_that_nobody_may_write_is_taken(engine: cf.Video2World) -> None:
    """As Pillow's are; torch would warn, and a warning is an error here."""
    frames = pictures(1)
    frames.setflags(write=False)
    with cf.World(engine, 1) as world:
        world.reset(frames)
        assert world.states[0] is not None


def test_step_gives_a_chunk_of_every_world(
    engine: cf.Video2World, unchanged_globals: Callable[[], AbstractContextManager[None]]
) -> None:
    with unchanged_globals(), started(engine, 2, seed=[3, 9]) as world:
        step = world.step(actions(2))
        assert pixels(step).shape == (2, CHUNK, HEIGHT, WIDTH, 3)
        assert pixels(step).dtype == np.uint8
        assert tuple(step.latents.tensor.shape) == (2, 16, 3, HEIGHT // 8, WIDTH // 8)
        assert step.valid.all()
        assert step.verdict == "not applicable"
        assert step.futures is step.disagreement is step.future_latents is None
        assert [(state.seed, state.chunks) for state in step.state] == [(3, 1), (9, 1)]
        assert world.states == step.state
        last = step.state[1].frames
        assert last is not None
        np.testing.assert_array_equal(last.to("np"), pixels(step)[1, -1:])
        assert list(step.report.stages) == ["encode", "denoise", "decode"]
        report = world.report()
        assert (report.steps, report.frames) == (1, 2 * CHUNK)
        assert report.latency_p99 >= report.latency_p50 > 0
        assert report.frames_per_second > 0


@pytest.mark.parametrize("guidance", [0.0, 3.0])
def test_chunks_that_are_replayed_are_the_same(guidance: float, engine: cf.Video2World) -> None:
    """By a stand-in for CUDA graphs that runs again over the same places."""
    from test_graphs import Rerun

    def chunks(engine: cf.Video2World) -> list[torch.Tensor]:
        world, made = started(engine, 2, seed=5), []
        for seed in range(2):
            made.append(world.step(actions(2, seed), guidance=guidance).latents.tensor)
            made.append(world.fork(0, 1).step(actions(1), guidance=guidance).latents.tensor)
        return made

    replayed = cf.Video2World(engine._parts, engine._desk)
    dit = Rerun(engine._parts.dit)
    replayed._studio = replace(replayed._studio, dit=dit)
    for one, other in zip(chunks(replayed), chunks(engine), strict=True):
        assert torch.equal(one, other)
    branches = 1 if guidance == 0 else 2
    assert dit.recordings == branches, "one future at a time on a CPU: all have one shape"


def test_the_first_chunk_is_that_of_generate_written_out(engine: cf.Video2World) -> None:
    """The same predictor, noise, solver and decoder as a clip's, called one by one."""
    from cosmos_fast.model.pixels import to_pixels, to_video
    from cosmos_fast.sampling import adams_bashforth, denoiser, reference_noise, sigmas
    from cosmos_fast.types import Conditioning, Frames, LatentFrames

    world = started(engine, 1, seed=5)
    step = world.step(actions(1), noise="reference")
    scaled = torch.from_numpy(actions(1)) * torch.tensor([1.0, 2.0])
    with engine.lend() as parts, torch.no_grad():
        given = parts.vae.encode(to_video(Frames(pictures(1), 8), parts.device, parts.dtype))
        text = parts.dit.text_context(torch.zeros(1, 512, 64))
        action = parts.dit.action_context(scaled)
        predict = denoiser(
            lambda x, t, mask, _: parts.dit(x, t, mask, text, action=action),
            Conditioning.from_first_frames(given, LatentFrames(3)),
        )
        noise = reference_noise((1, 16, 3, HEIGHT // 8, WIDTH // 8), 5)
        latents = adams_bashforth(predict, noise * 80, sigmas(2))
        video = to_pixels(parts.vae.decode(latents)).numpy()
    torch.testing.assert_close(step.latents.tensor, latents, rtol=1e-5, atol=1e-5)
    assert np.abs(pixels(step)[0].astype(int) - video[1:]).max() <= 1


def test_a_world_alone_and_among_seven_others_has_equal_bytes(engine: cf.Video2World) -> None:
    many = started(engine, 8, seed=range(20, 28))
    first, second = many.step(actions(8)), many.step(actions(8, seed=1))
    alone = cf.World(engine, 1)
    alone.reset(pictures(8)[5:6], seed=25)
    again = alone.step(actions(8)[5:6])
    assert torch.equal(again.latents.tensor[0], first.latents.tensor[5])
    np.testing.assert_array_equal(pixels(again)[0], pixels(first)[5])
    np.testing.assert_array_equal(pixels(alone.step(actions(8, seed=1)[5:6]))[0], pixels(second)[5])
    assert len({pixels(first)[k].tobytes() for k in range(8)}) == 8


def test_several_worlds_in_one_batch_are_the_same_up_to_rounding(engine: cf.Video2World) -> None:
    one = started(engine, 3).step(actions(3), batch=1)
    three = started(engine, 3).step(actions(3), batch=2)
    torch.testing.assert_close(three.latents.tensor, one.latents.tensor, rtol=1e-4, atol=1e-4)


def test_actions_frames_and_seed_each_decide(engine: cf.Video2World) -> None:
    world = started(engine, 1, seed=1)
    start = world.snapshot()
    base = pixels(world.step(actions(1)))
    for change in ({"given": actions(1, seed=2)}, {"seed": 2}, {"frames": pictures(1, seed=9)}):
        world.restore(start)
        if "seed" in change or "frames" in change:
            world.reset(change.get("frames", pictures(1)), seed=change.get("seed", 1))  # type: ignore[arg-type]
        assert not np.array_equal(pixels(world.step(change.get("given", actions(1)))), base)
    world.restore(start)
    np.testing.assert_array_equal(pixels(world.step(actions(1))), base)


def test_fork_and_restore_have_equal_futures_for_equal_actions(engine: cf.Video2World) -> None:
    world = started(engine, 2)
    world.step(actions(2))
    before = world.snapshot()
    branch = world.fork(1, copies=3)
    same = np.repeat(actions(2, seed=4)[1:], 3, axis=0)
    forked = pixels(branch.step(same))
    stepped = pixels(world.step(actions(2, seed=4)))
    for copy in range(3):
        np.testing.assert_array_equal(forked[copy], stepped[1])
    world.restore(before)
    np.testing.assert_array_equal(pixels(world.step(actions(2, seed=4))), stepped)
    others = world.fork(1, copies=2, seeds=[5, 6])
    two = pixels(others.step(same[:2]))
    assert not np.array_equal(two[0], two[1])


def test_what_is_done_to_a_states_frames_does_not_reach_it(engine: cf.Video2World) -> None:
    world = started(engine, 1)
    for chunk in range(2):
        before = world.snapshot()
        wanted = pixels(world.step(actions(1)))
        world.restore(before)
        shown = world.states[0].frames
        assert shown is not None
        shown.to("pt").zero_()
        np.testing.assert_array_equal(pixels(world.step(actions(1))), wanted, f"{chunk = }")


def test_states_of_any_pasts_are_advanced_together(engine: cf.Video2World) -> None:
    world = started(engine, 2)
    old = world.states
    new = world.step(actions(2)).state
    mixed = advance(engine, [new[1], old[0], new[1]], actions(3, seed=7))
    assert [state.chunks for state in mixed.state] == [2, 1, 2]
    single = advance(engine, [old[0]], actions(3, seed=7)[1:2])
    np.testing.assert_array_equal(pixels(mixed)[1], pixels(single)[0])


def test_a_thousand_forks_of_a_full_picture_cost_nothing(engine: cf.Video2World) -> None:
    world = cf.World(engine, 1)
    world.reset(np.zeros((1, 480, 640, 3), np.uint8))
    gc.collect()
    import tracemalloc

    tracemalloc.start()
    branch = world.fork(0, copies=1000)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 1_000_000
    shown = [state.tail.shown for state in branch.states]  # ``frames`` is a copy at every call
    assert len({frames.data_ptr() for frames in shown if frames is not None}) == 1
    assert len(shown) == 1000


def test_a_written_snapshot_is_read_back_with_the_same_future(
    engine: cf.Video2World, tmp_path: Path
) -> None:
    world = started(engine, 2, seed=[7, 8])
    world.step(actions(2))
    path = tmp_path / "states.safetensors"
    world.snapshot(path)
    future = pixels(world.step(actions(2, seed=3)))
    other = cf.World(engine, 2)
    other.restore(path)
    np.testing.assert_array_equal(pixels(other.step(actions(2, seed=3))), future)
    world.step(actions(2), decode=False)
    world.snapshot(path)
    latent_future = pixels(world.step(actions(2, seed=3)))
    other.restore(path)
    np.testing.assert_array_equal(pixels(other.step(actions(2, seed=3))), latent_future)
    forks = other.fork(0, copies=50)
    forks.snapshot(path)
    assert path.stat().st_size < 60_000, "one tail, not fifty"


@pytest.mark.parametrize("fault", ["cut", "foreign", "other", "missing", "huge count", "shape"])
def test_a_file_that_is_no_snapshot_is_refused(
    engine: cf.Video2World, tmp_path: Path, fault: str
) -> None:
    from safetensors.torch import load_file, save_file

    world = started(engine, 1)
    path = tmp_path / "states.safetensors"
    world.snapshot(path)
    if fault == "cut":
        path.write_bytes(path.read_bytes()[:-5])
    elif fault == "missing":
        path.unlink()
    else:
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            metadata, tensors = dict(file.metadata()), load_file(path)
        if fault == "foreign":
            metadata = {}
        elif fault == "other":
            metadata["model"] = '{"dit/x": "0"}'
        elif fault == "huge count":
            metadata["states"] = metadata["states"].replace('"chunks": 0', '"chunks": -1')
        else:
            tensors = {name: tensor[:, :-1].clone() for name, tensor in tensors.items()}
        save_file(tensors, path, metadata)
    before = world.states
    with pytest.raises(cf.InputError if fault == "other" else cf.CheckpointError):
        world.restore(path)
    assert world.states == before


def test_reset_by_mask_leaves_the_others(engine: cf.Video2World) -> None:
    world = started(engine, 3)
    world.step(actions(3))
    old = world.states
    world.reset(pictures(3, seed=4), seed=50, mask=np.array([False, True, False]))
    assert (world.states[0], world.states[2]) == (old[0], old[2])
    assert (world.states[1].seed, world.states[1].chunks) == (51, 0)


def test_the_caller_may_write_on_its_own_frames_again(engine: cf.Video2World) -> None:
    buffer = torch.from_numpy(pictures(1))
    world = cf.World(engine, 1)
    world.reset(buffer)
    buffer.zero_()
    np.testing.assert_array_equal(pixels(world.step(actions(1))),
                                  pixels(started(engine, 1).step(actions(1))))  # fmt: skip


class Shared:
    """A simulator's array: nothing but DLPack."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.array.__dlpack_device__()


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy, Shared, np.ndarray.tolist])
def test_frames_and_actions_come_in_any_form(engine: cf.Video2World, kind: Any) -> None:
    world = cf.World(engine, 1)
    frames = pictures(1)
    world.reset(frames if kind is np.ndarray.tolist else kind(frames))
    step = world.step(kind(actions(1)))
    np.testing.assert_array_equal(pixels(step), pixels(started(engine, 1).step(actions(1))))
    assert step.frames is not None
    assert torch.equal(torch.from_dlpack(step.frames), step.frames.to("pt"))


def test_five_given_frames_are_cut_to_what_the_checkpoint_takes(engine: cf.Video2World) -> None:
    world = cf.World(engine, 1)
    clip = np.stack([pictures(1, seed=k)[0] for k in range(5)])[None]
    world.reset(clip)
    other = cf.World(engine, 1)
    other.reset(clip[:, -1])
    np.testing.assert_array_equal(pixels(world.step(actions(1))), pixels(other.step(actions(1))))


def test_without_pixels_the_state_goes_on_all_the_same(engine: cf.Video2World) -> None:
    seen, unseen = started(engine, 2), started(engine, 2)
    with_pixels = seen.step(actions(2))
    without = unseen.step(actions(2), decode=False)
    assert without.frames is None
    assert "decode" not in without.report.stages
    assert torch.equal(with_pixels.latents.tensor, without.latents.tensor)
    assert without.state[0].frames is None
    np.testing.assert_array_equal(
        pixels(seen.step(actions(2, seed=3))), pixels(unseen.step(actions(2, seed=3)))
    )


def test_samples_are_several_futures_and_how_far_they_are_apart(engine: cf.Video2World) -> None:
    world = started(engine, 2)
    start = world.snapshot()
    single = world.step(actions(2))
    world.restore(start)
    step = world.step(actions(2), samples=3)
    assert step.futures is not None
    assert step.disagreement is not None
    assert step.future_latents is not None
    assert step.futures.shape == (2, 3, CHUNK, HEIGHT, WIDTH, 3)
    np.testing.assert_array_equal(pixels(step), np.asarray(step.futures)[:, 0])
    np.testing.assert_array_equal(pixels(step), pixels(single))
    assert not np.array_equal(np.asarray(step.futures)[:, 0], np.asarray(step.futures)[:, 1])
    assert step.disagreement.shape == (2, CHUNK)
    spread = step.future_latents[1, :, :, 1].numpy().std(axis=0, ddof=1)
    expected = np.sqrt((spread**2).mean())
    np.testing.assert_allclose(step.disagreement[1, :4].numpy(), expected, rtol=1e-5)


def test_noise_is_keyed_by_seed_chunk_and_sample() -> None:
    def noise(kind: Any = "device", **key: int) -> torch.Tensor:
        whole = {"seed": 1, "chunk": 2, "sample": 0, "stride": 12} | key
        return chunk_noise(kind, (4, 5000), torch.device("cpu"), **whole)

    base = noise()
    assert torch.equal(base, noise())
    assert abs(float(base.mean())) < 0.03
    assert abs(float(base.std()) - 1) < 0.02
    different = [noise(seed=2), noise(chunk=3), noise(sample=1), noise("shared"),
                 noise("reference")]  # fmt: skip
    for other in different:
        assert abs(float((base * other).mean())) < 0.03
    assert torch.equal(noise("shared"), noise("shared", seed=9))
    assert torch.equal(noise("reference"), noise("reference", seed=25, chunk=0))


def test_shared_noise_gives_worlds_of_different_seeds_one_luck(engine: cf.Video2World) -> None:
    same = np.repeat(pictures(1), 2, axis=0), np.repeat(actions(1), 2, axis=0)
    world = cf.World(engine, 2, noise="shared")
    world.reset(same[0], seed=[1, 2])
    two = pixels(world.step(same[1]))
    np.testing.assert_array_equal(two[0], two[1])


def test_a_short_chunk_is_padded_marked_and_continued_where_it_ended(
    engine: cf.Video2World,
) -> None:
    world = started(engine, 1)
    step = world.step(actions(1)[:, :3])
    assert step.valid.tolist() == [[True] * 3 + [False] * (CHUNK - 3)]
    last = step.state[0].frames
    assert last is not None
    np.testing.assert_array_equal(last.to("np")[0], pixels(step)[0, 2])
    padded = np.concatenate([actions(1)[:, :3]] + [actions(1)[:, 2:3]] * (CHUNK - 3), axis=1)
    np.testing.assert_array_equal(
        pixels(step), pixels(started(engine, 1).step(padded)), "the last action is held"
    )


def test_frames_stream_out_as_they_decode(engine: cf.Video2World) -> None:
    world = started(engine, 2)
    seen: list[tuple[Any, int, np.ndarray]] = []
    step = world.step(
        actions(2), batch=2, on_frames=lambda jobs, first, part: seen.append((jobs, first, part))
    )
    assert [(jobs, first) for jobs, first, _ in seen] == [(((0, 0), (1, 0)), at) for at in (0, 4)]
    np.testing.assert_array_equal(np.concatenate([p for _, _, p in seen], axis=1), pixels(step))
