"""The networks of one checkpoint, loaded: what an engine is made of."""

from __future__ import annotations

import platform
import threading
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

import torch

from cosmos_fast.errors import InputError
from cosmos_fast.memory.components import dit_blocks, text_blocks, vae_blocks
from cosmos_fast.memory.host import arranged
from cosmos_fast.memory.models import T5_11B, Workload
from cosmos_fast.memory.residence import Owned, Residence
from cosmos_fast.model.dit import DiT
from cosmos_fast.model.first_use import kernels_ahead
from cosmos_fast.model.ops import Ops
from cosmos_fast.model.t5 import T5Encoder
from cosmos_fast.model.text import CachedTextEncoder, PromptCache, TextEncoder
from cosmos_fast.model.tokens import load_tokenizer
from cosmos_fast.model.vae import VAE
from cosmos_fast.types import Size
from cosmos_fast.weights import digests, find_checkpoint, load_dit, load_text_encoder, load_vae
from cosmos_fast.weights.load import (
    describe_text_encoder,
    locate_dit,
    locate_text_encoder,
    locate_vae,
)

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Mapping

    from torch import nn

    from cosmos_fast.config import Environment, Profile, RopeTable, T5Config
    from cosmos_fast.memory.components import Components
    from cosmos_fast.memory.plan import Plan
    from cosmos_fast.model.attention_table import ShapeClass
    from cosmos_fast.parallel import Ranks
    from cosmos_fast.report import Clock
    from cosmos_fast.request import Request
    from cosmos_fast.types import Prompt
    from cosmos_fast.weights import CheckpointFiles
    from cosmos_fast.weights.load import Place, Sources

Precision = Literal["bf16", "fp32"]
"""Of the transformer and the VAE."""
TextPrecision = Literal["stored", "bf16", "fp32"]
"""Of the text encoder."""

_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
Value = TypeVar("Value")
Network = TypeVar("Network", bound="nn.Module")


def choose_device(device: str | torch.device) -> torch.device:
    """The device that ``device`` names; "auto" is the current CUDA device, else the CPU.

    Raises:
        InputError: no such device, or torch cannot see it.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise InputError(f'{device = }: "auto", "cpu", "cuda" or "cuda:N" is needed') from error
    if chosen.type not in ("cpu", "cuda"):
        raise InputError(f'{device = }: "auto", "cpu", "cuda" or "cuda:N" is needed')
    if chosen.type == "cuda":
        if not torch.cuda.is_available():
            raise InputError(f'{device = }: torch sees no CUDA device; use "cpu" or "auto"')
        if chosen.index is None:
            chosen = torch.device("cuda", torch.cuda.current_device())
        if chosen.index >= torch.cuda.device_count():
            raise InputError(f"{device = }: torch sees {torch.cuda.device_count()} CUDA devices")
    return chosen


def choose_precision(precision: str, device: torch.device) -> torch.dtype:
    """The dtype that ``precision`` names; "auto" is bf16 on CUDA and fp32 on a CPU.

    Raises:
        InputError: no such precision in this version.
    """
    if precision == "auto":
        precision = "bf16" if device.type == "cuda" else "fp32"
    if precision not in _DTYPES:
        raise InputError(f'{precision = }: "auto", "bf16" and "fp32" exist in this version')
    return _DTYPES[precision]


@dataclass(frozen=True)
class Parts:
    """Loaded networks, the profile they imply and where they came from."""

    profile: Profile
    device: torch.device
    dtype: torch.dtype
    text_stage: tuple[T5Config | None, torch.dtype]
    """Sizes and dtype of the text encoder, for planning; no sizes where there is none."""
    dit: DiT
    vae: VAE
    text: CachedTextEncoder
    ops: Ops
    files: CheckpointFiles
    digests: Later[dict[str, str]]
    load_stages: dict[str, float]
    residence: Residence
    """Where the weights are."""
    graphs: bool = True
    """Whether short clips are replayed as CUDA graphs, on a device that has them."""
    text_precision: TextPrecision = "stored"
    """In which the text encoder runs: "stored" is as its files hold it."""

    @property
    def device_name(self) -> str:
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"

    @property
    def _fuses_decoder(self) -> bool:
        return self.vae.ops is not None and self.vae.ops.fuses_decoder

    def place_for(
        self, request: Request, ranks: Ranks, *, prompt_is_final: bool = True
    ) -> Plan | None:
        """Weights go where ``request`` needs them; the plan, None where nothing is planned.

        Args:
            ranks: who makes it. The plan is one for all, text encoder of the first included.
            prompt_is_final: the text encoder reads the prompt as it is, not another one.

        Raises:
            MemoryPlanError: the budget is too small.
        """
        if not self.residence.managed:
            self.residence.wake()
            return None
        shape, text_dtype = self.text_stage

        def needs_text() -> bool:
            return bool(self.unknown(request.prompts())) or self.text.loaded or not prompt_is_final

        mesh = ranks.mesh(2 if request.uses_guidance else 1)
        workload = Workload(
            profile=self.profile,
            size=request.size,
            num_frames=request.num_frames,
            num_conditional_frames=request.num_conditional_frames,
            num_steps=request.num_steps,
            guided=request.uses_guidance,
            dtype=self.dtype,
            fused=self._fuses_decoder,
            products=self.ops.multiplies,
            text=shape if ranks.same(needs_text) else None,
            text_dtype=text_dtype,
            split=mesh.branches,
            context=mesh.context,
        )
        with ranks.alike():
            return self.residence.prepare(workload)

    def place_for_texts(self) -> None:
        """Weights go where embedding a text needs them."""
        profile = self.profile
        if self.residence.managed:
            first = _first_workload(
                profile, self.dtype, self.text_stage, self.ops, fused=self._fuses_decoder
            )
            small = replace(first, size=Size(64, 64), num_frames=5, num_conditional_frames=1)
            self.residence.prepare(small)
        else:
            self.residence.wake()

    def unknown(self, prompts: Iterable[Prompt]) -> list[str]:
        """Those of ``prompts`` that the text encoder has to run for."""
        return [text for text in prompts if isinstance(text, str) and not self.text.knows(text)]

    def identity(self) -> dict[str, Any]:
        """What the manifest says about the model."""
        return {
            "name": self.profile.name,
            "toy": self.profile.toy,
            "source": self.files.source,
            "layout": self.files.layout,
            "revision": self.files.revision,
            "ema": self.files.ema,
            "rope_table": self.dit.rope_table,
            "sha256": self.digests.get(),
            "load_seconds": self.load_stages,
        }


def vae_identity(model: Mapping[str, Any]) -> str:
    """Digest of the VAE's file, from :meth:`Parts.identity`: latents belong to it."""
    digests_by_name: Mapping[str, str] = model["sha256"]
    return next(value for name, value in digests_by_name.items() if name.startswith("vae/"))


