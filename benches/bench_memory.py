"""Memory plans carried out: peak, time and bytes beside everything resident, and beside the plan.

python benches/bench_memory.py --checkpoints DIR [--only 2b_480p ...] [--seconds 560] [--save FILE]

Rows of one model that are resident, and those that move weights, share a process and its loaded
weights; between rows the allocator's memory is given back. The card is otherwise idle. A row's
peak is the most that the driver says is taken of the card while it runs, CUDA context included,
less what was taken before the process came: above 100 % of the budget the promise is broken. Of
every stage stand beside it what torch's allocator had of the driver, and what tensors
held. Before the clip that is timed goes a shorter one of the same pictures. The stages before the
first forward are over in 20 to 400 ms: they are timed as the median of 5 to 7 clips of the same
length that end where it would begin.

Plans are made with the rates that cards are listed with, and with the CUDA context that the
process was seen to have after the first clip (``--listed-context``: with the listed one).

Random weights of the released sizes and T5-11B; where DIR has none, they are made there. FILE is
added to: rows that it holds already are replaced, or left alone where they are not asked for.
With ``--settle`` nothing is measured while the host's memory is being filled or emptied.

    MODEL_SHAPE_resident     everything on the device: what the others are compared with
    MODEL_SHAPE_4GiB, ...    within so much: slowdown, same bytes, predicted beside measured
    ..._bus25, ..._bus12     copies slowed down to so many GB/s: a simulation of slower buses
    ..._diffusers            the same transformer in diffusers' group offload with streams
    auto_8GiB                memory="auto" where another process has all of the card but 8 GiB
    sleep_2b, sleep_14b      what sleeping leaves, and how long waking takes (T5 is not loaded)
    flat                     200 short generations within 4 GiB: device, pinned and resident memory

``--tiny`` runs them with small networks on a CPU: it shows that the script works, nothing else.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from itertools import groupby
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import TYPE_CHECKING, Any

from harness import visible_card
from memory_rows import Row, Setting, serve
from memory_table import compare, document, line, table

from cosmos_fast.files import write_atomically
from cosmos_fast.memory.host import available_host_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MIB = 1 << 20
MAKER = Path(__file__).parent.parent / "tools" / "make_random_checkpoint.py"
PATIENCE = 4.0
STILL = 256 * MIB
"""What the host's free memory may move by, in two looks, and be at rest."""
STARTING_S = 60.0
"""What a process may take to its first row beside that, with imports from a cold disk, weights and
plans; rows that were begun while another process measured have most of it behind them."""
HOG = """
import sys, torch
free = torch.cuda.mem_get_info()[0]
held = torch.empty(max(free - int(sys.argv[1]), 0), dtype=torch.uint8, device="cuda")
free, total = torch.cuda.mem_get_info()
print(total - free, flush=True)
sys.stdin.read()
"""
"""Leaves so many bytes of the card to others, and says how many are taken."""


def rows(tiny: bool) -> list[Row]:
    """In the order of their worth, as far as processes allow."""
    if tiny:
        shape: dict[str, Any] = {"model": "tiny", "shape": "tiny", "steps": 3}
        return [
            Row("tiny_resident", "run", **shape),
            Row("tiny_32MiB", "run", **shape, memory="32MiB"),
            Row("tiny_24MiB", "run", **shape, memory="24MiB"),
            Row("tiny_24MiB_bus5", "run", **shape, memory="24MiB", bus=5),
            Row("sleep_tiny", "sleep", **shape),
            Row("flat", "flat", **shape, memory="24MiB"),
        ]
    small: dict[str, Any] = {"model": "2b", "shape": "480p", "steps": 3}
    wide: dict[str, Any] = {"model": "2b", "shape": "720p"}
    large: dict[str, Any] = {"model": "14b", "shape": "480p"}
    largest: dict[str, Any] = {"model": "14b", "shape": "720p"}
    return [
        Row("2b_480p_resident", "run", **small, expected_s=32),
        Row("2b_720p_resident", "run", **wide, expected_s=24),
        Row("2b_480p_6GiB", "run", **small, memory="6GiB", expected_s=22),
        Row("2b_480p_4GiB", "run", **small, memory="4GiB", expected_s=10),
        Row("2b_480p_5GiB", "run", **small, memory="5GiB", expected_s=10),
        Row("2b_720p_8GiB", "run", **wide, memory="8GiB", expected_s=24),
        Row("14b_480p_resident", "run", **large, expected_s=27),
        Row("14b_720p_resident", "run", **largest, expected_s=60),
        Row("14b_480p_8GiB", "run", **large, memory="8GiB", expected_s=34),
        Row("14b_480p_6.5GiB", "run", **large, memory="6.5GiB", expected_s=14),
        Row("14b_480p_bus25", "run", **large, memory="8GiB", bus=25, expected_s=16),
        Row("14b_480p_bus12", "run", **large, memory="8GiB", bus=12, expected_s=21),
        Row("14b_720p_14GiB", "run", **largest, memory="14GiB", expected_s=60),
        Row("14b_720p_12GiB", "run", **largest, memory="12GiB", expected_s=56),
        Row("auto_8GiB", "run", **small, memory="auto", expected_s=24),
        Row("sleep_2b", "sleep", "2b", expected_s=10),
        Row("sleep_14b", "sleep", "14b", expected_s=22),
        Row("flat", "flat", "2b", memory="4GiB", expected_s=60),
        Row("2b_480p_diffusers", "diffusers", **small, expected_s=10),
        Row("2b_720p_diffusers", "diffusers", **wide, expected_s=10),
        Row("14b_480p_diffusers", "diffusers", **large, expected_s=25),
        Row("14b_720p_diffusers", "diffusers", **largest, expected_s=32),
    ]


