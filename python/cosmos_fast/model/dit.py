"""The diffusion transformer of Cosmos-Predict2 (NVIDIA ``MinimalV1LVGDiT``), above its layers.

Axes: B batch, C channels, T latent frames, H W latent rows and columns, N tokens (patches of
1 x 2 x 2), D width, S rows of text, E outputs of a linear. Heads are split as (B, N, heads, D).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import nn

from cosmos_fast.errors import InputError
from cosmos_fast.model.cuts import Cut
from cosmos_fast.model.dit_layers import Block, FinalLayer, Placement
from cosmos_fast.model.embeddings import ActionContext, ActionEmbedding, TimeEmbedding
from cosmos_fast.model.patches import patchify, unpatchify
from cosmos_fast.model.rope import Rope, rope
from cosmos_fast.types import TokenLayout

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cosmos_fast.config import DiTConfig, RopeTable
    from cosmos_fast.model.ops import Ops

TEXT_BLOCK = 128
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
        return min(rows, -(-length // TEXT_BLOCK) * TEXT_BLOCK)

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
