"""Self-attention over tokens that several ranks hold, around any attention of the network's seam.

Axes: B batch, S positions of the whole clip, N those of this rank, H heads, D features, R ranks.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch

from cosmos_fast.parallel.heads import Form, K, V, WindowedHeads

if TYPE_CHECKING:
    from cosmos_fast.parallel.exchange import Exchange, Pending
    from cosmos_fast.parallel.heads import Sending
    from cosmos_fast.parallel.shards import Shards


class Inner(Protocol):
    """``attention(q, k, v, spec)`` in (B, S, H, D); returns a named tuple ``(out_BSHD,
    log_sum_exp_BSH or None)``. The spec is a dataclass with ``role`` and ``log_sum_exp``."""

    def __call__(
        self, q_BSHD: torch.Tensor, k_BSHD: torch.Tensor, v_BSHD: torch.Tensor, spec: Any, /
    ) -> Any: ...


class SharedAttention:
    """Attention that sees all tokens of the clip where each rank passes its own.

    Between runs, and for attention over text, it is the attention inside it.
    """

    def __init__(
        self, inner: Inner, exchange: Exchange, pieces: int, *, windows: bool = True
    ) -> None:
        self._inner, self._exchange, self._pieces = inner, exchange, pieces
        self.shards: Shards | None = None
        """Who holds which tokens during a run; None between runs."""
        self.way: Literal["heads", "ring"] = "heads"
        self.uses_windows = windows
        """Whether heads go by windows rather than messages; no more once that was tried in vain."""
        self._windowed: WindowedHeads | None = None

    def __call__(
        self, q_BNHD: torch.Tensor, k_BNHD: torch.Tensor, v_BNHD: torch.Tensor, spec: Any, /
    ) -> Any:
        if not self._shares(spec):
            return self._inner(q_BNHD, k_BNHD, v_BNHD, spec)
        if self._goes_round(q_BNHD.shape[2]):
            return self._by_ring(q_BNHD, k_BNHD, v_BNHD, spec)
        sending = self.begin(q_BNHD.shape[0], q_BNHD.shape[2], q_BNHD.shape[3], q_BNHD.dtype, spec)
        if sending is None:
            return self._by_heads(q_BNHD, k_BNHD, v_BNHD, spec)
        sending.give(V, v_BNHD)
        sending.give(K, k_BNHD)
        return sending.attended(q_BNHD)

    def begin(
        self, batch: int, heads: int, features: int, dtype: torch.dtype, spec: Any
    ) -> Sending | None:
        """What takes values and keys as they are made; None where they are wanted all at once.

        On every rank the same, which all ask in the same order.
        """
        if not self._shares(spec) or self._goes_round(heads) or not self.uses_windows:
            return None
        assert self.shards is not None
        if self._windowed is None:
            self._windowed = WindowedHeads(self._exchange, self.shards)
        form = Form(batch, heads, features, dtype)
        self.uses_windows = self._windowed.ready(form)
        return self._windowed.sharing(form, self._inner, spec) if self.uses_windows else None

    def end(self, *, together: bool = True) -> None:
        """Self-attention is shared no more.

        Args:
            together: all ranks come to this; else what others may still write to stays as it is.
        """
        windowed, self._windowed, self.shards = self._windowed, None, None
        if windowed is not None and together:
            windowed.close()
        elif windowed is not None:
            windowed.abandon()

    def _shares(self, spec: Any) -> bool:
        if self.shards is None or self.shards.mesh.context == 1 or spec.role != "self":
            return False
        if spec.log_sum_exp or spec.key_blocks is not None:
            from cosmos_fast.errors import InputError

            raise InputError(f"{spec = }: attention shared by ranks is dense")
        return True

    def _goes_round(self, heads: int) -> bool:
        """Where memory is short heads come in groups, which need not divide by the ranks as all of
        them do."""
        assert self.shards is not None
        return self.way == "ring" or heads % self.shards.mesh.context != 0

    def _by_heads(
        self, q_BNHD: torch.Tensor, k_BNHD: torch.Tensor, v_BNHD: torch.Tensor, spec: Any
    ) -> Any:
        """All-to-all: all heads of some tokens become all tokens of some heads, and back.

        (DeepSpeed-Ulysses, arXiv 2309.14509.) By messages, for ranks that cannot write into each
        other's memory. The heads go in pieces, so that one piece moves while the piece before it is
        attended to.
        """
        assert self.shards is not None
        batch, tokens, heads, features = q_BNHD.shape
        ranks = self.shards.mesh.context
        here = heads // ranks
        pieces = self._pieces if here % self._pieces == 0 else 1
        qkv = [each.unflatten(2, (ranks, pieces, -1)) for each in (q_BNHD, k_BNHD, v_BNHD)]
        arriving = [
            self._scatter_heads([x[:, :, :, piece] for x in qkv]) for piece in range(pieces)
        ]
        returning, attended = [], None
        for pending in arriving:
            q, k, v = pending.wait().view(-1, batch, 3, here // pieces, features).unbind(2)
            attended = self._inner(q.transpose(0, 1), k.transpose(0, 1), v.transpose(0, 1), spec)
            returning.append(self._gather_heads(attended.out_BSHD.transpose(0, 1)))
        out = q_BNHD.new_empty(batch, tokens, ranks, pieces, here // pieces, features)
        for piece, pending in enumerate(returning):
            parts = pending.wait().view(ranks, tokens, batch, here // pieces, features)
            out[:, :, :, piece] = parts.permute(2, 1, 0, 3, 4)
        assert attended is not None
        return attended._replace(out_BSHD=out.flatten(2, 4))

    def _scatter_heads(self, qkv_BNRHD: list[torch.Tensor]) -> Pending:
        """Starts sending each partner its heads of this rank's tokens, token slowest."""
        assert self.shards is not None
        batch, tokens, ranks, heads, features = qkv_BNRHD[0].shape
        packed = qkv_BNRHD[0].new_empty(ranks, tokens, batch, 3, heads, features)
        for number, x_BNRHD in enumerate(qkv_BNRHD):
            packed[:, :, :, number] = x_BNRHD.permute(2, 1, 0, 3, 4)
        each = packed[0, 0].numel()
        return self._exchange.start(
            packed,
            self._among_partners([tokens * each] * ranks),
            self._among_partners([len(share) * each for share in self.shards.ranges]),
        )

    def _gather_heads(self, out_SBHD: torch.Tensor) -> Pending:
        """Starts sending each partner its tokens of this rank's heads."""
        assert self.shards is not None
        each, own = out_SBHD[0].numel(), len(self.shards.own)
        return self._exchange.start(
            out_SBHD.contiguous(),
            self._among_partners([len(share) * each for share in self.shards.ranges]),
            self._among_partners([own * each] * self.shards.mesh.context),
        )

    def _by_ring(
        self, q_BNHD: torch.Tensor, k_BNHD: torch.Tensor, v_BNHD: torch.Tensor, spec: Any
    ) -> Any:
        """Keys and values go round; the parts are merged by their log-sum-exp.

        (Ring Attention, arXiv 2310.01889; merged in float32 as in FlashAttention's split form.)
        The next part is under way while this one is attended to.
        """
        assert self.shards is not None
        mesh, ranges = self.shards.mesh, self.shards.ranges
        spec = replace(spec, log_sum_exp=True)
        part_NB2HD = torch.stack((k_BNHD, v_BNHD), dim=2).transpose(0, 1).contiguous()
        out_BNHD, total_BNH = None, None
        for turn in range(mesh.context):
            moving = None
            if turn + 1 < mesh.context:
                coming = ranges[(mesh.place - turn - 1) % mesh.context]
                moving = self._pass_on(part_NB2HD, len(coming) * part_NB2HD[0].numel())
            k, v = part_NB2HD.transpose(0, 1).unbind(2)
            attended = self._inner(q_BNHD, k, v, spec)
            out_BNHD, total_BNH = _merged(out_BNHD, total_BNH, *attended)
            if moving is not None:
                part_NB2HD = moving.wait().view(-1, *part_NB2HD.shape[1:])
        assert out_BNHD is not None
        return attended._replace(out_BSHD=out_BNHD.to(q_BNHD.dtype), log_sum_exp_BSH=None)

    def _pass_on(self, part: torch.Tensor, coming: int) -> Pending:
        """Starts sending ``part`` to the next partner and receiving from the one before."""
        assert self.shards is not None
        mesh = self.shards.mesh
        send, receive = [0] * mesh.context, [0] * mesh.context
        send[(mesh.place + 1) % mesh.context] = part.numel()
        receive[(mesh.place - 1) % mesh.context] = coming
        return self._exchange.start(part, self._among_partners(send), self._among_partners(receive))

    def _among_partners(self, counts: list[int]) -> list[int]:
        """Counts for every rank of the group: nothing for those of the other branch."""
        assert self.shards is not None
        mesh = self.shards.mesh
        return [
            counts[rank - mesh.partners.start] if rank in mesh.partners else 0
            for rank in range(mesh.size)
        ]


def _merged(
    out: torch.Tensor | None,
    total: torch.Tensor | None,
    part_BNHD: torch.Tensor,
    sums_BNH: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention over two sets of keys, from attention over each and its log-sum-exp; float32."""
    if out is None or total is None:
        return part_BNHD.float(), sums_BNH
    both = torch.logaddexp(total, sums_BNH)
    old, new = (total - both).exp()[..., None], (sums_BNH - both).exp()[..., None]
    return out * old + part_BNHD.float() * new, both
