"""A guardrail that cannot even be looked through: it blocks like one that fails."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import cosmos_fast as cf
from guarded import COSMOS, LLAMA, SIGLIP, copied, guarded_world, rewritten
from test_guardrail_closed import at_work


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return guarded_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def root(companions: Path, tmp_path: Path) -> Path:
    return copied(companions, tmp_path / "checkpoints")


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "siglip", "vision_config": None},
        {"model_type": "siglip", "vision_config": {"image_size": "384"}},
        {"model_type": "siglip", "vision_config": {"patch_size": 0}},
    ],
    ids=["no tower", "a size as text", "patches of no size"],
)
def test_what_cannot_be_measured_blocks(world: Path, root: Path, config: Any) -> None:
    rewritten(root / SIGLIP / "config.json", json.dumps(config).encode())
    with pytest.raises(cf.GuardrailBlocked, match="nothing passes") as blocked:
        at_work(world, root)
    assert blocked.value.cause == "error"


_WITHOUT_RIGHTS = """
import ctypes, sys
from pathlib import Path

sys.path.insert(0, sys.argv[1])
import cosmos_fast as cf
from test_guardrail_closed import at_work

header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
assert ctypes.CDLL(None).capset(header, none) == 0  # of this process: what lets root enter
world, root = map(Path, sys.argv[2:4])
for name in sys.argv[4:]:
    (root / name).chmod(0)
    try:
        at_work(world, root)
        print("passed", name)
    except cf.GuardrailBlocked as blocked:
        print(blocked.cause, "nothing passes" in str(blocked), name)
    finally:
        (root / name).chmod(0o755)
"""


def test_a_folder_that_may_not_be_entered_blocks(world: Path, root: Path) -> None:
    closed = [COSMOS, f"{COSMOS}/blocklist", f"{COSMOS}/blocklist/custom", LLAMA, SIGLIP]
    tests = str(Path(__file__).parent)
    found = subprocess.run(
        [sys.executable, "-c", _WITHOUT_RIGHTS, tests, str(world), str(root), *closed],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert found.stdout.splitlines() == [f"error True {name}" for name in closed], found.stderr
