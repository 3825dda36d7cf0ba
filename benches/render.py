"""Tables and charts out of what the benches have written.

python benches/render.py [--results benches/results] [--page BENCHMARKS.md]

Reads every JSON file of the current schema, writes one chart (SVG) beside each, and the tables
between the two marks of the page. Nothing in the page between them is written by hand.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contest import SCHEMA

if TYPE_CHECKING:
    from collections.abc import Mapping

BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"
BAR, GAP, LEFT, WIDTH, RIGHT = 18, 6, 290, 420, 170
OURS, THEIRS, INK = "#1f7a4d", "#9aa5b1", "#222222"


def results_of(folder: Path) -> dict[str, dict[str, Any]]:
    """Results of the current schema, by the name of their file."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        document = json.loads(path.read_text("utf-8"))
        if isinstance(document, dict) and document.get("schema") == SCHEMA:
            found[path.stem] = document
    return found


def left_out(folder: Path, results: Mapping[str, object]) -> list[str]:
    """Files whose rows are of another form, or an older one: no table is made of them."""
    return sorted(path.stem for path in folder.glob("*.json") if path.stem not in results)


def table(document: dict[str, Any]) -> str:
    """One Markdown table of a result."""
    lines = [
        "| operation, shape | who | ms (10 %, 90 %) | held | TFLOP/s, of GEMM | GB/s, of copy "
        "| speed | error, limit |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in document["rows"]:
        name = f"{row['operation']}, {row['shape']}"
        who = f"**{row['contender']}**" if row["ours"] else row["contender"]
        if row["median_ms"] is None:
            lines.append(f"| {name} | {who} | {escape(row['note'])} | | | | | |")
            continue
        spread = f"{row['median_ms']:.3f} ({row['p10_ms']:.3f}, {row['p90_ms']:.3f})"
        cells = [
            name,
            who,
            spread,
            f"{row['seconds']:.1f} s",
            _of(row["teraflops"], row["share_of_gemm"]),
            _of(row["gigabytes_per_second"], row["share_of_copy"]),
            f"{row['speed']:.2f}" if row["speed"] else "-",
            f"{row['error']:.1e}, {row['error_limit']:.1e}" if row["error_limit"] else "-",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def stages(document: dict[str, Any]) -> str:
    """Seconds of each stage of the whole runs in a result; empty where there are none."""
    runs = document.get("runs", [])
    names = list(dict.fromkeys(name for run in runs for name in run["reports"][-1]["stages"]))
    if not names:
        return ""
    lines = [
        f"| seconds | {' | '.join(names)} | a step, median |",
        f"|---|{'---|' * (len(names) + 1)}",
    ]
    for run in runs:
        last = run["reports"][-1]
        cells = [f"{last['stages'][name]:.2f}" if name in last["stages"] else "" for name in names]
        step = statistics.median(last["step_seconds"])
        lines.append(f"| {run['shape']}, {run['contender']} | {' | '.join(cells)} | {step:.3f} |")
    return "\n" + "\n".join(lines) + "\n"


def first_uses(document: dict[str, Any]) -> str:
    """Parts of the first uses in a result, and numbers of kernels; empty where there are none."""
    uses = document.get("uses", [])
    if not uses:
        return ""
    lines = [
        "| seconds | start | load | first clip | kernels compiled, found | another clip, kernels |",
        "|---|---|---|---|---|---|",
    ]
    for use in uses:
        seconds, kernels = use["seconds"], use["kernels"]
        other = kernels.get("others")
        told = [parts for name, parts in kernels.items() if name != "others"]
        numbers = [sum(len(parts[kind]) for parts in told) for kind in ("compiled", "found")]
        cells = [f"{seconds[part]:.2f}" for part in ("start", "load", "clip")]
        cells.append(f"{numbers[0]}, {numbers[1]}")
        cells.append(f"{seconds['others']:.2f}, {len(other['compiled'])}" if other else "")
        lines.append(f"| {use['shape']}, {use['who']} | {' | '.join(cells)} |")
    return "\n" + "\n".join(lines) + "\n"


def _of(rate: float | None, share: float | None) -> str:
    if not rate:
        return "-"
    return f"{rate:.0f}, {share:.0%}" if share else f"{rate:.0f}"


def provenance(document: dict[str, Any]) -> str:
    """One paragraph: machine, versions, command, ceilings, clocks."""
    machine, top = document["machine"], document.get("ceilings")
    packages = ", ".join(f"{name} {one}" for name, one in machine["packages"].items() if one)
    parts = [f"{machine['device']}; {packages}"]
    parts += [f"{name} {machine[name]}" for name in ("cuda", "cudnn") if machine.get(name)]
    if top:
        parts.append(
            f"ceilings of the run: GEMM {top['gemm_teraflops']:.0f} TFLOP/s, copy "
            f"{top['copy_gigabytes_per_second']:.0f} GB/s"
        )
    clock = document.get("clocks", {}).get("clocks.sm")
    if clock:
        parts.append(f"SM clock {clock['min']:.0f} to {clock['max']:.0f} MHz")
    return f"`{document['command']}`: {'; '.join(parts)}."


def chart(document: dict[str, Any]) -> str:
    """Bars of one result as SVG: milliseconds, ours in green, each shape on a scale of its own."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in document["rows"]:
        if row["median_ms"] is not None:
            groups.setdefault(f"{row['operation']}, {row['shape']}", []).append(row)
    y, parts = 10, []
    for title, rows in groups.items():
        parts.append(_text(10, y + 14, title, "bold"))
        y += 22
        longest = max(row["median_ms"] for row in rows)
        for row in sorted(rows, key=lambda one: one["median_ms"]):
            length = max(1.0, WIDTH * row["median_ms"] / longest)
            colour = OURS if row["ours"] else THEIRS
            parts.append(_text(LEFT - 8, y + 13, row["contender"], anchor="end"))
            parts.append(
                f'<rect x="{LEFT}" y="{y}" width="{length:.1f}" height="{BAR}" fill="{colour}"/>'
            )
            rate = f", {row['teraflops']:.0f} TFLOP/s" if row["teraflops"] else ""
            label = f"{row['median_ms']:.4g} ms{rate}"
            parts.append(_text(LEFT + length + 6, y + 13, label))
            y += BAR + GAP
        y += 10
    size = f'width="{LEFT + WIDTH + RIGHT}" height="{y}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">'
        f'<rect width="100%" height="100%" fill="white"/>{"".join(parts)}</svg>\n'
    )


def _text(x: float, y: float, words: str, weight: str = "normal", anchor: str = "start") -> str:
    style = f'font-weight="{weight}" text-anchor="{anchor}" fill="{INK}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(words)}</text>'


def page_with(page: str, results: dict[str, dict[str, Any]], charts: str) -> str:
    """The page with its tables written anew.

    Raises:
        ValueError: the page lacks the two marks.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page has no {BEGIN} and {END}")
    sections = [
        f"### {name.replace('_', ' ')}\n\n{provenance(one)}\n\n{table(one)}\n{stages(one)}"
        f"{first_uses(one)}\n![{name}]({charts}/{name}.svg)\n"
        for name, one in results.items()
    ]
    return f"{before}{BEGIN}\n\n" + "\n".join(sections) + f"\n{END}{after}"


def main() -> int:
    root = Path(__file__).parent
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=root / "results")
    parser.add_argument("--page", type=Path, default=root.parent / "BENCHMARKS.md")
    arguments = parser.parse_args()
    results = results_of(arguments.results)
    for name, document in results.items():
        (arguments.results / f"{name}.svg").write_text(chart(document), "utf-8")
    charts = os.path.relpath(arguments.results, arguments.page.parent)
    page = page_with(arguments.page.read_text("utf-8"), results, Path(charts).as_posix())
    arguments.page.write_text(page, "utf-8")
    print(f"{len(results)} results in {arguments.page}")
    if others := left_out(arguments.results, results):
        print(f"of another form, without a table: {', '.join(others)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
