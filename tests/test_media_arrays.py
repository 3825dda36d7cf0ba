"""Frames from arrays, tensors, PIL images and whatever else holds pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from attacks.media.good import on_black, oriented, with_alpha
from attacks.media.seeds import photo, still
from cosmos_fast.errors import InputError, MediaError
from cosmos_fast.media import frames_from, read_frames
from cosmos_fast.types import Frames, Size

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SIZE = Size(24, 40)


def clip(frames: int = 7) -> np.ndarray:
    return np.stack([np.roll(photo(), 3 * index, axis=1) for index in range(frames)])


def fitted(source: Any, num_frames: int = 1, **options: Any) -> Frames:
    given = {"size": SIZE, "fit": "cover", "fps": 16, **options}
    return frames_from(source, num_frames=num_frames, **given)


class Shared:
    """An array of another library, as far as anyone can tell."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array

    def __dlpack__(self, **options: Any) -> Any:
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._array.__dlpack_device__()


FORMS: list[Callable[[np.ndarray], Any]] = [
    lambda pixels: pixels,
    torch.from_numpy,
    lambda pixels: Frames(pixels, 8),
    lambda pixels: Frames(torch.from_numpy(pixels), 8),
    Shared,
    list,
    lambda pixels: [Image.fromarray(picture) for picture in pixels],
    lambda pixels: tuple(torch.from_numpy(picture) for picture in pixels),
    lambda pixels: np.asfortranarray(pixels),
    lambda pixels: pixels[:, ::-1][:, ::-1],
    lambda pixels: torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1),
    lambda pixels: torch.from_numpy(pixels).requires_grad_(False),
]


@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_clip_gives_its_last_frames(
    form: Callable[[np.ndarray], Any], count: int
) -> None:
    expected = np.asarray(fitted(clip()[-count:], count))
    found = fitted(form(clip()), count)
    assert (found.shape, found.fps) == ((count, *SIZE, 3), 16)
    assert np.array_equal(np.asarray(found), expected)


@pytest.mark.parametrize(
    "picture",
    [
        pytest.param(lambda: photo(), id="array"),
        pytest.param(lambda: torch.from_numpy(photo()), id="tensor"),
        pytest.param(lambda: Image.fromarray(photo()), id="PIL"),
        pytest.param(lambda: Shared(photo()), id="dlpack"),
        pytest.param(lambda: photo()[None], id="clip of one"),
        pytest.param(lambda: [photo()], id="list of one"),
    ],
)
def test_a_picture_is_one_frame(picture: Callable[[], Any]) -> None:
    expected = np.asarray(fitted(photo()))
    assert np.array_equal(np.asarray(fitted(picture())), expected)
    with pytest.raises(InputError, match="5 are asked for"):
        fitted(picture(), 5)


def test_a_file_is_read_as_read_frames_does(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(still(photo(), "PNG"))
    expected = read_frames(path, size=SIZE, num_frames=1)
    for source in (path, str(path)):
        found = fitted(source)
        assert found.fps == 16
        assert np.array_equal(np.asarray(found), np.asarray(expected))
    assert np.array_equal(np.asarray(expected), np.asarray(fitted(photo())))
    with pytest.raises(MediaError, match="a picture is one frame where 5 are asked for"):
        fitted(path, 5)


def test_the_array_of_the_caller_is_left_alone() -> None:
    pixels = clip()
    before = pixels.copy()
    found = np.asarray(fitted(pixels, 5, size=Size(48, 64)))
    assert np.array_equal(found, before[-5:])
    assert not np.shares_memory(found, pixels)
    assert np.array_equal(pixels, before)
    pixels.flags.writeable = False
    fitted(pixels, 5)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        pytest.param(with_alpha, on_black, id="alpha on black"),
        pytest.param(
            lambda: Image.fromarray(photo()[..., 0]),
            lambda: photo()[..., :1].repeat(3, axis=2),
            id="grey",
        ),
        pytest.param(
            lambda: Image.fromarray(photo()[..., 0].astype(np.uint16) * 257),
            lambda: photo()[..., :1].repeat(3, axis=2),
            id="16 bit",
        ),
        pytest.param(
            lambda: Image.fromarray(photo()).quantize(256).convert("RGB").quantize(256),
            lambda: np.asarray(Image.fromarray(photo()).quantize(256).convert("RGB")),
            id="palette",
        ),
    ],
)
def test_pil_images_of_every_mode(
    image: Callable[[], Image.Image], expected: Callable[[], np.ndarray]
) -> None:
    found = np.asarray(fitted(image(), size=Size(48, 64)))[0]
    assert np.array_equal(found, expected())


