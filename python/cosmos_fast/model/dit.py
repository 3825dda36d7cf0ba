"""The diffusion transformer of Cosmos-Predict2 (NVIDIA ``MinimalV1LVGDiT``), top to bottom.

Axes: B batch, C channels, T latent frames, H W latent rows and columns, N tokens (patches of
1 x 2 x 2), D width, S rows of text, E outputs of a linear. Heads are split as (B, N, heads, D).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import nn

from cosmos_fast.errors import InputError
from cosmos_fast.model.attention import AttentionSpec
from cosmos_fast.model.cuts import LAYER_NORM_EPS, Cut, in_pieces
from cosmos_fast.model.embeddings import ActionContext, ActionEmbedding, Modulation, TimeEmbedding
from cosmos_fast.model.patches import patchify, unpatchify
from cosmos_fast.model.rope import Rope, rope
from cosmos_fast.types import TokenLayout

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cosmos_fast.config import DiTConfig, RopeTable
    from cosmos_fast.model.ops import Ops

_TEXT_BLOCK = 128
"""Rows of text are kept in multiples of this: keys in one step of our attention kernels."""


class TextContext(NamedTuple):
    """Keys and values of a prompt for the cross-attention of every block; constant over a run."""

    blocks: Sequence[torch.Tensor]
    """One tensor a block: network dtype, shape (B or 1, S, 2, heads, head_dim), keys normed."""
    zero_keys: int = 0
    """Further rows of padding, whose keys and values are zeros, that are counted and not kept."""


class Modulations(NamedTuple):
    """Every AdaLN vector of a forward pass: a function of time alone, so a run can tabulate it."""

    blocks_LKBTE: torch.Tensor | Sequence[torch.Tensor]
    """Network dtype, shape (L, 3, B, T, 3·D): per block and sub-layer shift, scale and gate."""
    final_BTE: torch.Tensor
    """Network dtype, shape (B, T, 2·D): shift and scale of the final layer."""

    def at(self, index_BT: torch.Tensor) -> Modulations:
        """Rows of a table that was made from times of shape (1, R): index (B, T) of 0 to R - 1."""
        table = self.blocks_LKBTE
        if isinstance(table, torch.Tensor):
            return Modulations(table[:, :, 0, index_BT], self.final_BTE[0, index_BT])
        rows = AsUsed(lambda index: table[index][:, 0, index_BT], len(table))
        return Modulations(rows, self.final_BTE[0, index_BT])


class Placement(NamedTuple):
    """Where each token is."""

    rope: Rope
    frame_N: torch.Tensor | None
    """int64 latent frame of each token; None in raster order, where N / T tokens share one."""
    cut: Cut = Cut()


class SelfAttention(nn.Module):
    def __init__(self, config: DiTConfig, ops: Ops) -> None:
        super().__init__()
        self.ops = ops
        self.heads = (3, config.num_heads, config.head_dim)
        self.spec = AttentionSpec(config.head_dim**-0.5, role="self")
        self.qkv_proj = nn.Linear(config.width, 3 * config.width, bias=False)
        self.q_norm = nn.RMSNorm(config.head_dim, eps=config.qk_norm_eps)
        self.k_norm = nn.RMSNorm(config.head_dim, eps=config.qk_norm_eps)
        self.output_proj = nn.Linear(config.width, config.width, bias=False)
        self.eps = config.qk_norm_eps

    def attended(self, x_BND: torch.Tensor, rope: Rope) -> torch.Tensor:
        """What the output projection reads."""
        norms = (self.q_norm.weight, self.k_norm.weight)
        q, k, v = self.ops.linear_qk_norm_rope(x_BND, self.qkv_proj.weight, *norms, *rope, self.eps)
        return self.ops.attention(q, k, v, self.spec).out_BSHD.flatten(2)


class CrossAttention(nn.Module):
    def __init__(self, config: DiTConfig, ops: Ops) -> None:
        super().__init__()
        self.ops = ops
        self.heads = (config.num_heads, config.head_dim)
        self.spec = AttentionSpec(config.head_dim**-0.5, role="cross")
        self.q_proj = nn.Linear(config.width, config.width, bias=False)
        self.kv_proj = nn.Linear(config.text_dim, 2 * config.width, bias=False)
        self.q_norm = nn.RMSNorm(config.head_dim, eps=config.qk_norm_eps)
        self.k_norm = nn.RMSNorm(config.head_dim, eps=config.qk_norm_eps)
        self.output_proj = nn.Linear(config.width, config.width, bias=False)
        self.eps = config.qk_norm_eps

    def keys_and_values(self, rows_BSC: torch.Tensor) -> torch.Tensor:
        """(B, S, 2, heads, head_dim) of a prompt."""
        k, v = self.kv_proj(rows_BSC).unflatten(-1, (2, *self.heads)).unbind(2)
        return torch.stack((self.ops.head_norm(k, self.k_norm.weight, self.eps), v), dim=2)

    def attended(
        self, x_BND: torch.Tensor, text_BS2HD: torch.Tensor, zero_keys: int = 0
    ) -> torch.Tensor:
        """What the output projection reads."""
        q = self.ops.linear_head_norm(x_BND, self.q_proj.weight, self.q_norm.weight, self.eps)
        k, v = text_BS2HD.expand(x_BND.shape[0], -1, -1, -1, -1).unbind(2)
        spec = replace(self.spec, zero_keys=zero_keys) if zero_keys else self.spec
        return self.ops.attention(q, k, v, spec).out_BSHD.flatten(2)


class MLP(nn.Module):
    def __init__(self, config: DiTConfig, ops: Ops) -> None:
        super().__init__()
        self.ops = ops
        self.layer1 = nn.Linear(config.width, config.mlp_width, bias=False)
        self.layer2 = nn.Linear(config.mlp_width, config.width, bias=False)

    def hidden(self, x_BND: torch.Tensor) -> torch.Tensor:
        """What the second layer reads."""
        return self.ops.linear_gelu(x_BND, self.layer1.weight)


class Block(nn.Module):
    """Self-attention, cross-attention and MLP, each with its own AdaLN.

    What moves through memory besides the matrix products and attention, in reads and writes of a
    tensor of N x D, with the kernels of :mod:`cosmos_fast.model.ops`: on Hopper, where products
    take what follows them along, and elsewhere.

    ========================================================  ======  =========
    pass                                                      Hopper  elsewhere
    ========================================================  ======  =========
    norm and modulation before self-attention                      2          2
    norm and rotation of q and k, where the projection is          4          4
    gate and residual behind attention, twice                      2          8
    norm and modulation that follow those, twice                   4
    norm of the queries of cross-attention                                    2
    GELU between the two layers of the MLP, 4 D wide                          8
    gate and residual at the end                                   1          3
    ========================================================  ======  =========

    13 in all on Hopper (15 for the 14B, whose heads are normed by a pass), 27 elsewhere. A
    product's own write of its result is not counted; the reads of the residual stream that a gated
    product makes are. At 27,216 tokens of the 2B 13 are 1.4 GB, 0.34 ms at the 4.2 TB/s that a copy
    reaches on an H200, 10 ms of a forward.
    """

    def __init__(self, config: DiTConfig, ops: Ops) -> None:
        super().__init__()
        self.ops = ops
        self.self_attn = SelfAttention(config, ops)
        self.cross_attn = CrossAttention(config, ops)
        self.mlp = MLP(config, ops)
        self.self_attn_modulation = Modulation(config, parts=3)
        self.cross_attn_modulation = Modulation(config, parts=3)
        self.mlp_modulation = Modulation(config, parts=3)

    def modulations(self, time_BTD: torch.Tensor, shared_BTE: torch.Tensor) -> torch.Tensor:
        """(3, B, T, 3·D): shift, scale and gate of each sub-layer."""
        return torch.stack(
            (
                self.self_attn_modulation(time_BTD, shared_BTE),
                self.cross_attn_modulation(time_BTD, shared_BTE),
                self.mlp_modulation(time_BTD, shared_BTE),
            )
        )

    def forward(
        self,
        x_BND: torch.Tensor,
        modulation_KBTE: torch.Tensor,
        placement: Placement,
        text_BS2HD: torch.Tensor,
        zero_keys: int = 0,
    ) -> torch.Tensor:
        if placement.cut != Cut():
            text = (text_BS2HD, zero_keys)
            return in_pieces(self, placement.cut, x_BND, modulation_KBTE, placement, text)
        self_attn, cross_attn, mlp = (part.chunk(3, dim=-1) for part in modulation_KBTE.unbind(0))
        frame_N, ops = placement.frame_N, self.ops

        shift_BTD, scale_BTD, gate_BTD = self_attn
        y_BND = ops.layernorm_modulate(x_BND, shift_BTD, scale_BTD, frame_N, LAYER_NORM_EPS)
        y_BND = self.self_attn.attended(y_BND, placement.rope)
        weight_DD = self.self_attn.output_proj.weight

        # Padding alone has values of zeros: without a prompt this sub-layer adds nothing.
        if text_BS2HD.shape[1]:
            x_BND, y_BND = self._joined(x_BND, gate_BTD, y_BND, weight_DD, cross_attn, frame_N)
            y_BND = self.cross_attn.attended(y_BND, text_BS2HD, zero_keys)
            gate_BTD, weight_DD = cross_attn[2], self.cross_attn.output_proj.weight

        x_BND, y_BND = self._joined(x_BND, gate_BTD, y_BND, weight_DD, mlp, frame_N)
        y_BNE, gate_BTD = self.mlp.hidden(y_BND), mlp[2]
        return ops.linear_gated_residual(x_BND, gate_BTD, y_BNE, self.mlp.layer2.weight, frame_N)

    def _joined(
        self,
        x_BND: torch.Tensor,
        gate_BTD: torch.Tensor,
        y_BND: torch.Tensor,
        weight_DD: torch.Tensor,
        following: tuple[torch.Tensor, ...],
        frame_N: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The residual stream with one sub-layer added, and what the following one reads."""
        shift_BTD, scale_BTD, _ = following
        return self.ops.linear_gated_layernorm_modulate(
            x_BND, gate_BTD, y_BND, weight_DD, shift_BTD, scale_BTD, frame_N, LAYER_NORM_EPS
        )