def main() -> None:
    options = _options()
    known = {row.name: row for row in rows(options.tiny)}
    if options.process is not None:
        model = next(row.model for row in known.values() if row.process == options.process)
        setting = Setting(
            _folder(options.checkpoints, model),
            options.checkpoints / "outcomes",
            options.tiny,
            options.listed_context,
        )
        serve(setting, known, options.process)
        return
    wanted = [row for row in known.values() if _is_wanted(row.name, options.only, known)]
    Run(options, list(known)).follow(wanted)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoints", type=Path, required=True)
    parser.add_argument("--only", nargs="+", help="rows by name, or by its start")
    parser.add_argument("--seconds", type=float, help="no row begins that would end later")
    parser.add_argument("--missing", action="store_true", help="no row that FILE has already")
    parser.add_argument("--listed-context", action="store_true")
    parser.add_argument("--settle", action="store_true", help="until the host is at rest")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--process", help=argparse.SUPPRESS)
    parser.add_argument("--save", type=Path)
    return parser.parse_args()


def _is_wanted(name: str, only: list[str] | None, known: dict[str, Row]) -> bool:
    """Where one of ``only`` is a row's whole name, it means that row alone; else all rows that
    begin with it."""
    if only is None:
        return True
    return any(name == one if one in known else name.startswith(one) for one in only)


def _make(checkpoints: Path, model: str) -> None:
    """The model, if it is not there yet, in the folder that has T5 for all."""
    if _folder(checkpoints, model).is_dir():
        return
    out = checkpoints / "tiny" if model == "tiny" else checkpoints
    size = model if model == "tiny" else model.upper()
    command = [sys.executable, str(MAKER), "--size", size, "--out", str(out)]
    command += ["--layout", "diffusers", "--shard-gb", "40", "--threads", "6"]
    subprocess.run(command, check=True, stdout=sys.stderr)


def _folder(checkpoints: Path, model: str) -> Path:
    name = "14B" if model == "14b" else "2B"
    root = checkpoints / "tiny" if model == "tiny" else checkpoints
    return root / "diffusers" / f"Cosmos-Predict2-{name}-Video2World"


