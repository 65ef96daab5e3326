"""A critic that sees more than the policy: CartPole behind a noisy sensor.

The policy sees position and velocities with noise, which differs from step to step; the value function, which is only
needed in training, sees them exactly. That takes an environment whose observation has the key "critic".

    purejaxppo train --plugin scripts/examples/asymmetric_critic.py --env noisy-cartpole
    purejaxppo train --plugin scripts/examples/asymmetric_critic.py --env noisy-cartpole --env-params privileged=false
"""

import jax

import purejaxppo


def noisy_cartpole(num_envs, privileged=True, std=0.3):
    """Returns E CartPoles seen with noise of `std`, whose value function sees them exactly if `privileged`."""
    exact = purejaxppo.from_gymnax("CartPole-v1", num_envs)

    def observe(noise, obs):
        return {"obs": obs + noise, **({"critic": obs} if privileged else {})}

    def noise(keys):
        return std * jax.vmap(lambda key: jax.random.normal(key, exact.observation_space.shape))(keys)

    def reset(keys):
        state, obs = exact.reset(keys)
        return state, observe(noise(keys), obs)

    def draw(keys):  # all that is random in one step, whatever the state
        return exact.draw(keys), noise(jax.vmap(lambda key: jax.random.fold_in(key, 1))(keys))

    def step(draws, state, action):
        of_step, noise = draws
        state, result = exact.step(of_step, state, action)
        return state, result._replace(obs=observe(noise, result.obs), final_obs=observe(noise, result.final_obs))

    space = exact.observation_space
    spaces = {"obs": space, **({"critic": space} if privileged else {})}
    return exact._replace(reset=reset, step=step, draw=draw, observation_space=spaces)


purejaxppo.register_env("noisy-cartpole", noisy_cartpole)
