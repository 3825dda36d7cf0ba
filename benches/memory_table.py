"""What ``bench_memory.py`` prints and keeps: beside resident rows, and beside predictions."""

from __future__ import annotations

from typing import Any

GIB = 1 << 30
MIB = 1 << 20
REFERENCE_GB = {
    "2b": {"everything offloaded": 27.3, "the later tool": 32.5},
    "14b": {"everything offloaded": 39.0, "the later tool": 56.4},
}
"""Peaks of the original, by its own tables."""
FORWARDS = 72
"""Of a whole run: 35 steps and the clean-up evaluation, with guidance."""
PEAK_BOUND = 0.05
TIME_BOUND = 0.10
"""How far a prediction may be from what is measured."""


def document(rows: list[dict[str, Any]], machine: dict[str, Any]) -> dict[str, Any]:
    """What is kept."""
    points = [point for row in rows if (point := predictions(row))]
    return {
        "bench": "memory",
        "machine": machine,
        "reference_gb": REFERENCE_GB,
        "points": points,
        "points_within_bounds": sum(point["within"] for point in points),
        "rows": rows,
    }


def compare(rows: list[dict[str, Any]]) -> None:
    """Adds to every row how it does beside the resident one of its model, shape and steps."""
    homes = {
        (row["model"], row["shape"]): row
        for row in rows
        if row.get("asked") == "resident" and row.get("kind") == "run" and "forward_s" in row
    }
    for row in rows:
        home = homes.get((row.get("model", ""), row.get("shape", "")))
        if home is None or "forward_s" not in row:
            continue
        row["slowdown"] = row["forward_s"] / home["forward_s"] - 1
        if row["kind"] == "run":
            row["whole_s"] = _whole(row)
            row["whole_slowdown"] = row["whole_s"] / _whole(home) - 1
            if row["steps"] == home["steps"]:
                row["same_latents"] = row["latents_sha256"] == home["latents_sha256"]


def measured_stages(row: dict[str, Any]) -> dict[str, float]:
    """Seconds of a row's stages: the median of those that were repeated, else as its clip had
    them."""
    short = {name: found["median_s"] for name, found in row.get("short_stages", {}).items()}
    return row["stages_s"] | short


def _whole(row: dict[str, Any]) -> float:
    """Seconds of a run of 35 steps: the stages around its forwards, and so many of those."""
    stages = measured_stages(row)
    around = sum(seconds for name, seconds in stages.items() if name != "denoise")
    return float(around + FORWARDS * row["forward_s"])


def predictions(row: dict[str, Any]) -> dict[str, Any] | None:
    """Predicted and measured of a row that has a plan: [predicted, measured, ratio], or None.

    Of stages that were repeated the median counts, alone; how far they lay apart stands beside it.
    """
    memory = row.get("memory")
    if not memory or "peak_bytes" not in row:
        return None
    pairs = {
        "peak_gib": (memory["predicted_peak_bytes"] / GIB, row["peak_bytes"] / GIB),
        "forward_s": (row["predicted_forward_s"], row["forward_s"]),
    }
    measured_s = measured_stages(row)
    for name, stage in memory["stages"].items():
        pairs[f"{name}_s"] = (stage["predicted_seconds"], measured_s[name])
    found: dict[str, Any] = {"row": row["row"], "outside": []}
    found["medians"] = {
        f"{name}_s": {"of": one["repeats"], "spread": one["spread"]}
        for name, one in row.get("short_stages", {}).items()
        if f"{name}_s" in pairs
    }
    for name, (predicted, measured) in pairs.items():
        ratio = predicted / measured
        found[name] = [predicted, measured, ratio]
        if abs(ratio - 1) > (PEAK_BOUND if name == "peak_gib" else TIME_BOUND):
            found["outside"].append(name)
    found["within"] = not found["outside"]
    return found


