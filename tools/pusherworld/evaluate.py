"""Judges a pusher world against MuJoCo: ``make eval-pusher``.

Block error on held-out episodes, whether the samples' disagreement ranks it, whether scripted
policies rank the same in the world as in MuJoCo, and whether a planner that searches in the world
succeeds in MuJoCo. Writes evaluation.json, evaluation.md and sheet.png into ``--out`` after every
part; the last line of output is the JSON; fails where a bar is missed. ``--model mujoco`` puts
MuJoCo's own frames in the world's place: what the measures say of a world without a fault.

Needs the package with its core, and MuJoCo with MUJOCO_GL=egl or osmesa; ``--data`` with ``--only
accuracy disagreement`` needs no MuJoCo.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from tools.pusherworld import accuracy as ruler
from tools.pusherworld.bars import bars, page
from tools.pusherworld.episodes import read_all, simulate
from tools.pusherworld.futures import MujocoImagination, WorldImagination
from tools.pusherworld.networks import CHUNK
from tools.pusherworld.progress import Meter
from tools.pusherworld.released_cost import decision_cost
from tools.pusherworld.sheet import write_sheet

import cosmos_fast as cf
from cosmos_fast.files import write_atomically
from cosmos_fast.report import versions

if TYPE_CHECKING:
    from tools.pusherworld.futures import Imagination

PARTS: Final = ("accuracy", "disagreement", "policies", "planning")
PERFECT: Final = "mujoco"


class Evaluation:
    """One model, part by part."""

    def __init__(self, arguments: argparse.Namespace, meter: Meter) -> None:
        self.arguments, self.meter = arguments, meter
        self.imagination: Imagination
        self.found: dict[str, Any] = {"label": "toy model", "model": arguments.model}
        self.perfect = arguments.model == PERFECT
        if self.perfect:
            from tools.pusherworld.simulator import Pusher

            self.imagination = MujocoImagination(Pusher(), meter.tell)
            device, steps = "MuJoCo", 0
        else:
            engine = cf.Video2World.from_pretrained(arguments.model, device=arguments.device)
            device, steps = _name_of(engine.device), engine.profile.num_steps
            batch = arguments.batch or (16 if engine.device.type == "cpu" else 256)
            self.imagination = WorldImagination(engine, batch, meter.tell)
        counts = {name: each for name, each in vars(arguments).items() if isinstance(each, int)}
        self.found |= {
            "device": device, "num_steps": steps, "versions": versions(), "settings": counts,
            "seconds": {},
        }  # fmt: skip

    def run(self) -> None:
        for name in self.arguments.only:
            if self.perfect and name == "disagreement":
                continue  # its samples are one
            self.meter.start(name, self.futures(name))
            getattr(self, name)()
            self.found["seconds"][name] = round(self.meter.end(), 1)
            self.write()

    def futures(self, part: str) -> int:
        """Chunks that a part imagines at most."""
        given = self.arguments
        return {
            "accuracy": given.episodes * (given.chunks + 1),
            "disagreement": given.episodes * 2 * ruler.SAMPLES,
            "policies": given.policies * given.policy_episodes * given.chunks,
            "planning": given.problems * 6 * given.candidates * given.rounds
            * -(-given.horizon // CHUNK),
        }[part]  # fmt: skip

    def accuracy(self) -> None:
        chained, pushed = self.windows()
        rollout = ruler.roll_out(self.imagination, chained)
        self.found["accuracy"] = ruler.accuracy(rollout, ruler.roll_out(self.imagination, pushed))
        write_sheet(self.arguments.out / "sheet.png", rollout, chained.truth)

    def disagreement(self) -> None:
        self.found["disagreement"] = ruler.disagreement(self.imagination, self.windows())

    def policies(self) -> None:
        from tools.pusherworld.scoring import policies

        given = self.arguments
        self.found["policies"] = policies(
            self.imagination, given.policies, given.policy_episodes, given.chunks
        )

    def planning(self) -> None:
        from tools.pusherworld.searching import Search, planning

        given = self.arguments
        search = Search(given.candidates, given.rounds, given.horizon)
        self.found["planning"] = planning(self.imagination, given.problems, search)
        self.found["released_cost"] = decision_cost(search.futures)

    def windows(self) -> tuple[ruler.Windows, ruler.Windows]:
        given = self.arguments
        if given.data:
            episodes = read_all(given.data, "held-out", given.episodes)
        else:
            episodes = simulate("held-out", 0, given.episodes, CHUNK * ruler.CHUNKS)
        chained = ruler.from_start(episodes, given.chunks, states=self.perfect)
        return chained, ruler.pushes(episodes, states=self.perfect)

    def write(self) -> None:
        """What there is by now: a run that is cut short keeps it."""
        judged = list(bars(self.found))
        self.found["bars"] = [bar._asdict() | {"met": bar.met} for bar in judged]
        self.found["missed"] = [bar.name for bar in judged if not bar.met]
        out: Path = self.arguments.out
        write_atomically(out / "evaluation.json", json.dumps(self.found, indent=1).encode())
        write_atomically(out / "evaluation.md", page(self.found).encode())


def _name_of(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads"


def arguments_of(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--model", default="pusherworld", help="folder, name, or mujoco")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=Path("outputs/pusher_evaluation"))
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    parser.add_argument("--batch", type=_count, help="futures at a time; 16 on a CPU, else 256")
    parser.add_argument("--data", type=Path, help="folder with packed held-out episodes")
    parser.add_argument("--episodes", type=_count, default=64, help="held out, for the accuracy")
    parser.add_argument("--chunks", type=_count, default=ruler.CHUNKS, help="one after another")
    parser.add_argument("--policies", type=_count, default=20)
    parser.add_argument("--policy-episodes", type=_count, default=40)
    parser.add_argument("--problems", type=_count, default=24, help="to plan")
    parser.add_argument("--candidates", type=_count, default=32)
    parser.add_argument("--rounds", type=_count, default=2)
    parser.add_argument("--horizon", type=_count, default=CHUNK, help="actions of a plan")
    arguments = parser.parse_args(words)
    if arguments.chunks > ruler.CHUNKS:
        parser.error(f"--chunks {arguments.chunks}: held-out episodes have {ruler.CHUNKS}")
    if arguments.horizon % CHUNK:
        parser.error(f"--horizon {arguments.horizon}: a multiple of {CHUNK} is needed")
    return arguments


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value}: at least 1 is needed")
    return value


def main(words: list[str]) -> int:
    arguments = arguments_of(words)
    arguments.out.mkdir(parents=True, exist_ok=True)
    with Meter() as meter:
        evaluation = Evaluation(arguments, meter)
        evaluation.run()
    print(page(evaluation.found))
    print(json.dumps(evaluation.found))
    return 1 if evaluation.found["missed"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
