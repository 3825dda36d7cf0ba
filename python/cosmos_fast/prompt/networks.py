"""Networks of other libraries, built without memory and filled strictly, and where they stay."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from cosmos_fast.errors import CheckpointError

if TYPE_CHECKING:
    from cosmos_fast.prompt.guardrail import Placement

Network = TypeVar("Network", bound=nn.Module)
Rename = Callable[[str], str | None]
"""The network's name of a stored tensor; None: not one of its parameters."""

_MAKERS = frozenset({torch.empty, torch.randn, torch.rand})


class ReadTensors(Protocol):
    """Reads every tensor of a checkpoint file, or of the shards of a folder."""

    def __call__(
        self,
        path: Path,
        *,
        device: torch.device | str,
        dtype: torch.dtype | None,
        rename: Rename = ...,
        inside: str | None = None,
    ) -> dict[str, torch.Tensor]:
        """
        Args:
            path: a checkpoint file, or a folder with one, or with an index and its shards.
            device: where they are wanted.
            dtype: of the floating ones; None keeps the one they are stored in.
            rename: what to call them.
            inside: the key of the dict that holds them, where the file holds another one around it.

        Raises:
            CheckpointError: missing, damaged, or a value is not finite.
        """
        ...


class _ParametersOnMeta(TorchFunctionMode):
    """What parameters are made with gives tensors without memory, and draws no random numbers.

    Tables that a network computes when it is built (of angles, of positions) stay real: no
    checkpoint holds them.
    """

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        options = dict(kwargs or {})
        if function in _MAKERS and options.get("device") is None:
            options["device"] = "meta"
        return function(*args, **options)


def filled(
    build: Callable[[], Network], tensors: Mapping[str, torch.Tensor], where: Path
) -> Network:
    """A network whose parameters become ``tensors``, every one accounted for.

    Raises:
        CheckpointError: a tensor is missing, extra or misshapen.
    """
    with _ParametersOnMeta():
        network = build()
    try:
        network.load_state_dict(tensors, strict=True, assign=True)
    except RuntimeError as error:
        told = " ".join(str(error).split())
        raise CheckpointError(f"{where}: not the weights of this network: {told[:600]}") from error
    return network.eval().requires_grad_(False)


@dataclass(frozen=True)
class Drawing:
    """How a language model wants its answers drawn: its generation_config.json."""

    ends: tuple[int, ...]
    """Tokens that end a text."""
    samples: bool
    temperature: float
    top_k: int
    top_p: float
    repetition_penalty: float

    @classmethod
    def from_folder(cls, folder: Path) -> Drawing:
        """
        Raises:
            CheckpointError: the file is missing or damaged, or names no token that ends a text.
        """
        path = folder / "generation_config.json"
        try:
            told = json.loads(path.read_text("utf-8"))
            ends = told["eos_token_id"]
            drawing = cls(
                ends=tuple(map(int, ends if isinstance(ends, list) else [ends])),
                samples=bool(told.get("do_sample", False)),
                temperature=float(told.get("temperature", 1)),
                top_k=int(told.get("top_k", 50)),
                top_p=float(told.get("top_p", 1)),
                repetition_penalty=float(told.get("repetition_penalty", 1)),
            )
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise CheckpointError(
                f"{path}: no readable settings, or no eos_token_id in them: {error!r}"
            ) from error
        if not drawing.ends or drawing.temperature <= 0 or drawing.repetition_penalty <= 0:
            raise CheckpointError(f"{path}: settings that no text can be drawn with: {drawing}")
        return drawing

    def greedy(self, new_tokens: int) -> Any:
        """transformers' settings for taking the likeliest token each time, without a draw."""
        from transformers import GenerationConfig

        make: Any = GenerationConfig
        return make(
            max_new_tokens=new_tokens,
            do_sample=False,
            repetition_penalty=self.repetition_penalty,
            eos_token_id=list(self.ends),
            pad_token_id=self.ends[0],
        )


class Seat(Generic[Network]):
    """A network's place between uses: on the device, in host memory, or nowhere."""

    def __init__(
        self,
        load: Callable[[torch.device], Network],
        device: torch.device,
        placement: Placement,
    ) -> None:
        """
        Args:
            load: makes the network on a device.
            device: where it is used.
            placement: where it stays.
        """
        self._load, self._device, self._placement = load, device, placement
        self._network: Network | None = None
        self._copies: list[torch.Tensor] = []
        """In host memory, of every tensor; made by the first sleep."""
        self._asleep = False

    def prepare(self) -> None:
        """Loads the network, unless it is read anew for each use."""
        if self._placement != "disk" and self._network is None:
            home = self._device if self._placement == "device" else torch.device("cpu")
            self._network = self._load(home)

    @contextmanager
    def taken(self) -> Iterator[Network]:
        """The network, on its device until the block ends."""
        if self._placement == "disk":
            yield self._load(self._device)
            return
        self.prepare()
        assert self._network is not None
        if self._asleep:
            _bind(self._network, _copied(self._copies, self._device))
            self._asleep = False
        if self._placement == "device" or self._device.type == "cpu":
            yield self._network
            return
        # The host keeps its copy: nothing has to come back, since nothing changes.
        tensors = _tensors(self._network)
        at_home = [tensor.data for tensor in tensors]
        try:
            for tensor in tensors:
                tensor.data = tensor.data.to(self._device)
            yield self._network
        finally:
            for tensor, home in zip(tensors, at_home, strict=True):
                tensor.data = home

    def sleep(self) -> None:
        """Takes the network off its device until it is used again; what it holds never changes, so
        that the host keeps its copy for the next time."""
        if self._network is None or self._placement != "device" or self._asleep:
            return
        if not self._copies:
            self._copies = _copied(_tensors(self._network), torch.device("cpu"))
        _bind(self._network, self._copies)
        self._asleep = True


def _tensors(network: nn.Module) -> list[torch.Tensor]:
    return [*network.parameters(), *network.buffers()]


def _bind(network: nn.Module, tensors: Sequence[torch.Tensor]) -> None:
    for tensor, data in zip(_tensors(network), tensors, strict=True):
        tensor.data = data


def _copied(tensors: Sequence[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
    """Copies on ``device``; tensors that are one in memory (tied weights) stay one."""
    made: dict[Any, torch.Tensor] = {}
    keys = [(t.data_ptr(), t.dtype, t.shape, t.stride()) for t in tensors]
    for key, tensor in zip(keys, tensors, strict=True):
        if key not in made:
            made[key] = tensor.detach().to(device, copy=True)
    return [made[key] for key in keys]
