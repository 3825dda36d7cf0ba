"""Gradient descent over one flat buffer, made to be captured in a CUDA graph.

Weights are kept in float32; the networks compute with a copy in their own dtype, so what is trained
is the arithmetic that runs. Master weights, copies, gradients, moments and averages are each one
flat tensor, so that a step of the optimiser is a dozen kernels however many parameters there are.
"""

from __future__ import annotations

import gc
import math
from collections import defaultdict
from typing import TYPE_CHECKING, Final

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

_ADAM_EPS: Final = 1e-8
_MUON_MOMENTUM: Final = 0.95
_NEWTON_SCHULZ: Final = (3.4445, -4.7750, 2.0315)


class FlatParameters:
    """Named parameters that live in one buffer of ``dtype``, with a float32 master and average."""

    def __init__(
        self, named: Mapping[str, nn.Parameter], device: torch.device, dtype: torch.dtype
    ) -> None:
        self.named = dict(named)
        self.spans: dict[str, tuple[int, int]] = {}
        end = 0
        for name, parameter in self.named.items():
            self.spans[name] = (end, end + parameter.numel())
            end += -(-parameter.numel() // 8) * 8
        self.master = torch.zeros(end, device=device)
        self.low = torch.zeros(end, device=device, dtype=dtype)
        self.gradient = torch.zeros_like(self.low)
        for name, parameter in self.named.items():
            self.view(self.master, name).copy_(parameter.data)
            parameter.data = self.view(self.low, name)
            parameter.grad = self.view(self.gradient, name)
        self.average = self.master.clone()
        self.publish()

    def view(self, flat: torch.Tensor, name: str) -> torch.Tensor:
        start, end = self.spans[name]
        return flat[start:end].view(self.named[name].shape)

    def publish(self) -> None:
        """The networks compute with the master weights, rounded."""
        self.low.copy_(self.master)

    def state(self, flat: torch.Tensor, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """``flat`` (the master or the average) by name, on the host."""
        host = flat.to(dtype).cpu()
        return {name: self.view(host, name).clone() for name in self.named}

    def load(self, master: Mapping[str, torch.Tensor], average: Mapping[str, torch.Tensor]) -> None:
        """Takes up weights saved earlier; names and shapes must be these."""
        for flat, state in ((self.master, master), (self.average, average)):
            if set(state) != set(self.named):
                odd = sorted(set(state) ^ set(self.named))
                raise ValueError(f"saved weights do not fit: {odd[:8]} and {len(odd)} in all")
            for name in self.named:
                self.view(flat, name).copy_(state[name])
        self.publish()


class Optimiser:
    """AdamW for all, Muon for the named matrices; one clipped step at a time, no step on a NaN."""

    def __init__(
        self,
        flat: FlatParameters,
        *,
        betas: tuple[float, float],
        clip: float,
        weight_decay: float = 0.0,
        muon: Mapping[str, int] | None = None,
        slower: Mapping[str, float] | None = None,
    ) -> None:
        """
        Args:
            muon: names of stacked matrices and how many are stacked along their first axis.
            slower: factors on Adam's learning rate, by name.
        """
        device = flat.master.device
        self.flat, self.betas, self.clip, self.weight_decay = flat, betas, clip, weight_decay
        self.first, self.second = torch.zeros_like(flat.master), torch.zeros_like(flat.master)
        self.scale = torch.ones_like(flat.master)
        self.count = torch.zeros((), device=device)
        self.skipped = torch.zeros((), device=device)
        self.rate = torch.zeros((), device=device)
        """Adam's learning rate; written before each step."""
        self.muon_rate = torch.zeros((), device=device)
        self.keep = torch.zeros((), device=device)
        """Share of the average that a step keeps."""
        for name, factor in (slower or {}).items():
            flat.view(self.scale, name).fill_(factor)
        self.matrices: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
        for name, stacked in (muon or {}).items():
            flat.view(self.scale, name).zero_()
            rows, columns = flat.named[name].shape
            start, size = flat.spans[name][0], rows // stacked * columns
            self.matrices[rows // stacked, columns] += [
                (start + part * size, start + (part + 1) * size) for part in range(stacked)
            ]

    @torch.no_grad()
    def step(self) -> torch.Tensor:
        """One update from the gradients in the buffer; returns the gradient's norm."""
        flat = self.flat
        gradient = flat.gradient.float()
        norm = gradient.norm()
        fine = torch.isfinite(norm)
        self.skipped += 1 - fine.float()
        factor = (self.clip / (norm + 1e-6)).clamp(max=1.0)
        gradient = torch.where(fine, gradient * factor, 0.0)
        beta_1, beta_2 = self.betas
        self.count += 1
        self.first.lerp_(gradient, 1 - beta_1)
        self.second.mul_(beta_2).addcmul_(gradient, gradient, value=1 - beta_2)
        first = self.first / (1 - beta_1**self.count)
        second = self.second / (1 - beta_2**self.count)
        update = first / (second.sqrt() + _ADAM_EPS) + self.weight_decay * flat.master
        flat.master.sub_(self.rate * self.scale * update)
        for (rows, columns), spans in self.matrices.items():
            self._muon(gradient, spans, rows, columns)
        flat.average.lerp_(flat.master, 1 - self.keep)
        flat.publish()
        return norm

    def _muon(
        self, gradient: torch.Tensor, spans: list[tuple[int, int]], rows: int, columns: int
    ) -> None:
        """Momentum made orthogonal by Newton-Schulz (Muon, Jordan et al. 2024)."""

        def stacked(flat: torch.Tensor) -> torch.Tensor:
            return torch.stack([flat[start:end] for start, end in spans]).view(-1, rows, columns)

        # Adam's first moment serves as Muon's momentum: the same average, up to a factor.
        blend = torch.lerp(stacked(gradient), stacked(self.first), _MUON_MOMENTUM)
        update = orthogonal(blend) * max(1.0, rows / columns) ** 0.5
        master = stacked(self.flat.master)
        change = self.muon_rate * (update + self.weight_decay * master)
        weights = [self.flat.master[start:end] for start, end in spans]
        torch._foreach_sub_(weights, list(change.flatten(1).unbind(0)))


def orthogonal(matrices: torch.Tensor) -> torch.Tensor:
    """Nearly the closest (semi-)orthogonal matrix to each of (G, rows, columns)."""
    a, b, c = _NEWTON_SCHULZ
    wide = matrices.shape[1] > matrices.shape[2]
    x = (matrices.mT if wide else matrices).to(torch.bfloat16)
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if wide else x).float()


class Captured:
    """A training step that takes no argument, replayed as one CUDA graph where there is one."""

    def __init__(self, step: Callable[[], None], device: torch.device, *, warm_up: int = 3) -> None:
        self._step = step
        self._graph: torch.cuda.CUDAGraph | None = None
        if device.type != "cuda":
            step()
            return
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(warm_up):
                step()
        torch.cuda.current_stream().wait_stream(aside)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                step()
        except RuntimeError as failure:
            torch.cuda.synchronize()
            print(f"  no CUDA graph, running eagerly: {failure}", flush=True)
        else:
            self._graph = graph

    def __call__(self) -> None:
        if self._graph is None:
            self._step()
        else:
            self._graph.replay()


def captured_or_plain(
    step: Callable[[], None],
    device: torch.device,
    simplify: Callable[[], None],
    log: Callable[[str], None],
) -> Captured:
    """The step captured; if it cannot run as it is, once more after ``simplify``.

    A machine that is lent for minutes should train slowly rather than not at all.
    """
    try:
        return Captured(step, device)
    except Exception as failure:
        log(f"falling back to plain torch: {type(failure).__name__}: {str(failure)[:600]}")
        simplify()
        return Captured(step, device)


def release(*_: object) -> None:
    """Gives the memory of finished graphs back."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


def cosine(progress: float, step: int, warm_up: int, floor: float = 0.0) -> float:
    """Learning-rate factor: linear warm-up over ``warm_up`` steps, then a cosine to ``floor``."""
    falling = floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(max(progress, 0.0), 1.0)))
    return min(1.0, (step + 1) / warm_up) * falling


def count(parameters: Iterable[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)
