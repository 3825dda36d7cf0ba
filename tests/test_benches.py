"""The benches: who is timed, who is refused, and what becomes of it. No test looks at a time."""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _benches_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benches"))


def contest_of(errors: dict[str, float], calls: list[str]):
    from contest import Contender, Contest

    def contender(name: str, error: float):
        def measured() -> float:
            if error < 0:
                raise ImportError(f"no {name} here")
            return error

        return Contender(name, lambda: calls.append(name), measured, ours=name == "ours")

    contenders = tuple(contender(name, error) for name, error in errors.items())
    return Contest("adding", "small", contenders, 0.1, flops=1e6, seconds=0.001, rounds=3)


def test_everybody_who_is_right_takes_turns() -> None:
    from contest import Ceilings, held

    calls: list[str] = []
    rows = held(contest_of({"ours": 0.01, "rival": 0.02}, calls), CPU, Ceilings(1.0, 1.0))
    assert [row.contender for row in rows] == ["ours", "rival"]
    assert all(row.median_ms is not None and row.calls >= 3 for row in rows)
    assert rows[0].speed == 1.0
    turns = re.sub(r"(\w+)( \1)*", r"\1", " ".join(calls)).split()
    # First calls of each; then rounds, the second of them the other way round.
    assert turns == ["ours", "rival"] * 3


@pytest.mark.parametrize("error", [0.2, float("nan")], ids=["wrong", "nan"])
def test_a_wrong_rival_is_refused_and_a_missing_one_named(error: float) -> None:
    from contest import Ceilings, held

    calls: list[str] = []
    errors = {"ours": 0.01, "rival": error, "absent": -1.0}
    rows = {row.contender: row for row in held(contest_of(errors, calls), CPU, Ceilings(1.0, 1.0))}
    assert rows["rival"].median_ms is None
    assert "refused" in rows["rival"].note
    assert "not run: ImportError: no absent here" in rows["absent"].note
    assert set(calls) == {"ours"}


@pytest.mark.parametrize("error", [0.2, float("nan")], ids=["wrong", "nan"])
def test_ours_being_wrong_ends_the_run(error: float) -> None:
    from contest import Ceilings, held
    from harness import WrongResult

    with pytest.raises(WrongResult, match="adding by ours at small"):
        held(contest_of({"ours": error}, []), CPU, Ceilings(1.0, 1.0))


def test_a_call_that_holds_many_is_counted_as_many_and_a_tolerance_may_be_ones_own() -> None:
    from contest import Ceilings, Contender, Contest, held

    def contender(name: str, error: float, works: int, limit: float | None) -> Contender:
        return Contender(
            name, lambda: time.sleep(0.002), lambda: error, works=works, error_limit=limit
        )

    contenders = (
        contender("one", 0.05, 1, None),
        contender("graph", 0.2, 100, 0.3),
        contender("off", 0.4, 1, 0.3),
    )
    contest = Contest("waiting", "small", contenders, 0.1, seconds=0.02, rounds=2)
    began = time.perf_counter()
    rows = {row.contender: row for row in held(contest, CPU, Ceilings(1.0, 1.0))}
    one, graph, off = rows["one"], rows["graph"], rows["off"]
    # A hundred times what the clock on the wall saw, were a replay counted as one call.
    assert one.seconds + graph.seconds < time.perf_counter() - began
    assert graph.calls % 200 == 0
    assert graph.median_ms == pytest.approx(graph.seconds * 1e3 / graph.calls)
    assert (one.error_limit, graph.error_limit, off.error_limit) == (0.1, 0.3, 0.3)
    assert off.median_ms is None
    assert off.note == "refused: relative error 4.00e-01 is beyond 3.00e-01"


def test_a_report_is_written_row_by_row_and_becomes_a_page(tmp_path: Path, capsys) -> None:
    from contest import Report
    from render import BEGIN, END, chart, left_out, page_with, results_of

    report = Report("adding", CPU, {"seconds": 1}, tmp_path / "adding_cpu.json")
    report.run([lambda: contest_of({"ours": 0.01, "rival": 0.02, "<absent>": -1.0}, [])])
    report.finish()
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["bench"] == "adding"
    (tmp_path / "older.json").write_text('{"bench": "of another form"}')
    results = results_of(tmp_path)
    assert list(results) == ["adding_cpu"]
    assert left_out(tmp_path, results) == ["older"]
    page = page_with(f"before\n{BEGIN}\nold\n{END}\nafter\n", results, "charts")
    assert "old" not in page
    assert page.startswith("before\n")
    assert page.endswith("\nafter\n")
    assert "| **ours** |" in page
    assert "![adding_cpu](charts/adding_cpu.svg)" in page
    assert page == page_with(page, results, "charts")
    words = [
        text.text
        for text in ElementTree.fromstring(chart(results["adding_cpu"])).iter()
        if text.text
    ]
    assert {"ours", "rival"} <= set(words)