class Run:
    """Rows that are asked for, and what is known of them and others."""

    def __init__(self, options: argparse.Namespace, order: list[str]) -> None:
        """
        Args:
            order: names of all rows.
        """
        self._options = options
        self._order = order
        self._began = time.perf_counter()
        self._machine: dict[str, Any] = {}
        self._known: dict[str, dict[str, Any]] = {}
        if options.save is not None and options.save.exists():
            before = json.loads(options.save.read_text("utf-8"))
            self._machine = before["machine"]
            self._known = {row["row"]: row for row in before["rows"]}

    def follow(self, wanted: list[Row]) -> None:
        """Measures ``wanted`` in their order, and saves after each."""
        if self._options.missing:
            have = {name for name, row in self._known.items() if "error" not in row}
            wanted = [row for row in wanted if row.name not in have]
        if not wanted:
            print(table(self._rows()))
            return
        if self._options.settle:
            _make(self._options.checkpoints, wanted[0].model)
            print(f"the host's memory was at rest after {settled():.0f} s", flush=True)
        groups = [list(found) for _, found in groupby(wanted, key=lambda row: row.process)]
        ready = self._begun(groups[0][0])
        try:
            for index, group in enumerate(groups):
                now = ready
                if index + 1 < len(groups):  # imports and plans while this one measures
                    ready = self._begun(groups[index + 1][0])
                now = self._measured(group, now)
                now.end()
        finally:
            ready.end()
        print(table(self._rows()))

    def _begun(self, row: Row) -> Asked:
        _make(self._options.checkpoints, row.model)
        return Asked(row.process)

    def _measured(self, group: list[Row], process: Asked) -> Asked:
        """Returns the process that was alive at last."""
        for row in group:
            left = self._left()
            if left < row.expected_s:
                print(f"{row.name:22} left out: {left:.0f} s left, {row.expected_s:.0f} expected")
                continue
            if not process.alive:
                process = Asked(row.process)
            starting = 0.0 if process.answered else STARTING_S
            patience = min(PATIENCE * row.expected_s + starting, left)
            start = time.perf_counter()
            with ExitStack() as held:
                if row.memory == "auto":
                    idle = held.enter_context(_hog(8 << 30))
                else:
                    idle = _taken_of_card() or 0
                result = process.ask(row.name, idle, patience)
            if "error" in result:
                print(f"{row.name:22} failed: {result['error']}")
                process.end()
                if row.name in self._known and "error" not in self._known[row.name]:
                    continue  # what was measured before is better than nothing
            self._machine = result.pop("machine", self._machine)
            result["wall_s"] = time.perf_counter() - start
            result["command"] = " ".join(sys.argv)
            self._known[row.name] = result
            compare(self._rows())
            if "error" not in result:
                print(line(result), flush=True)
            self._save()
        return process

    def _left(self) -> float:
        if self._options.seconds is None:
            return float("inf")
        return float(self._options.seconds) - (time.perf_counter() - self._began)

    def _rows(self) -> list[dict[str, Any]]:
        place = {name: index for index, name in enumerate(self._order)}
        return sorted(self._known.values(), key=lambda row: place.get(row["row"], len(place)))

    def _save(self) -> None:
        if self._options.save is not None:
            content = json.dumps(document(self._rows(), self._machine))
            self._options.save.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._options.save, f"{content}\n".encode())


class Asked:
    """A process that measures the rows it is asked for."""

    def __init__(self, process: str) -> None:
        command = [sys.executable, __file__, *sys.argv[1:], "--process", process]
        self._child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.answered = False
        """Whether a row has come back."""
        self._lines: Queue[str | None] = Queue()
        self._said: list[str] = []
        Thread(target=self._listen, daemon=True).start()

    @property
    def alive(self) -> bool:
        return self._child.poll() is None

    def ask(self, row: str, idle: int, patience: float) -> dict[str, Any]:
        """What it answers within ``patience`` seconds; else why there is none."""
        deadline = time.perf_counter() + patience
        try:
            assert self._child.stdin is not None
            self._child.stdin.write(json.dumps({"row": row, "idle": idle}) + "\n")
            self._child.stdin.flush()
            while True:
                said = self._lines.get(timeout=max(deadline - time.perf_counter(), 0.01))
                if said is None:
                    return self._failed(row, f"the process ended with {self._child.wait()}")
                if said.startswith("result "):
                    self.answered = True
                    found: dict[str, Any] = json.loads(said.removeprefix("result "))
                    if "error" in found:
                        self._failed(row, found["error"])
                    return found
                self._said.append(said)
        except Empty:
            return self._failed(row, f"no result after {patience:.0f} s")
        except BrokenPipeError:
            return self._failed(row, f"the process ended with {self._child.wait()}")

    def _failed(self, row: str, why: str) -> dict[str, Any]:
        print("".join(self._said[-25:]), file=sys.stderr)
        return {"row": row, "error": why}

    def end(self) -> None:
        """Gives it a moment to end by itself."""
        if self._child.stdin is not None and self.alive:
            self._child.stdin.close()
        try:
            self._child.wait(2)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()

    def _listen(self) -> None:
        assert self._child.stdout is not None
        for said in self._child.stdout:
            self._lines.put(said)
        self._lines.put(None)


@contextmanager
def _hog(left: int) -> Iterator[int]:
    """Another process has all of the card but ``left`` bytes: how many are taken then."""
    command = [sys.executable, "-c", HOG, str(left)]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        yield int(child.stdout.readline())
    finally:
        child.kill()
        child.wait()


def _taken_of_card() -> int | None:
    """Bytes of the card that are taken, without a CUDA context of this process."""
    which = f"--id={visible_card()}"
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", which]
    try:
        run = subprocess.run(query, capture_output=True, text=True, check=True)
        return int(run.stdout) * MIB
    except (OSError, ValueError, subprocess.CalledProcessError):
        return None


def settled(
    free: Callable[[], int | None] = available_host_bytes, pause: float = 1.0, most: float = 60.0
) -> float:
    """Waits until the host's ``free`` memory keeps still, ``most`` seconds: how long that was."""
    start, seen = time.perf_counter(), [free() or 0]
    while time.perf_counter() - start < most:
        time.sleep(pause)
        seen = [*seen[-2:], free() or 0]
        if len(seen) == 3 and max(seen) - min(seen) < STILL:
            break
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
