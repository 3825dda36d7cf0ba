"""Which implementation runs each fused operation: the only file that knows a kernel has a fallback.

Asked once, when a network is made. :attr:`Ops.names` says what was taken, for the report.
"""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib import metadata
from typing import Any, Final

import torch
import torch.nn.functional as F

from cosmos_fast.errors import InputError
from cosmos_fast.model.attention import (
    Attended,
    Attention,
    AttentionSpec,
    cudnn_attention,
    padded,
    refuse_unsupported,
    torch_attention,
)
from cosmos_fast.model.attention_table import (
    ERROR_LIMIT,
    Backend,
    preferences,
    self_test_error,
    shape_class,
)
from cosmos_fast.model.linear_table import (
    CAPABILITY,
    Epilogue,
    Following,
    Gated,
    Normed,
    Turned,
    design,
)
from cosmos_fast.model.linear_table import ERROR_LIMIT as PRODUCT_ERROR_LIMIT
from cosmos_fast.model.linear_table import self_test_error as product_error
from cosmos_fast.model.obstacles import obstacle
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
Product = Callable[[Epilogue, torch.Tensor, torch.Tensor, Following], torch.Tensor | None]


def no_product(*_: object) -> None:
    """Leaves every product to torch, and what follows it to a pass of its own."""


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
    gated_layernorm_modulate: GatedLayerNormModulate = reference.gated_layernorm_modulate
    """(x_BND, gate_BTD, y_BND, shift_BTD, scale_BTD, frame_N or None, eps) -> (x + gate * y, its
    LayerNorm, modulated); y may be overwritten too"""
    rms_silu: RmsSilu = reference.rms_silu
    """(x_BTHWC, gamma_C, bias_C, residual_BTHWC, residual_bias_C, earlier_BTHWC, history,
    keep_total=...) -> (sum or None, padded, kept); every tensor but x may be None"""
    upsample: Upsample = reference.upsample
    """(x_BTHWC, bias_C or None, in_time=...) -> twice as many rows and columns"""
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
        turned = Turned(q_weight_D, k_weight_D, cos_NR, sin_NR, eps)
        out = self.product("rope", x_BNK, weight_EK, turned)
        alone = self.product("none", x_BNK, weight_EK, None) if out is None else out
        qkv_BNE = F.linear(x_BNK, weight_EK) if alone is None else alone
        q, k, v = qkv_BNE.unflatten(-1, (3, -1, q_weight_D.shape[0])).unbind(2)
        if out is None:
            q, k = self.qk_norm_rope(q, k, *turned)
        return q, k, v

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

    def decodes(self, *tensors: torch.Tensor) -> bool:
        """Whether the VAE's decoder should run between kernels for these tensors."""
        on_device = all(tensor.device.type == "cuda" for tensor in tensors)
        return self.names["rms_silu"] != "torch" and on_device and not _needs_gradient(*tensors)

    @classmethod
    def select(
        cls,
        device: torch.device | str,
        dtype: torch.dtype,
        *,
        head_dim: int = 128,
        kernels: bool | None = None,
    ) -> Ops:
        """What is best on ``device`` for tensors of ``dtype``.

        Each attention and product that the tables name for this device is run once on a small
        input and compared with the exact result; one that fails is passed over, with one warning.

        Args:
            device: where the network runs.
            dtype: dtype of its weights.
            head_dim: features of its heads.
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
        why_not = obstacle(device, dtype)
        if why_not and kernels:
            raise InputError(f"kernels=True, but Triton kernels cannot run: {why_not}")
        if why_not:
            warnings.warn(
                f"running without Triton kernels, on plain torch: {why_not}",
                RuntimeWarning,
                stacklevel=2,
            )
            return cls(attention=attention, names=names)
        chosen = TableAttention.tested(device, dtype, head_dim, fallback=attention)
        ops = _with_kernels(
            chosen, names | {"attention": chosen.description}, folds_padding=chosen.folds_padding
        )
        product = _product_for(device, dtype, head_dim)
        name = "torch" if product is no_product else "gluon (own, sm_90a)"
        return replace(ops, product=product, names={**ops.names, "product": name})


class TableAttention:
    """The attention that the shipped table prefers, for each class of shapes.

    Whatever a backend cannot take where it lies (strides, gradients, other dtypes) goes to the
    fallback.
    """

    def __init__(
        self,
        capability: tuple[int, int],
        backends: Mapping[Backend, Attention],
        fallback: Attention,
        failures: Mapping[Backend, str] | None = None,
    ) -> None:
        self._capability = capability
        self._backends = dict(backends)
        self._fallback = fallback
        self._failures = dict(failures or {})

    @classmethod
    def tested(
        cls, device: torch.device, dtype: torch.dtype, head_dim: int, fallback: Attention
    ) -> TableAttention:
        """With the backends of ``device`` that pass their test for heads of this size."""
        capability = torch.cuda.get_device_capability(device)
        passed: dict[Backend, Attention] = {}
        failures: dict[Backend, str] = {}
        for name, attend in _candidates(capability, dtype, head_dim).items():
            with torch.cuda.device(device):
                failure = _failure(attend, head_dim, dtype, str(device))
            if failure is None:
                passed[name] = attend
            else:
                failures[name] = failure
        if failures:
            warnings.warn(
                f"attention falls back: {failures}; please report this with your versions",
                RuntimeWarning,
                stacklevel=3,
            )
        return cls(capability, passed, fallback, failures)

    def without(self, backend: Backend) -> TableAttention:
        """The same choice, had this backend not been installed."""
        others = {name: one for name, one in self._backends.items() if name != backend}
        return TableAttention(self._capability, others, self._fallback, self._failures)

    @property
    def folds_padding(self) -> bool:
        """Whether a prompt's padding is folded by what cross-attention would take."""
        return self._chosen(AttentionSpec(1.0, "cross", zero_keys=1)) in ("hopper", "portable")

    @property
    def description(self) -> str:
        """For the report: what runs self-attention and cross-attention, and what failed."""
        self_name = self._name(self._chosen(AttentionSpec(1.0)))
        cross_name = self._name(
            self._chosen(AttentionSpec(1.0, "cross", zero_keys=int(self.folds_padding)))
        )
        failed = "".join(f"; {name} failed: {why}" for name, why in self._failures.items())
        return f"self {self_name}, cross {cross_name}{failed}"

    def __call__(
        self,
        q_BSHD: torch.Tensor,
        k_BSHD: torch.Tensor,
        v_BSHD: torch.Tensor,
        spec: AttentionSpec,
        /,
    ) -> Attended:
        chosen = self._chosen(spec)
        plain = q_BSHD.shape[-1] in (64, 128) and q_BSHD.dtype in ERROR_LIMIT
        if chosen is None or not plain or _needs_gradient(q_BSHD, k_BSHD, v_BSHD):
            return self._fallback(q_BSHD, k_BSHD, v_BSHD, spec)
        if chosen == "hopper" and not _reachable_by_tma(q_BSHD, k_BSHD, v_BSHD):
            return self._fallback(q_BSHD, k_BSHD, v_BSHD, spec)
        return self._backends[chosen](q_BSHD, k_BSHD, v_BSHD, spec)

    def _chosen(self, spec: AttentionSpec) -> Backend | None:
        if spec.precision != "input":
            return None
        for name in preferences(self._capability, shape_class(spec)):
            if name in ("cudnn", "sdpa"):
                return None
            if name in self._backends:
                return name
        return None

    def _name(self, chosen: Backend | None) -> str:
        if chosen is None:
            return "cudnn" if self._fallback is cudnn_attention else "torch sdpa"
        names = {"hopper": "gluon (own, sm_90a)", "portable": "triton (own)"}
        return names.get(chosen) or f"fa3-fwd {metadata.version('fa3-fwd')}"


