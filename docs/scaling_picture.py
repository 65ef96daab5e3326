"""How one run's speed grows with CPU devices, drawn from benchmarks/results/devices-scaling.json."""

import json
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = json.loads((ROOT / "benchmarks" / "results" / "devices-scaling.json").read_text())["rows"]
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained", sharey=True)
    titles = {"strong": "strong: 64 environments", "weak": "weak: 64 environments for each device"}
    for axes, (kind, title) in zip(panels, titles.items(), strict=True):
        for processes, colour, label in ((1, "#3b6fb6", "one process"), (2, "#d1782b", "two processes")):
            points = [row for row in rows if row["scaling"] == kind and row["processes"] == processes]
            x = [row["devices"] for row in points]
            axes.plot(x, [row["env_steps_per_s"] / 1e3 for row in points], "o-", color=colour, label=label)
        one = next(row["env_steps_per_s"] for row in rows if row["scaling"] == kind and row["devices"] == 1)
        axes.plot([1, 2], [one / 1e3, 2 * one / 1e3], "--", color="#9aa5b1", label="ideal, on two cores")
        axes.plot([2, 4], [2 * one / 1e3] * 2, "--", color="#9aa5b1")
        axes.set_xticks([1, 2, 4])
        axes.set_xlabel("CPU devices of one thread")
        axes.set_title(title, fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("thousand env steps/s")
    panels[0].set_ylim(0)
    panels[1].legend(frameon=False, loc="lower right", fontsize=9)
    figure.suptitle("CartPole, 128 steps, on two cores", fontsize=11)
    figure.savefig(ROOT / "docs" / "scaling.png", dpi=120)


if __name__ == "__main__":
    main()
