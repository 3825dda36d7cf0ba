"""The fused operations of the networks, and the choice of what runs each.

Asked once, when a network is made. :attr:`Ops.names` says what was taken, for the report.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

import torch
import torch.nn.functional as F

from cosmos_fast.errors import InputError
from cosmos_fast.model.attention import (
    Attended,
    Attention,
    AttentionSpec,
    TakesInTurns,
    torch_attention,
)
from cosmos_fast.model.attention_table import ALL_CLASSES, ERROR_LIMIT, ShapeClass
from cosmos_fast.model.linear_table import Gated, Normed
from cosmos_fast.model.obstacles import obstacle
from cosmos_fast.model.ops.attention import TableAttention, attention_for
from cosmos_fast.model.ops.fallback import needs_gradient, why_wrong
from cosmos_fast.model.ops.products import Product, no_product, product_for
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
HeadNorm = Callable[..., torch.Tensor]
LayerNormModulate = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None, float], torch.Tensor
]
GatedResidual = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor
]
GatedLayerNormModulate = Callable[
    [
        torch.Tensor,
        torch.Tensor,
        torch.Tensor,
        torch.Tensor,
        torch.Tensor,
        torch.Tensor | None,
        float,
    ],
    tuple[torch.Tensor, torch.Tensor],
]
RmsSilu = Callable[
    ...,
    tuple[torch.Tensor | None, torch.Tensor, torch.Tensor],
]
Upsample = Callable[..., torch.Tensor]


_FUSED: Final = (
    "qk_norm_rope",
    "head_norm",
    "layernorm_modulate",
    "gated_residual",
    "gated_layernorm_modulate",
    "rms_silu",
    "upsample",
    "attention",
    "product",
)


_TRIAL_LIMIT: Final = 1e-5
"""Of the trial of the smallest kernel, relative, in float32."""


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
    """(x_BNHD, weight_D, eps, (cos_NR, sin_NR) or None) -> x, rotated too where there are angles"""
    layernorm_modulate: LayerNormModulate = reference.layernorm_modulate
    """(x_BND, shift_BTD, scale_BTD, frame_N or None for raster order, eps) -> y; keeps x"""
    gated_residual: GatedResidual = reference.gated_residual
    """(x_BND, gate_BTD, y_BND, frame_N or None) -> x + gate * y"""
    gated_layernorm_modulate: GatedLayerNormModulate = reference.gated_layernorm_modulate
    """(x_BND, gate_BTD, y_BND, shift_BTD, scale_BTD, frame_N or None, eps) -> (x + gate * y, its
    LayerNorm, modulated); y may be overwritten too"""
    rms_silu: RmsSilu = reference.rms_silu
    """(x_BTHWC, gamma_C, bias_C, residual_BTHWC, residual_bias_C, earlier_BTHWC, history,
    keep_total=..., kept_BTHWC=..., border=0) -> (sum or None, padded, kept); every tensor but x may
    be None"""
    upsample: Upsample = reference.upsample
    """(x_BTHWC, bias_C or None, in_time=..., border=0) -> twice as many rows and columns"""
    attention: Attention = torch_attention
    """(q_BSHD, k_BSHD, v_BSHD, spec) -> Attended"""
    product: Product = no_product
    """(epilogue, x_BNK, weight_EK, what it needs to know) -> (B, N, E), or None where it leaves a
    product of this size to torch; behind ``linear_gelu`` and its kin"""
    folds_padding: bool = False
    """Whether ``attention`` counts keys of zeros without reading them: then it pays to fold."""
    names: Mapping[str, str] = field(default_factory=lambda: dict.fromkeys(_FUSED, "torch"))
    """What runs each operation, for the report."""

    def linear_qk_norm_rope(
        self,
        x_BNK: torch.Tensor,
        weight_EK: torch.Tensor,
        q_weight_D: torch.Tensor,
        k_weight_D: torch.Tensor,
        cos_NR: torch.Tensor,
        sin_NR: torch.Tensor,
        eps: float,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """q, k and v of x Wᵀ, (B, N, H, D) each, the first two normed and rotated."""
        out = self.product("none", x_BNK, weight_EK, None)
        qkv_BNE = F.linear(x_BNK, weight_EK) if out is None else out
        q, k, v = qkv_BNE.unflatten(-1, (3, -1, q_weight_D.shape[0])).unbind(2)
        q, k = self.qk_norm_rope(q, k, q_weight_D, k_weight_D, cos_NR, sin_NR, eps)
        return q, k, v

    def self_attention(
        self,
        x_BNK: torch.Tensor,
        weight_EK: torch.Tensor,
        q_weight_D: torch.Tensor,
        k_weight_D: torch.Tensor,
        cos_NR: torch.Tensor,
        sin_NR: torch.Tensor,
        eps: float,
        spec: AttentionSpec,
    ) -> torch.Tensor:
        """Attention among the rows of x: (B, N, H, D), of q, k and v as :meth:`linear_qk_norm_rope`
        makes them.

        Attention that is shared takes values and keys as they are made, and they travel under the
        product that follows.
        """
        features = q_weight_D.shape[0]
        heads = weight_EK.shape[0] // (3 * features)
        sending = None
        if isinstance(attention := self.attention, TakesInTurns):
            sending = attention.begin(x_BNK.shape[0], heads, features, x_BNK.dtype, spec)
        if sending is None:
            q, k, v = self.linear_qk_norm_rope(
                x_BNK, weight_EK, q_weight_D, k_weight_D, cos_NR, sin_NR, eps
            )
            attended: Attended = self.attention(q, k, v, spec)
            return attended.out_BSHD

        def heads_of(part: int) -> torch.Tensor:
            rows_EK = weight_EK[part * heads * features : (part + 1) * heads * features]
            out = self.product("none", x_BNK, rows_EK, None)
            made: torch.Tensor = F.linear(x_BNK, rows_EK) if out is None else out
            heads_BNHD: torch.Tensor = made.unflatten(-1, (heads, features))
            return heads_BNHD

        angles = (cos_NR, sin_NR)
        sending.give(2, heads_of(2))
        sending.give(1, self.head_norm(heads_of(1), k_weight_D, eps, angles))
        q_BNHD = self.head_norm(heads_of(0), q_weight_D, eps, angles)
        return sending.attended(q_BNHD).out_BSHD

    def linear_head_norm(
        self, x_BNK: torch.Tensor, weight_EK: torch.Tensor, weight_D: torch.Tensor, eps: float
    ) -> torch.Tensor:
        """x Wᵀ by heads, (B, N, H, D), each normed."""
        heads = (-1, weight_D.shape[0])
        out = self.product("norm", x_BNK, weight_EK, Normed(weight_D, eps))
        if out is not None:
            normed_BNHD: torch.Tensor = out.unflatten(-1, heads)
            return normed_BNHD
        return self.head_norm(F.linear(x_BNK, weight_EK).unflatten(-1, heads), weight_D, eps)

    def linear_gelu(self, x_BNK: torch.Tensor, weight_EK: torch.Tensor) -> torch.Tensor:
        """GELU, in its exact form, of x Wᵀ."""
        out = self.product("gelu", x_BNK, weight_EK, None)
        return F.gelu(F.linear(x_BNK, weight_EK)) if out is None else out

    def linear_gated_residual(
        self,
        x_BND: torch.Tensor,
        gate_BTD: torch.Tensor,
        y_BNK: torch.Tensor,
        weight_DK: torch.Tensor,
        frame_N: torch.Tensor | None,
    ) -> torch.Tensor:
        """x + gate * (y Wᵀ)."""
        out = self.product("gated", y_BNK, weight_DK, Gated(x_BND, gate_BTD, frame_N))
        if out is not None:
            return out
        return self.gated_residual(x_BND, gate_BTD, F.linear(y_BNK, weight_DK), frame_N)

    def linear_gated_layernorm_modulate(
        self,
        x_BND: torch.Tensor,
        gate_BTD: torch.Tensor,
        y_BNK: torch.Tensor,
        weight_DK: torch.Tensor,
        shift_BTD: torch.Tensor,
        scale_BTD: torch.Tensor,
        frame_N: torch.Tensor | None,
        eps: float,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(x + gate * (y Wᵀ), its LayerNorm, modulated)."""
        following = (shift_BTD, scale_BTD, frame_N, eps)
        out = self.product("gated", y_BNK, weight_DK, Gated(x_BND, gate_BTD, frame_N))
        if out is not None:
            return out, self.layernorm_modulate(out, *following)
        y_BND = F.linear(y_BNK, weight_DK)
        return self.gated_layernorm_modulate(x_BND, gate_BTD, y_BND, *following)

    @property
    def fuses_decoder(self) -> bool:
        """Whether the VAE's decoder has a kernel to run between; whatever ``names`` says, which is
        for people."""
        return self.rms_silu is not reference.rms_silu

    def decoding_plainly(self) -> Ops:
        """The same, but for the VAE's decoder, which is left to torch."""
        names = {**self.names, "rms_silu": "torch", "upsample": "torch"}
        return replace(self, rms_silu=reference.rms_silu, upsample=reference.upsample, names=names)

    @property
    def multiplies(self) -> bool:
        """Whether products of the transformer are ours."""
        return self.product is not no_product

    def decodes(self, *tensors: torch.Tensor) -> bool:
        """Whether the VAE's decoder should run between kernels for these tensors."""
        on_device = all(tensor.device.type == "cuda" for tensor in tensors)
        return self.fuses_decoder and on_device and not needs_gradient(*tensors)

    @classmethod
    def select(
        cls,
        device: torch.device | str,
        dtype: torch.dtype,
        *,
        head_dim: int = 128,
        kernels: bool | None = None,
        classes: Iterable[ShapeClass] = ALL_CLASSES,
    ) -> Ops:
        """What is best on ``device`` for tensors of ``dtype``.

        Each attention and product that the tables name for this device, and torch's own attention
        behind them, is run on small inputs, one for every design that it may take, and compared
        with the exact result; one that fails is passed over, with one warning. Where the smallest
        of the other kernels fails, none is taken.

        Args:
            device: where the network runs.
            dtype: dtype of its weights.
            head_dim: features of its heads.
            kernels: True: Triton kernels, or an error; False: plain torch; None: kernels on CUDA
                where they can run, otherwise torch with one warning that says why.
            classes: what attention will be asked for: for the rest no kernel is compiled, and it is
                torch's.

        Raises:
            InputError: a CUDA device where torch sees none, or ``kernels=True`` where they cannot
                run.
        """
        device = torch.device(device)
        if device.type == "cuda" and not torch.cuda.is_available():
            raise InputError(f"device = {str(device)!r}, but torch sees no CUDA device")
        attention, attention_name = attention_for(device, dtype)
        names = dict.fromkeys(_FUSED, "torch") | {"attention": attention_name}
        if kernels is False or (kernels is None and device.type != "cuda"):
            return cls(attention=attention, names=names)
        why_not = obstacle(device, dtype) or trial_failure(device, dtype)
        if why_not and kernels:
            raise InputError(f"kernels=True, but Triton kernels cannot run: {why_not}")
        if why_not:
            warnings.warn(
                f"running without Triton kernels, on plain torch: {why_not}",
                RuntimeWarning,
                stacklevel=2,
            )
            return cls(attention=attention, names=names)
        chosen = TableAttention.tested(device, dtype, head_dim, fallback=attention, classes=classes)
        ops = _with_kernels(
            chosen, names | {"attention": chosen.description}, folds_padding=chosen.folds_padding
        )
        product = product_for(device, dtype, head_dim)
        name = "torch" if product is no_product else "gluon (own, sm_90a)"
        return replace(ops, product=product, names={**ops.names, "product": name})


def trial_failure(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the smallest kernel must not be used on ``device``; None if it is right."""

    def error() -> float:
        from cosmos_fast.model.ops.kernels import trial_error

        return trial_error(device, dtype)

    failure = why_wrong(error, ERROR_LIMIT.get(dtype, _TRIAL_LIMIT))
    return failure and f"the smallest kernel failed its test: {failure}"


def _with_kernels(
    attention: Attention, names: dict[str, str], *, folds_padding: bool = False
) -> Ops:
    from cosmos_fast.model.ops import kernels
    from cosmos_fast_kernels.rms_silu import rms_silu
    from cosmos_fast_kernels.upsample import upsample

    fused = tuple(name for name in _FUSED if name not in ("attention", "product"))
    return Ops(
        gated_residual=kernels.gated_residual_op,
        gated_layernorm_modulate=kernels.gated_layernorm_modulate_op,
        folds_padding=folds_padding,
        rms_silu=rms_silu,
        upsample=upsample,
        qk_norm_rope=kernels.qk_norm_rope_op,
        head_norm=kernels.head_norm_op,
        layernorm_modulate=kernels.layernorm_modulate_op,
        attention=attention,
        names={"product": "torch"} | names | dict.fromkeys(fused, "triton"),
    )