def _candidates(
    capability: tuple[int, int], dtype: torch.dtype, head_dim: int
) -> dict[Backend, Attention]:
    """Backends beyond torch's own that could run on this device, none of them tested yet."""
    if dtype not in ERROR_LIMIT or head_dim not in (64, 128):
        return {}
    found: dict[Backend, Attention] = {"portable": _portable_attention()}
    if capability == (9, 0):
        found["hopper"] = _hopper_attention()
        if importlib.util.find_spec("fa3_fwd_interface") is not None:
            found["fa3"] = _fa3_attention()
    return found


def _failure(attend: Attention, head_dim: int, dtype: torch.dtype, device: str) -> str | None:
    """Why this attention must not be used; None if it is right."""
    return _why_wrong(lambda: self_test_error(attend, head_dim, dtype, device), ERROR_LIMIT[dtype])


def _why_wrong(error_of: Callable[[], float], limit: float) -> str | None:
    try:
        error = error_of()
    except torch.AcceleratorError:
        raise  # the device is lost to this process: nothing can fall back
    except Exception as problem:  # whatever a compiler or a foreign wheel raises; it is reported
        return f"{type(problem).__name__}: {problem}".splitlines()[0][:200]
    if not error <= limit:
        return f"relative error {error:.1e} where {limit:.0e} is the limit"
    return None


