"""What a training config must satisfy before anything is loaded."""

from experiments.running import command, fields, sessions
from flow_grpo_jax import batching, loss
from models import qwen2


def check(config):
    """Returns the loss variant of a config whose fields are right and fit together.

    Raises:
      ConfigError: says what does not.
    """
    fields.check(config)
    check_limits(config)
    return choose_variant(config)


def choose_variant(config):
    """Returns the loss variant that a config names."""
    with command.checking_config():
        return loss.choose(config.loss.variant, temperature=config.rollout.temperature)


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
    sessions.rollout_settings(config, temperature=settings.temperature)
