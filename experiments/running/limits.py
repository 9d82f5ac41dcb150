"""What a training config must satisfy before anything is loaded."""

from experiments.running import command, fields, sessions
from flow_grpo_jax import loss
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
    """The loss variant; refuses a policy sampler whose log-probs would not be the trainer's."""
    name = config.loss.variant
    if name not in loss.VARIANTS:
        raise command.ConfigError(
            f"loss.variant={name!r} is unknown; valid: {', '.join(loss.VARIANTS)}."
        )
    if config.rollout.temperature <= 0:
        raise command.ConfigError(
            f"rollout.temperature={config.rollout.temperature}: greedy rollouts of one question "
            "are all alike and teach nothing. Use a temperature above 0."
        )
    neutral = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
    neutral |= {"frequency_penalty": 0.0, "presence_penalty": 0.0}
    for field, off in neutral.items():
        if config.rollout.get(field, off) != off:
            raise command.ConfigError(
                f"rollout.{field}={config.rollout[field]} changes the distribution that is sampled "
                f"but not the one that is trained. Set it to {off}."
            )
    return loss.VARIANTS[name]


def check_limits(config):
    """ConfigError if lengths, sizes or names of the config do not fit together."""
    settings, batch = config.rollout, config.batch
    prompt, response = settings.max_prompt_tokens, settings.max_response_tokens
    needs = (
        ("batch.row_lengths", max(batch.row_lengths), prompt + response),
        ("batch.response_lengths", max(batch.response_lengths), response),
    )
    for name, largest, needed in needs:
        if largest < needed:
            raise command.ConfigError(
                f"The largest of {name} is {largest}; rollout.max_prompt_tokens={prompt} and "
                f"max_response_tokens={response} need {needed}."
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