def _portable_attention() -> Attention:
    from cosmos_fast_kernels.attention import KeyBlocks, attention

    lists: dict[int, tuple[object, KeyBlocks]] = {}

    def blocks_of(spec: AttentionSpec, device: torch.device) -> KeyBlocks | None:
        """On the device, copied there once for each list; the list is kept, so is its id."""
        if spec.key_blocks is None:
            return None
        if id(spec.key_blocks) not in lists:
            made = KeyBlocks.from_lists(spec.key_blocks, device)
            lists[id(spec.key_blocks)] = (spec.key_blocks, made)
        return lists[id(spec.key_blocks)][1]

    def attend(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, spec: AttentionSpec, /
    ) -> Attended:
        blocks = blocks_of(spec, q.device)
        with torch.cuda.device_of(q):
            out, sums = attention(
                q,
                k,
                v,
                scale=spec.scale,
                zero_keys=spec.zero_keys,
                log_sum_exp=spec.log_sum_exp,
                key_blocks=blocks,
            )
        return Attended(out, sums)

    return attend


def _hopper_attention() -> Attention:
    from cosmos_fast_kernels.attention_hopper import hopper_attention

    def attend(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, spec: AttentionSpec, /
    ) -> Attended:
        out, sums = hopper_attention(
            q, k, v, scale=spec.scale, zero_keys=spec.zero_keys, log_sum_exp=spec.log_sum_exp
        )
        return Attended(out, sums)

    return attend


def _reachable_by_tma(*tensors_BSHD: torch.Tensor) -> bool:
    from cosmos_fast_kernels.attention_hopper import obstacle

    return obstacle(*tensors_BSHD) is None


def _fa3_attention() -> Attention:
    """The wheel ``fa3-fwd``, where its user has installed it."""

    def attend(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, spec: AttentionSpec, /
    ) -> Attended:
        function: Any = importlib.import_module("fa3_fwd_interface").flash_attn_func
        refuse_unsupported(spec, "the FlashAttention-3 wheel")
        k, v = padded(k, v, spec.zero_keys)
        out = function(q, k, v, softmax_scale=spec.scale)
        return Attended(out[0] if isinstance(out, tuple) else out)

    return attend


def _attention_for(device: torch.device, dtype: torch.dtype) -> tuple[Attention, str]:
    half = dtype in (torch.bfloat16, torch.float16)
    if device.type == "cuda" and half and torch.cuda.get_device_capability(device)[0] in (9, 10):
        return cudnn_attention, "cudnn"
    return torch_attention, "torch sdpa"


def _product_for(device: torch.device, dtype: torch.dtype, head_dim: int) -> Product:
    """Our own products where there are designs for ``device`` that pass their test."""
    fits = dtype == torch.bfloat16 and head_dim in (64, 128)
    if torch.cuda.get_device_capability(device) != CAPABILITY or not fits:
        return no_product
    with torch.cuda.device(device):
        failure = _why_wrong(
            lambda: product_error(_hopper_product, head_dim, str(device)), PRODUCT_ERROR_LIMIT
        )
    if failure is None:
        return table_product
    warnings.warn(
        f"products fall back to torch: {failure}; please report this with your versions",
        RuntimeWarning,
        stacklevel=3,
    )
    return no_product


def table_product(
    epilogue: Epilogue, x_BNK: torch.Tensor, weight_EK: torch.Tensor, following: Following
) -> torch.Tensor | None:
    """The product that the shipped table prefers on Hopper; None where that is torch's.

    Whatever the kernel cannot take where it lies (strides, gradients, other dtypes) is torch's too.
    """
    chosen = design(epilogue, x_BNK.shape[:-1].numel(), x_BNK.shape[-1])
    tokens = (x_BNK, following.residual_BND) if isinstance(following, Gated) else (x_BNK,)
    others = [one for one in following or () if isinstance(one, torch.Tensor)]
    if chosen is None or _needs_gradient(*tokens, weight_EK, *others):
        return None
    if not _is_laid_out(tokens, weight_EK):
        return None
    return _hopper_product(epilogue, chosen, x_BNK, weight_EK, following)


