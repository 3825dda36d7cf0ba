"""What each kernel computes, in plain torch.

The kernels are tested against these functions, and these are what runs where no kernel can. They
are differentiable. Every one of them computes in float32 and rounds once, to the dtype of its
first argument.

Axes: B batch, N tokens, H heads, D features (of a head in ``*_BNHD``, of a token in ``*_BND``),
R = D / 2 rotation angles, T frames; in the functions of the VAE C channels, H W rows and columns;
in products M rows (tokens), K inputs, N outputs, F frames, L tokens of a sequence.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


def head_norm(
    x_BNHD: torch.Tensor,
    weight_D: torch.Tensor,
    eps: float,
    angles: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> torch.Tensor:
    """RMS norm over each head, and with ``angles``, cos_NR and sin_NR, the rotation that pairs
    feature j with j + D/2."""
    normed = _normed(x_BNHD, weight_D, eps)
    return (normed if angles is None else _rotated(normed, *angles)).to(x_BNHD.dtype)


def qk_norm_rope(
    q_BNHD: torch.Tensor,
    k_BNHD: torch.Tensor,
    q_weight_D: torch.Tensor,
    k_weight_D: torch.Tensor,
    cos_NR: torch.Tensor,
    sin_NR: torch.Tensor,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """:func:`head_norm` of q and k, with the rotation."""
    q = head_norm(q_BNHD, q_weight_D, eps, (cos_NR, sin_NR))
    k = head_norm(k_BNHD, k_weight_D, eps, (cos_NR, sin_NR))
    return q, k


def layernorm_modulate(
    x_BND: torch.Tensor,
    shift_BTD: torch.Tensor,
    scale_BTD: torch.Tensor,
    frame_N: torch.Tensor | None,
    eps: float,
) -> torch.Tensor:
    """LayerNorm without weights, times (1 + scale), plus shift, by the frame of each token.

    ``frame_N`` is the frame of each token (int64); None: N / T consecutive tokens to a frame.
    """
    normed = F.layer_norm(x_BND.float(), x_BND.shape[-1:], eps=eps)
    gain, shift = scale_BTD.float() + 1, shift_BTD.float()
    if frame_N is not None:
        return torch.addcmul(shift[:, frame_N], normed, gain[:, frame_N]).to(x_BND.dtype)
    normed_BTnD = normed.unflatten(1, (shift_BTD.shape[1], -1))
    out = torch.addcmul(shift[:, :, None], normed_BTnD, gain[:, :, None])
    return out.flatten(1, 2).to(x_BND.dtype)


def gated_residual(
    x_BND: torch.Tensor,
    gate_BTD: torch.Tensor,
    y_BND: torch.Tensor,
    frame_N: torch.Tensor | None,
) -> torch.Tensor:
    """x + gate · y, by the frame of each token; ``frame_N`` as in :func:`layernorm_modulate`."""
    if frame_N is not None:
        return torch.addcmul(x_BND, gate_BTD[:, frame_N], y_BND)
    frames = (gate_BTD.shape[1], -1)
    return torch.addcmul(
        x_BND.unflatten(1, frames), gate_BTD[:, :, None], y_BND.unflatten(1, frames)
    ).flatten(1, 2)


def gated_layernorm_modulate(
    x_BND: torch.Tensor,
    gate_BTD: torch.Tensor,
    y_BND: torch.Tensor,
    shift_BTD: torch.Tensor,
    scale_BTD: torch.Tensor,
    frame_N: torch.Tensor | None,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """:func:`gated_residual`, rounded, and :func:`layernorm_modulate` of it."""
    total_BND = gated_residual(x_BND, gate_BTD, y_BND, frame_N)
    return total_BND, layernorm_modulate(total_BND, shift_BTD, scale_BTD, frame_N, eps)


def linear_gelu(x_MK: torch.Tensor, weight_NK: torch.Tensor) -> torch.Tensor:
    """GELU, in its exact form, of x Wᵀ."""
    return F.gelu(F.linear(x_MK.float(), weight_NK.float())).to(x_MK.dtype)


def linear_gated_residual(
    x_MK: torch.Tensor,
    weight_NK: torch.Tensor,
    residual_MN: torch.Tensor,
    gate_FN: torch.Tensor,
    frame_M: torch.Tensor | None,
) -> torch.Tensor:
    """residual + gate · (x Wᵀ), by the frame of each row; None: M / F consecutive rows to one."""
    product_MN = F.linear(x_MK.float(), weight_NK.float())
    if frame_M is None:
        gate_MN = gate_FN.repeat_interleave(product_MN.shape[0] // gate_FN.shape[0], dim=0)
    else:
        gate_MN = gate_FN[frame_M]
    return torch.addcmul(residual_MN.float(), gate_MN.float(), product_MN).to(x_MK.dtype)


def linear_head_norm(
    x_MK: torch.Tensor, weight_NK: torch.Tensor, norm_D: torch.Tensor, eps: float
) -> torch.Tensor:
    """:func:`head_norm` of the heads of x Wᵀ."""
    product_MHD = F.linear(x_MK.float(), weight_NK.float()).unflatten(1, (-1, len(norm_D)))
    return _normed(product_MHD, norm_D, eps).flatten(1).to(x_MK.dtype)


def linear_qk_norm_rope(
    x_MK: torch.Tensor,
    weight_NK: torch.Tensor,
    q_norm_D: torch.Tensor,
    k_norm_D: torch.Tensor,
    cos_LR: torch.Tensor,
    sin_LR: torch.Tensor,
    eps: float,
) -> torch.Tensor:
    """:func:`qk_norm_rope` of q and k, where x Wᵀ is q of every head, then k, then v.

    Row m has the angles of token m mod L. The result is laid out as the product is.
    """
    product_MN = F.linear(x_MK.float(), weight_NK.float())
    product_BLN = product_MN.unflatten(0, (len(product_MN) // len(cos_LR), len(cos_LR)))
    q, k, v = product_BLN.unflatten(2, (3, -1, len(q_norm_D))).unbind(2)
    q, k = qk_norm_rope(q, k, q_norm_D, k_norm_D, cos_LR, sin_LR, eps)
    return torch.stack((q, k, v), dim=2).view(product_MN.shape).to(x_MK.dtype)


def rms_silu(
    x_BTHWC: torch.Tensor,
    gamma_C: torch.Tensor | None,
    bias_C: torch.Tensor | None,
    residual_BTHWC: torch.Tensor | None,
    residual_bias_C: torch.Tensor | None,
    earlier_BTHWC: torch.Tensor | None,
    history: int,
    *,
    keep_total: bool,
    kept_BTHWC: torch.Tensor | None = None,
    border: int = 0,
) -> tuple[torch.Tensor | None, torch.Tensor, torch.Tensor]:
    """The end of one causal convolution and the way into the next.

    The sum x + bias + residual + its bias, rounded; of that the SiLU of each position's channel
    vector, scaled to length √C and by gamma (or the sum itself, where gamma is None), behind the
    ``history`` frames before it (zeros where ``earlier`` is None); and the last frames of that, in
    ``kept`` where it is given. With a ``border``, so many rows above and below each assembled frame
    are room for who knows them: nobody has written there.
    """
    total = x_BTHWC.float()
    for addend in (bias_C, residual_bias_C, residual_BTHWC):
        total = total if addend is None else total + addend.float()
    value = total = total.to(x_BTHWC.dtype)
    if gamma_C is not None:
        wide = total.float()
        square = wide.square().sum(-1, keepdim=True).clamp_min(1e-24)
        gain = gamma_C.float() * x_BTHWC.shape[-1] ** 0.5
        value = F.silu(wide * square.rsqrt() * gain).to(x_BTHWC.dtype)
    if earlier_BTHWC is None:
        earlier_BTHWC = value.new_zeros((value.shape[0], history, *value.shape[2:]))
    padded = torch.cat((earlier_BTHWC, value), dim=1)
    last = padded[:, padded.shape[1] - history :]
    kept = last.clone() if kept_BTHWC is None else kept_BTHWC.copy_(last)
    return total if keep_total else None, _bordered(padded, border), kept


def upsample(
    x_BTHWC: torch.Tensor, bias_C: torch.Tensor | None, *, in_time: bool, border: int = 0
) -> torch.Tensor:
    """Every position four times, 2 x 2, with ``bias`` added before, and a ``border`` around frames
    as ``rms_silu`` has it.

    ``in_time``: x holds pairs, the channels of the earlier frame and then those of the later one,
    and twice as many frames come out.
    """
    if bias_C is not None:
        x_BTHWC = (x_BTHWC.float() + bias_C.float()).to(x_BTHWC.dtype)
    if in_time:
        x_BTHWC = x_BTHWC.unflatten(4, (2, -1)).permute(0, 1, 4, 2, 3, 5).flatten(1, 2)
    return _bordered(x_BTHWC.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3), border)


def _bordered(x_BTHWC: torch.Tensor, border: int) -> torch.Tensor:
    """``x`` between rows that nobody has written."""
    if not border:
        return x_BTHWC
    batch, frames, height, *rest = x_BTHWC.shape
    wide = x_BTHWC.new_empty((batch, frames, height + 2 * border, *rest))
    wide[:, :, border : border + height] = x_BTHWC
    return wide


def _normed(x_BNHD: torch.Tensor, weight_D: torch.Tensor, eps: float) -> torch.Tensor:
    wide = x_BNHD.float()
    return wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight_D.float()


def _rotated(x_BNHD: torch.Tensor, cos_NR: torch.Tensor, sin_NR: torch.Tensor) -> torch.Tensor:
    first, second = x_BNHD.chunk(2, dim=-1)
    cos, sin = cos_NR[:, None], sin_NR[:, None]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
