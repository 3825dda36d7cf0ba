"""Ranks of the tests of several processes: ``python rank_process.py PORT RANKS SIZE JOB``.

RANKS is one, or several with commas between: those are forks of this process, which has imported
torch for all of them, and their exit codes go to ``out``/ends.json. The job, JSON, names a world
and what to make of it; what was made goes to ``out``/RANK.pt. Where a case names another one that
it should equal, rank 0 prints how far it is from it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch

import cosmos_fast as cf
from cosmos_fast.config import Seat
from cosmos_fast.model.ops import Ops
from cosmos_fast.parallel import join
from cosmos_fast.types import TextEmbedding
from guarded import Check, inverted
from random_vae import everywhere

if TYPE_CHECKING:
    from collections.abc import Callable


class OneCard:
    """Ranks of one device, which NCCL refuses: gloo, and what travels goes through the host."""

    def __init__(self, group: Any) -> None:
        self._group = group

    def rank(self) -> int:
        return int(self._group.rank())

    def size(self) -> int:
        return int(self._group.size())

    @staticmethod
    def name() -> str:
        return "gloo through the host"

    def alltoall_base(
        self,
        received: torch.Tensor,
        sent: torch.Tensor,
        receive_counts: list[int],
        send_counts: list[int],
        /,
    ) -> Arrived:
        """As bytes, since gloo does not know every dtype."""
        here = torch.empty_like(received, device="cpu").view(torch.uint8)
        counts = [[n * sent.element_size() for n in each] for each in (receive_counts, send_counts)]
        self._group.alltoall_base(here, sent.cpu().view(torch.uint8), *counts).wait()
        received.copy_(here.view(received.dtype))
        return Arrived()


class Arrived:
    """Work that is done."""

    def wait(self, *_: Any) -> bool:
        return True

    def is_completed(self) -> bool:
        return True


def text(width: int, seed: int) -> TextEmbedding:
    """A made-up prompt of seven rows."""
    rows = torch.zeros(512, width, dtype=torch.bfloat16)
    rows[:7] = torch.randn(7, width, generator=torch.Generator().manual_seed(seed))
    return TextEmbedding(rows, 7)


def picture(frames: int) -> Any:
    """uint8 noise, (frames, 32, 48, 3); no frames: a file that is not there."""
    if not frames:
        return "nowhere.png"
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (frames, 32, 48, 3), dtype=torch.uint8, generator=generator)


def make(engine: cf.Video2World, case: dict[str, Any], **callbacks: Any) -> cf.Clip:
    """The clip of one case."""
    given = case.get("given", 1)
    width = engine.profile.dit.text_dim
    size: dict[str, Any] = {"size": tuple(case["size"])} if "size" in case else {}
    return engine.generate(
        picture(given),
        case.get("prompt") or text(width, 1),
        case.get("negative") or text(width, 2),
        num_frames=case.get("num_frames", 9),
        num_conditional_frames=given or 1,
        guidance=case.get("guidance", 2.0),
        num_steps=2,
        **size,
        **callbacks,
    )


def guardrail() -> cf.Guardrail:
    """Refuses a bad prompt and turns pictures into their negatives."""

    def read(prompt: str) -> cf.Verdict:
        return cf.Verdict("bad" not in prompt, "a bad word")

    return cf.Guardrail([Check("words", read)], [Check("invert", inverted)])


def fault(kind: str, out: Path, rank: int) -> Any:
    """An ``on_step`` callback after whose second call something happens to this rank."""

    def on_step(step: int, total: int, x0: torch.Tensor) -> None:
        if step != 2:
            return
        Path(out, f"{rank}.fault").write_text(str(time.monotonic()), "ascii")
        if kind == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == "cancels":
            raise cf.Cancelled("made up by the test")
        raise ZeroDivisionError("made up by the test")

    return on_step


def refusal(*_: Any) -> Any:
    """In place of a plan."""
    raise cf.MemoryPlanError("made up by the test")


def error_of(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference as a share of the largest value."""
    return float((found - expected).abs().max() / expected.abs().max())


