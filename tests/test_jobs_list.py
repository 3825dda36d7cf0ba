"""Lists of jobs: both forms, what they may say, and how every bad line is told of."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tools.toy_jobs import ToyEngine

from bad_jobs import BAD, job, prepare
from cosmos_fast.errors import InputError
from cosmos_fast.jobs import Defaults, run_batch
from cosmos_fast.jobs.job_list import JobList
from cosmos_fast.media import write_png
from cosmos_fast.request import Options


@pytest.fixture
def place(tmp_path: Path) -> Path:
    write_png(tmp_path / "start.png", np.full((16, 16, 3), 90, np.uint8))
    return tmp_path


def run(place: Path, lines: list[bytes], name: str = "jobs.jsonl", **options: Any) -> Any:
    path = place / name
    path.write_bytes(b"\n".join(lines) + b"\n")
    engine = ToyEngine(place / "log", seconds=0)
    return run_batch(engine, path, place / "out", input_root=place, **options)


def names(folder: Path, suffix: str = ".mp4") -> set[str]:
    return {path.name for path in folder.rglob(f"*{suffix}")}


def test_lines_and_array_are_told_apart_by_content(place: Path) -> None:
    entries = [{"input_video": "start.png", "prompt": "A."}, json.loads(job(output_video="b.mp4"))]
    lines = [json.dumps(entry).encode() for entry in entries]
    assert run(place, lines, "lines.json").made == 2
    assert names(place / "out") == {"0.mp4", "b.mp4"}
    entries[1]["output_video"] = "c.mp4"  # b.mp4 is the other list's
    assert run(place, [json.dumps(entries, indent=1).encode()], "array.jsonl").made == 2
    assert names(place / "out") == {"0.mp4", "b.mp4", "output_0.mp4", "c.mp4"}


def test_blank_lines_and_a_byte_order_mark_are_passed_over(place: Path) -> None:
    summary = run(place, [b"\xef\xbb\xbf" + job(), b"", b"  \r", job(seed=2), b"{}"])
    assert [row.line for row in summary.failures] == [5]
    assert names(place / "out") == {"0.mp4", "1.mp4"}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        pytest.param(b"", "empty", id="nothing"),
        pytest.param(b" \n\n ", "empty", id="blank"),
        pytest.param(b"[]", "empty", id="empty array"),
        pytest.param(b"\x00\x00\x00\x18ftypmp42", "neither", id="a video"),
        pytest.param(b'[{"a": 1},\n {"b": }]', ":2: no valid JSON", id="array with a fault"),
        pytest.param(b'[{"a": 1}\n {"b": 2}]', ":2: a comma", id="no comma"),
        pytest.param(b'[{"a": 1},\n]', ":2: no valid JSON", id="comma at the end"),
        pytest.param(b'[{"a": 1},\n', ":2: a job is expected", id="cut array"),
        pytest.param(b'[{"a": 1}]\n]', ":2: nothing is expected", id="more behind"),
    ],
)
def test_a_list_that_is_none_is_refused(place: Path, content: bytes, words: str) -> None:
    (place / "jobs.json").write_bytes(content)
    with pytest.raises(InputError, match=words):
        JobList(place / "jobs.json")


def test_entries_of_an_array_know_their_lines(place: Path) -> None:
    (place / "jobs.json").write_bytes('[\n{"prompt": "größer"},\n\n 3,{"a":\n2}]'.encode())
    with JobList(place / "jobs.json") as listed:
        assert [listed.line(index) for index in range(len(listed))] == [2, 4, 4]
        assert listed.entry(0) == {"prompt": "größer"}
        assert listed.entry(2) == {"a": 2}
        with pytest.raises(InputError, match="braces"):
            listed.entry(1)


def test_a_list_that_changes_under_the_run_is_noticed(place: Path) -> None:
    (place / "jobs.jsonl").write_bytes(job())
    with JobList(place / "jobs.jsonl") as listed:
        (place / "jobs.jsonl").write_bytes(job(seed=4))
        with pytest.raises(InputError, match="changed"):
            listed.entry(0)


def test_every_kind_of_bad_line_is_told_by_its_line(place: Path) -> None:
    prepare(place)
    lines = [line for bad, _ in BAD.values() for line in (job(), bad)]
    summary = run(place, lines)
    assert summary.made == summary.failed == len(BAD)
    assert not summary.ok
    told = {row.line: row.failure for row in summary.failures}
    for number, (kind, (_, words)) in enumerate(BAD.items()):
        failure = told[2 * number + 2]
        assert failure is not None
        assert words in failure.message, (kind, failure)
        assert failure.code == (1 if kind == "a torn picture" else 2), (kind, failure)
    written = json.loads((place / "out" / "jobs.jsonl.summary.json").read_bytes())
    assert [row["line"] for row in written["failures"]] == list(range(2, 2 * len(BAD) + 1, 2))


MANY = """
import resource, sys
from pathlib import Path
from cosmos_fast.jobs.job import Defaults
from cosmos_fast.jobs.job_list import JobList
from cosmos_fast.jobs.roots import Root
from cosmos_fast.jobs.worker import Jobs