class FinalLayer(nn.Module):
    def __init__(self, config: DiTConfig, ops: Ops) -> None:
        super().__init__()
        self.ops = ops
        self.modulation = Modulation(config, parts=2)
        self.linear = nn.Linear(config.width, config.out_channels * config.patch**2, bias=False)

    def forward(
        self, x_BND: torch.Tensor, modulation_BTE: torch.Tensor, frame_N: torch.Tensor | None
    ) -> torch.Tensor:
        shift_BTD, scale_BTD = modulation_BTE.chunk(2, dim=-1)
        y_BND = self.ops.layernorm_modulate(x_BND, shift_BTD, scale_BTD, frame_N, LAYER_NORM_EPS)
        out_BNE: torch.Tensor = self.linear(y_BND)
        return out_BNE


class DiT(nn.Module):
    """The velocity that the rectified flow follows at a scaled sample, a time and a prompt.

    Everything that does not change over a run can be made once: :meth:`text_context`,
    :meth:`rope` and :meth:`modulations`. Attention and the fused operations come from ``ops``.
    """

    def __init__(self, config: DiTConfig, ops: Ops, rope_table: RopeTable = "reference") -> None:
        super().__init__()
        self.config = config
        self.rope_table: RopeTable = rope_table
        self.folds_padding = ops.folds_padding
        self.patch_embed = nn.Linear(config.patch_features, config.width, bias=False)
        self.time_embed = TimeEmbedding(config.width)
        self.action_embed = ActionEmbedding(config) if config.action_inputs else None
        self.blocks = nn.ModuleList(Block(config, ops) for _ in range(config.num_layers))
        self.final_layer = FinalLayer(config, ops)

    @property
    def dtype(self) -> torch.dtype:
        """dtype of the weights, of the residual stream, and of x and t as the network sees them."""
        return self.patch_embed.weight.dtype

    def text_context(
        self, rows_BSC: torch.Tensor, length: int | None = None, *, as_used: bool = False
    ) -> TextContext:
        """Cross-attention keys and values of every block; all rows count, zero rows too.

        Args:
            rows_BSC: text embedding, any float dtype, shape (B, 512, text_dim).
            length: rows from this one on are known to be zeros: no projection has a bias, so that
                their keys and values are zeros, and they need not be kept. None: keep all.
            as_used: each block's part is made when the block first asks for it: for weights that
                are on the device for the moment of their use only.

        Raises:
            InputError: the rows have another width.
        """
        if rows_BSC.ndim != 3 or rows_BSC.shape[-1] != self.config.text_dim:
            raise InputError(
                f"text of shape {tuple(rows_BSC.shape)}: (B, rows, {self.config.text_dim}) is "
                f"what this network attends to"
            )
        kept = self._kept_rows(rows_BSC.shape[1], length)
        given_BSC = rows_BSC[:, :kept].to(self.dtype)
        blocks = list(self._blocks())

        def make(index: int) -> torch.Tensor:
            return blocks[index].cross_attn.keys_and_values(given_BSC)

        made = AsUsed(make, len(blocks))
        return TextContext(made if as_used else tuple(made), rows_BSC.shape[1] - kept)

    def action_context(self, actions_BCD: torch.Tensor | None) -> ActionContext | None:
        """What a chunk of actions adds to the time embedding; None for networks without actions.

        Args:
            actions_BCD: float (B, chunk, dim) in the network's scale, of ``action_inputs`` values.

        Raises:
            InputError: actions of another size, none where they are needed, or needless ones.
        """
        wanted = self.config.action_inputs
        given = 0 if actions_BCD is None else actions_BCD[:1].numel()
        if given != wanted:
            raise InputError(
                f"{given} numbers of action, where {wanted} enter this network with each chunk"
            )
        if actions_BCD is None or self.action_embed is None:
            return None
        context: ActionContext = self.action_embed(actions_BCD.flatten(1))
        return context

    def modulations(self, t_BT: torch.Tensor, action: ActionContext | None = None) -> Modulations:
        """The AdaLN vectors at times ``t_BT`` (float, 0 to 1), to pass to :meth:`forward`.

        Args:
            action: from :meth:`action_context`, of batch B or 1.
        """
        time = self.time_embed(t_BT, self._needed(action))
        return Modulations(
            torch.stack([block.modulations(*time) for block in self._blocks()]),
            self.final_layer.modulation(*time),
        )

    def modulations_as_used(self, t_BT: torch.Tensor) -> Modulations:
        """The same, each block's part made when it is first asked for."""
        time = self.time_embed(t_BT, self._needed(None))
        blocks = list(self._blocks())
        made = AsUsed(lambda index: blocks[index].modulations(*time), len(blocks))
        return Modulations(made, self.final_layer.modulation(*time))

    def rope(self, layout: TokenLayout) -> Rope:
        """The rotation of each token of ``layout``, to pass to :meth:`forward`."""
        return rope(self.config, layout, self.rope_table, self.patch_embed.weight.device)

    def forward(
        self,
        x_BCTHW: torch.Tensor,
        t_BT: torch.Tensor,
        mask_B1THW: torch.Tensor | None,
        text: TextContext,
        layout: TokenLayout | None = None,
        *,
        rope: Rope | None = None,
        modulations: Modulations | None = None,
        action: ActionContext | None = None,
        cut: Cut | None = None,
    ) -> torch.Tensor:
        """
        Args:
            x_BCTHW: scaled sample, float, shape (B, 16, T, H, W), H and W even.
            t_BT: flow time sigma / (1 + sigma) of each latent frame, float, 0 to 1, shape (B, T)
                or (B, 1). Rounded to the network's dtype, as in the reference.
            mask_B1THW: 1 where latents are given, else 0; any shape that expands to
                (B, 1, T, H, W). None for networks without a condition channel (Text2Image).
            text: from :meth:`text_context`, of batch B or 1.
            layout: which tokens to compute, in which order; None: all, in raster order.
            rope, modulations: what the methods of these names return, to make them once a run.
            action: from :meth:`action_context`; not needed where ``modulations`` are given.
            cut: how far activations are cut up to save memory; None: not at all.

        Returns:
            Velocity, float32, shape (B, 16, T, H, W); 0 at patches that ``layout`` leaves out.

        Raises:
            InputError: shapes that do not fit one another or the network.
        """
        grid = self._checked_grid(x_BCTHW, layout)
        layout = layout or TokenLayout(grid)
        frame_N = None
        if layout.raster_index is not None:
            frame_N = layout.positions(x_BCTHW.device)[:, 0].contiguous()
        placement = Placement(rope or self.rope(layout), frame_N, cut or Cut())
        modulation = self._each_modulation(x_BCTHW, t_BT, modulations, action)

        x_BND = self.patch_embed(self._patches(x_BCTHW, mask_B1THW, layout))
        for block, text_BS2HD in zip(self._blocks(), text.blocks, strict=True):
            x_BND = block(x_BND, next(modulation), placement, text_BS2HD, text.zero_keys)
        return self._unpatchify(self.final_layer(x_BND, next(modulation), frame_N), layout)

    def _kept_rows(self, rows: int, length: int | None) -> int:
        """Whole blocks of rows, so that prompts of many lengths make few different shapes."""
        if length == 0:
            return 0
        if length is None or not self.folds_padding:
            return rows
        return min(rows, -(-length // _TEXT_BLOCK) * _TEXT_BLOCK)

    def _each_modulation(
        self,
        x_BCTHW: torch.Tensor,
        t_BT: torch.Tensor,
        modulations: Modulations | None,
        action: ActionContext | None,
    ) -> Iterator[torch.Tensor]:
        """The modulation of each block, then the final layer's, each made when it is asked for."""
        batch, frames = x_BCTHW.shape[0], x_BCTHW.shape[2]
        given = t_BT.shape if modulations is None else modulations.final_BTE.shape[:2]
        if tuple(given) not in {(batch, frames), (batch, 1), (1, frames), (1, 1)}:
            raise InputError(
                f"times or modulations of shape {tuple(given)}: ({batch}, {frames}) or a 1 in "
                f"either place fits x of shape {tuple(x_BCTHW.shape)}"
            )
        if modulations is not None:
            for own_KBTE in modulations.blocks_LKBTE:
                yield own_KBTE.expand(-1, batch, frames, -1)
            yield modulations.final_BTE.expand(batch, frames, -1)
            return
        time = self.time_embed(t_BT.expand(batch, frames), self._needed(action))
        for block in self._blocks():
            yield block.modulations(*time)
        yield self.final_layer.modulation(*time)

    def _needed(self, action: ActionContext | None) -> ActionContext | None:
        if (action is None) != (self.action_embed is None):
            raise InputError(
                "this network sees actions and was given none: use cosmos_fast.World"
                if action is None
                else "actions for a network that takes none"
            )
        return action

    def _blocks(self) -> Iterator[Block]:
        return cast("Iterator[Block]", iter(self.blocks))

    def _checked_grid(
        self, x_BCTHW: torch.Tensor, layout: TokenLayout | None
    ) -> tuple[int, int, int]:
        """Patches along (t, h, w) of a sample, once it is known to fit the network."""
        patch, channels = self.config.patch, self.config.out_channels
        if x_BCTHW.ndim != 5 or x_BCTHW.shape[1] != channels:
            raise InputError(
                f"x of shape {tuple(x_BCTHW.shape)}: (B, {channels}, T, H, W) is needed"
            )
        frames, height, width = x_BCTHW.shape[2:]
        if height % patch or width % patch:
            raise InputError(
                f"{height} x {width} latent positions: multiples of {patch} are needed"
            )
        grid = (frames, height // patch, width // patch)
        if layout is not None and layout.grid != grid:
            raise InputError(f"{layout.grid = } patches: x has {grid} along (t, h, w)")
        return grid

    def _patches(
        self, x_BCTHW: torch.Tensor, mask_B1THW: torch.Tensor | None, layout: TokenLayout
    ) -> torch.Tensor:
        """Values of each patch, channel slowest: latents, condition mask, padding mask (zeros)."""
        plane = (x_BCTHW.shape[0], 1, *x_BCTHW.shape[2:])
        channels = [x_BCTHW.to(self.dtype)]
        if mask_B1THW is not None:
            channels.append(mask_B1THW.to(self.dtype).expand(plane))
        if self.config.concat_padding_mask:
            channels.append(channels[0].new_zeros(plane))
        stacked_BCTHW = torch.cat(channels, dim=1)
        patch = self.config.patch
        if stacked_BCTHW.shape[1] * patch**2 != self.config.patch_features:
            raise InputError(
                f"{stacked_BCTHW.shape[1]} channels with the masks, where the network has "
                f"{self.config.patch_features // patch**2}: a condition mask is "
                f"{'missing' if mask_B1THW is None else 'not among its channels'}"
            )
        patches_BNE = patchify(stacked_BCTHW, patch)
        if layout.raster_index is None:
            return patches_BNE
        return patches_BNE[:, layout.raster_index.to(patches_BNE.device)]

    def _unpatchify(self, values_BNE: torch.Tensor, layout: TokenLayout) -> torch.Tensor:
        if layout.raster_index is not None:
            batch, _, features = values_BNE.shape
            placed_BNE = values_BNE.new_zeros((batch, math.prod(layout.grid), features))
            index_N = layout.raster_index.to(placed_BNE.device)
            values_BNE = placed_BNE.index_copy(1, index_N, values_BNE)
        return unpatchify(values_BNE, layout.grid, self.config.patch).float()


class AsUsed(Sequence[torch.Tensor]):
    """One tensor a block, each made when it is first asked for, and kept."""

    def __init__(self, make: Callable[[int], torch.Tensor], count: int) -> None:
        self._make = make
        self._count = count
        self._made: dict[int, torch.Tensor] = {}

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        if index >= self._count:
            raise IndexError(index)
        if index not in self._made:
            self._made[index] = self._make(index)
        return self._made[index]
