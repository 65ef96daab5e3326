"""From a run to a sweep, in cells: Jupyter (by jupytext), VS Code, PyCharm and Spyder open this file as a notebook.

As a script it takes less than a minute on two cores. What it trains goes to `runs/`.
"""

# %% Before JAX is used: on a CPU a device per core, and compiled programs that the next start finds
from dataclasses import replace

import purejaxppo

TOTAL_TIMESTEPS = 50_000  # of every run

purejaxppo.use_all_cores()
print("compiled programs are kept in", purejaxppo.keep_programs())

# %% Train: the tuned settings of an environment, with another budget
config, hp = purejaxppo.preset("CartPole-v1")
config = replace(config, total_timesteps=TOTAL_TIMESTEPS)
summary = purejaxppo.run_experiment(config, hp, seed=0)
print(f"return of the last tenth of the training: {summary['train_return']:.1f}")

# %% The learning curve; in a notebook IPython.display.Image(picture) shows it
picture = purejaxppo.plot_runs(summary["run_dir"], f"{summary['run_dir']}/curve.png")
print("the learning curve is", picture)

# %% Load the run, and evaluate it
run = purejaxppo.load_run(summary["run_dir"])
evaluation = purejaxppo.evaluate_saved(run, episodes=64)
print(f"return of {evaluation['episodes']} episodes: {evaluation['return_mean']:.1f} +- {evaluation['return_std']:.1f}")

# %% Play an episode in gymnax itself: an observation, and what is remembered of earlier ones, give an action
import gymnax  # noqa: E402  it uses JAX, so it comes after use_all_cores
import jax  # noqa: E402

env, params = gymnax.make(config.env)
key = jax.random.key(1)
obs, state = env.reset(key, params)
memory, total, done = None, 0.0, False
while not done:
    action, memory = run.policy(obs, memory)
    key, key_step = jax.random.split(key)
    obs, state, reward, terminated, truncated, _ = env.step(key_step, state, action, params)
    total, done = total + float(reward), bool(terminated | truncated)
print(f"return of the episode: {total:.0f}")

# %% Sweep: two learning rates, two seeds each, and the best of these runs
sweep = purejaxppo.sweep_grid(config, hp, seeds=range(2), learning_rate=[1e-4, 1e-3])
swept = purejaxppo.run_sweep(sweep)
for row in swept["settings"]:
    print(f"learning rate {row['values']['learning_rate']:g}: interquartile mean {row['return_iqm']:.1f}")
best = purejaxppo.load_member(swept["out"], "best")
print("the best run does", best.policy([0.0, 0.0, 0.1, 0.0])[0], "when the pole leans to the right")
