"""The values that travel: each checks itself when it is made."""

import numpy as np
import pytest
import torch

from cosmos_fast.errors import InputError
from cosmos_fast.types import (
    NO_TEXT,
    ActionSpec,
    Conditioning,
    Frames,
    LatentFrames,
    Latents,
    TextEmbedding,
    TokenLayout,
    latent_frames,
    pixel_frames,
)


@pytest.mark.parametrize(("pixels", "latents"), [(1, 1), (5, 2), (13, 4), (81, 21), (93, 24)])
def test_frame_counts_convert_both_ways(pixels, latents):
    assert latent_frames(pixels) == latents
    assert pixel_frames(latents) == pixels


@pytest.mark.parametrize("pixels", [0, -3, 2, 4, 80, 94])
def test_a_frame_count_that_cannot_be_made_is_refused_with_its_neighbours(pixels):
    with pytest.raises(InputError, match=str(pixels)):
        latent_frames(pixels)


@pytest.mark.parametrize(
    "data",
    [
        np.zeros((2, 4, 6, 3), np.float32),
        np.zeros((4, 6, 3), np.uint8),
        np.zeros((2, 3, 4, 6), np.uint8),
        np.zeros((0, 4, 6, 3), np.uint8),
        torch.zeros(2, 4, 6, 4, dtype=torch.uint8),
    ],
    ids=["float", "one_picture", "channels_first", "no_frames", "rgba"],
)
def test_frames_refuse_what_is_not_uint8_rgb(data):
    with pytest.raises(InputError, match="uint8 of shape"):
        Frames(data, 16)


@pytest.mark.parametrize("fps", [0, -1, float("inf"), float("nan")])
def test_frames_refuse_a_rate_that_is_none(fps):
    with pytest.raises(InputError, match="fps"):
        Frames(np.zeros((1, 2, 2, 3), np.uint8), fps)


@pytest.mark.parametrize("library", ["np", "pt"])
def test_frames_come_in_every_form(library):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 4, 6, 3), dtype=np.uint8)
    frames = Frames(pixels if library == "np" else torch.from_numpy(pixels), 10)
    assert frames.shape == (3, 4, 6, 3)
    assert frames.size == (4, 6)
    assert len(frames) == 3
    np.testing.assert_array_equal(np.asarray(frames), pixels)
    np.testing.assert_array_equal(frames.to("np"), pixels)
    np.testing.assert_array_equal(frames.to("pt").numpy(), pixels)
    np.testing.assert_array_equal(np.asarray(frames.to("pil")[2]), pixels[2])
    np.testing.assert_array_equal(torch.from_dlpack(frames).numpy(), pixels)
    np.testing.assert_array_equal(frames[1:].to("np"), pixels[1:])
    assert np.asarray(frames, dtype=np.float32).dtype == np.float32
    with pytest.raises(InputError, match="form"):
        frames.to("jpeg")


def test_a_text_embedding_checks_its_padding():
    rows = torch.zeros(512, 8, dtype=torch.bfloat16)
    rows[:3] = 1
    assert TextEmbedding(rows, 3).length == 3
    with pytest.raises(InputError, match="padding"):
        TextEmbedding(rows, 2)
    with pytest.raises(InputError, match="bfloat16"):
        TextEmbedding(rows.float(), 3)
    with pytest.raises(InputError, match="512"):
        TextEmbedding(rows[:100], 3)
    assert not TextEmbedding.zeros(8).rows.any()
    assert repr(NO_TEXT) == "NO_TEXT"


def test_latents_check_shape_and_dtype():
    with pytest.raises(InputError, match="float32"):
        Latents(torch.zeros(1, 16, 2, 3, 4, dtype=torch.bfloat16), "v")
    with pytest.raises(InputError, match="16"):
        Latents(torch.zeros(1, 4, 2, 3, 4), "v")


NAN, INFINITE = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"mean": (0.0, NAN)}, r"mean\[1\] \(turn\) = nan: a finite number is"),
        ({"mean": (-INFINITE, 0.0)}, r"mean\[0\] \(way\) = -inf: a finite number is"),
        ({"mean": (0.0, "1")}, r"mean\[1\] \(turn\) = '1': a finite number is"),
        ({"std": (1.0, NAN)}, r"std\[1\] \(turn\) = nan: a finite number above 0 is"),
        ({"std": (INFINITE, 1.0)}, r"std\[0\] \(way\) = inf: a finite number above 0 is"),
        ({"std": (1.0, 0.0)}, r"std\[1\] \(turn\) = 0\.0: a finite number above 0 is"),
        ({"std": (-1.0, 1.0)}, r"std\[0\] \(way\) = -1\.0: a finite number above 0 is"),
        ({"scale": (1.0, INFINITE)}, r"scale\[1\] \(turn\) = inf: a finite number above 0 is"),
        ({"scale": (True, 1.0)}, r"scale\[0\] \(way\) = True: a finite number above 0 is"),
        ({"fps": NAN}, "fps = nan: a finite number above 0 is"),
        ({"fps": 10**400}, "fps = 1000.*: a finite number above 0 is"),
        ({"mean": None}, "together"),
        ({"names": "xy"}, "names = xy: 2 are needed"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_actions_are_described_by_finite_numbers(change, named):
    numbers = {"scale": (1.0, 2.0), "fps": 4.0, "mean": (0.0, -1.0), "std": (1.0, 0.5)}
    words = {"names": ("way", "turn"), "units": ("m", "rad"), "frame": "table"}
    spec = ActionSpec(dim=2, chunk=4, **words, **numbers)
    assert ActionSpec(**{**vars(spec), "std": tuple(np.float32([1, 0.5]))}) == spec
    with pytest.raises(InputError, match=named):
        ActionSpec(**{**vars(spec), **change})


def test_conditioning_places_the_first_frames():
    given = torch.randn(1, 16, 2, 3, 4)
    value = Conditioning.from_first_frames(given, LatentFrames(5))
    assert value.latents.shape == (1, 16, 5, 3, 4)
    assert value.mask.tolist() == [1, 1, 0, 0, 0]
    assert value.mask_11THW.shape == (1, 1, 5, 1, 1)
    assert value.sigma.tolist() == pytest.approx([1e-4] * 5)
    with pytest.raises(InputError, match="6 given"):
        Conditioning.from_first_frames(torch.zeros(1, 16, 6, 3, 4), LatentFrames(5))
    with pytest.raises(InputError, match="mask"):
        Conditioning(value.latents, torch.zeros(4), value.sigma)


def test_a_layout_knows_where_each_token_is():
    layout = TokenLayout((2, 3, 4))
    assert layout.tokens == 24
    positions = layout.positions("cpu")
    expected = [(t, h, w) for t in range(2) for h in range(3) for w in range(4)]
    assert [tuple(p) for p in positions.tolist()] == expected
    picked = torch.tensor([23, 0, 5])
    shard = TokenLayout((2, 3, 4), picked)
    assert shard.tokens == 3
    assert [tuple(p) for p in shard.positions("cpu").tolist()] == [expected[i] for i in picked]
