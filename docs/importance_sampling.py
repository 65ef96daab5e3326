"""How an importance-sampled mean gets worse as the two distributions move apart, drawn for two Gaussians.

Samples x come from q = N(0, 1), and the mean of x under p = N(d, 1) is estimated, which is d. The weights are
w = p(x) / q(x) = exp(d x - d^2 / 2), and KL(q || p) = KL(p || q) = d^2 / 2. All follows from
E_q[w^2 g(x)] = exp(d^2) E[g(y)] with y ~ N(2 d, 1).

The variance lives where samples are rare: the weighted squares w^2 x^2 are centred near x = 2 d, in the tail of q. From
d of about 2 on, even the million draws behind each point hardly reach there: the measured points mostly fall below the
formula, now and then one jumps above it, and none of them is to be trusted. The measured effective sample size cannot
fall below 1 / N; from d of about 1 on it stays visibly above its large-N limit.
"""

import argparse
from pathlib import Path

import numpy as np

PICTURE = Path(__file__).resolve().parent / "importance_sampling.png"
POINTS, LINE, LIMIT = "#d1782b", "#3b6fb6", "#6b7280"


def estimate_std(d: np.ndarray, samples: int) -> np.ndarray:
    """Returns the exact standard deviation of mean_i w_i x_i over draws, sqrt((E_q[w^2 x^2] - d^2) / samples)."""
    return np.sqrt((np.exp(d**2) * (1 + 4 * d**2) - d**2) / samples)


def effective_fraction(d: np.ndarray) -> np.ndarray:
    """Returns the limit of (sum w)^2 / (N sum w^2) for large N: E_q[w]^2 / E_q[w^2] = exp(-d^2)."""
    return np.exp(-(d**2))


def measure(generator: np.random.Generator, d: float, samples: int, repetitions: int) -> tuple[float, float, float]:
    """Returns mean and standard deviation of the estimate over repetitions, and the mean effective sample fraction."""
    x = generator.standard_normal((repetitions, samples))
    weight = np.exp(d * x - d**2 / 2)
    estimate = np.mean(weight * x, axis=1)
    fraction = np.sum(weight, axis=1) ** 2 / (samples * np.sum(weight**2, axis=1))
    return float(estimate.mean()), float(estimate.std(ddof=1)), float(fraction.mean())


def main(out: Path = PICTURE, samples: int = 256, repetitions: int = 4000) -> np.ndarray:
    """Draws the picture and returns what was measured: d, mean, standard deviation, effective fraction [points, 4]."""
    from matplotlib.figure import Figure

    generator = np.random.default_rng(0)
    shifts = np.linspace(0, 2.5, 26)
    measured = np.array([(d, *measure(generator, d, samples, repetitions)) for d in shifts])
    line = np.linspace(0, 2.5, 200)

    figure = Figure(figsize=(9.5, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2, gridspec_kw={"wspace": 0.06})
    left.plot(line, estimate_std(line, samples), color=LINE, label=r"$\sqrt{(e^{d^2}(1 + 4 d^2) - d^2)\,/\,N}$")
    left.plot(shifts, measured[:, 2], "o", color=POINTS, markersize=4.5, label=f"measured, {repetitions:,} repetitions")
    left.set_ylabel(f"standard deviation of the estimate, N = {samples}")
    right.plot(line, effective_fraction(line), color=LINE, label=r"$e^{-d^2}$, for large N")
    right.plot(shifts, measured[:, 3], "o", color=POINTS, markersize=4.5, label=f"measured, mean at N = {samples}")
    right.axhline(1 / samples, color=LIMIT, linestyle=":")
    right.text(0, 0.88 / samples, "1 / N: one sample counts", fontsize=9, color=LIMIT, va="top")
    right.set_ylabel("effective sample size, as a fraction of N")
    left.legend(frameon=False, loc="upper left")
    right.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 0.16))
    left.annotate(
        "too low: the rare draws\nthat carry the variance\nare missing",
        xy=(2.3, measured[23, 2]), xytext=(1.56, 0.25), fontsize=9, color=LIMIT,
        arrowprops={"arrowstyle": "-", "color": LIMIT},
    )  # fmt: skip
    to_kl, to_shift = lambda d: np.sign(d) * d**2 / 2, lambda kl: np.sign(kl) * np.sqrt(2 * np.abs(kl))
    for axes in (left, right):
        axes.set_yscale("log")
        axes.set_xlabel("distance d of the means, in standard deviations")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        top = axes.secondary_xaxis("top", functions=(to_kl, to_shift))
        top.set_xticks([0, 0.1, 0.5, 1, 2, 3])
        top.set_xlabel("KL divergence, nats", color=LIMIT, fontsize=9)
        top.tick_params(colors=LIMIT, labelsize=8)
        top.spines["top"].set_visible(False)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=150)
    print(f"drew {out}")
    return measured


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=PICTURE, help="where the picture goes (default: %(default)s)")
    main(parser.parse_args().out)