def outcome(job: dict[str, Any], engine: cf.Video2World, case: dict[str, Any], rank: int) -> Any:
    """What a case came to: a clip's tensors, or the error it raised and when."""
    here, callbacks = case.get("rank") == rank, {}
    if here and case.get("cancel"):
        token = threading.Event()
        callbacks = {"cancel": token, "on_step": lambda step, total, x0: token.set()}
    if here and case.get("fault"):
        callbacks = {"on_step": fault(case["fault"], Path(job["out"]), rank)}
    if here and case.get("refuses"):
        setattr(engine._parts.residence, "prepare", refusal)  # noqa: B010  (for mypy)
    if here and case.get("guidance_here"):
        case = {**case, "guidance": case["guidance_here"]}
    try:
        clip = make(engine, case, **callbacks)
    except (cf.CosmosFastError, ZeroDivisionError) as error:
        return {"error": type(error).__name__, "message": str(error), "at": time.monotonic()}
    return {
        "latents": clip.latents.tensor.cpu(),
        "frames": clip.frames.to("pt").cpu(),
        "report": json.dumps(clip.report.as_dict()),
        "text encoder": engine._parts.text.loaded,
        "plan": engine.memory_plan and engine.memory_plan.as_dict(),
    }


def fuse_anywhere(passes: list[int]) -> None:
    """From here on, engines have operations that fuse the decoder."""
    select = Ops.select

    def chosen(*given: Any, **options: Any) -> Ops:
        return everywhere(select(*given, **options), passes)

    setattr(Ops, "select", chosen)  # noqa: B010  (for mypy)


def say(case: dict[str, Any], made: dict[str, Any], began: float) -> None:
    """Prints at once what is known of a case: a run that is stopped has said how far it came."""
    line = f"{case['name']}: {time.monotonic() - began:.1f} s"
    if "equals" in case:
        of = (made[name]["latents"] for name in (case["name"], case["equals"]))
        line += f", error {error_of(*of):.1e}"
    print(line, flush=True)


def work(port: int, rank: int, size: int, job: dict[str, Any]) -> NoReturn:
    """All cases of the job, as one rank."""
    began = time.monotonic()
    torch.set_num_threads(1)
    seat = Seat(rank, size, rank, "127.0.0.1", port, store_is_served=True)
    group: Any = join(seat, torch.device("cpu"))
    if job.get("one_card"):
        group = OneCard(group)
    # Rounded to TF32, convolutions of fewer rows would come out otherwise.
    torch.backends.cudnn.allow_tf32 = False
    if job.get("one_card") and rank == 0:
        print(f"{size} ranks met: {time.monotonic() - began:.1f} s", flush=True)
    made: dict[str, Any] = {}
    passes: list[int] = []
    if rank in job.get("fuses", []):
        fuse_anywhere(passes)
    engines = {}
    for case in job["cases"]:
        began, settings = time.monotonic(), case.get("parallel", {})
        precision = case.get("precision", "auto")
        memory = {name: case[name] for name in ("memory", "offload") if name in case}
        key = json.dumps([settings, precision, memory])
        if key not in engines:
            parallel = None if settings is None else cf.Parallel(group, **settings)
            engines[key] = cf.Video2World.from_pretrained(
                job["world"],
                device=job.get("device", "cpu"),
                precision=precision,
                prompt_cache=False,
                parallel=parallel,
                guardrail=guardrail() if job.get("guarded") else "default",
                **memory,
            )
        passes.clear()
        made[case["name"]] = outcome(job, engines[key], case, rank) | {"passes": len(passes)}
        if job.get("one_card") and rank == 0:
            say(case, made, began)
    torch.save(made, Path(job["out"], f"{rank}.pt"))
    assert not torch.distributed.is_initialized()
    os._exit(0)


def fork(work: Callable[..., NoReturn], *given: Any) -> int:
    """The process that does the ``work``."""
    if child := os.fork():
        return child
    try:
        work(*given)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


def main(work: Callable[..., NoReturn] = work) -> None:
    port, size = int(sys.argv[1]), int(sys.argv[3])
    ranks, job = [int(rank) for rank in sys.argv[2].split(",")], json.loads(sys.argv[4])
    if len(ranks) == 1:
        work(port, ranks[0], size, job)
    children = [fork(work, port, rank, size, job) for rank in ranks]
    ends = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    Path(job["out"], "ends.json").write_text(json.dumps(ends), "ascii")


if __name__ == "__main__":
    main()
