"""A stand-in engine for runs that are killed hundreds of times: real files, no network."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

from cosmos_fast.config import DiTConfig, Profile, VAEConfig
from cosmos_fast.files import write_atomically
from cosmos_fast.types import Size

PROFILE = Profile(
    name="stand-in",
    size=Size(16, 16),
    num_frames=5,
    fps=16.0,
    dit=DiTConfig(num_layers=1, num_heads=1, head_dim=6),
    vae=VAEConfig(base_dim=4),
    num_steps=1,
    toy=True,
)


class ToyClip:
    """Bytes that are written as a clip's three files are."""

    def __init__(self, data: bytes, prompt: str) -> None:
        self._data, self._prompt = data, prompt

    def save(self, path: Path, *, crf: int, sidecar: str | None) -> Path:
        sha256 = hashlib.sha256(self._data).hexdigest()
        write_atomically(path.with_suffix(".txt"), self._prompt.encode())
        manifest = {"schema": 1, "video": {"file": path.name, "sha256": sha256}}
        write_atomically(path.with_suffix(".json"), json.dumps(manifest).encode())
        write_atomically(path, self._data)
        return path


class ToyEngine:
    """Makes bytes from a prompt, a seed and a picture, and keeps a log of what it was asked for."""

    def __init__(self, log: Path, seconds: float = 0.01) -> None:
        self.profile = PROFILE
        self._log, self._seconds = log, seconds

    def generate(self, *arguments: Any, **options: Any) -> ToyClip:
        frames, prompt, _ = arguments
        with self._log.open("ab", buffering=0) as log:
            log.write(f"{os.getpid()} {prompt}\n".encode())
        time.sleep(self._seconds)
        pixels = frames.to("np").tobytes()
        return ToyClip(pixels + f"{prompt} {options.get('seed')}".encode(), prompt)


def generated(log: Path) -> list[str]:
    """The prompts that were generated, in order."""
    return [line.split(" ", 1)[1] for line in log.read_text("utf-8").splitlines()]