def held():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

place = Path(sys.argv[1])
before = held()
with JobList(place / "jobs.jsonl") as listed:
    plan = Jobs(listed, Defaults(), inputs=Root(place, ""), outputs=Root(place / "out", ""),
                model="toy")
    lines = [line for line, problem in plan.problems()]
print(len(listed), (held() - before) / 1e6, *lines)
"""


def test_ten_thousand_lines_cost_no_memory(place: Path) -> None:
    """100 bad ones of more than twenty kinds, each told by its line; 40 MB of list."""
    prepare(place)
    at_once = {"a torn picture", "a negative seed", "no steps", "a length of 6", "an unknown fit"}
    at_once |= {"a side of no pixels", "a rate of 0"}  # what only the engine or the decoder tells
    kinds = [bad for kind, (bad, _) in BAD.items() if kind not in at_once]
    good = job(meta="x" * 4_000)
    bad_lines = range(57, 10_000, 100)
    with (place / "jobs.jsonl").open("wb") as file:
        for number in range(1, 10_001):
            line = kinds[number // 100 % len(kinds)] if number in bad_lines else good
            file.write(line + b"\n")
    found = subprocess.run(
        [sys.executable, "-c", MANY, str(place)], capture_output=True, text=True, check=True
    ).stdout.split()
    assert int(found[0]) == 10_000
    assert float(found[1]) < 16, f"{found[1]} MB"
    assert [int(line) for line in found[2:]] == list(bad_lines)


def test_two_jobs_may_not_write_one_video(place: Path) -> None:
    lines = [job(output_video="a.mp4"), job(output_video="a.mp4", seed=2), job()]
    summary = run(place, [*lines, job(output_video="2.mp4"), job(output_video="a.mp4")])
    assert [row.line for row in summary.failures] == [2]
    failure = summary.failures[0].failure
    assert failure is not None
    assert "line 1 makes another" in failure.message
    assert names(place / "out") == {"a.mp4", "2.mp4"}


def test_entries_override_the_defaults(place: Path) -> None:
    seen: list[dict[str, Any]] = []

    class Seeing(ToyEngine):
        def generate(self, *arguments: Any, **options: Any) -> Any:
            seen.append({"negative": arguments[2], **options})
            return super().generate(*arguments, **options)

    every = {
        "negative_prompt": "Fog.", "height": 32, "width": 48, "num_video_frames": 9, "fps": 8,
        "num_input_frames": 1, "num_steps": 3, "guidance": 2, "seed": 11, "fit": "stretch",
        "recipe": "lossless", "upsample": False,
    }  # fmt: skip
    (place / "jobs.jsonl").write_bytes(job() + b"\n" + job(**every))
    defaults = Defaults(
        prompt="unused", negative_prompt="Rain.", options={"seed": 5, "size": (16, 32)}
    )
    engine = Seeing(place / "log", seconds=0)
    assert run_batch(
        engine, place / "jobs.jsonl", place / "out", input_root=place, defaults=defaults
    ).ok
    first, second = ({k: v for k, v in one.items() if v is not None} for one in seen)
    assert first == {"negative": "Rain.", "seed": 5, "size": (16, 32)}
    assert second == {
        "negative": "Fog.", "size": (32, 48), "num_frames": 9, "fps": 8,
        "num_conditional_frames": 1, "num_steps": 3, "guidance": 2, "seed": 11, "fit": "stretch",
        "recipe": "lossless", "upsample": False,
    }  # fmt: skip
    assert set(Options.__annotations__) <= set(second), "each argument of generate has its key"


def test_a_job_that_is_not_upsampled_needs_a_prompt(place: Path) -> None:
    lines = [job(prompt=...), job(prompt=..., upsample=False), job(upsample=False)]
    summary = run(place, lines, defaults=Defaults(needs_prompt=False))
    [row] = summary.failures
    assert row.line == 2
    assert row.failure is not None
    assert "upsample = false" in row.failure.message


def test_a_root_behind_a_link_is_no_link_of_the_list(place: Path, tmp_path: Path) -> None:
    (tmp_path / "alias").symlink_to(place)
    line = job(visual_input=str(tmp_path / "alias" / "start.png"))
    (place / "jobs.jsonl").write_bytes(line)
    engine = ToyEngine(place / "log", seconds=0)
    assert run_batch(
        engine, place / "jobs.jsonl", tmp_path / "alias" / "out", input_root=tmp_path / "alias"
    ).ok
    assert names(place / "out") == {"0.mp4"}