def load_parts(
    source: str | os.PathLike[str],
    *,
    residence: Residence,
    find: dict[str, Any],
    device: torch.device,
    dtype: torch.dtype,
    rope_table: RopeTable,
    environment: Environment,
    prompt_cache: bool,
    clock: Clock,
    ranks: Ranks,
    text_precision: TextPrecision = "stored",
    on_found: Callable[[CheckpointFiles], None] = lambda _: None,
) -> Parts:
    """Finds and loads a checkpoint; the text encoder waits for the first unknown prompt.

    Args:
        residence: decides where weights go.
        find: the further arguments of :func:`find_checkpoint`.
        ranks: who shares the work. Only the first has digests of the files and embeds prompts.
        on_found: told of the files before any weight is read; may refuse.
    """
    if rope_table not in ("reference", "float32"):
        raise InputError(f'{rope_table = }: "reference" or "float32" is needed')
    if text_precision != "stored" and text_precision not in _DTYPES:
        raise InputError(f'{text_precision = }: "stored", "bf16" or "fp32" is needed')
    with clock.stage("find checkpoint"):
        files = find_checkpoint(source if isinstance(source, str) else str(source), **find)
        on_found(files)
    alone = ranks.size == 1
    classes: tuple[ShapeClass, ...] = ("self", "cross", "folded")
    if not alone:
        classes = (*classes, "merged")
    if residence.managed and not alone:
        # Before kernels are loaded, which takes memory beside torch's, some of it in other threads.
        residence.agree(ranks)
    with kernels_ahead(
        files.profile,
        device,
        dtype,
        classes=classes,
        kernels=environment.kernels,
        processes=ranks.size,
    ):
        ops = Ops.select(
            device,
            dtype,
            head_dim=files.profile.dit.head_dim,
            kernels=None if environment.kernels else False,
            classes=classes,
        )
        ops = replace(ops, attention=ranks.attention(ops.attention))
        text_dtype = _DTYPES.get(text_precision)
        text_stage = _text_stage(files, text_dtype) if residence.managed else (None, dtype)
        # Ranks that share the decoder's rows have to decode them in the same way.
        if not all(ranks.least([ops.fuses_decoder])):
            ops = ops.decoding_plainly()
        first = _first_workload(files.profile, dtype, text_stage, ops, fused=ops.fuses_decoder)
        if residence.managed and not alone:
            mesh = ranks.mesh(first.branches)
            first = replace(first, split=mesh.branches, context=mesh.context)
        with ranks.alike():
            residence.begin(first)
        with clock.stage("load transformer"):
            dit = _loaded(
                residence,
                lambda: DiT(files.profile.dit, ops, rope_table),
                lambda network: {"dit": dit_blocks(network)},
                lambda place: load_dit(files, _place_of(device, place), dtype, place),
                lambda: locate_dit(files, dtype),
                dtype,
            )
        with clock.stage("load VAE"):
            vae = _loaded(
                residence,
                lambda: VAE(files.profile.vae, ops),
                vae_blocks,
                lambda place: load_vae(files, _place_of(device, place), dtype, place),
                lambda: locate_vae(files, dtype),
                dtype,
            )

    def text_identity() -> str:
        stored = files.text_identity()
        return stored if text_precision == "stored" else f"{stored} {text_precision}"

    cache = None
    if prompt_cache and (files.text_encoder is not None or files.hub is not None):
        cache = PromptCache(environment.cache / "text", text_identity)

    return Parts(
        profile=files.profile,
        device=device,
        dtype=dtype,
        text_stage=text_stage,
        dit=dit,
        vae=vae,
        text=CachedTextEncoder(lambda: _load_text(files, device, residence, text_dtype), cache),
        ops=ops,
        files=files,
        digests=Later(lambda: digests(files) if ranks.first else {}),
        load_stages={stage.name: round(stage.seconds, 3) for stage in clock.stages},
        residence=residence,
        graphs=environment.kernels,
        text_precision=text_precision,
    )


