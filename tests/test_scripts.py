"""The examples in scripts/ and the program of a picture in docs/: each runs, at a tiny size; the examples are short."""

import importlib.util
import math
from functools import partial
from pathlib import Path

import gymnax  # noqa: F401  its functions are jitted when it is imported: not by the jax.jit that a test puts in place
import jax
import numpy as np
import pytest
from compiled_once import QUICKLY

import purejaxppo
from purejaxppo import from_gymnax

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "scripts" / "examples"


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["swap_env", "swap_network", "swap_objective", "sweep"])
def test_example_runs_and_is_at_most_60_lines(name, monkeypatch):
    """The sweep tries fewer values than it shows."""
    path = EXAMPLES / f"{name}.py"
    assert len(path.read_text().splitlines()) <= 60
    example = load(path)
    for values in ("LEARNING_RATES", "CLIP_RANGES", "SEEDS"):
        if hasattr(example, values):
            monkeypatch.setattr(example, values, getattr(example, values)[:2])
    from_gymnax(
        "CartPole-v1", 1
    )  # gymnax's own functions are decorated with jax.jit when it is imported: not with this
    if name != "sweep":  # whose program is compiled by the package
        monkeypatch.setattr(jax, "jit", partial(jax.jit, compiler_options=QUICKLY))
    assert math.isfinite(example.main(total_timesteps=2048))


def test_notebook_runs_cell_by_cell(monkeypatch, tmp_path, capsys):
    """With a smaller budget, and on the devices that the tests have."""
    text = (EXAMPLES / "notebook.py").read_text()
    assert len(text.splitlines()) <= 60
    budget = "TOTAL_TIMESTEPS = 50_000"
    first, *cells = text.replace(budget, "TOTAL_TIMESTEPS = 2_048").split("# %%")
    assert budget in text
    assert len(cells) == 6
    monkeypatch.setattr(purejaxppo, "use_all_cores", lambda: None, raising=False)
    monkeypatch.chdir(tmp_path)  # what it trains goes to runs/
    names = {}
    for cell in (first, *cells):
        exec(compile(f"# %%{cell}" if cell is not first else cell, "notebook.py", "exec"), names)
    assert names["picture"].is_file()
    assert 1 <= names["total"] <= 500
    assert [row["runs"] for row in names["swept"]["settings"]] == [2, 2]
    assert int(names["best"].policy([0.0, 0.0, 0.1, 0.0])[0]) in (0, 1)
    assert "interquartile mean" in capsys.readouterr().out


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
