"""Who computes attention: our designs by name, and the rivals, each behind one signature."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable
from typing import Any

import torch
from attention_shapes import DRY_SHAPES

Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, int], torch.Tensor]
"""(q, k, v, out or anything, zero keys) -> out; all (B, S, H, D)."""

DEFAULT = ("gluon shipped", "triton", "cudnn", "fa3", "sage")
"""Where nobody is named: the design that engines take, the portable kernel, and the rivals."""

DRY = ("dry ours", "dry two", "dry wrong", "dry crash", "dry hang", "cudnn")
"""On a CPU, where none of those runs: torch's attention by these names, three of them broken."""

DRY_OURS_BROKEN = ("dry ours wrong", "dry ours wrong late", "dry ours crash")
"""What has to end in an error. The second is right wherever it is checked before it is timed."""

RIVAL_WHEELS = {"fa3": "fa3-fwd", "sage": "sageattention"}

OWN_LIMITS = {"sage": 0.1}
"""Relative errors up to which a contender of 8-bit products is timed, where the others have 2e-3.
Its arithmetic, simulated on these inputs, gives 4e-2 to 6.5e-2; its row says how far off it is."""

NOTES = {"sage": "8-bit scores, half-precision sums: a tolerance of its own"}


def is_ours(name: str) -> bool:
    return name.startswith(("gluon", "triton", "dry ours"))


def designs() -> dict[str, Any]:
    """Our own designs for Hopper, by name."""
    from cosmos_fast_kernels.attention_hopper_pipeline import HopperConfig

    one: dict[str, Any] = {"q_stages": 1}
    wide = one | {"tail": 64}
    named: dict[str, Any] = {"turns": "named"}
    quiet: dict[str, Any] = {"turns": "none", "free": "named"}
    skip: dict[str, Any] = {"skip_decay": True}
    lazy = skip | {"slack": 8.0}
    registers: dict[str, Any] = {"q_registers": True}
    early = quiet | named | {"early_values": True}
    three = one | {"stages": 3}
    return {
        "gluon two tiles": HopperConfig(),
        "gluon two tiles, no turns": HopperConfig(turns="none"),
        "gluon two tiles, named turns": HopperConfig(turns="named"),
        "gluon two tiles, late decay, named": HopperConfig(late_decay=True, turns="named"),
        "gluon turns": HopperConfig(**one),
        "gluon named turns": HopperConfig(**one, turns="named"),
        "gluon late decay": HopperConfig(**one, late_decay=True),
        "gluon late decay, named": HopperConfig(**one, late_decay=True, turns="named"),
        "gluon wide": HopperConfig(**wide),
        "gluon wide, named": HopperConfig(**wide, turns="named"),
        "gluon wide, late decay, named": HopperConfig(**wide, late_decay=True, turns="named"),
        "gluon wide, no turns": HopperConfig(**wide, turns="none"),
        "gluon no turns": HopperConfig(**one, turns="none"),
        "gluon values first": HopperConfig(**one, overlap=False),
        "gluon quiet": HopperConfig(**quiet),
        "gluon quiet, named turns": HopperConfig(**quiet | named),
        "gluon quiet, lazy": HopperConfig(**quiet | lazy),
        "gluon quiet, lazy, named turns": HopperConfig(**quiet | lazy | named),
        "gluon quiet, skip": HopperConfig(**quiet | skip),
        "gluon quiet, three stages": HopperConfig(**quiet | three),
        "gluon quiet, registers": HopperConfig(**quiet | registers),
        "gluon quiet, registers, skip": HopperConfig(**quiet | registers | skip),
        "gluon quiet, lazy, registers": HopperConfig(**quiet | lazy | registers),
        "gluon early": HopperConfig(**early, late_keys=True),
        "gluon early, skip": HopperConfig(**early | skip, late_keys=True),
        "gluon early, registers": HopperConfig(**early | registers),
        "gluon early, registers, skip": HopperConfig(**early | registers | skip),
        "gluon early, registers, three stages": HopperConfig(**early | registers | three),
        "gluon early, 160": HopperConfig(**early, tail=32),
        "gluon early, 160, skip": HopperConfig(**early | skip, tail=32),
        "gluon 160, quiet": HopperConfig(**quiet, tail=32),
        "gluon 160, quiet, lazy": HopperConfig(**quiet | lazy, tail=32),
        "gluon 160, quiet, lazy, named turns": HopperConfig(**quiet | lazy | named, tail=32),
        "gluon wide, quiet, lazy": HopperConfig(**wide | quiet | lazy),
        "gluon no loader": HopperConfig(**one, rows=128, consumers=1, loader=False, turns="none"),
    }