def test_a_pil_image_is_turned_as_its_file_would_be(tmp_path: Path) -> None:
    path = tmp_path / "turned.png"
    path.write_bytes(oriented(6, "PNG")())
    notes: list[str] = []
    with Image.open(path) as image:
        found = fitted(image, notes=notes)
    assert notes == ["the PIL image was turned as its EXIF orientation says"]
    assert np.array_equal(np.asarray(found), np.asarray(fitted(path)))


def test_a_broken_pil_image_is_an_input_error(tmp_path: Path) -> None:
    path = tmp_path / "cut.png"
    path.write_bytes(still(photo(), "PNG")[:-40])
    with Image.open(path) as image, pytest.raises(InputError, match="cannot be read"):
        fitted(image)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        pytest.param(np.zeros((48, 64)), r"float64 of shape \(48, 64\)", id="floats"),
        pytest.param(np.zeros((48, 64, 4), np.uint8), r"\(48, 64, 4\)", id="four channels"),
        pytest.param(np.zeros((3, 48, 64), np.uint8), r"\(3, 48, 64\)", id="channels first"),
        pytest.param(np.zeros((2, 0, 64, 3), np.uint8), r"\(2, 0, 64, 3\)", id="empty"),
        pytest.param(np.zeros((1, 1, 48, 64, 3), np.uint8), "is needed", id="five axes"),
        pytest.param(np.zeros((48, 64, 3), np.int8), "int8", id="signed"),
        pytest.param(np.zeros((48, 64, 3), ">u2"), ">u2", id="big-endian"),
        pytest.param(np.array(["a"]), "is needed", id="text"),
        pytest.param(torch.zeros(48, 64, 3), "float32", id="tensor of floats"),
        pytest.param(torch.zeros(48, 64, 3, dtype=torch.uint8).to_sparse(), "dense", id="sparse"),
        pytest.param([], "empty list", id="nothing"),
        pytest.param([photo(), photo()[1:]], "several shapes", id="two sizes"),
        pytest.param([photo(), 3], "int holds no frames", id="a number among pictures"),
        pytest.param(Image.new("F", (4, 4)), "mode 'F'", id="PIL floats"),
        pytest.param(3, "int holds no frames", id="a number"),
        pytest.param(None, "NoneType holds no frames", id="None"),
        pytest.param(b"bytes", "bytes holds no frames", id="bytes"),
    ],
)
def test_what_holds_no_frames_is_refused(source: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        fitted(source)


def test_wrong_arguments_are_refused() -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"num_frames": 0}, "num_frames"),
        ({"num_frames": 8}, "7 frames where 8 are asked for"),
        ({"fit": "contain"}, "fit"),
        ({"size": Size(0, 4)}, "at least 1"),
        ({"fps": 0}, "frames per second"),
    ]
    for options, message in wrong:
        for source in (clip(), torch.from_numpy(clip())):
            with pytest.raises(InputError, match=message):
                fitted(source, **options)


@settings(max_examples=200, deadline=None)
@given(
    axes=st.lists(st.integers(0, 9), min_size=1, max_size=5),
    dtype=st.sampled_from(["uint8", "int8", "uint16", "float32", "bool", ">u2", "complex64"]),
    steps=st.lists(st.sampled_from([-2, -1, 1, 2]), min_size=5, max_size=5),
    read_only=st.booleans(),
    count=st.integers(-1, 6),
)
def test_any_array_gives_frames_or_one_typed_error(
    axes: list[int], dtype: str, steps: list[int], read_only: bool, count: int
) -> None:
    array = np.zeros([2 * axis for axis in axes[:-1]] + axes[-1:], dtype)
    array = array[tuple(slice(None, None, step) for step in steps[: array.ndim - 1])]
    array.flags.writeable = not read_only
    try:
        found = fitted(array, count)
    except InputError:
        sound = array.dtype == np.uint8 and array.ndim in {3, 4} and array.shape[-1] == 3
        many_enough = (array.ndim == 4 and len(array) >= count >= 1) or count == 1
        assert not (sound and array.size and many_enough)
    else:
        assert found.shape == (count, *SIZE, 3)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:.*Profiler clears events:UserWarning")
@pytest.mark.parametrize("fit", ["cover", "stretch"])
def test_a_device_tensor_is_fitted_where_it_is(fit: str) -> None:
    pixels = torch.from_numpy(clip()).cuda()
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()), torch.profiler.profile() as profile:
        found = fitted(pixels, 5, fit=fit)
    assert found.device == pixels.device
    assert not any("DtoH" in event.name for event in profile.events())
    assert np.array_equal(np.asarray(found), np.asarray(fitted(clip(), 5, fit=fit)))
