"""The AdaLN vectors of a whole run, made before its first step: they depend on time alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from cosmos_fast.model.dit import DiT, Modulations


class StepModulations:
    """A table over all times of a run, made in one pass through the network's AdaLN layers.

    A run of 35 steps has 37 times: one a step, one for the clean-up evaluation, and the near-zero
    one of given frames. For the 2B the table takes 38 MB.
    """

    def __init__(self, dit: DiT, times_KT: torch.Tensor, *, as_used: bool = False) -> None:
        """
        Args:
            times_KT: float32, 0 to 1: time of each latent frame at each evaluation.
            as_used: each block's rows are made when the block first asks for them: for weights
                that are on the device for the moment of their use only.
        """
        times_R, self._index_KT = times_KT.unique(return_inverse=True)
        make = dit.modulations_as_used if as_used else dit.modulations
        self._table = make(times_R[None])
        self._last: tuple[int, Modulations] | None = None

    def __call__(self, step: int) -> Modulations:
        """Those of evaluation ``step``; both branches of guidance get the same tensors."""
        if self._last is None or self._last[0] != step:
            self._last = (step, self._table.at(self._index_KT[step, None]))
        return self._last[1]