def contender(name: str) -> Attend:
    """The function that computes attention under this name."""
    if name.startswith("gluon"):
        from cosmos_fast_kernels.attention_hopper import hopper_attention

        config = None if name == "gluon shipped" else designs()[name]
        return lambda q, k, v, out, zero_keys: hopper_attention(
            q, k, v, scale=q.shape[-1] ** -0.5, zero_keys=zero_keys, out=out, config=config
        )[0]
    if name == "triton":
        from cosmos_fast_kernels.attention import attention

        return lambda q, k, v, out, zero_keys: attention(
            q, k, v, scale=q.shape[-1] ** -0.5, zero_keys=zero_keys, out=out
        )[0]
    if name == "fa3":
        flash_attn_func = importlib.import_module("fa3_fwd_interface").flash_attn_func

        return lambda q, k, v, out, zero_keys: flash_attn_func(q, *padded(k, v, zero_keys))
    if name == "sage":
        return sage()
    if name in ("dry crash", "dry ours crash"):
        raise RuntimeError("a contender that does not work")
    if name == "dry hang":
        threading.Event().wait()
    if name in ("dry wrong", "dry ours wrong"):
        return lambda q, k, v, out, zero_keys: rival(q, k, v, zero_keys, False) * 1.5
    if name == "dry ours wrong late":
        factors = {DRY_SHAPES[0].queries: 1.01}
        return lambda q, k, v, out, zero_keys: (
            rival(q, k, v, zero_keys, False) * factors.get(q.shape[1], 1.0)
        )
    if name not in ("cudnn", "torch", "dry ours", "dry two"):
        raise ValueError(f"{name!r}: no contender of attention has this name")
    return lambda q, k, v, out, zero_keys: rival(q, k, v, zero_keys, name == "cudnn")


def sage() -> Attend:
    """SageAttention 1: Triton kernels, 8-bit scores.

    Its own smoothing takes the mean off the caller's k in place. Here that is done beside it, at
    the same cost, as the others need k as it was.
    """
    sageattn = importlib.import_module("sageattention").sageattn

    def attend(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor, zero_keys: int
    ) -> torch.Tensor:
        k, v = padded(k, v, zero_keys)
        k = k - k.mean(dim=1, keepdim=True)
        return sageattn(q, k, v, tensor_layout="NHD", is_causal=False, smooth_k=False)

    return attend


def rival(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, zero_keys: int, cudnn: bool
) -> torch.Tensor:
    """torch's attention; cuDNN is called as our engine calls it."""
    k, v = padded(k, v, zero_keys)
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    if not (cudnn and q.is_cuda):
        return torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)
    out = torch.ops.aten._scaled_dot_product_cudnn_attention(
        q, k, v, None, False, 0.0, False, False, scale=q.shape[-1] ** -0.5
    )[0]
    return out.transpose(1, 2)


def padded(k: torch.Tensor, v: torch.Tensor, zero_keys: int) -> tuple[torch.Tensor, torch.Tensor]:
    """k and v with the zero rows that the others have to read; made once per pair."""
    if not zero_keys:
        return k, v
    if not hasattr(k, "padded"):
        rows = k.new_zeros(k.shape[0], zero_keys, *k.shape[2:])
        k.padded = (torch.cat([k, rows], 1), torch.cat([v, rows], 1))  # type: ignore[attr-defined]
    return k.padded  # type: ignore[attr-defined]
