"""Which attention runs: the table's choice among the backends that pass their test, or torch's."""

from __future__ import annotations

import warnings
from collections.abc import Container, Iterable, Mapping
from importlib import metadata

import torch

from cosmos_fast.model.attention import (
    Attended,
    Attention,
    AttentionSpec,
    cudnn_attention,
    torch_attention,
)
from cosmos_fast.model.attention_table import (
    ALL_CLASSES,
    ERROR_LIMIT,
    Backend,
    ShapeClass,
    classes_of,
    preferences,
    self_test_error,
    shape_class,
)
from cosmos_fast.model.ops.backends import candidates, reachable_by_tma
from cosmos_fast.model.ops.fallback import needs_gradient, why_wrong


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
        classes: Iterable[ShapeClass] = ALL_CLASSES,
    ) -> None:
        """
        Args:
            classes: what ``backends`` may be asked for; the rest is the fallback's.
        """
        self._capability = capability
        self._classes = tuple(classes)
        self._backends = dict(backends)
        self._fallback = fallback
        self._failures = dict(failures or {})

    @classmethod
    def tested(
        cls,
        device: torch.device,
        dtype: torch.dtype,
        head_dim: int,
        fallback: Attention,
        classes: Iterable[ShapeClass] = ALL_CLASSES,
    ) -> TableAttention:
        """With the backends of ``device`` that pass their test for heads of this size."""
        capability = torch.cuda.get_device_capability(device)
        fallbacks: dict[Backend, Attention] = {"sdpa": torch_attention}
        if fallback is cudnn_attention:
            fallbacks = {"cudnn": cudnn_attention, **fallbacks}
        found = candidates(capability, dtype, head_dim)
        if not found:
            return cls(capability, {}, fallback)
        with torch.cuda.device(device):
            return cls.passing(capability, found, fallbacks, head_dim, dtype, str(device), classes)

    @classmethod
    def passing(
        cls,
        capability: tuple[int, int],
        found: Mapping[Backend, Attention],
        fallbacks: Mapping[Backend, Attention],
        head_dim: int,
        dtype: torch.dtype,
        device: str,
        classes: Iterable[ShapeClass] = ALL_CLASSES,
    ) -> TableAttention:
        """With those of ``found`` that pass their test in all that the table names them for.

        One that would never be asked, as better ones have passed, is neither tested nor taken.

        Args:
            found: in the order in which they are tested.
            classes: what will be asked for; the rest is the fallback's, untested.
            fallbacks: torch's own, best first. The first that passes is taken; the last, if none
                does: nothing is left to fall back to.

        Warns:
            RuntimeWarning: which have failed, and how.
        """
        passed: dict[Backend, Attention] = {}
        failures: dict[Backend, str] = {}
        wanted = tuple(classes)
        for name, attend in found.items():
            named = [one for one in classes_of(name, capability) if one in wanted]
            if not any(_is_first(name, passed, preferences(capability, one)) for one in named):
                continue
            failure = _failure(attend, head_dim, dtype, device, named)
            if failure is None:
                passed[name] = attend
            else:
                failures[name] = failure
        # Whatever a backend cannot take comes here too, even where the table never does.
        left: list[ShapeClass] = ["self", "cross", "folded"]
        if "merged" in wanted and not any(
            name in passed for name in preferences(capability, "merged")
        ):
            left.append("merged")
        for name, fallback in fallbacks.items():
            failure = _failure(fallback, head_dim, dtype, device, left)
            if failure is None:
                break
            failures[name] = failure
        if failures:
            warnings.warn(
                f"attention falls back: {failures}; please report this with your versions",
                RuntimeWarning,
                stacklevel=4,
            )
        return cls(capability, passed, fallback, failures, wanted)

    def without(self, backend: Backend) -> TableAttention:
        """The same choice, had this backend not been installed."""
        others = {name: one for name, one in self._backends.items() if name != backend}
        return TableAttention(
            self._capability, others, self._fallback, self._failures, self._classes
        )

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
        if chosen is None or not plain or needs_gradient(q_BSHD, k_BSHD, v_BSHD):
            return self._fallback(q_BSHD, k_BSHD, v_BSHD, spec)
        if any(one.stride(-1) != 1 for one in (q_BSHD, k_BSHD, v_BSHD)):
            return self._fallback(q_BSHD, k_BSHD, v_BSHD, spec)
        if chosen in ("fa3", "hopper") and not reachable_by_tma(q_BSHD, k_BSHD, v_BSHD):
            return self._fallback(q_BSHD, k_BSHD, v_BSHD, spec)
        return self._backends[chosen](q_BSHD, k_BSHD, v_BSHD, spec)

    def _chosen(self, spec: AttentionSpec) -> Backend | None:
        asked = shape_class(spec)
        if spec.precision != "input" or asked not in self._classes:
            return None
        for name in preferences(self._capability, asked):
            if name in ("cudnn", "sdpa"):
                return None
            if name in self._backends:
                return name
        return None

    def _name(self, chosen: Backend | None) -> str:
        if chosen is None:
            return "cudnn" if self._fallback is cudnn_attention else "torch sdpa"
        names = {"hopper": "gluon (own, sm_90a)", "portable": "triton (own)"}
        return names.get(chosen) or _wheel_name()


def _wheel_name() -> str:
    try:
        return f"fa3-fwd {metadata.version('fa3-fwd')}"
    except metadata.PackageNotFoundError:  # its module lies on the path, and nothing tells of it
        return "fa3-fwd"


def _is_first(name: Backend, passed: Container[Backend], order: tuple[Backend, ...]) -> bool:
    """Whether ``name`` would be asked before all that have passed."""
    return not any(better in passed for better in order[: order.index(name)])


def _failure(
    attend: Attention,
    head_dim: int,
    dtype: torch.dtype,
    device: str,
    classes: Iterable[ShapeClass],
) -> str | None:
    """Why this attention must not be used for these classes; None if it is right."""
    return why_wrong(
        lambda: self_test_error(attend, head_dim, dtype, device, classes), ERROR_LIMIT[dtype]
    )


def attention_for(device: torch.device, dtype: torch.dtype) -> tuple[Attention, str]:
    half = dtype in (torch.bfloat16, torch.float16)
    if device.type == "cuda" and half and torch.cuda.get_device_capability(device)[0] in (9, 10):
        return cudnn_attention, "cudnn"
    return torch_attention, "torch sdpa"
