"""Breaks one part of the path at a time and lets the standing quality test speak.

``python -m tools.ballworld.break_it`` runs tests/test_ballworld_quality.py once whole and once for
every break, each in its own process, and says what turned red. LOG.md keeps the outcome. A few
breaks leave no mark on these videos, for the reasons in ``UNSEEN``: there another test watches.
``python -m pytest -p tools.ballworld.break_it --break rope-none ...`` runs any test so broken.
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pytest

    from cosmos_fast.sampling import Predictor

ROOT: Final = Path(__file__).resolve().parents[2]
TEST: Final = "tests/test_ballworld_quality.py"


def solver_first_order() -> None:
    """The solver forgets the previous step: Euler."""
    _solve(slope=0.0)


def solver_slope_backwards() -> None:
    """The second-order term with the wrong sign."""
    _solve(slope=-1.0)


def solver_returns_state() -> None:
    """What comes out is the state at the last level, one update behind, not the prediction."""
    _solve(slope=1.0, clean_up=False)


def schedule_linear() -> None:
    """Noise levels that fall evenly."""
    import cosmos_fast.request as request

    def evenly(num_steps: int) -> tuple[float, ...]:
        return tuple(80 + (0.002 - 80) * i / num_steps for i in range(num_steps + 1))

    _set(request, "sigmas", evenly)


def rope_none() -> None:
    """No rotation at all."""
    _turn_angles(torch.zeros_like)


def rope_scale_of_the_2b() -> None:
    """Spatial angles stretched by NTK ratio 3, as the large models have them."""
    import cosmos_fast.model.rope as rope

    axis_angles = rope._axis_angles
    _set(
        rope,
        "_axis_angles",
        lambda n, dim, ratio, *rest: axis_angles(n, dim, 3.0 if dim == 20 else ratio, *rest),
    )


def rope_pairs_neighbours() -> None:
    """Feature 2 j turns with 2 j + 1, not j with j + D/2."""
    from cosmos_fast_kernels import reference

    rotated = reference._rotated

    def neighbours(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        halves = torch.cat((x[..., 0::2], x[..., 1::2]), dim=-1)
        first, second = rotated(halves, cos, sin).chunk(2, dim=-1)
        return torch.stack((first, second), dim=-1).flatten(-2)

    _set(reference, "_rotated", neighbours)


def rope_height_and_width_swapped() -> None:
    """The angles of rows and columns change places."""

    def swapped(angles: torch.Tensor) -> torch.Tensor:
        return torch.cat((angles[:, :12], angles[:, 22:], angles[:, 12:22]), dim=1)

    _turn_angles(swapped)


def guidance_ignored() -> None:
    """The unconditional branch runs and changes nothing."""
    _guide(lambda conditional, unconditional, g: conditional)


def guidance_textbook() -> None:
    """The other convention: x0_u + g (x0_c - x0_u)."""
    _guide(lambda conditional, unconditional, g: unconditional + g * (conditional - unconditional))


def guidance_swapped() -> None:
    """Prompt and negative prompt change places."""
    _guide(lambda conditional, unconditional, g: unconditional + g * (unconditional - conditional))


def text_ignored() -> None:
    """Every prompt reads as no text."""
    _read(lambda rows, length: torch.zeros_like(rows))


def text_padding_left_in() -> None:
    """Rows past the end token keep what the encoder makes of padding."""
    from cosmos_fast.model.text import TextEncoder
    from cosmos_fast.types import TEXT_ROWS, TextEmbedding

    def whole(self: Any, prompt: str) -> TextEmbedding:
        tokens = self._tokenizer(
            [prompt], padding="max_length", max_length=TEXT_ROWS, return_tensors="pt"
        )
        with torch.no_grad():
            rows = self._t5(**{k: tokens[k] for k in ("input_ids", "attention_mask")})[0][0]
        return TextEmbedding(rows.to(torch.bfloat16), TEXT_ROWS)

    _set(TextEncoder, "embed", whole)


def text_ends_early() -> None:
    """The last word and the end token are lost."""
    _read(lambda rows, length: rows * (torch.arange(len(rows)) < length - 3)[:, None])


def text_shifted() -> None:
    """Rows arrive one place late, as behind a start token."""
    _read(lambda rows, length: rows.roll(1, dims=0))


def vae_statistics_missing() -> None:
    """Latents are neither centred nor scaled."""
    from cosmos_fast.model.vae import VAE

    def none(self: Any, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros(1, dtype=self.dtype), torch.ones(1, dtype=self.dtype)

    _set(VAE, "_statistics", none)


def vae_forgets() -> None:
    """Each chunk is decoded as if nothing had come before it."""
    from cosmos_fast.model.vae_layers import Past

    def nothing(self: Any, module: Any, x: torch.Tensor, frames: int) -> torch.Tensor:
        return torch.nn.functional.pad(x, (0, 0, 0, 0, frames, 0))

    _set(Past, "before", nothing)


def vae_colours_swapped() -> None:
    """Blue comes out as red."""
    import cosmos_fast.generation as generation

    to_pixels = generation.to_pixels
    _set(generation, "to_pixels", lambda video: to_pixels(video.flip(1)))


BREAKS: Final[dict[str, Callable[[], None]]] = {
    function.__name__.replace("_", "-"): function
    for function in (
        solver_first_order,
        solver_slope_backwards,
        solver_returns_state,
        schedule_linear,
        rope_none,
        rope_scale_of_the_2b,
        rope_pairs_neighbours,
        rope_height_and_width_swapped,
        guidance_ignored,
        guidance_textbook,
        guidance_swapped,
        text_ignored,
        text_padding_left_in,
        text_ends_early,
        text_shifted,
        vae_statistics_missing,
        vae_forgets,
        vae_colours_swapped,
    )
}

UNSEEN: Final[dict[str, str]] = {
    "solver-first-order": "16 steps are enough for either order; test_sampling holds the formula",
    "solver-slope-backwards": "as above",
    "solver-returns-state": "at sigma 0.002 the state is the prediction; test_sampling holds it",
    "guidance-ignored": "at guidance 0.5 the prompt wins either way; test_sampling holds the sum",
    "text-ends-early": "every prompt ends in the same word; test_text holds the rows",
    "text-shifted": "cross-attention does not see the order of its rows; test_text holds the rows",
}
"""Breaks that videos of this model cannot show, why, and the test that does."""


def _set(owner: Any, name: str, value: Any) -> None:
    if not hasattr(owner, name):
        raise AttributeError(f"{owner} has no {name}: this break has to follow a change there")
    setattr(owner, name, value)


def _solve(*, slope: float, clean_up: bool = True) -> None:
    import cosmos_fast.generation as generation

    def solve(
        predict: Predictor,
        x: torch.Tensor,
        sigmas: Sequence[float],
        *,
        on_step: Any = None,
        cancel: Any = None,
    ) -> torch.Tensor:
        previous: tuple[torch.Tensor, float] | None = None
        for step, (now, then) in enumerate(itertools.pairwise(sigmas)):
            x0, ratio = predict(x, now, step), then / now
            length = -float(torch.tensor(ratio, dtype=torch.float64).log())
            x = ratio * x + (1 - ratio) * x0
            if previous is not None:
                x = x + slope * (length - 1 + ratio) * (x0 - previous[0]) / previous[1]
            previous = x0, length
        return predict(x, sigmas[-1], len(sigmas) - 1) if clean_up else x

    _set(generation, "adams_bashforth", solve)


def _turn_angles(change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    import cosmos_fast.model.rope as rope

    angles = rope.rope_angles
    _set(rope, "rope_angles", lambda *given: change(angles(*given)))


def _guide(combine: Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]) -> None:
    import cosmos_fast.generation as generation

    def guided(conditional: Predictor, unconditional: Predictor | None, g: float) -> Predictor:
        if unconditional is None:
            return conditional
        return lambda x, sigma, step: combine(
            conditional(x, sigma, step), unconditional(x, sigma, step), g
        )

    _set(generation, "guided", guided)


def _read(change: Callable[[torch.Tensor, int], torch.Tensor]) -> None:
    from cosmos_fast.model.text import TextEncoder
    from cosmos_fast.types import TEXT_ROWS, TextEmbedding

    embed = TextEncoder.embed

    def changed(self: Any, prompts: Sequence[str]) -> list[TextEmbedding]:
        return [
            TextEmbedding(change(right.rows, right.length), TEXT_ROWS)
            for right in embed(self, prompts)
        ]

    _set(TextEncoder, "embed", changed)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Called by pytest, which loads this module as a plugin."""
    parser.addoption("--break", choices=sorted(BREAKS), help="what to break before the tests run")


def pytest_configure(config: pytest.Config) -> None:
    """Called by pytest."""
    if name := config.getoption("--break"):
        BREAKS[name]()


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("breaks", nargs="*", help=f"of {', '.join(BREAKS)}; default: all")
    chosen = parser.parse_args(words).breaks
    unexpected = []
    for name in chosen or ["", *BREAKS]:
        plugin = ["-p", "tools.ballworld.break_it", *(["--break", name] if name else [])]
        run = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", *plugin, TEST],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        verdict = {0: "green", 1: "red"}.get(run.returncode, f"exit code {run.returncode}")
        reason = f" ({UNSEEN[name]})" if name in UNSEEN else ""
        print(f"{name or 'nothing broken'}: {verdict}{reason}", flush=True)
        kept = [line for line in run.stdout.splitlines() if line.startswith(("test_", "FAILED"))]
        print("\n".join(f"    {line}" for line in kept), flush=True)
        if (run.returncode == 1) is not (bool(name) and name not in UNSEEN):
            unexpected.append(name or "nothing broken")
    if unexpected:
        print(f"not as expected: {', '.join(unexpected)}", file=sys.stderr)
    return int(bool(unexpected))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
