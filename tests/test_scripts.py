"""The examples in scripts/ and the program of a picture in docs/: each runs, at a tiny size; the examples are short."""

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "scripts" / "examples"


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["swap_env", "swap_network", "swap_objective", "sweep"])
def test_example_runs_and_is_at_most_60_lines(name):
    path = EXAMPLES / f"{name}.py"
    assert len(path.read_text().splitlines()) <= 60
    assert math.isfinite(load(path).main(total_timesteps=8192))


def test_importance_sampling_formulas_agree_with_quadrature():
    module = load(ROOT / "docs" / "importance_sampling.py")
    d = np.linspace(0, 2.5, 6)
    x, weight_of_node = np.polynomial.hermite_e.hermegauss(100)
    weight_of_node /= weight_of_node.sum()
    weight = np.exp(d[:, None] * x - d[:, None] ** 2 / 2)
    variance = (weight * x) ** 2 @ weight_of_node - ((weight * x) @ weight_of_node) ** 2
    np.testing.assert_allclose(module.estimate_std(d, 7), np.sqrt(variance / 7), rtol=1e-9)
    fraction = (weight @ weight_of_node) ** 2 / (weight**2 @ weight_of_node)
    np.testing.assert_allclose(module.effective_fraction(d), fraction, rtol=1e-9)


def test_importance_sampling_measures_what_the_formulas_say(tmp_path):
    module = load(ROOT / "docs" / "importance_sampling.py")
    measured = module.main(tmp_path / "picture.png", repetitions=1000)
    assert (tmp_path / "picture.png").stat().st_size > 10_000
    d, near = measured[:, 0], slice(0, 9)  # beyond, the tail is too heavy to be measured
    np.testing.assert_allclose(measured[near, 2], module.estimate_std(d[near], 256), rtol=0.12)
    np.testing.assert_allclose(measured[:6, 3], module.effective_fraction(d[:6]), rtol=0.02)