def test_a_report_is_json_for_everybody_even_where_a_rival_gives_nan(tmp_path: Path) -> None:
    from contest import Report

    report = Report("adding", CPU, {}, tmp_path / "adding.json")
    report.run([lambda: contest_of({"ours": 0.01, "rival": float("nan")}, [])])
    report.extra["checks"] = {"rival": {"errors": {"small": (float("nan"), float("inf"))}}}
    report.write()

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    told = json.loads((tmp_path / "adding.json").read_text("utf-8"), parse_constant=refuse)
    rival = next(row for row in told["rows"] if row["contender"] == "rival")
    assert rival["error"] is None
    assert "relative error nan" in rival["note"]
    assert told["checks"]["rival"]["errors"]["small"] == [None, None]


@pytest.mark.parametrize("place", ["folder", "file/rows.json"])
def test_a_place_that_cannot_be_written_is_told_before_anything_is_measured(
    tmp_path: Path, place: str
) -> None:
    from contest import Report

    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match=rf"--save .*{place}: .* file .*is needed"):
        Report("adding", CPU, {}, tmp_path / place)
    assert not list(tmp_path.glob("**/*.partial"))


def test_what_is_there_is_kept_until_there_is_a_row(tmp_path: Path) -> None:
    from contest import Report

    earlier = tmp_path / "adding.json"
    earlier.write_text("{}")
    report = Report("adding", CPU, {}, earlier)
    assert earlier.read_text() == "{}"
    report.add([])
    assert json.loads(earlier.read_text())["bench"] == "adding"


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_machine_without_a_gpu_is_told_in_a_sentence(capsys) -> None:
    from contest import Report

    from cosmos_fast.cli import main

    with pytest.raises(SystemExit, match=r"sees no CUDA device.*--tiny"):
        Report("adding", torch.device("cuda"), {})
    for words in ([], ["--only", "forward"]):
        assert main(["bench", *words]) == 2
        told = capsys.readouterr().err
        assert "torch sees none; --tiny shows" in told
        assert len(told.splitlines()) == 1


def test_clocks_are_read_from_whole_lines() -> None:
    from contest import Clocks

    clocks = Clocks()
    clocks.lines = ["Unable to determine the device handle, reboot", "1600, 3201, [N/A], 60"]
    assert clocks.summary() == {}
    clocks.lines += ["1600, 3201, 690.5, 60", "1980, 3201, 400.0, 50", "1700, 32"]
    assert clocks.summary()["clocks.sm"] == {"min": 1600, "median": 1790, "max": 1980}
    assert set(clocks.summary()) == set(Clocks.FIELDS)


def test_a_package_to_compare_with_that_is_missing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from contest import Report

    def needs_diffusers() -> Any:
        monkeypatch.setitem(sys.modules, "diffusers", None)
        import diffusers

        return diffusers

    with pytest.raises(SystemExit, match=r"diffusers.*requirements/dev\.in"):
        Report("adding", CPU, {}).carry_out([needs_diffusers])


def test_the_page_has_a_place_for_the_figures() -> None:
    from render import BEGIN, END

    page = (ROOT / "BENCHMARKS.md").read_text("utf-8")
    assert page.count(BEGIN) == page.count(END) == 1


@torch.inference_mode()
def test_diffusers_has_our_weights_and_inputs() -> None:
    import bench_forward

    contest = bench_forward.contest("tiny", CPU, 0.01, 2, ())
    errors = {one.name: one.error for one in contest.contenders}
    assert errors["ours"]() <= contest.error_limit
    assert 1e-4 < errors["diffusers eager"]() <= contest.error_limit
    assert all(contender.call() is not None for contender in contest.contenders[:1])


def test_work_of_the_decoder_is_that_of_the_specification() -> None:
    import bench_vae

    from cosmos_fast.config import VAEConfig

    for name, teraflops in (("480p_81", 229), ("720p_93", 717)):
        assert bench_vae.decode_flops(VAEConfig(), bench_vae.SHAPES[name]) / 1e12 == pytest.approx(
            teraflops, rel=0.005
        )


def test_shapes_have_the_tokens_that_they_are_known_by() -> None:
    import bench_forward

    tokens = {name: shape.tokens for name, shape in bench_forward.SHAPES.items()}
    assert tokens["2b_480p_81"] == tokens["14b_480p_81"] == 27216
    assert (tokens["2b_480p_93"], tokens["2b_720p_93"], tokens["2b_action"]) == (31104, 84480, 4800)


