"""What a training config must satisfy before anything is loaded."""

from experiments.running import command, session
from flow_grpo_jax import batching, loss
from models import qwen2


def choose_variant(config):
    """Returns the loss variant; refuses a sampler whose log-probs would not be the trainer's."""
    with command.checking_config():
        variant = loss.choose(config.loss.variant, temperature=config.rollout.temperature)
    neutral = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
    neutral |= {"frequency_penalty": 0.0, "presence_penalty": 0.0}
    for field, off in neutral.items():
        if config.rollout.get(field, off) != off:
            raise command.ConfigError(
                f"rollout.{field}={config.rollout[field]} changes the distribution that is sampled "
                f"but not the one that is trained. Set it to {off}."
            )
    return variant


def check_limits(config):
    """Raises ConfigError if lengths, sizes or names of the config do not fit together."""
    settings, batch = config.rollout, config.batch
    with command.checking_config():
        batching.check_buckets(
            batch.row_lengths,
            batch.rows,
            batch.response_lengths,
            layout=batch.layout,
            longest_prompt=settings.max_prompt_tokens,
            longest_response=settings.max_response_tokens,
        )
    if not 1 <= config.loss.mini_batches <= settings.questions:
        raise command.ConfigError(
            f"loss.mini_batches={config.loss.mini_batches} must be between 1 and "
            f"rollout.questions={settings.questions}."
        )
    if config.model.remat not in qwen2.REMAT:
        raise command.ConfigError(
            f"model.remat={config.model.remat!r} is unknown; valid: {', '.join(qwen2.REMAT)}."
        )
    if not config.data.train:
        raise command.ConfigError("data.train is empty; give a file of questions.")
    session.rollout_settings(config, temperature=settings.temperature)
