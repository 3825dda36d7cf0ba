"""Weights from files to the device: ours beside safetensors and, where they import, other loaders.

    python benches/bench_loader.py --checkpoints DIR     # those that bench_memory.py has made there
    python benches/bench_loader.py                       # 14B-sized and 2B-sized files, made here
    python benches/bench_loader.py --gigabytes 0.2 --device cpu   # a dry run

Files that are made here hold one block of the released architectures after the other, of random
bytes, in ``--folder``. They are read from the page cache, and every contender's time includes the
device memory that it makes; a contender goes on until it has ``--repeats`` or ``--patience``
seconds. ``--cold MODEL`` also drops that model's file, in ``--folder``, from the page cache before
each read, and tells the disk's own rate. Results are compared with the file's bytes.
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
from cosmos_fast.weights.layout import DIFFUSERS_WEIGHTS
from cosmos_fast.weights.released import ARCHITECTURES
from cosmos_fast.weights.tensor_files import open_tensors
from cosmos_fast.weights.tensor_writers import Spec, write_pt, write_safetensors

if TYPE_CHECKING:
    from collections.abc import Callable

Tensors = dict[str, torch.Tensor]
Fingerprint = list[tuple[str, float, float]]
WRITERS = 4


def main() -> None:
    options = _options()
    device = torch.device(options.device)
    bench = Bench(options, device)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for name in options.models:
            for ending in options.formats:
                if ending == "pt" and name not in options.pt_models:
                    continue
                made = Path(folder) / f"{name}.{ending}"
                bench.warm(name, _found(options, name, ending) or _written(made, name, options))
                made.unlink(missing_ok=True)
        if options.cold is not None:
            made = Path(folder) / f"{options.cold}.safetensors"
            bench.cold(options.cold, _written(made, options.cold, options))
    print(json.dumps(bench.document()))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--checkpoints", type=Path, help="of bench_memory.py; read where present")
    parser.add_argument("--folder", type=Path, help="where files are written; default: temporary")
    parser.add_argument("--gigabytes", type=float, help="of each file; default: all of the model")
    parser.add_argument("--models", nargs="+", choices=ARCHITECTURES, default=[*ARCHITECTURES])
    parser.add_argument("--formats", nargs="+", default=["safetensors", "pt"])
    parser.add_argument("--pt-models", nargs="+", default=["2B"], help="whose .pt is read, too")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--patience", type=float, default=6.0, help="seconds a contender")
    parser.add_argument("--threads", type=int, nargs="+", default=[8, 16])
    parser.add_argument("--cold", choices=ARCHITECTURES)
    parser.add_argument("--save", type=Path)
    return parser.parse_args()


def _found(options: argparse.Namespace, name: str, ending: str) -> Path | None:
    """The transformer's one file of a checkpoint that is there."""
    if options.checkpoints is None or ending != "safetensors" or options.gigabytes is not None:
        return None
    folder = options.checkpoints / "diffusers" / f"Cosmos-Predict2-{name}-Video2World"
    path: Path = folder / "transformer" / DIFFUSERS_WEIGHTS
    return path if path.exists() else None


def _written(path: Path, name: str, options: argparse.Namespace) -> Path:
    """The file ``path``, made."""
    start = time.perf_counter()
    shapes = _shapes(ARCHITECTURES[name], options.gigabytes)
    specs = {key: Spec(shape, torch.bfloat16) for key, shape in shapes.items()}
    generator = torch.Generator().manual_seed(1)
    pattern = torch.empty(1 << 22, dtype=torch.bfloat16).normal_(generator=generator)
    places = {key: index for index, key in enumerate(specs)}

    def tensor(key: str) -> torch.Tensor:
        made, index = torch.empty(specs[key].shape, dtype=torch.bfloat16), places[key]
        # No two tensors start alike, so that a mixed-up one shows.
        for part in made.view(-1).split(len(pattern) - 4096):
            part.copy_(pattern[index : index + len(part)])
        return made

    if path.suffix == ".pt":
        write_pt(path, specs, tensor, durable=False)
    else:
        write_safetensors(path, specs, tensor, durable=False, threads=WRITERS)
    print(f"{path.name} written in {time.perf_counter() - start:.1f} s", file=sys.stderr)
    return path


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


