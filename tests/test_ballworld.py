"""The ball world without its networks: scenes, motion, pictures, prompts, tracker, sheet."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import cosmos_fast as cf
from cosmos_fast.ballworld import (
    NUM_FRAMES,
    SIZE,
    Scenes,
    compare_tracks,
    describe,
    draw_sheet,
    parse,
    render,
    sample,
    say,
    simulate,
    stage,
    track,
)
from cosmos_fast.ballworld.motion import GRAVITY, RESTITUTION, SUBSTEPS, roll_out
from cosmos_fast.ballworld.picture import paint
from cosmos_fast.ballworld.prompts import Sentence
from cosmos_fast.ballworld.scene import COLOURS, FLOOR, FPS, MOTIONS, PALETTE
from cosmos_fast.ballworld.tracker import LOST

RIGHT_QUICKLY = [motion.phrase for motion in MOTIONS].index("moves quickly to the right")
LEFT_QUICKLY = [motion.phrase for motion in MOTIONS].index("moves quickly to the left")


def scene(
    *balls: tuple[float, float, int], radius: float = 8, gravity: bool = False, colour: int = 0
) -> Scenes:
    """One scene with balls at (x, y) in a motion."""
    two = [*balls, balls[0]][:2]
    return Scenes(
        count=np.array([len(balls)]),
        colour=np.array([[colour, colour + 1]]),
        motion=np.array([[motion for _, _, motion in two]]),
        radius=np.full((1, 2), radius),
        position=np.array([[(x, y) for x, y, _ in two]]),
        gravity=np.array([gravity]),
        background=np.full((1, 3), 0.2, dtype=np.float32),
    )


def test_the_same_seed_draws_the_same_scenes() -> None:
    one, other = sample(20, 5, "validation"), sample(20, 5, "validation")
    for field in fields(Scenes):
        np.testing.assert_array_equal(getattr(one, field.name), getattr(other, field.name))


def test_splits_and_seeds_share_no_scene() -> None:
    drawn = [sample(50, seed, split).position for seed in (0, 1) for split in
             ("train", "validation", "held-out")]  # fmt: skip
    assert len(np.unique(np.concatenate(drawn).reshape(-1, 2), axis=0)) == 6 * 100


def test_scenes_are_those_of_the_page() -> None:
    scenes = sample(4000, 0)
    two = scenes.count == 2
    assert 0.47 < two.mean() < 0.53
    assert 0.12 < (scenes.motion == 0).mean() < 0.18
    assert set(np.unique(scenes.motion)) == set(range(9))
    assert (scenes.colour[:, 0] != scenes.colour[:, 1]).all()
    assert scenes.radius.min() >= 7
    assert scenes.radius.max() <= 13
    x = np.sort(scenes.position[..., 0])
    assert ((x[:, 0] >= 16) & (x[:, 0] <= 68) & (x[:, 1] >= 92) & (x[:, 1] <= 144)).all()
    assert ((scenes.position[..., 1] >= 18) & (scenes.position[..., 1] <= 68)).all()
    gap = np.linalg.norm(scenes.position[:, 0] - scenes.position[:, 1], axis=1)
    assert (gap[two] > scenes.radius.sum(axis=1)[two]).all()


@pytest.mark.parametrize(("number", "seed"), [(0, 0), (1, -1)])
def test_impossible_draws_are_refused(number: int, seed: int) -> None:
    with pytest.raises(cf.InputError, match="at least 1 scene"):
        sample(number, seed)


def test_a_free_ball_goes_straight() -> None:
    track_T2 = simulate(scene((20, 50, RIGHT_QUICKLY)), 17)[0, :, 0]
    np.testing.assert_allclose(track_T2[:, 0], 20 + 95 * np.arange(17) / FPS)
    np.testing.assert_array_equal(track_T2[:, 1], 50)


def test_a_dropped_ball_falls_bounces_and_stays_above_the_floor() -> None:
    y = simulate(scene((80, 20, 0), gravity=True), NUM_FRAMES)[0, :, 0, 1]
    step = 1 / (FPS * SUBSTEPS)
    fallen = np.arange(9) * SUBSTEPS
    np.testing.assert_allclose(y[:9], 20 + GRAVITY * step**2 * fallen * (fallen + 1) / 2)
    assert y.max() <= FLOOR - 8
    height = FLOOR - 8 - y[y.argmax() :].min()
    assert height == pytest.approx(RESTITUTION**2 * (FLOOR - 8 - 20), rel=0.06)


def test_walls_take_their_share_of_speed() -> None:
    x = simulate(scene((140, 50, RIGHT_QUICKLY)), NUM_FRAMES)[0, :, 0, 0]
    assert x.max() <= SIZE.width - 8
    np.testing.assert_allclose(np.diff(x[10:28]), -RESTITUTION * 95 / FPS)


def test_balls_of_equal_mass_exchange_velocities() -> None:
    meeting = scene((40, 50, RIGHT_QUICKLY), (110, 50, LEFT_QUICKLY))
    x = simulate(meeting, 25)[0, :, :, 0]
    velocity = np.diff(x, axis=0) * FPS
    np.testing.assert_allclose(velocity[0], (95, -95))
    np.testing.assert_allclose(velocity[12], (-95, 95))
    assert (x[:, 1] - x[:, 0]).min() > 2 * 8 - 2 * 95 / FPS / SUBSTEPS


def test_a_collision_off_centre_keeps_momentum_and_energy() -> None:
    meeting = scene((40, 46, RIGHT_QUICKLY), (100, 54, 0))
    velocity = np.diff(simulate(meeting, 14), axis=1)[0] * FPS
    np.testing.assert_allclose(velocity[-1].sum(axis=0), velocity[0].sum(axis=0), atol=1e-6)
    assert (velocity[-1] ** 2).sum() == pytest.approx((velocity[0] ** 2).sum())
    assert abs(velocity[-1, 1, 1]) > 10


def test_torch_moves_the_balls_as_numpy_does() -> None:
    scenes = sample(200, 3)
    moved = roll_out(
        torch.from_numpy(scenes.position),
        torch.from_numpy(scenes.velocity),
        torch.from_numpy(scenes.radius),
        torch.from_numpy(scenes.count == 2),
        torch.from_numpy(scenes.gravity),
        num_frames=NUM_FRAMES,
        xp=torch,
    )
    np.testing.assert_allclose(moved.numpy(), simulate(scenes), atol=1e-9)


def test_torch_paints_as_numpy_does_to_one_level() -> None:
    scenes = sample(6, 4)
    parts = (
        simulate(scenes, 9).astype(np.float32),
        scenes.radius.astype(np.float32),
        PALETTE[scenes.colour],
        (scenes.count == 2).astype(np.float32),
        scenes.background,
    )
    planes, _ = paint(
        *map(torch.from_numpy, parts),
        columns=torch.arange(SIZE.width)[None] + 0.5,
        rows=torch.arange(SIZE.height) + 0.5,
        xp=torch,
    )
    painted = torch.stack(planes, dim=-1).numpy()
    assert np.abs(painted - render(scenes, 9)).max() <= 1


def test_the_picture_is_that_of_the_page() -> None:
    picture = render(scene((80, 40, 0), radius=10, colour=4), 1)[0, 0].astype(int)
    assert picture.shape == (*SIZE, 3)
    top, bottom = picture[0, 0], picture[85, 0]
    np.testing.assert_allclose(top, 1.6 * 0.2 * 255, atol=1)
    np.testing.assert_allclose(bottom, (1.6 - 0.6 * 85.5 / 96) * 0.2 * 255, atol=1)
    floor = picture[90, 0]
    assert floor == pytest.approx(bottom / 2 + 0.25 * 255, abs=2)
    ball = np.array(list(COLOURS.values())[4])
    np.testing.assert_allclose(picture[39, 79], 0.9 * ball, atol=4)
    assert (picture[34, 75] > picture[46, 85]).all(), "lit from the upper left"
    np.testing.assert_array_equal(picture[40, 69], picture[40, 2])


def test_shadows_follow_the_ball_and_fade_with_height() -> None:
    low, high = (render(scene((80, y, 0)), 1)[0, 0, 90].astype(int) for y in (74, 20))
    assert low[80].sum() < high[80].sum() < high[2].sum()
    assert abs(int(low[60].sum()) - int(low[99].sum())) <= 3


def test_scenes_are_rendered_each_by_itself() -> None:
    scenes = sample(3, 8)
    together = render(scenes, 5)
    for n in range(3):
        np.testing.assert_array_equal(together[n], render(scenes[n : n + 1], 5)[0])


sentences = st.integers(1, 2).flatmap(
    lambda balls: st.builds(
        Sentence,
        st.lists(st.integers(0, len(COLOURS) - 1), min_size=balls, max_size=balls, unique=True).map(
            tuple
        ),
        st.lists(st.integers(0, len(MOTIONS) - 1), min_size=balls, max_size=balls).map(tuple),
        st.booleans(),
    )
)


@given(sentences)
def test_what_is_said_is_understood(sentence: Sentence) -> None:
    assert parse(say(sentence)) == sentence


@given(sentences, st.integers(0, 20))
@settings(max_examples=20)
def test_a_staged_scene_is_the_one_described(sentence: Sentence, seed: int) -> None:
    assert describe(stage(sentence, seed)) == [say(sentence)]


def test_prompts_read_like_the_page() -> None:
    assert say(Sentence((0, 6), (RIGHT_QUICKLY, 0), gravity=False)) == (
        "A red ball moves quickly to the right and a white ball is at rest with no gravity."
    )


@pytest.mark.parametrize(
    ("text", "understood"),
    [
        ("a RED ball   is at rest under gravity", True),
        ("An orange ball is at rest with no gravity.", True),
        ("A red ball is at rest.", False),
        ("A red ball is at rest under gravity. A blue ball too.", False),
        ("A pink ball is at rest under gravity.", False),
        ("A red ball is at rest and a red ball moves slowly upwards under gravity.", False),
        ("A red ball moves upwards under gravity.", False),
        ("A red ball is at rest and a blue ball is at rest and a white ball is at rest "
         "under gravity.", False),
        ("", False),
    ],
    ids=lambda value: repr(value)[:40],
)  # fmt: skip
def test_the_grammar_ends_where_the_page_says(text: str, understood: bool) -> None:
    assert (parse(text) is not None) is understood


def test_the_tracker_finds_every_ball_of_the_simulation() -> None:
    scenes = sample(12, 1, "validation")
    found, truth = track(render(scenes), scenes), simulate(scenes)
    there = np.arange(2)[None] < scenes.count[:, None]
    error = np.linalg.norm(found - truth, axis=-1).swapaxes(1, 2)[there]
    # Above zero, because it follows the lit side; larger where one ball hides another or two
    # colours are close.
    assert np.median(error) < 4
    assert np.isfinite(error).all()
    assert np.isnan(found.swapaxes(1, 2)[~there]).all()


def test_a_track_compared_with_itself_has_no_error() -> None:
    scenes = sample(8, 2, "validation")
    truth = track(render(scenes), scenes)
    score = compare_tracks(truth, truth, scenes)
    assert len(score.error) == scenes.count.sum()
    assert score.error.max() == 0
    assert score.direction == 1
    assert score.alone.sum() == (scenes.count == 1).sum()


def test_a_video_moved_by_three_pixels_is_off_by_three() -> None:
    still = scene((80, 40, 0))
    moved = replace(still, position=still.position + np.array([3.0, 0.0]))
    here, there = (track(render(one, 5), still) for one in (still, moved))
    np.testing.assert_allclose(compare_tracks(there, here, still).error, 3, atol=0.05)


def test_a_lost_ball_costs_the_diagonal() -> None:
    scenes = scene((80, 40, 0))
    video = render(scenes, 5)
    empty = np.zeros_like(video)
    assert (compare_tracks(track(empty, scenes), track(video, scenes), scenes).error == LOST).all()


def test_direction_counts_moving_balls_that_set_off_the_right_way() -> None:
    there, back = scene((80, 40, RIGHT_QUICKLY)), scene((80, 40, LEFT_QUICKLY))
    tracks = [track(render(one, 5), there) for one in (there, back)]
    assert compare_tracks(tracks[0], tracks[0], there).direction == 1
    assert compare_tracks(tracks[1], tracks[0], there).direction == 0
    rest = scene((80, 40, 0))
    still = track(render(rest, 5), rest)
    assert not compare_tracks(still, still, rest).moving.any()


def test_a_sheet_shows_the_frames_below_one_another() -> None:
    video = render(sample(1, 0), 9)[0]
    sheet = draw_sheet({"generated": video, "simulated": video[::-1]}, count=3)
    assert sheet.shape == (2 * 100 + 4 + 24, 120 + 3 * 164, 3)
    np.testing.assert_array_equal(sheet[4:100, 120:280], video[0])
    np.testing.assert_array_equal(sheet[104:200, 120:280], video[8])
    np.testing.assert_array_equal(sheet[4:100, 448:608], video[8])
    labels = sheet[:, :120].max(axis=2) > 128
    assert labels[4:100].any()
    assert (labels[4:100, :].sum(axis=0) != labels[104:200, :].sum(axis=0)).any()