def test_the_forward_is_checked_in_the_designs_in_which_it_is_timed() -> None:
    import math

    import bench_forward

    from cosmos_fast.model.linear_table import DESIGNS, design
    from cosmos_fast_kernels.attention_hopper import shipped

    for name, shape in bench_forward.SHAPES.items():
        frames, height, width = shape.checked
        tokens = math.prod((frames, height // 2, width // 2))
        assert tokens <= max(shape.tokens / 2, 8192 + 3520), name
        assert 2 <= frames <= shape.latent[0]
        assert shipped(128, tokens) == shipped(128, shape.tokens)
        for inputs in (shape.config.width, shape.config.mlp_width):
            for epilogue in {epilogue for epilogue, _ in DESIGNS}:
                wanted = design(epilogue, shape.tokens, inputs)
                assert design(epilogue, tokens, inputs) == wanted, (name, epilogue)


def test_worlds_are_measured_part_by_part(tmp_path: Path) -> None:
    import bench_world
    from harness import WrongResult

    from action_world import PROFILE
    from random_world import make_random_world

    folder = make_random_world(tmp_path / "model", PROFILE)
    save = tmp_path / "world.json"
    words = ["--worlds", "2", "--steps", "2", "--flat", "40", "--save", str(save)]
    bench = bench_world.Bench(
        bench_world.load(folder, "cpu"), folder, bench_world.parsed([str(folder), *words])
    )
    for part in ("latency", "batch", "flat"):
        for row in getattr(bench, part)():
            bench.rows.append({"part": part, **row})
            assert bench_world.line_of(part, row)
    bench.write()
    latency, batch, flat = json.loads(save.read_text("utf-8"))["rows"]
    assert (latency["worlds"], latency["steps"], latency["frames"]) == (2, 2, 2 * 2 * 8)
    assert batch["equal_bytes"]
    assert batch["ratio"] == 1
    assert (flat["steps"], len(flat["seen"]), flat["seen"][-1]["step"]) == (40, 21, 40)
    assert (flat["decoded"]["number"], flat["searched"]["number"]) == (4, 36)

    moments = [{"step": step, "allocated": step, "taken_of_card": 0} for step in range(1, 5)]
    assert bench_world.growth(moments, 4)["allocated"] == 3
    moments[-1]["allocated"] = 2 << 20
    with pytest.raises(WrongResult, match="grew over 4 steps"):
        bench_world.growth(moments, 4)


def test_the_command_runs_the_program_that_it_names(tmp_path: Path, capsys) -> None:
    from cosmos_fast.cli import main

    before, path = list(sys.argv), list(sys.path)
    code = main(["bench", "--only", "kernels", "--tiny", "--save", str(tmp_path)])
    assert code == 0, capsys.readouterr().err
    assert (sys.argv, sys.path) == (before, path)
    document = json.loads(next(tmp_path.glob("kernels_*.json")).read_text("utf-8"))
    operations = {row["operation"] for row in document["rows"] if row["ours"]}
    assert operations >= {"qk_norm_rope", "gated_layernorm_modulate", "rms_silu", "upsample"}


def test_a_bench_that_fails_is_named_and_the_others_go_on(tmp_path: Path, capsys) -> None:
    from cosmos_fast.cli.bench import run_all
    from cosmos_fast.cli.exits import ExitCode

    for name, line in {
        "says": "sys.exit('no contender passed')",
        "raises": "raise OSError('no disk')",
        "counts": "sys.exit(3)",
        "works": "print('works', sys.argv[1:])",
        "ends": "sys.exit(0)",
    }.items():
        (tmp_path / f"bench_{name}.py").write_text(f"import sys\n{line}\n")
    programs = {name: ["--x"] for name in ("says", "raises", "counts", "works", "ends")}
    programs["says"] = ["--save", "rows.json"]
    assert run_all(tmp_path, programs) == ExitCode.FAILED
    told = capsys.readouterr()
    assert told.out == "works ['--x']\n"
    for line in (
        "bench says failed: no contender passed",
        "bench raises failed: OSError: no disk",
        "bench counts failed: exit code 3",
        "3 of 5 failed: says, raises, counts;",
    ):
        assert line in told.err
    assert "measured before they did is kept" in told.err
    assert run_all(tmp_path, {"counts": []}) == ExitCode.FAILED
    assert "is kept" not in capsys.readouterr().err, "nothing was to be saved"
    assert run_all(tmp_path, {"works": [], "ends": []}) == ExitCode.OK


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--shape 2b_480p_81", "--shape without --only"),
        ("--only text --shape tiny", "--shape: bench text has none; those that do: kernels, lin"),
        ("--only run --seconds 2", "--seconds: bench run has none"),
        ("--only vae --without fa3", "--without: bench vae has none; those that do: forward, run"),
    ],
)
def test_a_flag_that_a_bench_does_not_take_is_refused(words: str, told: str, capsys) -> None:
    from cosmos_fast.cli import main

    assert main(["bench", *words.split()]) == 2
    assert told in capsys.readouterr().err


