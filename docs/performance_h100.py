"""What an update takes on an H100, beside what its launches and its bytes take alone: which of the two bounds it.

Measured times, launches and bytes are those of benchmarks/results/h100-launches.json.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
MEASURED = ROOT / "benchmarks" / "results" / "h100-launches.json"
PICTURE = ROOT / "docs" / "performance_h100.png"
LAUNCH_S, BYTES_PER_S = 1.2e-6, 3.35e12  # measured with tiny kernels; data sheet
STEPS = {
    "CartPole-v1 64x128": 8192,
    "16 runs of 4x128": 8192,
    "Breakout-MinAtar 64x128, 2 epochs x 32 minibatches, 128 units, shared": 8192,
    "CartPole-v1 2048x128": 262144,
    "Pendulum-v1 2048x128": 262144,
    "1,024 runs of 4x128": 524288,
    "Breakout-MinAtar 2048x128, 128 units, shared": 262144,
}
COLOURS = ("#9aa5b1", "#d1782b", "#3b6fb6")


def rows() -> dict[str, dict[str, Any]]:
    """Returns the measurement of each program as the package runs it: row-major, where that was measured."""
    every = json.loads(MEASURED.read_text())["rows"]
    changes = ("", "row-major activations")
    assert {row["change"] for row in every}.issuperset(changes)
    return {row["shape"]: row for change in changes for row in every if row["change"] == change}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--out", type=Path, default=PICTURE)
    out = options.parse_args().out

    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 6), layout="constrained")
    measured = rows()
    for place, (shape, steps) in enumerate(reversed(STEPS.items())):
        row = measured[shape]
        ms = statistics.median(row["ms_per_update"])
        bars = (1e3 * row["launches"] * LAUNCH_S, 1e3 * row["bytes"] / BYTES_PER_S, ms)
        for i, (length, colour) in enumerate(zip(bars, COLOURS, strict=True)):
            axes.barh(place + 0.26 * (1 - i), length, 0.24, color=colour)
        text = f"{ms:.3g} ms, {steps / ms / 1e3:.3g} M env steps/s"
        axes.text(1.06 * max(bars), place, text, va="center", fontsize=9)
    names = [shape.split(",")[0] if not shape[0].isdigit() else shape for shape in reversed(STEPS)]
    axes.set_yticks(range(len(names)), names)
    axes.set_xscale("log")
    axes.set_xlim(0.1, 700)
    axes.set_xlabel("milliseconds per update")
    axes.spines[["top", "right"]].set_visible(False)
    words = ("its launches, 1.2 us each", "its bytes, at 3.35 TB/s", "measured")
    figure.legend(
        [plt.Rectangle((0, 0), 1, 1, color=colour) for colour in COLOURS], words, loc="outside lower center", ncols=3,
        frameon=False,
    )  # fmt: skip
    axes.set_title("An update on one NVIDIA H100: small programs wait for launches, large ones for memory", fontsize=11)
    figure.savefig(out, dpi=120)
    print(f"written to {out}")


if __name__ == "__main__":
    main()
