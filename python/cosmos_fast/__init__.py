"""cosmos-fast: NVIDIA Cosmos-Predict2 Video2World as an engine to embed.

>>> import cosmos_fast as cf
>>> engine = cf.Video2World.from_pretrained("nvidia/Cosmos-Predict2-2B-Video2World")
>>> clip = engine.generate("start.jpg", "the arm lifts the cup")
>>> clip.save("out.mp4")
"""

import logging

from cosmos_fast._core import __version__
from cosmos_fast.clip import Clip
from cosmos_fast.config import Profile
from cosmos_fast.engine import Video2World
from cosmos_fast.errors import (
    Cancelled,
    CheckpointError,
    CosmosFastError,
    DeviceLost,
    GatedRepoError,
    GuardrailBlocked,
    InputError,
    MediaError,
    MemoryPlanError,
    RankLost,
)
from cosmos_fast.jobs import BatchSummary, Rollout, best_of_n, rollout, run_batch
from cosmos_fast.memory import Budget, Card, Plan, plan
from cosmos_fast.parallel import Parallel
from cosmos_fast.prompt import DefaultGuardrail, Guardrail, NoCheck, NoGuardrail, Verdict
from cosmos_fast.prompt.chat import ChatUpsampler
from cosmos_fast.prompt.upsampler import PromptUpsampler
from cosmos_fast.report import Report
from cosmos_fast.types import (
    NO_TEXT,
    ActionSpec,
    Conditioning,
    Frames,
    Latents,
    Size,
    TextEmbedding,
)
from cosmos_fast.world import BatchFrames, World, WorldState, WorldStep

# Without it Python prints warnings of a program that has set up no logging on its stderr.
logging.getLogger(__name__).addHandler(logging.NullHandler())

__all__ = [
    "NO_TEXT",
    "ActionSpec",
    "BatchFrames",
    "BatchSummary",
    "Budget",
    "Cancelled",
    "Card",
    "ChatUpsampler",
    "CheckpointError",
    "Clip",
    "Conditioning",
    "CosmosFastError",
    "DefaultGuardrail",
    "DeviceLost",
    "Frames",
    "GatedRepoError",
    "Guardrail",
    "GuardrailBlocked",
    "InputError",
    "Latents",
    "MediaError",
    "MemoryPlanError",
    "NoCheck",
    "NoGuardrail",
    "Parallel",
    "Plan",
    "Profile",
    "PromptUpsampler",
    "RankLost",
    "Report",
    "Rollout",
    "Size",
    "TextEmbedding",
    "Verdict",
    "Video2World",
    "World",
    "WorldState",
    "WorldStep",
    "__version__",
    "best_of_n",
    "plan",
    "rollout",
    "run_batch",
]
