"""Which implementation runs each fused operation: the only file that knows a kernel has a fallback.

Asked once, when a network is made. :attr:`Ops.names` says what was taken, for the report.
"""

from __future__ import annotations

import shutil
import sysconfig
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import torch

from cosmos_fast.errors import InputError
from cosmos_fast.model.attention import Attention, cudnn_attention, torch_attention
from cosmos_fast_kernels import reference

QkNormRope = Callable[
    [
        torch.Tensor,
        torch.Tensor,
        torch.Tensor,
        torch.Tensor,
        torch.Tensor,
        torch.Tensor,
        float,
    ],
    tuple[torch.Tensor, torch.Tensor],
]
HeadNorm = Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]
LayerNormModulate = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None, float], torch.Tensor
]
GatedResidual = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor
]

_FUSED: Final = ("qk_norm_rope", "head_norm", "layernorm_modulate", "gated_residual", "attention")


@dataclass(frozen=True)
class Ops:
    """The fused operations of the networks, each bound to a kernel or to plain torch.

    All of them compute in float32 and round once, to the dtype of their first argument. What is
    passed first may be overwritten: do not use it afterwards. Shapes are those of
    ``cosmos_fast_kernels.reference``, whose functions are the definition. Replace one with
    ``dataclasses.replace(ops, attention=...)``.
    """

    qk_norm_rope: QkNormRope = reference.qk_norm_rope
    """(q_BNHD, k_BNHD, q_weight_D, k_weight_D, cos_NR, sin_NR, eps) -> (q, k)"""
    head_norm: HeadNorm = reference.head_norm
    """(x_BNHD, weight_D, eps) -> x"""
    layernorm_modulate: LayerNormModulate = reference.layernorm_modulate
    """(x_BND, shift_BTD, scale_BTD, frame_N or None for raster order, eps) -> y; keeps x"""
    gated_residual: GatedResidual = reference.gated_residual
    """(x_BND, gate_BTD, y_BND, frame_N or None) -> x + gate * y"""
    attention: Attention = torch_attention
    """(q_BSHD, k_BSHD, v_BSHD, spec) -> Attended"""
    names: Mapping[str, str] = field(default_factory=lambda: dict.fromkeys(_FUSED, "torch"))
    """What runs each operation, for the report."""

    @classmethod
    def select(
        cls,
        device: torch.device | str,
        dtype: torch.dtype,
        *,
        kernels: bool | None = None,
    ) -> Ops:
        """What is best on ``device`` for tensors of ``dtype``.

        Args:
            device: where the network runs.
            dtype: dtype of its weights.
            kernels: True: Triton kernels, or an error; False: plain torch; None: kernels on CUDA
                where they can run, otherwise torch with one warning that says why.

        Raises:
            InputError: a CUDA device where torch sees none, or ``kernels=True`` where they cannot
                run.
        """
        device = torch.device(device)
        if device.type == "cuda" and not torch.cuda.is_available():
            raise InputError(f"device = {str(device)!r}, but torch sees no CUDA device")
        attention, attention_name = _attention_for(device, dtype)
        names = dict.fromkeys(_FUSED, "torch") | {"attention": attention_name}
        if kernels is False or (kernels is None and device.type != "cuda"):
            return cls(attention=attention, names=names)
        obstacle = _obstacle(device, dtype)
        if obstacle and kernels:
            raise InputError(f"kernels=True, but Triton kernels cannot run: {obstacle}")
        if obstacle:
            warnings.warn(
                f"running without Triton kernels, on plain torch: {obstacle}",
                RuntimeWarning,
                stacklevel=2,
            )
            return cls(attention=attention, names=names)
        return _with_kernels(attention, names)


def _attention_for(device: torch.device, dtype: torch.dtype) -> tuple[Attention, str]:
    half = dtype in (torch.bfloat16, torch.float16)
    if device.type == "cuda" and half and torch.cuda.get_device_capability(device)[0] in (9, 10):
        return cudnn_attention, "cudnn"
    return torch_attention, "torch sdpa"


def _obstacle(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why Triton kernels cannot run here, with the cure; None when they can."""
    if device.type != "cuda":
        return f"{device = } is not a CUDA device"
    if dtype not in (torch.bfloat16, torch.float16, torch.float32):
        return f"{dtype = }: bfloat16, float16 or float32 is needed"
    capability = torch.cuda.get_device_capability(device)
    if capability < (8, 0):
        return f"compute capability {capability} of {device}: 8.0 or newer is needed"
    return _launcher_obstacle()


def _launcher_obstacle() -> str | None:
    """Triton compiles a small launcher in C at the first launch: compiler and Python.h."""
    try:
        from triton import knobs
    except ImportError as error:
        return f"triton cannot be imported ({error}); pip install triton"
    if knobs.build.impl is not None:
        return None
    compilers = (knobs.build.cc,) if knobs.build.cc else ("gcc", "clang")
    if not any(shutil.which(compiler) for compiler in compilers):
        return (
            f"Triton's launcher needs a C compiler and {' or '.join(compilers)} is not found; "
            f"install gcc or clang, or set CC"
        )
    scheme = sysconfig.get_default_scheme().replace("posix_local", "posix_prefix")
    include = Path(sysconfig.get_paths(scheme=scheme)["include"])
    if not (include / "Python.h").is_file():
        return (
            f"Triton's launcher needs Python.h, which {include} lacks; "
            f"install the development package of this Python (python3-dev)"
        )
    return None


def _with_kernels(attention: Attention, names: dict[str, str]) -> Ops:
    from cosmos_fast_kernels.layernorm_modulate import layernorm_modulate
    from cosmos_fast_kernels.qk_norm_rope import head_norm, qk_norm_rope

    def qk_norm_rope_op(
        q: torch.Tensor,
        k: torch.Tensor,
        q_weight: torch.Tensor,
        k_weight: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        eps: float,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if _needs_gradient(q, k, q_weight, k_weight):
            return reference.qk_norm_rope(q, k, q_weight, k_weight, cos, sin, eps)
        return qk_norm_rope(q, k, q_weight, k_weight, cos, sin, eps, out=(q, k))

    def head_norm_op(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        if _needs_gradient(x, weight):
            return reference.head_norm(x, weight, eps)
        return head_norm(x, weight, eps, out=x)

    def layernorm_modulate_op(
        x: torch.Tensor,
        shift: torch.Tensor,
        scale: torch.Tensor,
        frame: torch.Tensor | None,
        eps: float,
    ) -> torch.Tensor:
        if _needs_gradient(x, shift, scale):
            return reference.layernorm_modulate(x, shift, scale, frame, eps)
        return layernorm_modulate(x, shift, scale, frame, eps)

    fused = ("qk_norm_rope", "head_norm", "layernorm_modulate")
    return Ops(
        qk_norm_rope=qk_norm_rope_op,
        head_norm=head_norm_op,
        layernorm_modulate=layernorm_modulate_op,
        attention=attention,
        names=names | dict.fromkeys(fused, "triton"),
    )


def _needs_gradient(*tensors: torch.Tensor) -> bool:
    """Kernels have no backward pass: training goes through torch."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
