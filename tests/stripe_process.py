"""Ranks that share a decoder's rows: ``python stripe_process.py PORT RANKS SIZE JOB``.

As ``rank_process.py``, for a job whose cases name latents and the way to decode them. Rank 0 also
decodes the cases that are nobody else's.
"""

from __future__ import annotations

import os
import time
from copy import deepcopy
from pathlib import Path
from typing import Any, NoReturn

import torch

from cosmos_fast.config import Seat, VAEConfig, keep_multicast_off
from cosmos_fast.model.attention import torch_attention
from cosmos_fast.model.ops import Ops, _with_kernels
from cosmos_fast.model.vae import VAE
from cosmos_fast.parallel import join
from cosmos_fast.parallel.exchange import Exchange
from cosmos_fast.parallel.stripes import SharedRows
from random_vae import everywhere, network
from rank_process import main


@torch.no_grad()
def decoded(
    vae: VAE, case: dict[str, Any], exchange: Exchange | None = None
) -> tuple[torch.Tensor, int]:
    """float32 pixels (B, 3, T, H, W) of a case, and the passes between convolutions.

    Args:
        exchange: of the ranks that share the rows; None: all of them here.
    """
    passes: list[int] = []
    kernels = case.get("kernels")
    given = _with_kernels(torch_attention, dict(Ops().names)) if kernels else Ops()
    vae.ops = None if case.get("plain") else everywhere(given, passes)
    latents = torch.randn(case["latents"], generator=torch.Generator().manual_seed(5))
    latents = latents.to(vae.quant_conv.weight.device)
    rows = None if exchange is None else SharedRows(exchange, latents.shape[-2])
    chunks = []
    for chunk in vae.decode_chunks(
        latents, frame_by_frame=bool(case.get("frame_by_frame")), stripe=rows
    ):
        pixels = chunk.permute(0, 2, 3, 4, 1).flatten(0, 1)
        if rows is not None:
            pixels = rows.gathered(pixels)
        chunks.append(pixels.unflatten(0, (latents.shape[0], -1)).permute(0, 4, 1, 2, 3))
    return torch.cat(chunks, dim=2), len(passes)


def vae_of(case: dict[str, Any]) -> VAE:
    return network(
        VAEConfig(
            base_dim=case.get("base_dim", 8),
            temporal_downsample=tuple(case.get("temporal", (False, True, True))),
        )
    )


def work(port: int, rank: int, size: int, job: dict[str, Any]) -> NoReturn:
    """All cases of the job, as one rank."""
    torch.set_num_threads(1)
    on_cards = "device" in job
    keep_multicast_off()
    device = torch.device("cuda", rank) if on_cards else torch.device("cpu")
    if on_cards:
        torch.cuda.set_device(device)
        # Rounded to TF32, what is exact here would not be.
        torch.backends.cudnn.allow_tf32 = False
    group: Any = join(Seat(rank, size, rank, "127.0.0.1", port, store_is_served=True), device)
    exchange = Exchange(group, device)
    made = on_card(job, exchange) if on_cards else {}
    for case in [] if on_cards else job["cases"]:
        made[case["name"]] = decoded(vae_of(case), case, exchange)
    torch.save(made, Path(job["out"], f"{rank}.pt"))
    os._exit(0)


def on_card(job: dict[str, Any], exchange: Exchange) -> dict[str, Any]:
    """Of each case in bfloat16: all rows here, shared ones, and what is exact.

    Every case is decoded before it is timed, by itself and after the others have come.
    """
    wide = vae_of({"base_dim": 96}).bfloat16().float().to(exchange.device)
    vae = deepcopy(wide).bfloat16()
    made: dict[str, Any] = {}
    for case in job["cases"]:
        case = {**case, "kernels": True}
        ways: dict[str, Any] = {"whole": None, "shared": exchange}
        for name, others in ways.items():
            pixels, passes = decoded(vae, case, others)
            made[f"{case['name']}, {name}"] = pixels.cpu(), passes
            exchange.to_all(pixels.new_zeros(1), [1] * exchange.size).wait()
            torch.cuda.synchronize()
            began = time.perf_counter()
            decoded(vae, case, others)
            torch.cuda.synchronize()
            made[f"{case['name']}, {name}, seconds"] = time.perf_counter() - began
        if case.get("exact"):
            pixels, _ = decoded(wide, {**case, "plain": True})
            made[f"{case['name']}, exact"] = pixels.cpu()
        else:
            del made[f"{case['name']}, whole"], made[f"{case['name']}, shared"]
    return made


if __name__ == "__main__":
    main(work)
