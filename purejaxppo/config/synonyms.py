"""Other trainers' names of settings, so that an unknown name can be answered with ours.

The names are those of CleanRL, Stable-Baselines3, PureJaxRL, rejax, brax, Stoix, RLlib, rsl_rl, Spinning Up and OpenAI
Baselines. They are only used for suggestions, never accepted, since some differ in meaning from ours (`note_on`).
"""

_THEIRS = {  # our name -> their names
    "env": "env_id env_name environment gym_id task",
    "env_params": "env_kwargs env_config",
    "algorithm": "algo alg agent",
    "algorithms": "algos algs",
    "total_timesteps": "timesteps max_timesteps num_timesteps n_timesteps total_steps max_steps env_steps "
    "total_env_steps num_env_steps frames total_frames stop_timesteps",
    "num_envs": "n_envs nenvs num_env num_environments total_num_envs num_workers num_actors num_envs_per_env_runner",
    "num_steps": "n_steps nsteps rollout_length rollout_steps rollout_len unroll_length rollout_fragment_length "
    "horizon num_steps_per_env num_rollout_steps",
    "num_epochs": "update_epochs n_epochs noptepochs ppo_epoch ppo_epochs num_sgd_iter num_updates_per_batch "
    "num_learning_epochs epochs train_pi_iters",
    "num_minibatches": "n_minibatches nminibatches num_mini_batches num_mini_batch minibatches batch_size "
    "minibatch_size mini_batch_size sgd_minibatch_size",
    "hidden_sizes": "net_arch hidden_size hidden_dim hidden_dims hidden_layers hidden_layer_sizes layer_sizes layers "
    "fcnet_hiddens policy_hidden_layer_sizes",
    "activation": "activation_fn fcnet_activation",
    "shared_torso": "vf_share_layers share_layers share_network share_features_extractor",
    "policy": "network policy_network model",
    "action_distribution": "distribution",
    "optimizer": "optim optimiser optimizer_class",
    "normalize_observation": "norm_obs obs_norm normalize_obs normalize_observations normalize_env observation_filter",
    "normalize_reward": "norm_reward norm_rewards reward_norm normalize_rewards",
    "normalize_advantage": "norm_adv normalize_adv normalize_advantages standardize_advantages",
    "learning_rate": "lr alpha step_size stepsize actor_lr critic_lr policy_lr pi_lr vf_lr",
    "learning_rate_schedule": "anneal_lr lr_schedule lr_decay lr_anneal decay_learning_rates use_linear_lr_decay",
    "gamma": "discount discounting discount_factor",
    "gae_lambda": "lam lambda lambda_ lmbda gae",
    "clip_eps": "clip clip_coef clip_range cliprange clip_param clip_ratio clip_epsilon clipping_epsilon "
    "eps_clip epsilon",
    "vf_coef": "vf_coeff vf_loss_coeff value_coef value_coeff value_loss_coef critic_coef",
    "ent_coef": "ent_coeff entropy entropy_coef entropy_coeff entropy_cost entropy_bonus",
    "max_grad_norm": "grad_clip grad_norm grad_clip_norm clip_grad_norm gradient_clip max_gradient_norm",
    "vf_clip_eps": "clip_vloss clip_range_vf vf_clip vf_clip_param value_clip",
    "target_kl": "kl_target desired_kl max_kl kl_threshold",
    "kl_coef": "kl_coeff kl_beta beta init_kl_coef",
    "cg_iterations": "cg_iters cg_max_steps",
    "cg_damping": "damping",
    "line_search_steps": "backtrack_iters line_search_max_iter",
    "seed": "random_seed rng_seed",
    "eval_episodes": "n_eval_episodes num_eval_episodes num_eval_envs evaluation_duration",
    "checkpoint_seconds": "save_freq save_interval checkpoint_freq checkpoint_frequency checkpoint_interval",
    "episodes": "n_episodes num_episodes",
    "out": "output output_dir out_dir log_dir logdir save_dir save_path",
    "device": "cuda gpu",
    # Algorithms.
    "ppo_clip": "ppo ppo1 ppo2 clip_ppo",
    "ppo_kl": "ppo_penalty",
    "policy_gradient": "a2c a3c reinforce vpg pg",
    "trpo": "npg natural_gradient",
}
_OURS = {  # their name -> our name
    theirs: ours for ours, names in _THEIRS.items() for theirs in names.split()
}
_COUNT = "it is how many minibatches num_envs * num_steps rows make, not the rows of one"
_LINEAR = "it takes linear or constant"
_NOTES = {
    **dict.fromkeys(("batch_size", "minibatch_size", "mini_batch_size", "sgd_minibatch_size"), _COUNT),
    **dict.fromkeys(("anneal_lr", "lr_decay", "lr_anneal", "decay_learning_rates", "use_linear_lr_decay"), _LINEAR),
    **dict.fromkeys(("norm_adv", "normalize_adv", "normalize_advantages"), "it takes minibatch, batch or off"),
    "clip_vloss": "it takes the range, and none leaves the value free",
    "checkpoint_freq": "it takes seconds",
    "save_freq": "it takes seconds",
}


def our_name(name: str) -> str | None:
    """Returns our name for a setting or an algorithm of another trainer, or None if it is unknown.

    The name may be spelt as a flag or in capitals, and may begin with `no-`, as the flag of a boolean does.
    """
    return _OURS.get(_plain(name))


def note_on(name: str) -> str:
    """Returns how our setting differs from theirs of this name, as a clause, or the empty string."""
    return _NOTES.get(_plain(name), "")


def _plain(name: str) -> str:
    plain = name.casefold().replace("-", "_")
    return plain if plain in _OURS else plain.removeprefix("no_")