def line(row: dict[str, Any]) -> str:
    """One row, for people who wait."""
    parts = [f"{row['row']:22}"]
    memory = row.get("memory") or {}
    if "peak_bytes" in row:
        parts.append(f"peak {row['peak_bytes'] / GIB:6.2f} GiB")
        if memory:
            share = row["peak_bytes"] / memory["budget_bytes"]
            parts.append(
                f"(planned {memory['predicted_peak_bytes'] / GIB:.2f}, {share:.1%} of the budget, "
                f"context {row['context_bytes'] / MIB:.0f} MiB)"
            )
    if "forward_s" in row:
        parts.append(f"forward {row['forward_s']:.4f} s")
    if row.get("predicted_forward_s"):
        parts.append(f"(planned {row['predicted_forward_s']:.4f})")
    for name, one in row.get("short_stages", {}).items():
        if name in memory.get("stages", {}):
            parts.append(
                f"{name} {one['median_s']:.4f} s (median of {one['repeats']}, spread "
                f"{one['spread']:.0%})"
            )
    if "slowdown" in row:
        parts.append(f"{row['slowdown']:+.1%} to resident")
    if "whole_slowdown" in row:
        parts.append(f"({row['whole_slowdown']:+.1%} in 35 steps)")
    if "same_latents" in row:
        parts.append("same latents" if row["same_latents"] else _apart(row))
    if "naps" in row:
        nap = row["naps"][-1]
        parts.append(
            f"asleep {nap['beyond_context_bytes'] / 1e6:.0f} MB beyond a context with its kernels, "
            f"{nap['beyond_fresh_context_bytes'] / 1e6:.0f} beyond a fresh one; "
            f"wake {min(n['wake_s'] for n in row['naps']):.3f} to "
            f"{max(n['wake_s'] for n in row['naps']):.3f} s"
        )
    if "seen" in row:
        for name in ("taken", "pinned", "resident"):
            counts = [seen[f"{name}_bytes"] for seen in row["seen"]]
            parts.append(f"{name} {[round((count or 0) / MIB) for count in counts]} MiB")
        parts.append(f"{row['streamed']} blocks stream")
    parts.append(f"[{row.get('wall_s', 0):.0f} s]")
    return "  ".join(parts)


def _apart(row: dict[str, Any]) -> str:
    return f"latents {row.get('latents_apart', float('nan')):.1e} apart"


def _medians(found: dict[str, Any]) -> str:
    """Of how many a point's short stages are medians, and how far those lay apart."""
    if not found:
        return "each once"
    return ", ".join(
        f"{name} median of {one['of']}, spread {one['spread']:.0%}" for name, one in found.items()
    )


def table(rows: list[dict[str, Any]]) -> str:
    """Predicted and measured of every row with a plan; then peaks beside the reference's."""
    points = [point for row in rows if (point := predictions(row))]
    names = ["peak_gib", "forward_s", "text_s", "encode_s", "denoise_s", "decode_s"]
    lines = ["predicted / measured (* beyond 5 % of a peak, 10 % of a time)"]
    lines.append(f"{'':22}" + "".join(f"{name:>24}" for name in names))
    for point in points:
        cells = []
        for name in names:
            if name not in point:
                cells.append("-")
                continue
            predicted, measured, ratio = point[name]
            mark = "*" if name in point["outside"] else " "
            cells.append(f"{predicted:.3f} / {measured:.3f} {ratio - 1:+.1%}{mark}")
        lines.append(f"{point['row']:22}" + "".join(f"{cell:>24}" for cell in cells))
        lines[-1] += f"  {_medians(point['medians'])}"
    within = sum(point["within"] for point in points)
    lines.append(f"{within} of {len(points)} points within the bounds in all figures")
    for model, peaks in REFERENCE_GB.items():
        ours = ", ".join(
            f"{row['row']} {row['peak_bytes'] / 1e9:.2f}"
            for row in rows
            if row.get("model") == model and "peak_bytes" in row and "forward_s" in row
        )
        theirs = ", ".join(f"{name} {peak}" for name, peak in peaks.items())
        lines.append(f"GB at the peak, {model}: the reference, {theirs}; {ours or 'nothing yet'}")
    return "\n".join(lines)
