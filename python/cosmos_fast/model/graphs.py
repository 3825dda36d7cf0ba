"""CUDA graphs of the transformer, for clips so small that launching its kernels takes the time.

A forward of the 2B is some four hundred launches, 8 to 14 ms of one host core. A graph replays
them in one. It reads and writes fixed places: what changes from call to call is copied there.
"""

from __future__ import annotations

import math
import warnings
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch

from cosmos_fast.model.dit import Modulations, TextContext
from cosmos_fast.model.rope import Rope

if TYPE_CHECKING:
    from cosmos_fast.model.dit import DiT
    from cosmos_fast.types import TokenLayout

GRAPH_TOKENS: Final = 8192
"""Up to this many tokens a forward is replayed. One of 4,800 tokens takes about 36 ms on an H200,
a slow host's launches a third of it; one of 27,216 takes 420 ms, and launches hide behind it."""

_MOST_GRAPHS: Final = 8
"""Shapes kept at a time: four guided clips, or a batch of worlds, its search and their tails. They
share the memory between their kernels."""


@dataclass
class _Recorded:
    """One graph, with the places that it reads and writes."""

    inputs: tuple[torch.Tensor, ...]
    """x, mask, AdaLN vectors of the blocks and of the final layer, where they change every call."""
    text: TextContext
    rope: Rope
    out: torch.Tensor
    replay: Callable[[], None]
    prompt: weakref.ref[torch.Tensor] | None = None
    """First tensor of the prompt that ``text`` holds a copy of: who asks again brings the same."""


class GraphedDiT:
    """``dit`` for one engine: from a graph where the table says so, as it is elsewhere.

    The result of a call holds until the next call with the same ``slot``. Weights must stay where
    they are: after moving them call :meth:`clear`.
    """

    def __init__(self, dit: DiT, most_tokens: int = GRAPH_TOKENS) -> None:
        self._dit = dit
        self._most_tokens = most_tokens
        self._recorded: dict[tuple[object, ...], _Recorded] = {}
        self._pool: Any = None

    def clear(self) -> None:
        """Forgets every graph and the memory they hold."""
        self._recorded.clear()
        self._pool = None

    def replays(self, layout: TokenLayout, device: torch.device, batch: int = 1) -> bool:
        """Whether ``batch`` clips of this size at a time are replayed on ``device``."""
        tokens = batch * math.prod(layout.grid)
        return device.type == "cuda" and layout.raster_index is None and tokens <= self._most_tokens

    def __call__(
        self,
        x_BCTHW: torch.Tensor,
        t_BT: torch.Tensor,
        mask_B1THW: torch.Tensor,
        text: TextContext,
        layout: TokenLayout,
        *,
        rope: Rope,
        modulations: Modulations,
        slot: int = 0,
    ) -> torch.Tensor:
        """Arguments and result are those of :meth:`DiT.forward`.

        Args:
            slot: callers that alternate, as the branches of guidance do, have one each.
        """
        if not self.replays(layout, x_BCTHW.device, len(x_BCTHW)):
            return self._run(x_BCTHW, t_BT, mask_B1THW, text, layout, rope, modulations)
        blocks_LKBTE, final_BTE = modulations
        assert isinstance(blocks_LKBTE, torch.Tensor), "weights that come and go are not replayed"
        inputs = (x_BCTHW, mask_B1THW, blocks_LKBTE, final_BTE)
        key = (slot, layout.grid, text.zero_keys, *_shapes((*inputs, *text.blocks)))
        recorded = self._recorded.pop(key, None)
        if recorded is None:
            recorded = self._record(inputs, t_BT, text, layout, rope)
        if recorded is None:
            return self._run(x_BCTHW, t_BT, mask_B1THW, text, layout, rope, modulations)
        self._recorded[key] = recorded  # last is newest
        while len(self._recorded) > _MOST_GRAPHS:
            del self._recorded[next(iter(self._recorded))]
        return self._replayed(recorded, inputs, text, rope)

    def _run(
        self,
        x_BCTHW: torch.Tensor,
        t_BT: torch.Tensor,
        mask_B1THW: torch.Tensor,
        text: TextContext,
        layout: TokenLayout,
        rope: Rope,
        modulations: Modulations,
    ) -> torch.Tensor:
        flow: torch.Tensor = self._dit(
            x_BCTHW, t_BT, mask_B1THW, text, layout, rope=rope, modulations=modulations
        )
        return flow

    def _replayed(
        self,
        recorded: _Recorded,
        inputs: tuple[torch.Tensor, ...],
        text: TextContext,
        rope: Rope,
    ) -> torch.Tensor:
        for place, value in zip(recorded.inputs, inputs, strict=True):
            place.copy_(value)
        held = None if recorded.prompt is None else recorded.prompt()
        if held is not text.blocks[0]:  # a prompt's keys and values are constant over a run
            for place, value in zip(recorded.text.blocks, text.blocks, strict=True):
                place.copy_(value)
            for place, value in zip(recorded.rope, rope, strict=True):
                place.copy_(value)
            recorded.prompt = weakref.ref(text.blocks[0])
        recorded.replay()
        return recorded.out

    def _record(
        self,
        inputs: tuple[torch.Tensor, ...],
        t_BT: torch.Tensor,
        text: TextContext,
        layout: TokenLayout,
        rope: Rope,
    ) -> _Recorded | None:
        """A graph over copies of these; None, with one warning, where none can be made."""
        places = tuple(one.clone() for one in inputs)
        own_text = TextContext(tuple(one.clone() for one in text.blocks), text.zero_keys)
        own_rope = Rope(*(one.clone() for one in rope))

        def run() -> torch.Tensor:
            x_BCTHW, mask_B1THW, blocks, final = places
            modulations = Modulations(blocks, final)
            return self._run(x_BCTHW, t_BT, mask_B1THW, own_text, layout, own_rope, modulations)

        try:
            out, replay = self._captured(run, inputs[0].device)
        except RuntimeError as error:
            self._most_tokens = 0
            warnings.warn(
                f"running without CUDA graphs, small clips will be slower: {error}".splitlines()[0],
                RuntimeWarning,
                stacklevel=3,
            )
            return None
        return _Recorded(places, own_text, own_rope, out, replay)

    def _captured(
        self, run: Callable[[], torch.Tensor], device: torch.device
    ) -> tuple[torch.Tensor, Callable[[], None]]:
        stream = torch.cuda.Stream(device)
        current = torch.cuda.current_stream(device)
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            run()  # compiles kernels, and makes the workspaces that a capture must not make
        stream.synchronize()
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        # Not through torch.cuda.graph: that empties the allocator's cache, which is the host's.
        with torch.cuda.stream(stream):
            # Other threads of the host program may call CUDA meanwhile.
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                out = run()
            finally:
                graph.capture_end()
        current.wait_stream(stream)
        return out, graph.replay


def _shapes(tensors: tuple[torch.Tensor, ...]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(one.shape) for one in tensors)