def _first_workload(
    profile: Profile,
    dtype: torch.dtype,
    text: tuple[T5Config | None, torch.dtype],
    ops: Ops,
    *,
    fused: bool,
) -> Workload:
    """What the checkpoint is made for: weights go where a plan for this wants them."""
    return Workload(
        profile=profile,
        size=profile.size,
        num_frames=profile.num_frames,
        num_conditional_frames=profile.conditional_frames[0],
        num_steps=profile.num_steps,
        guided=profile.guidance != 0,
        dtype=dtype,
        text=text[0],
        text_dtype=text[1],
        fused=fused,
        products=ops.multiplies,
    )


def _text_stage(
    files: CheckpointFiles, wanted: torch.dtype | None
) -> tuple[T5Config | None, torch.dtype]:
    """The text encoder's sizes and dtype, as far as it is on this machine.

    Args:
        wanted: the dtype it will have; None: the one it is stored in.
    """
    if files.text_encoder is not None:
        return describe_text_encoder(files, wanted)
    return (None if files.hub is None else T5_11B), wanted or torch.bfloat16


def _place_of(device: torch.device, place: Place | None) -> torch.device:
    return device if place is None else torch.device("cpu")


def _loaded(
    residence: Residence,
    build: Callable[[], Network],
    blocks_of: Callable[[Network], Components],
    load: Callable[[Place | None], dict[str, torch.Tensor]],
    locate: Callable[[], Sources],
    dtype: torch.dtype,
) -> Network:
    """A network whose weights are where the plan wants them.

    Args:
        build: makes it; called on the meta device.
        blocks_of: its components.
        load: reads its parameters, into given places or onto the device.
        locate: finds where they lie in their files, and that they are finite.
        dtype: of the parameters.
    """
    with torch.device("meta"):
        network = build()
    components = blocks_of(network)
    rests = {residence.rests_in(component) for component in components}
    if rests == {"device"}:
        parameters = load(None)
    elif "files" in rests:
        locate()  # a damaged file is told now, not in the middle of a run
        parameters = {
            name: torch.full((), torch.nan, dtype=dtype).expand(parameter.shape)
            for name, parameter in network.state_dict().items()
        }
    else:
        everything = {
            f"{component} {name}": modules
            for component, blocks in components.items()
            for name, modules in blocks.items()
        }
        places = arranged(network, everything, dtype)
        parameters = load(lambda name, shape, dtype: places[name])
    network.load_state_dict(parameters, strict=True, assign=True)
    network.eval().requires_grad_(False)
    for component, blocks in blocks_of(network).items():
        residence.own(component, Owned(network, blocks, dtype, locate), in_files="files" in rests)
    return network


def _load_text(
    files: CheckpointFiles,
    device: torch.device,
    residence: Residence,
    wanted: torch.dtype | None,
) -> TextEncoder:
    _, tokenizer = files.require_text()
    config, dtype = describe_text_encoder(files, wanted)
    t5 = _loaded(
        residence,
        lambda: T5Encoder(config),
        lambda network: {"text encoder": text_blocks(network)},
        lambda place: load_text_encoder(files, _place_of(device, place), dtype, place)[1],
        lambda: locate_text_encoder(files, dtype),
        dtype,
    )
    return TextEncoder(t5, load_tokenizer(tokenizer), device)


class Later(Generic[Value]):
    """A value that a thread of its own computes while other work goes on."""

    def __init__(self, compute: Callable[[], Value]) -> None:
        self._value: Value | None = None
        self._error: BaseException | None = None

        def work() -> None:
            try:
                self._value = compute()
            except BaseException as error:
                self._error = error

        self._thread = threading.Thread(target=work, name="cosmos-fast digests", daemon=True)
        self._thread.start()

    def get(self) -> Value:
        """Waits for the value; raises what computing it raised."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        assert self._value is not None
        return self._value