def test_flags_reach_the_benches_that_take_them() -> None:
    from cosmos_fast.cli.bench import BENCHES, TAKERS, _arguments

    flags: dict[str, object] = {"seconds": 2.5, "without": ("diffusers eager", "x")}
    given = {name: _arguments(name, flags, tiny=False) for name in BENCHES}
    assert {name for name, words in given.items() if "2.5" in words} == set(TAKERS["seconds"])
    assert given["forward"][-3:] == ["--without", "diffusers eager", "x"]
    assert given["run"] == ["--without", "diffusers eager", "x"]
    assert given["vae"] == ["--seconds", "2.5", "--long", "2.5"]
    assert given["attention"] == ["--seconds", "2.5", "--long", "2.5"]
    # Those of the others are in their programs.
    bare = {name: _arguments(name, {}, tiny=False) for name in BENCHES}
    assert bare["attention"] == bare["linear"] == ["--long", "30"]
    assert bare["text"] == ["--seconds", "30"]
    flags = {"shape": ("action", "480p_93")}
    assert _arguments("run", flags, tiny=False) == ["--shape", "action", "--shape", "480p_93"]
    for name, takers in ((name, TAKERS[name]) for name in TAKERS):
        for taker in takers:  # each program has the flag
            assert f'"--{name}"' in (ROOT / "benches" / f"bench_{taker}.py").read_text("utf-8")


def test_each_bench_of_the_command_runs_tiny(tmp_path: Path, capsys) -> None:
    from cosmos_fast.cli import main

    for name in ("linear", "text"):
        code = main(["bench", "--only", name, "--tiny", "--save", str(tmp_path)])
        assert code == 0, capsys.readouterr().err
        assert next(tmp_path.glob(f"{name}_*.json")).is_file()


def test_whole_runs_say_what_ran_and_how_far_it_is_off(tmp_path: Path, capsys) -> None:
    from cosmos_fast.cli import main

    words = ["bench", "--only", "run", "--tiny", "--save", str(tmp_path)]
    assert main([*words, "--checkpoints", str(tmp_path / "random")]) == 0, capsys.readouterr().err
    document = json.loads(next(tmp_path.glob("run_*.json")).read_text("utf-8"))
    ours, theirs = document["rows"]
    assert (ours["ours"], theirs["ours"]) == (True, False)
    for row in (ours, theirs):
        assert 0 < row["error"] <= row["error_limit"]
    backends = {run["contender"]: run["reports"][-1]["backends"] for run in document["runs"]}
    assert backends["ours"]["qk_norm_rope"] == "torch"
    assert set(backends[theirs["contender"]]) == {"transformer", "attention", "vae", "launches"}
    assert "blocks compiled by eager" in backends[theirs["contender"]]["transformer"]


def test_whole_runs_that_are_wrong_are_refused(tmp_path: Path) -> None:
    import bench_run
    from contest import Report
    from harness import WrongResult
    from run_checks import verify_file

    engine = bench_run.load(tmp_path / "random", "tiny", "cpu")
    shape = bench_run.SHAPES["tiny"]
    bench_run.once(engine, shape, tmp_path, to_file=True)
    verify_file(tmp_path / "clip.mp4", shape.size, shape.num_frames)
    with pytest.raises(WrongResult, match="has 5 frames where 9"):
        verify_file(tmp_path / "clip.mp4", shape.size, 9)
    with pytest.raises(WrongResult, match="is not 48 x 64"):
        verify_file(tmp_path / "clip.mp4", (64, 48), shape.num_frames)

    rival = bench_run.with_their_networks(engine, compiled=False)
    network: Any = rival._parts.dit._network
    modulation = network.transformer_blocks[0].norm1.linear_2
    modulation.weight = torch.nn.Parameter(modulation.weight * 2, requires_grad=False)
    engines = {"ours": engine, bench_run.THEIRS: rival}
    rows = bench_run.rows_of("tiny", engines, 1, tmp_path, Report("run", CPU, {}))
    assert rows[0].median_ms is not None
    assert rows[1].median_ms is None
    assert rows[1].note.startswith("refused: first step against ours")

    engine._parts.dit.final_layer.register_forward_hook(lambda layer, given, out: out * 1.1)
    with pytest.raises(WrongResult, match="tiny: latents of ours are"):
        bench_run.rows_of("tiny", {"ours": engine}, 1, tmp_path, Report("run", CPU, {}))