class Bench:
    """Figures, kept as they come."""

    def __init__(self, options: argparse.Namespace, device: torch.device) -> None:
        self._options = options
        self._device = device
        self._figures: list[dict[str, Any]] = []

    def warm(self, name: str, path: Path) -> None:
        """Every contender on a file that is in the page cache."""
        contenders = _contenders(path, self._device, self._options.threads)
        expected = _fingerprint(_torch_or_safetensors(path, torch.device("cpu")))
        for contender, load in contenders.items():
            try:
                self._measure(name, path, contender, load, expected)
            except ImportError as error:
                print(f"{contender} is not here: {error}", file=sys.stderr)
            except Exception as error:
                if contender.startswith("cosmos-fast") or isinstance(error, WrongResult):
                    raise
                print(f"{contender} failed: {error!r}", file=sys.stderr)  # a rival's own affair
        self._ratios(name, path.suffix)

    def _measure(
        self,
        name: str,
        path: Path,
        contender: str,
        load: Callable[[], Tensors],
        expected: Fingerprint,
    ) -> None:
        seconds: list[float] = []
        checked = False
        while len(seconds) < self._options.repeats and sum(seconds) < self._options.patience:
            start = time.perf_counter()
            tensors = load()
            self._wait()
            took = time.perf_counter() - start
            if checked:  # the first one warms up
                seconds.append(took)
            elif _fingerprint(tensors) != expected:
                raise WrongResult(f"{contender} read something else from {path.name}")
            checked = True
            del tensors
            if self._device.type == "cuda":
                torch.cuda.empty_cache()  # allocation is part of each contender's time
        self._keep(name, path, contender, seconds)

    def cold(self, name: str, path: Path) -> None:
        """Ours on a file that is not in the page cache, and the disk by itself."""
        with path.open("rb") as file:
            os.fsync(file.fileno())  # pages that are not on the disk cannot be dropped
        reads: dict[str, Callable[[], object]] = {
            "the disk, read in order": lambda: _in_order(path),
            "cosmos-fast, cold": lambda: _ours(path, self._device, Reading(threads=16)),
            "cosmos-fast, cold, O_DIRECT": lambda: _ours(
                path, self._device, Reading(threads=16, direct=True)
            ),
        }
        for contender, read in reads.items():
            _forget(path)
            start = time.perf_counter()
            tensors = read()
            self._wait()
            took = time.perf_counter() - start
            del tensors
            self._keep(name, path, contender, [took])

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def _keep(self, name: str, path: Path, contender: str, seconds: list[float]) -> None:
        median, size = statistics.median(seconds), path.stat().st_size
        self._figures.append(
            {
                "model": name,
                "format": path.suffix,
                "gigabytes": round(size / 1e9, 3),
                "contender": contender,
                "median_s": median,
                "fastest_s": min(seconds),
                "slowest_s": max(seconds),
                "repeats": len(seconds),
                "gigabytes_per_second": size / median / 1e9,
            }
        )
        print(
            f"{name:4} {path.suffix:12} {size / 1e9:6.2f} GB  {contender:30} {median:8.3f} s "
            f"[{min(seconds):.3f}, {max(seconds):.3f}]  {size / median / 1e9:6.1f} GB/s",
            flush=True,
        )
        if self._options.save is not None:
            self._options.save.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._options.save, f"{json.dumps(self.document())}\n".encode())

    def _ratios(self, name: str, ending: str) -> None:
        """Ours beside each rival."""
        here = [f for f in self._figures if (f["model"], f["format"]) == (name, ending)]
        ours = [f for f in here if f["contender"].startswith("cosmos-fast")]
        best = min(ours, key=lambda figure: figure["median_s"])
        for rival in here:
            if rival not in ours:
                rival["ours_is_faster_by"] = rival["median_s"] / best["median_s"]
                print(
                    f"{name:4} {ending:12} {best['contender']} is {rival['ours_is_faster_by']:.2f} "
                    f"times as fast as {rival['contender']}"
                )

    def document(self) -> dict[str, Any]:
        return {
            "bench": "loader",
            "command": " ".join(sys.argv),
            "machine": machine(self._device),
            "settings": {name: str(value) for name, value in vars(self._options).items()},
            "figures": self._figures,
        }


def _contenders(
    path: Path, device: torch.device, threads: list[int]
) -> dict[str, Callable[[], Tensors]]:
    found: dict[str, Callable[[], Tensors]] = {
        f"cosmos-fast, {count} threads": lambda count=count: _ours(  # type: ignore[misc]
            path, device, Reading(threads=count)
        )
        for count in threads
    }
    rival = "torch.load + .to" if path.suffix == ".pt" else "safetensors load_file + .to"
    found[rival] = lambda: _torch_or_safetensors(path, device)
    if path.suffix == ".safetensors":
        found["safetensors load_file(device)"] = lambda: load_file(path, device=str(device))
        found["fastsafetensors"] = lambda: _fastsafetensors(path, device)
        found["runai"] = lambda: _runai(path, device)
    return found


def _ours(path: Path, device: torch.device, reading: Reading) -> Tensors:
    with open_tensors(path) as file:
        tensors = {
            name: torch.empty(entry.shape, dtype=entry.dtype, device=device)
            for name, entry in file.entries.items()
        }
        pieces = [Piece(name, tensor) for name, tensor in tensors.items()]
        for _ in bring(file, pieces, reading):
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
    # It takes no device without a number.
    where = f"cuda:{device.index or 0}" if device.type == "cuda" else str(device)
    loader = loading.SafeTensorsFileLoader(loading.SingleGroup(), where)
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


def _fingerprint(tensors: Tensors) -> Fingerprint:
    """Enough of every tensor to notice any that is missing, shifted, mixed up or cut."""
    found = []
    for name, tensor in sorted(tensors.items()):
        flat = tensor.reshape(-1)
        sample = torch.cat((flat[:64], flat[::4097], flat[-64:])).double().cpu()
        found.append((name, float(sample.sum()), float(sample.square().sum())))
    return found


def _forget(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def _in_order(path: Path) -> None:
    """Plain reads, one after the other."""
    buffer = bytearray(16 << 20)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


if __name__ == "__main__":
    main()
