"""The forwards that are replayed: what is copied where, on a CPU; real CUDA graphs on a GPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from cosmos_fast.config import DiTConfig
from cosmos_fast.model.dit import DiT
from cosmos_fast.model.graphs import GRAPH_TOKENS, GraphedDiT
from cosmos_fast.model.modulations import StepModulations
from cosmos_fast.model.ops import Ops
from cosmos_fast.types import TokenLayout

CONFIG = DiTConfig(num_layers=2, num_heads=2, head_dim=64, adaln_rank=8, text_dim=16)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Rerun(GraphedDiT):
    """A CPU has no graphs: instead of replaying, this runs again over the same places."""

    recordings = 0

    def replays(self, layout: TokenLayout, device: torch.device, batch: int = 1) -> bool:
        return layout.raster_index is None

    def _captured(
        self, run: Callable[[], torch.Tensor], device: torch.device
    ) -> tuple[torch.Tensor, Callable[[], None]]:
        self.recordings += 1
        out = torch.full_like(run(), float("nan"))

        def rerun() -> None:
            out.copy_(run())

        return out, rerun


@pytest.fixture
def dit() -> DiT:
    torch.manual_seed(5)
    network = DiT(CONFIG, Ops()).to(DEVICE).requires_grad_(False)
    for weight in network.parameters():
        if weight.ndim == 2:
            weight.normal_(std=weight.shape[1] ** -0.5)
    return network


class Clip:
    """One clip's constant parts and a sample."""

    def __init__(self, dit: DiT, seed: int, frames: int = 2, length: int | None = None) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.layout = TokenLayout((frames, 2, 3))
        self.x = torch.randn(1, 16, frames, 4, 6, generator=generator).to(DEVICE)
        self.mask = torch.ones(1, 1, frames, 4, 6, device=DEVICE)
        rows = torch.randn(1, 512, 16, generator=generator).to(DEVICE)
        if length is not None:
            rows[:, length:] = 0
        self.text = dit.text_context(rows, length)
        self.rope = dit.rope(self.layout)
        self.times = torch.rand(3, frames, generator=generator).to(DEVICE)
        self.steps = StepModulations(dit, self.times)

    def run(self, network: DiT | GraphedDiT, step: int, **options: int) -> torch.Tensor:
        return network(
            self.x + step,
            self.times[step, None],
            self.mask,
            self.text,
            self.layout,
            rope=self.rope,
            modulations=self.steps(step),
            **options,
        )


@torch.inference_mode()
def test_replays_follow_samples_times_and_prompts(dit: DiT) -> None:
    graphed = Rerun(dit)
    first, second = Clip(dit, 1), Clip(dit, 2)
    for step in range(3):
        for slot, clip in enumerate((first, second)):
            assert torch.equal(clip.run(graphed, step, slot=slot), clip.run(dit, step))
    assert graphed.recordings == 2
    assert torch.equal(second.run(graphed, 0, slot=0), second.run(dit, 0))
    assert graphed.recordings == 2, "another prompt of the same shape needs no other graph"


@torch.inference_mode()
def test_other_shapes_are_other_graphs_and_old_ones_go(dit: DiT) -> None:
    graphed = Rerun(dit)
    clips = [Clip(dit, 1, frames) for frames in range(1, 10)]
    for clip in (*clips, clips[-1], clips[0]):
        assert torch.equal(clip.run(graphed, 1), clip.run(dit, 1))
    assert graphed.recordings == 10, "nine shapes, and the first again after it had to go"
    graphed.clear()
    clips[0].run(graphed, 0)
    assert graphed.recordings == 11


@torch.inference_mode()
def test_a_clip_without_text_has_a_graph_of_its_own(dit: DiT) -> None:
    graphed = Rerun(dit)
    for clip in (Clip(dit, 1), Clip(dit, 1, length=0)):
        assert torch.equal(clip.run(graphed, 1), clip.run(dit, 1))
    assert graphed.recordings == 2


@torch.inference_mode()
def test_a_graph_that_cannot_be_made_is_one_warning(dit: DiT) -> None:
    class Refused(GraphedDiT):
        def replays(self, layout: TokenLayout, device: torch.device, batch: int = 1) -> bool:
            return self._most_tokens > 0

        def _captured(self, run: object, device: torch.device) -> None:  # type: ignore[override]
            raise RuntimeError("operation not permitted when stream is capturing")

    clip, graphed = Clip(dit, 1), Refused(dit)
    with pytest.warns(RuntimeWarning, match="without CUDA graphs") as caught:
        assert torch.equal(clip.run(graphed, 0), clip.run(dit, 0))
    assert torch.equal(clip.run(graphed, 1), clip.run(dit, 1))
    assert len(caught) == 1


def test_the_table_goes_by_device_and_tokens(dit: DiT) -> None:
    graphed = GraphedDiT(dit)
    small, large = TokenLayout((4, 30, 40)), TokenLayout((21, 27, 48))
    assert graphed.replays(small, torch.device("cuda"))
    assert not graphed.replays(small, torch.device("cuda"), 2), "two hide their launches"
    assert not graphed.replays(large, torch.device("cuda"))
    assert not graphed.replays(small, torch.device("cpu"))
    order = TokenLayout((1, 2, 2), torch.randperm(4))
    assert not graphed.replays(order, torch.device("cuda"))
    assert 4800 <= GRAPH_TOKENS < 20736


@torch.inference_mode()
def test_table_of_a_run_equals_each_step_alone(dit: DiT) -> None:
    dit = dit.double()  # in float32 another number of rows may round otherwise, by processor
    clip = Clip(dit, 3)
    for step in range(3):
        table, alone = clip.steps(step), dit.modulations(clip.times[step, None])
        assert clip.steps(step) is table
        for ours, theirs in zip(table, alone, strict=True):
            assert ours.dtype == torch.float64
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13)


@pytest.mark.gpu
@torch.inference_mode()
def test_a_real_graph_gives_the_bytes_of_single_launches() -> None:
    ops = Ops.select("cuda", torch.bfloat16, head_dim=64)
    network = DiT(CONFIG, ops).cuda().bfloat16()
    for weight in network.parameters():
        if weight.ndim == 2:
            weight.normal_(std=weight.shape[1] ** -0.5)
    graphed = GraphedDiT(network)
    clips = [Clip(network, seed, length=40) for seed in (1, 2)]
    for step in (0, 1, 2, 0):
        for slot, clip in enumerate(clips):
            expected = clip.run(network, step)
            assert torch.equal(clip.run(graphed, step, slot=slot), expected)
