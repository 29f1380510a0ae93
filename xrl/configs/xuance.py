"""What a configuration written for XuanCe means here. Three tables, no logic."""

from __future__ import annotations

# Keys of the same meaning under another name.
RENAMED = {
    "agent": "method",
    "algo": "method",
    "env": "env_name",
    "lmbda": "lambda_",
    "frame_skip": "environment.action_repeat",
    "noop_max": "environment.noop_max",
    "learning_rate_model": "model_opt.lr",
    "learning_rate_actor": "actor_opt.lr",
    "learning_rate_critic": "critic_opt.lr",
    "actor.ent_coef": "actor.entropy",
    "actor.mlp_layers": "actor.layers",
    "actor.dense_units": "actor.units",
    "actor.clip_gradients": "actor_opt.clip",
    "critic.mlp_layers": "critic.layers",
    "critic.dense_units": "critic.units",
    "critic.clip_gradients": "critic_opt.clip",
    "critic.hard_update_freq": "critic.slow_every",
    "world_model.clip_gradients": "model_opt.clip",
    "world_model.stochastic_size": "world_model.rssm.stoch",
    "world_model.discrete_size": "world_model.rssm.classes",
    "world_model.recurrent_model.recurrent_state_size": "world_model.rssm.deter",
    "world_model.representation_model.hidden_size": "world_model.rssm.hidden",
    "world_model.kl_balancing_alpha": "world_model.kl.balance",
    "world_model.kl_free_avg": "world_model.kl.free_avg",
    "world_model.kl_free_nats": "world_model.kl.free_nats",
    "world_model.kl_regularizer": "world_model.kl.scale",
    "world_model.discount_scale_factor": "world_model.loss_scales.discount",
    "world_model.use_continues": "world_model.predict_discount",
    "world_model.encoder.cnn_channels_multiplier": "world_model.conv.depth",
    "world_model.encoder.mlp_layers": "world_model.encoder.layers",
    "world_model.encoder.dense_units": "world_model.encoder.units",
    "world_model.observation_model.mlp_layers": "world_model.decoder.layers",
    "world_model.observation_model.dense_units": "world_model.decoder.units",
    "world_model.reward_model.mlp_layers": "world_model.reward.layers",
    "world_model.reward_model.dense_units": "world_model.reward.units",
    "world_model.discount_model.mlp_layers": "world_model.discount.layers",
    "world_model.discount_model.dense_units": "world_model.discount.units",
}

# Values of the same meaning under another name, by key.
VALUES: dict[str, dict[str, str]] = {
    "env_name": {"Classic Control": "classic_control", "Atari": "atari"},
    "vectorize": {
        "DummyVecEnv": "sync", "Dummy_Gym": "sync", "Dummy_Atari": "sync",
        "SubprocVecEnv": "async", "Subproc_Gym": "async", "Subproc_Atari": "async",
    },
}

# Keys (or whole sections) that decide nothing here -> the key that does, if there is one.
NOT_NEEDED = {
    "activation": "", "activation_action": "", "actor_hidden_size": "actor.units", "clip_type": "",
    "critic_hidden_size": "critic.units", "distributed_training": "", "distribution": "", "dl_toolbox": "",
    "env_config": "env_kwargs", "fc_hidden_sizes": "", "filters": "world_model.conv.depth",
    "grad_clip_norm": "model_opt.clip", "harmony": "", "img_size": "", "kernels": "", "learner": "",
    "learning_rate": "model_opt.lr", "master_port": "", "num_stack": "", "obs_type": "environment.grayscale",
    "obsnorm_range": "", "pixel": "", "policy": "", "render": "render_mode", "replay_ratio": "train_every",
    "representation": "", "representation_hidden_size": "world_model.encoder.units", "rewnorm_range": "",
    "runner": "", "strides": "", "test_mode": "", "test_steps": "test_episode", "training_frequency": "train_every",
    "use_actions_mask": "", "use_grad_clip": "model_opt.clip", "use_obsnorm": "world_model.obs_scale",
    "use_rewnorm": "world_model.reward_transform", "wandb_user_name": "",
    "actor.init_std": "", "actor.layer_norm": "actor.norm", "actor.min_std": "", "actor.objective_mix": "actor.grad",
    "critic.dense_act": "", "critic.layer_norm": "critic.norm",
    "world_model.encoder.layer_norm": "world_model.norm",
    "world_model.recurrent_model.layer_norm": "",
    "world_model.recurrent_model.dense_units": "world_model.rssm.hidden",
    "world_model.transition_model": "world_model.rssm.hidden",
    "world_model.representation_model.layer_norm": "world_model.norm",
    "world_model.observation_model.cnn_channels_multiplier": "world_model.conv.depth",
    "world_model.observation_model.layer_norm": "world_model.norm",
    "world_model.reward_model.layer_norm": "world_model.norm",
    "world_model.discount_model.layer_norm": "world_model.norm",
    "world_model.discount_model.learnable": "world_model.predict_discount",
}
