"""Segments of torch's caching allocator: the rules in numbers, and a device's own beside them."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch

from cosmos_fast.config import VAEConfig
from cosmos_fast.memory.activations import activations, text_requests
from cosmos_fast.memory.cards import CARDS
from cosmos_fast.memory.footprint import peak_bytes
from cosmos_fast.memory.models import FRAME_BY_FRAME, SLOWDOWNS, T5_11B, Workload, stages
from cosmos_fast.memory.request import MIB
from cosmos_fast.memory.segments import (
    Piece,
    Segments,
    Trace,
    apart,
    heap,
    in_turn,
    segment_bytes,
)
from cosmos_fast.types import Size
from random_world import RANDOM_PROFILE

LARGE = Workload(
    profile=replace(RANDOM_PROFILE, dit=replace(RANDOM_PROFILE.dit, num_heads=8, head_dim=64)),
    size=Size(240, 320),
    num_frames=33,
    num_conditional_frames=5,
    num_steps=4,
    guided=True,
    fused=True,
)


@pytest.mark.parametrize(
    ("size", "segment"),
    [(1, 2), (MIB, 2), (MIB + 1, 20), (9 * MIB, 20), (10 * MIB, 10), (11 * MIB + 1, 12)],
    ids=str,
)
def test_a_request_that_finds_nothing_takes_a_segment(size: int, segment: int) -> None:
    segments = Segments()
    segments.take(size)
    assert segments.reserved == segment_bytes(size) == segment * MIB


def test_free_neighbours_are_joined_and_the_smallest_fit_is_split() -> None:
    segments = Segments()
    parts = [segments.take(100 * MIB), segments.take(40 * MIB)]
    segments.give(parts[0])
    small, large = segments.take(30 * MIB), segments.take(70 * MIB)
    assert segments.reserved == 140 * MIB, "both out of the hundred"
    segments.give(parts[1])
    best = segments.take(35 * MIB)
    assert best.order == 2
    segments.give(small)
    segments.give(large)
    whole = segments.take(100 * MIB)
    assert segments.reserved == 140 * MIB, "the hundred is one again"
    segments.give(best)
    segments.tidy()
    assert segments.reserved == 100 * MIB, "what is free as a whole has gone back"
    segments.give(whole)
    assert segments.allocated == 0


def test_a_remainder_of_a_mebibyte_stays_with_its_block() -> None:
    segments = Segments()
    segments.give(segments.take(12 * MIB))
    assert segments.take(11 * MIB).size == 12 * MIB
    assert segments.peak_allocated == 12 * MIB


def test_a_survivor_holds_on_to_its_segment() -> None:
    segments = Segments()
    segments.give(segments.take(500 * MIB))
    survivor = segments.take(4 * MIB)
    segments.tidy()
    assert segments.reserved == 500 * MIB
    segments.give(survivor)
    segments.tidy()
    assert segments.reserved == 0


def test_tensors_apart_share_segments_of_their_kind() -> None:
    assert apart([MIB] * 3) == 4 * MIB
    assert apart([7 * MIB] * 3) == 40 * MIB
    assert apart([11 * MIB, 7 * MIB, 1000]) == (12 + 20 + 2) * MIB


def random_trace(seed: int, count: int = 400) -> Trace:
    """Requests of many sizes, given back in any order."""
    chance = random.Random(seed)
    requests: list[tuple[int, int]] = []
    held: list[int] = []
    for number in range(1, count + 1):
        requests.append((number, int(2 ** chance.uniform(9, 26))))
        held.append(number)
        while held and chance.random() < 0.5:
            requests.append((held.pop(chance.randrange(len(held))), 0))
    return tuple(requests)


@pytest.mark.parametrize("seed", range(20))
def test_no_heap_is_worse_than_none(seed: int) -> None:
    trace = random_trace(seed)
    plain = Segments()
    plain.follow(trace)
    assert plain.allocated == 0
    found = heap(trace)
    assert plain.peak_allocated <= found.total
    assert found.total <= 1.02 * plain.peak_reserved + 28 * MIB


def test_a_heap_serves_a_forward_within_a_few_percent_of_its_tensors() -> None:
    (denoise, *_), (decode, *_) = (
        activations(replace(LARGE, size=Size(720, 960)), tuple(SLOWDOWNS))[name]
        for name in ("denoise", "decode")
    )
    for one, most in ((denoise, 1.15), (decode, 1.3)):
        (plain,) = in_turn([one.trace])
        assert one.tensors <= one.heap.total < plain
        assert one.heap.total <= most * one.tensors + 32 * MIB


@pytest.mark.parametrize("way", [0, 1], ids=["plain", "frame by frame"])
def test_workspaces_between_the_requests_do_not_cut_a_decoders_segment_up(way: int) -> None:
    """A library takes some megabytes during a convolution, which no trace sees. With histories made
    anew for every chunk, 0.7 GB more than planned was asked for at 704 x 1280."""
    profile = replace(RANDOM_PROFILE, vae=VAEConfig())
    workload = replace(LARGE, profile=profile, size=Size(432, 768), num_frames=13)
    decode = activations(workload, ())["decode"][way]
    draw = random.Random(way)
    disturbed: list[tuple[int, int]] = []
    for number, size in decode.trace:
        disturbed.append((number, size))
        if size > 16 * MIB and draw.random() < 0.5:
            workspace = (-len(disturbed), draw.choice([11, 15, 18]) * MIB)
            disturbed += [workspace, (workspace[0], 0)]
    segments = Segments()
    segments.give(segments.take(decode.heap.segment))
    segments.follow(tuple(disturbed))
    assert segments.peak_reserved <= decode.heap.total
    assert decode.heap.total < 1.1 * decode.tensors


def test_stages_hold_what_heaps_take_and_what_lies_beside_them() -> None:
    for stage in stages(replace(LARGE, text=None), CARDS["h200"]):
        for shape in stage.shapes:
            assert shape.heap_bytes < shape.activation_bytes


def test_pictures_one_by_one_take_less_at_the_released_width() -> None:
    """What the decoder remembers of earlier frames, most of all, is there in both."""
    released = replace(LARGE.profile, vae=VAEConfig())
    decode = stages(replace(LARGE, profile=released, size=Size(432, 768)), CARDS["h200"])[-1]
    whole, single = decode.shapes
    assert single.name == FRAME_BY_FRAME
    assert single.activation_bytes < 0.85 * whole.activation_bytes


def test_memory_that_never_goes_back_only_grows() -> None:
    grown = [stage.shapes for stage in stages(LARGE, CARDS["h200"], moves=False)]
    assert all(len(shapes) == 1 for shapes in grown)
    counts = in_turn(
        activations(LARGE, tuple(SLOWDOWNS))[name][0].trace
        for name in ("text", "encode", "denoise", "decode")
    )
    assert counts == sorted(counts)
    assert all(
        shapes[0].activation_bytes >= count for shapes, count in zip(grown, counts, strict=True)
    )


@pytest.mark.parametrize("prompts", [1, 2, 3])
def test_the_text_encoder_holds_a_bias_a_prompt_and_one_hidden_layer(prompts: int) -> None:
    segments = Segments()
    segments.follow(text_requests(T5_11B, torch.bfloat16, prompts))
    bias, hidden, rows, ids = 2 * 128 * 512**2, 2 * 512 * 65536, 2 * 512 * 1024, 8 * 512
    # In the last product: what goes into the two, and what comes out of them, of one prompt.
    assert segments.peak_allocated == prompts * (bias + rows + ids) + hidden + 2 * rows


@pytest.mark.parametrize("width", [64, 384])
def test_attention_over_rows_that_no_kernel_reads_counts_matrices(width: int) -> None:
    positions = 5184
    side_by_side = torch.empty((1, 1, positions, width), device="meta", dtype=torch.bfloat16)
    apart_ = torch.empty_like(side_by_side.mT, memory_format=torch.contiguous_format).mT
    attend = torch.nn.functional.scaled_dot_product_attention
    row = positions * width * 2
    sums = 2 * row if width > 128 else 0
    assert peak_bytes(lambda: attend(side_by_side, side_by_side, side_by_side)) == row + sums
    # Of three matrices in float32 and one of truth values at a time.
    assert peak_bytes(lambda: attend(apart_, apart_, apart_)) > 13 * positions**2


@pytest.mark.gpu
@pytest.mark.parametrize("seed", range(5))
def test_a_device_reserves_what_the_rules_say(seed: int) -> None:
    stream = torch.cuda.Stream()  # with nothing of anybody else's
    trace, segments = random_trace(seed, 200), Segments()
    held: dict[int, tuple[torch.Tensor, Piece]] = {}
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    with torch.cuda.stream(stream):
        for number, size in trace:
            if size:
                memory = torch.empty(size, dtype=torch.uint8, device="cuda")
                held[number] = memory, segments.take(size)
                del memory
            else:
                segments.give(held.pop(number)[1])
            assert torch.cuda.memory_reserved() - before == segments.reserved
    held.clear()
    torch.cuda.empty_cache()


def test_workloads_share_the_counts_of_what_they_do_not_differ_in() -> None:
    def kept(**other: Any) -> dict[str, bool]:
        ours, theirs = (
            activations(one, tuple(SLOWDOWNS)) for one in (LARGE, replace(LARGE, **other))
        )
        pairs = {name: zip(ours[name], theirs[name], strict=True) for name in ours}
        return {name: all(one is two for one, two in pairs[name]) for name in ours}

    everything = dict.fromkeys(("text", "encode", "denoise", "decode"), True)
    assert list(activations(LARGE, ())) == list(everything), "in the order in which they run"
    assert kept(offloaded=frozenset({"dit"}), split=2, context=3) == everything
    assert kept(num_steps=5) == everything | {"denoise": False}
    assert kept(guided=False) == everything | {"text": False, "denoise": False}
    assert kept(text_dtype=torch.float32) == everything | {"text": False}
    for change in ({"num_conditional_frames": 1}, {"fused": False}):
        assert kept(**change) == everything | {"encode": False, "decode": False}
    assert kept(num_frames=37) == everything | {"denoise": False}
    apart = dict.fromkeys(everything, False) | {"text": True}
    assert kept(size=Size(240, 336)) == kept(dtype=torch.float32) == apart
    assert kept(products=True) == everything | {"denoise": False}
