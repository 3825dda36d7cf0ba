"""``cosmos-fast rollout`` with ``--actions`` or ``--policy``: a world steps, chunk after chunk."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from cosmos_fast.cli.config_file import read_config
from cosmos_fast.cli.exits import ExitCode, UsageError
from cosmos_fast.cli.launch import refuse_torchrun
from cosmos_fast.cli.output import print_json
from cosmos_fast.cli.video2world import dry_run, load, local_profile, read_settings
from cosmos_fast.cli.video2world_flags import VIDEO2WORLD_FLAGS
from cosmos_fast.cli.world_rollout_flags import WORLD_FLAGS

if TYPE_CHECKING:
    import numpy as np

    from cosmos_fast import Profile, Video2World
    from cosmos_fast.cli.progress import Display
    from cosmos_fast.cli.settings import Settings
    from cosmos_fast.types import Size
    from cosmos_fast.world import Rollout
    from cosmos_fast.world.lerobot import Dataset
    from cosmos_fast.world.rollout import Policy

RELEASED: Final = "nvidia/Cosmos-Predict2-2B-Sample-Action-Conditioned"
"""The model that is taken where no flag names one."""

_NAMES_A_MODEL: Final = frozenset({"model", "diffusion_transformer_dir"})
_OF_PROMPTS: Final = (
    "prompt", "negative_prompt", "num_video_frames", "num_chunks", "handover", "resolution",
    "aspect_ratio", "model_size", "num_conditional_frames", "num_input_frames",
)  # fmt: skip
_FIELDS_OF_PROMPTS: Final = ("prompt", "negative_prompt", "num_frames", "num_conditional_frames")
"""The same where a config file may have set them."""
_BY_USER: Final = ("command line", "config file")


@dataclass(frozen=True)
class _Order:
    """What is to be carried out, checked as far as is possible without the model."""

    settings: Settings
    own: dict[str, Any]
    chunk: int | None
    """Actions that the model must take at once, where that is asked for."""
    rows: np.ndarray | None = None
    """Recorded actions (T, dim); None for a policy."""
    policy: Policy | None = None
    dataset: Dataset | None = None
    """That start frame and actions come from."""

    def cameras(self, profile: Profile) -> dict[str, str]:
        """Keys of the dataset's cameras that the start is taken from, by the model's names; by
        nothing where the model makes one picture.

        Raises:
            InputError: the dataset has no such camera, or none is named and there are several.
        """
        if self.dataset is None or self.settings.input is not None:
            return {}
        if profile.cameras and "camera" not in self.own:
            return {one.name: self.dataset.camera(one.name) for one in profile.cameras}
        return {"": self.dataset.camera(self.own.get("camera"))}


def is_of_worlds(flags: dict[str, Any]) -> bool:
    """Whether a command asks for actions to be carried out.

    Raises:
        UsageError: it does not, and has flags that mean nothing else.
    """
    if "actions" in flags or "policy" in flags:
        return True
    if odd := [flag.spelling for flag in WORLD_FLAGS if flag.name in flags]:
        raise UsageError(f"{', '.join(odd)}: only with --actions or --policy")
    return False


def world_rollout(flags: dict[str, Any], *, chunk: int | None = None) -> int:
    """Carries out recorded actions, or a policy's.

    Args:
        chunk: actions that the model must take at once; None: as many as it likes.
    """
    own = {flag.name: flags[flag.name] for flag in WORLD_FLAGS if flag.name in flags}
    _refuse_contradictions(flags)
    settings = _settings({name: value for name, value in flags.items() if name not in own})
    _refuse_ranks(settings)
    order, problems = _order(settings, own, chunk)
    if settings.dry_run:
        return dry_run(settings, as_json=bool(flags.get("json")), problems=problems, more=own)
    if problems:
        raise UsageError("; ".join(problems))
    made = _make(order)
    if flags.get("json"):
        print_json(_result(order, made))
    else:
        print(settings.output)
    return ExitCode.OK


def _refuse_ranks(settings: Settings) -> None:
    """A chunk of a world is a few frames that the next actions wait for: too little to share."""
    cure = "start a command for each GPU, with --device cuda:0 and so on"
    if (settings.num_gpus or 1) > 1:
        raise UsageError(
            f"--num_gpus {settings.num_gpus}: a world steps on one GPU; leave it out, and {cure}"
        )
    refuse_torchrun("a world that follows actions", cure)


def _refuse_contradictions(flags: dict[str, Any]) -> None:
    if "actions" in flags and "policy" in flags:
        raise UsageError("--actions and --policy contradict each other; give one of them")
    how = "--actions" if "actions" in flags else "--policy"
    if odd := [f"--{name}" for name in _OF_PROMPTS if name in flags]:
        raise UsageError(f"{', '.join(odd)}: of no meaning with {how}: no text is followed")
    if flags.get("resume"):
        raise UsageError(
            f"--resume: with {how} no chunks are kept, the whole is made again; leave it out"
        )
    if "policy" in flags and "num_actions" not in flags:
        raise UsageError("--policy needs --num_actions: how many actions shall it carry out?")
    if "policy" in flags and flags.get("reference"):
        raise UsageError("--reference is about recorded actions; give them with --actions")
    if "stop_at" in flags and flags.get("samples", 1) < 2:
        raise UsageError("--stop_at needs --samples 2 or more: one future cannot disagree")
    as_reference = flags.get("reference") or flags.get("noise") == "reference"
    if as_reference and flags.get("samples", 1) > 1:
        raise UsageError("--reference and its noise have one future; leave --samples out")
    if flags.get("reference") and flags.get("noise") == "device":
        raise UsageError("--reference takes the reference's noise; leave --noise out")
    if flags.get("reference") and "seed" in flags:
        raise UsageError("--reference takes each chunk's seed from its first action, not --seed")
    if "task" in flags and "save_dataset" not in flags:
        raise UsageError("--task is written to a dataset: name one with --save_dataset")


def _settings(flags: dict[str, Any]) -> Settings:
    """As for one video, but without text, and with the action-conditioned model as default."""
    flags = dict(flags)
    if "dit_path" in flags and "model" not in flags:
        flags["model"] = str(flags.pop("dit_path"))
    config = read_config(flags["config"], VIDEO2WORLD_FLAGS) if "config" in flags else {}
    named = not _NAMES_A_MODEL.isdisjoint({*flags, *config})
    if not named:
        flags["model"] = RELEASED
    settings = read_settings(flags | {"disable_prompt_refiner": True}, follows_text=False)
    for name in _FIELDS_OF_PROMPTS:
        if settings.origins.get(name) in _BY_USER:
            raise UsageError(f"{name}, in the config file: no text is followed with actions")
    if not named:
        origins = MappingProxyType({**settings.origins, "source": "default"})
        settings = replace(settings, origins=origins)
    return settings


def _order(settings: Settings, own: dict[str, Any], chunk: int | None) -> tuple[_Order, list[str]]:
    """What is to be done, and everything that is wrong with it."""
    from cosmos_fast.cli.paths import path_problems
    from cosmos_fast.errors import CosmosFastError

    order = _Order(settings, own, chunk)
    problems: list[str] = []
    try:
        order = _with_actions(order)
    except (UsageError, CosmosFastError) as error:
        problems.append(str(error))
    starts_elsewhere = order.dataset is not None and settings.input is None
    problems = path_problems(settings, needs_input=not starts_elsewhere) + problems
    profile = local_profile(settings)
    if profile is not None:
        problems += _profile_problems(profile, order)
    target = own.get("save_dataset")
    if target is not None and target.exists() and (not target.is_dir() or any(target.iterdir())):
        problems.append(f"--save_dataset: {str(target)!r} is there; name a new folder")
    return order, problems


def _with_actions(order: _Order) -> _Order:
    from cosmos_fast.world import load_actions

    own = order.own
    if "policy" in own:
        return replace(order, policy=_policy(own["policy"]))
    path: Path = own["actions"]
    if not path.is_dir():
        if odd := [f"--{name}" for name in ("episode", "camera") if name in own]:
            raise UsageError(f"{', '.join(odd)}: --actions {str(path)!r} is no LeRobot dataset")
        return replace(order, rows=load_actions(path)[: own.get("num_actions")])
    from cosmos_fast.world.lerobot import Dataset

    dataset = Dataset(path)
    if "camera" in own:
        dataset.camera(own["camera"])
    rows = dataset.actions(own.get("episode", 0))
    return replace(order, rows=rows[: own.get("num_actions")], dataset=dataset)


def _policy(name: str) -> Policy:
    from cosmos_fast.world import load_policy

    sys.path.insert(0, "")  # a file in the working directory, as ``python -m`` finds it
    try:
        return load_policy(name)
    finally:
        sys.path.remove("")


def _profile_problems(profile: Profile, order: _Order) -> list[str]:
    from cosmos_fast.errors import InputError

    spec = profile.actions
    if spec is None:
        return [f"--model: {profile.name} takes no actions; it follows a --prompt"]
    if order.chunk not in (None, spec.chunk):
        return [f"--chunk_size {order.chunk}: {profile.name} takes {spec.chunk} actions at once"]
    try:
        order.cameras(profile)
    except InputError as error:
        return [str(error)]
    if order.rows is None:
        return []
    rows, dim = order.rows.shape
    if dim != spec.dim:
        return [f"--actions: {dim} values an action, where {profile.name} takes {spec.dim}: "
                f"{', '.join(spec.names)}"]  # fmt: skip
    if order.own.get("reference") and rows < spec.chunk:
        return [f"--reference: {rows} actions, where it rolls out whole {spec.chunk}s"]
    return []


def _make(order: _Order) -> Rollout:
    from cosmos_fast.cli.progress import showing
    from cosmos_fast.types import Frames

    settings = order.settings
    with showing() as display:
        for note in settings.notes:
            display.say(f"note: {note}")
        engine = load(settings, display)
        if problems := _profile_problems(engine.profile, order):
            raise UsageError("; ".join(problems))
        start = _start(order, _size(settings, engine.profile, display), engine.profile)
        made = _rolled_out(engine, order, start, display)
        if settings.origins.get("fps") in _BY_USER and settings.fps is not None:
            made = replace(made, frames=Frames(made.frames.data, settings.fps))
        if made.stopped_at is not None:
            display.say(
                f"note: the futures disagree by {made.stopped_at:.3g}, more than --stop_at "
                f"{order.own['stop_at']:g}; {len(made.actions)} actions were carried out"
            )
        _save(order, made, display)
        report = made.report
        display.say(
            f"{report.frames} frames, {report.frames_per_second:.2f} a second; a chunk takes "
            f"{report.latency_p50:.2f} s (p50), {report.latency_p99:.2f} s (p99)"
        )
    return made


def _size(settings: Settings, profile: Profile, display: Display) -> Size:
    """Of the start frame: given, or the model's own."""
    from cosmos_fast.config import SIZE_MULTIPLE
    from cosmos_fast.types import Size

    sides = []
    for name, own in zip(("height", "width"), profile.size, strict=True):
        asked = getattr(settings, name) if settings.origins.get(name) in _BY_USER else own
        side = -(-asked // SIZE_MULTIPLE) * SIZE_MULTIPLE
        if side != asked:
            display.say(f"note: {name} {asked} is rounded up to {side}")
        sides.append(side)
    return Size(*sides)


def _start(order: _Order, size: Size, profile: Profile) -> Any:
    """The picture to start from: the input's first, or the first of the recorded episode, by
    camera where the model has several."""
    from cosmos_fast.media import read_span

    settings = order.settings
    if settings.input is not None:
        found = read_span(settings.input, start=0.0, fps=1.0, size=size, fit=settings.fit)
        return found.to("np")[0]
    assert order.dataset is not None
    sizes = {"": size} | {one.name: one.size for one in profile.cameras}
    episode = order.own.get("episode", 0)
    pictures = {
        name: order.dataset.frames(episode, key, size=sizes[name], fit=settings.fit).to("np")[0]
        for name, key in order.cameras(profile).items()
    }
    return pictures.get("", pictures)


def _rolled_out(engine: Video2World, order: _Order, start: Any, display: Display) -> Rollout:
    from cosmos_fast.world import rollout_actions, rollout_policy

    settings, own = order.settings, order.own
    how: dict[str, Any] = {
        "seed": settings.seed,
        "samples": own.get("samples", 1),
        "stop_at": own.get("stop_at"),
        "num_steps": settings.num_steps,
        "guidance": settings.guidance,
        "noise": own.get("noise", "device"),
        "on_chunk": lambda done, total: display.step(done, total, None),
    }
    display.stage("rollout", "start", None)
    if order.policy is not None:
        made = rollout_policy(engine, start, order.policy, own["num_actions"], **how)
    else:
        reference = bool(own.get("reference"))
        made = rollout_actions(engine, start, order.rows, reference=reference, **how)
    display.stage("rollout", "end", sum(made.report.stages.values()) * made.report.steps)
    return made


def _source(order: _Order, made: Rollout) -> dict[str, Any]:
    """Where actions and start frame came from, for manifest and dataset."""
    own, given = order.own, order.settings.input
    found: dict[str, Any] = {"input": None if given is None else str(given)}
    for name in ("actions", "policy"):
        if name in own:
            found[name] = str(own[name])
    if order.dataset is not None:
        found["episode"] = own.get("episode", 0)
        found["cameras"] = list(order.cameras(made.state.profile).values())
    return found


def _save(order: _Order, made: Rollout, display: Display) -> None:
    settings, folder = order.settings, order.own.get("save_dataset")
    path = made.save(settings.output, crf=settings.crf, source=_source(order, made))
    written = [path, _manifest(path)]
    if folder is not None:
        from cosmos_fast.errors import InputError
        from cosmos_fast.world.lerobot import save_dataset

        if not len(made.actions):
            raise InputError(
                f"--save_dataset: an episode needs an action, and the futures disagree by "
                f"{made.stopped_at:.3g} in the first chunk, more than --stop_at "
                f"{order.own['stop_at']:g}; allow for more"
            )
        task = order.own.get("task") or _task(order)
        written.append(save_dataset(folder, [made], tasks=[task], sources=[_source(order, made)]))
    for file in written:
        display.say(f"wrote {file}")


def _task(order: _Order) -> str:
    if order.dataset is not None:
        return order.dataset.episode(order.own.get("episode", 0)).task
    return ""


def _manifest(path: Path) -> Path:
    from cosmos_fast.clip import companions

    return companions(path)[1]


def _result(order: _Order, made: Rollout) -> dict[str, Any]:
    settings, apart = order.settings, made.disagreement
    folder = order.own.get("save_dataset")
    return {
        "status": "ok",
        "exit_code": 0,
        "video": str(settings.output),
        "manifest": str(_manifest(settings.output)),
        "dataset": None if folder is None else str(folder),
        "settings": settings.as_dict() | made.settings,
        "source": _source(order, made),
        "frames": len(made.frames),
        "actions": len(made.actions),
        "stopped": made.stopped,
        "stopped_at": made.stopped_at,
        "disagreement": None if apart is None else apart.tolist(),
        "guardrail": made.guardrail,
        "report": asdict(made.report),
    }
