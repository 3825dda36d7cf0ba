"""The networks of one checkpoint, loaded: what an engine is made of."""

from __future__ import annotations

import platform
import threading
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

import torch

from cosmos_fast.errors import InputError
from cosmos_fast.model.dit import DiT
from cosmos_fast.model.ops import Ops
from cosmos_fast.model.text import (
    CachedTextEncoder,
    PromptCache,
    TextEncoder,
    load_tokenizer,
)
from cosmos_fast.model.vae import VAE
from cosmos_fast.weights import digests, find_checkpoint, load_dit, load_text_encoder, load_vae

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping

    from torch import nn

    from cosmos_fast.config import Environment, Profile, RopeTable
    from cosmos_fast.parallel import Ranks
    from cosmos_fast.report import Clock
    from cosmos_fast.weights import CheckpointFiles

Precision = Literal["bf16", "fp32"]
"""Of the transformer and the VAE."""
TextPrecision = Literal["stored", "bf16", "fp32"]
"""Of the text encoder."""

_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
Value = TypeVar("Value")


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
    dit: DiT
    vae: VAE
    text: CachedTextEncoder
    ops: Ops
    files: CheckpointFiles
    digests: Later[dict[str, str]]
    load_stages: dict[str, float]
    unmeasured_kernels: bool = False
    """Whether kernels and CUDA graphs run that no whole video has been made with on a GPU."""

    @property
    def device_name(self) -> str:
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"

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
    ops = Ops.select(
        device,
        dtype,
        head_dim=files.profile.dit.head_dim,
        measured_only=not environment.unmeasured_kernels,
    )
    ops = replace(ops, attention=ranks.attention(ops.attention))
    with clock.stage("load transformer"):
        dit = _filled(
            lambda: DiT(files.profile.dit, ops, rope_table), load_dit(files, device, dtype)
        )
    with clock.stage("load VAE"):
        # Ranks share the decoder's rows through its modules, which the fused decoder leaves out.
        fused = ops if ranks.size == 1 else None
        vae = _filled(lambda: VAE(files.profile.vae, fused), load_vae(files, device, dtype))

    def text_identity() -> str:
        stored = files.text_identity()
        return stored if text_precision == "stored" else f"{stored} {text_precision}"

    cache = None
    if prompt_cache and (files.text_encoder is not None or files.hub is not None):
        cache = PromptCache(environment.cache / "text", text_identity)

    def load_text() -> TextEncoder:
        config, parameters = load_text_encoder(files, device, _DTYPES.get(text_precision))
        _, tokenizer = files.require_text()
        return TextEncoder.from_parameters(config, parameters, load_tokenizer(tokenizer))

    return Parts(
        profile=files.profile,
        device=device,
        dtype=dtype,
        dit=dit,
        vae=vae,
        text=CachedTextEncoder(load_text, cache),
        ops=ops,
        files=files,
        digests=Later(lambda: digests(files) if ranks.first else {}),
        load_stages={stage.name: round(stage.seconds, 3) for stage in clock.stages},
        unmeasured_kernels=environment.unmeasured_kernels,
    )


Network = TypeVar("Network", bound="nn.Module")


def _filled(build: Callable[[], Network], parameters: dict[str, torch.Tensor]) -> Network:
    """A network built without memory, whose parameters become the given tensors."""
    with torch.device("meta"):
        network = build()
    network.load_state_dict(parameters, strict=True, assign=True)
    network.eval().requires_grad_(False)
    return network


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
