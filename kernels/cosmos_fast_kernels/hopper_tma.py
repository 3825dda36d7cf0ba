"""TMA's copies under one name each: Triton has renamed them between 3.6 and 3.9."""

from __future__ import annotations

from triton.experimental.gluon.language.nvidia.hopper import tma

_RENAMED = hasattr(tma, "async_load")

async_copy_global_to_shared = tma.async_load if _RENAMED else tma.async_copy_global_to_shared
async_copy_shared_to_global = tma.async_store if _RENAMED else tma.async_copy_shared_to_global
store_wait = tma.store_wait