def _is_laid_out(tokens: tuple[torch.Tensor, ...], weight_EK: torch.Tensor) -> bool:
    """Whether TMA can move all of them from where they lie, clips as one."""
    whole = all(
        one.shape[0] == 1 or one.stride(0) == one.shape[1] * one.stride(1) for one in tokens
    )
    movable = all(
        one.dtype == torch.bfloat16
        and one.stride(-1) == 1
        and one.stride(-2) % 8 == 0
        and one.data_ptr() % 16 == 0
        for one in (*tokens, weight_EK)
    )
    outputs, inputs = weight_EK.shape
    return whole and movable and outputs % 64 == 0 and inputs % 64 == 0


def _hopper_product(
    epilogue: Epilogue,
    name: str,
    x_BNK: torch.Tensor,
    weight_EK: torch.Tensor,
    following: Following,
) -> torch.Tensor:
    from cosmos_fast_kernels import linear_hopper as kernels

    given = (x_BNK.flatten(0, 1), weight_EK)
    options: dict[str, Any] = {"config": kernels.DESIGNS[name]}
    if isinstance(following, Gated):
        residual_MD = following.residual_BND.flatten(0, 1)
        gates = (following.gate_BTD.flatten(0, 1), _frame_of_rows(following))
        kernels.linear_gated_residual(*given, residual_MD, *gates, out=residual_MD, **options)
        return following.residual_BND
    if isinstance(following, Normed):
        out_ME = kernels.linear_head_norm(*given, *following, **options)
    elif isinstance(following, Turned):
        q_norm, k_norm, cos, sin, eps = following
        out_ME = kernels.linear_qk_norm_rope(*given, q_norm, k_norm, cos, sin, eps, **options)
    else:
        multiply = kernels.linear_gelu if epilogue == "gelu" else kernels.linear
        out_ME = multiply(*given, **options)
    return out_ME.view(*x_BNK.shape[:2], -1)


def _frame_of_rows(gated: Gated) -> torch.Tensor | None:
    """The frame of each token among those of all clips."""
    batch, frames = gated.gate_BTD.shape[:2]
    if gated.frame_N is None or batch == 1:
        return gated.frame_N
    first_B1 = torch.arange(0, batch * frames, frames, device=gated.frame_N.device)[:, None]
    return (first_B1 + gated.frame_N).flatten()


def _with_kernels(
    attention: Attention, names: dict[str, str], *, folds_padding: bool = False
) -> Ops:
    from cosmos_fast_kernels.gated_layernorm_modulate import (
        gated_layernorm_modulate,
        gated_residual,
    )
    from cosmos_fast_kernels.layernorm_modulate import layernorm_modulate
    from cosmos_fast_kernels.qk_norm_rope import head_norm, qk_norm_rope
    from cosmos_fast_kernels.rms_silu import rms_silu
    from cosmos_fast_kernels.upsample import upsample

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

    def gated_residual_op(
        x: torch.Tensor, gate: torch.Tensor, y: torch.Tensor, frame: torch.Tensor | None
    ) -> torch.Tensor:
        if _needs_gradient(x, gate, y):
            return reference.gated_residual(x, gate, y, frame)
        return gated_residual(x, gate, y, frame, out=x)

    def gated_layernorm_modulate_op(
        x: torch.Tensor,
        gate: torch.Tensor,
        y: torch.Tensor,
        shift: torch.Tensor,
        scale: torch.Tensor,
        frame: torch.Tensor | None,
        eps: float,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if _needs_gradient(x, gate, y, shift, scale):
            return reference.gated_layernorm_modulate(x, gate, y, shift, scale, frame, eps)
        return gated_layernorm_modulate(x, gate, y, shift, scale, frame, eps, out=(x, y))

    fused = tuple(name for name in _FUSED if name not in ("attention", "product"))
    return Ops(
        gated_residual=gated_residual_op,
        gated_layernorm_modulate=gated_layernorm_modulate_op,
        folds_padding=folds_padding,
        rms_silu=rms_silu,
        upsample=upsample,
        qk_norm_rope=qk_norm_rope_op,
        head_norm=head_norm_op,
        layernorm_modulate=layernorm_modulate_op,
        attention=attention,
        names={"product": "torch"} | names | dict.fromkeys(fused, "triton"),
    )


def _needs_gradient(*tensors: torch.Tensor) -> bool:
    """Kernels have no backward pass: training goes through torch."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
