"""Weights from files to the device: ours beside safetensors and, where they import, other loaders.

    python benches/bench_loader.py                       # 14B-sized and 2B-sized files, made here
    python benches/bench_loader.py --gigabytes 0.2 --device cpu   # a dry run

Files are written to ``--folder`` once, of random bytes, one block of the released architectures
after the other, and read from the page cache; ``--cold`` drops them from it before each read and
reports the disk's own rate beside. Every contender's result is compared with the file's bytes.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from harness import WrongResult, machine
from safetensors.torch import load_file

from cosmos_fast.config import DiTConfig
from cosmos_fast.files import write_atomically
from cosmos_fast.model.dit import DiT
from cosmos_fast.model.ops import Ops
from cosmos_fast.weights.bring import Piece, Reading, bring
from cosmos_fast.weights.released import ARCHITECTURES
from cosmos_fast.weights.tensor_files import open_tensors

if TYPE_CHECKING:
    from collections.abc import Callable

Tensors = dict[str, torch.Tensor]


def main() -> None:
    options = _options()
    device = torch.device(options.device)
    results = []
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for name in options.models:
            config = ARCHITECTURES[name]
            shapes = _shapes(config, options.gigabytes)
            for ending in options.formats:
                path = Path(folder) / f"{name}.{ending}"
                _write(path, shapes)
                results += _measured(name, path, device, options)
                path.unlink()
    line = json.dumps(
        {
            "bench": "loader",
            "command": " ".join(sys.argv),
            "machine": machine(device),
            "settings": vars(options),
            "figures": results,
        },
        default=str,
    )
    if options.save is not None:
        write_atomically(options.save, f"{line}\n".encode())
    print(line)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--folder", type=Path, help="where files are written; default: temporary")
    parser.add_argument("--gigabytes", type=float, help="of each file; default: all of the model")
    parser.add_argument("--models", nargs="+", choices=ARCHITECTURES, default=[*ARCHITECTURES])
    parser.add_argument("--formats", nargs="+", default=["safetensors", "pt"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--cold", action="store_true", help="drop files from the page cache first")
    parser.add_argument("--save", type=Path)
    return parser.parse_args()


def _shapes(config: DiTConfig, gigabytes: float | None) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        network = DiT(config, Ops())
    shapes: dict[str, tuple[int, ...]] = {}
    left = float("inf") if gigabytes is None else gigabytes * 1e9
    for name, parameter in network.named_parameters():
        left -= 2 * parameter.numel()
        if left < 0 and shapes:
            break
        shapes[name] = tuple(parameter.shape)
    return shapes


def _write(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(1)
    pattern = torch.empty(1 << 22, dtype=torch.bfloat16).normal_(generator=generator)
    tensors = {}
    for index, (name, shape) in enumerate(shapes.items()):
        tensors[name] = tensor = torch.empty(shape, dtype=torch.bfloat16)
        # No two tensors start alike, so that a mixed-up one shows.
        for part in tensor.view(-1).split(len(pattern) - 4096):
            part.copy_(pattern[index : index + len(part)])
    if path.suffix == ".pt":
        torch.save(tensors, path)
    else:
        save_file(tensors, path)


def _measured(
    name: str, path: Path, device: torch.device, options: argparse.Namespace
) -> list[dict[str, Any]]:
    contenders = _contenders(path, device, options.threads)
    expected = _fingerprint(_torch_or_safetensors(path, torch.device("cpu")))
    size = path.stat().st_size
    figures = []
    for contender, load in contenders.items():
        seconds = []
        for repeat in range(options.repeats + 1):
            if options.cold:
                _forget(path)
            start = time.perf_counter()
            tensors = load()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            took = time.perf_counter() - start
            if repeat == 0 and _fingerprint(tensors) != expected:
                raise WrongResult(f"{contender} read something else from {path.name}")
            if repeat:  # the first one warms up
                seconds.append(took)
            del tensors
            if device.type == "cuda":
                torch.cuda.empty_cache()  # allocation is part of each contender's time
        median = statistics.median(seconds)
        figures.append(
            {
                "model": name,
                "format": path.suffix,
                "gigabytes": round(size / 1e9, 3),
                "contender": contender,
                "median_s": median,
                "fastest_s": min(seconds),
                "slowest_s": max(seconds),
                "gigabytes_per_second": size / median / 1e9,
                "cold": options.cold,
            }
        )
        print(
            f"{name:4} {path.suffix:12} {size / 1e9:6.2f} GB  {contender:28} {median:8.3f} s "
            f"[{min(seconds):.3f}, {max(seconds):.3f}]  {size / median / 1e9:6.1f} GB/s"
        )
    if options.cold:
        figures.append(_disk(name, path))
    return figures


def _contenders(
    path: Path, device: torch.device, threads: list[int]
) -> dict[str, Callable[[], Tensors]]:
    found: dict[str, Callable[[], Tensors]] = {
        f"cosmos-fast, {count} threads": lambda count=count: _ours(path, device, count)  # type: ignore[misc]
        for count in threads
    }
    rival = "torch.load + .to" if path.suffix == ".pt" else "safetensors load_file + .to"
    found[rival] = lambda: _torch_or_safetensors(path, device)
    if path.suffix == ".safetensors":
        found["safetensors load_file(device)"] = lambda: load_file(path, device=str(device))
        for name, load in (("fastsafetensors", _fastsafetensors), ("runai", _runai)):
            try:
                load(path, device)
            except ImportError as error:
                print(f"{name} is not here: {error}", file=sys.stderr)
            else:
                found[name] = lambda load=load: load(path, device)  # type: ignore[misc]
    return found


def _ours(path: Path, device: torch.device, threads: int) -> Tensors:
    with open_tensors(path) as file:
        tensors = {
            name: torch.empty(entry.shape, dtype=entry.dtype, device=device)
            for name, entry in file.entries.items()
        }
        pieces = [Piece(name, tensor) for name, tensor in tensors.items()]
        for _ in bring(file, pieces, Reading(threads=threads)):
            pass
    return tensors


def _torch_or_safetensors(path: Path, device: torch.device) -> Tensors:
    if path.suffix == ".pt":
        loaded: Tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    else:
        loaded = load_file(path)
    return {name: tensor.to(device) for name, tensor in loaded.items()}


def _fastsafetensors(path: Path, device: torch.device) -> Tensors:
    loading = importlib.import_module("fastsafetensors")
    loader = loading.SafeTensorsFileLoader(loading.SingleGroup(), str(device))
    try:
        loader.add_filenames({0: [str(path)]})
        buffer = loader.copy_files_to_device()
        keys = list(loader.get_keys())
        return {key: buffer.get_tensor(key).clone() for key in keys}
    finally:
        loader.close()


def _runai(path: Path, device: torch.device) -> Tensors:
    streamer = importlib.import_module("runai_model_streamer")
    tensors = {}
    with streamer.SafetensorsStreamer() as one:
        one.stream_file(str(path))
        for name, tensor in one.get_tensors():
            tensors[name] = tensor.to(device, copy=True)
    return tensors


def _fingerprint(tensors: Tensors) -> list[tuple[str, float, float]]:
    """Enough of every tensor to notice any that is missing, shifted, mixed up or cut."""
    found = []
    for name, tensor in sorted(tensors.items()):
        flat = tensor.reshape(-1)
        sample = torch.cat((flat[:64], flat[::4097], flat[-64:])).double().cpu()
        found.append((name, float(sample.sum()), float(sample.square().sum())))
    return found


def _forget(path: Path) -> None:
    os.sync()
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def _disk(name: str, path: Path) -> dict[str, Any]:
    """The rate of plain reads, one after the other: the disk's own."""
    _forget(path)
    start = time.perf_counter()
    with path.open("rb", buffering=0) as file:
        while file.read(16 << 20):
            pass
    took = time.perf_counter() - start
    rate = path.stat().st_size / took / 1e9
    print(f"{name:4} {path.suffix:12} the disk, read in order {took:8.3f} s {rate:6.1f} GB/s")
    return {"model": name, "contender": "disk", "median_s": took, "gigabytes_per_second": rate}


if __name__ == "__main__":
    main()
