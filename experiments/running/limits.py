"""What a training config must satisfy before anything is loaded."""

from absl import logging

from experiments.configs import ranges
from experiments.running import command, fields, fitting, sessions, trackers
from flow_grpo_jax import batching, branches, data, loss
from models import decoder
from models.engine import limits as engine_limits


def check(config):
    """Returns the loss variant of a config whose fields are right and fit together.

    Raises:
      ConfigError: says what does not.
    """
    fields.check(config)
    check_limits(config)
    variant = choose_variant(config)
    if branching(config, variant) and config.data.environment.id:
        raise command.ConfigError(
            f"loss.variant={config.loss.variant} goes on from the middle of trajectories, which "
            f"data.environment.id={config.data.environment.id} cannot. Use another variant, "
            "such as flow."
        )
    if branching(config, variant) and config.tools.mcp:
        logging.warning(
            "loss.variant=%s goes on from the middle of trajectories, and servers in tools.mcp may "
            "remember what was called before: they must answer each call by itself.",
            config.loss.variant,
        )
    return variant


def choose_variant(config):
    """Returns the loss variant that a config names."""
    with command.checking_config():
        return loss.choose(config.loss.variant, temperature=config.rollout.temperature)


def branching(config, variant):
    """Returns the `branches.Branching` of a config; None if the variant's rollouts do not branch.

    Raises:
      ConfigError: `rollout.group` does not hold roots with their branches.
    """
    if variant.advantages:
        return None
    found = branches.Branching(**config.loss.turns, seed=config.seed)
    with command.checking_config():
        found.roots(config.rollout.group)
    return found


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
        engine_limits.check_pages(
            prefill_tokens=config.engine.prefill_tokens, page_size=config.engine.page_size
        )
    if settings.questions * settings.group > ranges.MOST_OF_LIST:
        raise command.ConfigError(
            f"rollout.questions={settings.questions} times rollout.group={settings.group} are more "
            f"than {ranges.MOST_OF_LIST:,} trajectories a step. Use fewer."
        )
    cached = sessions.engine_shapes(config)["cache_tokens"]
    if cached > ranges.MOST:
        raise command.ConfigError(
            f"engine.slots={config.engine.slots} of the longest request are a cache of {cached:,} "
            f"tokens; the most are {ranges.MOST:,}. Use fewer, or set engine.cache_tokens."
        )
    if not 1 <= config.loss.mini_batches <= settings.questions:
        raise command.ConfigError(
            f"loss.mini_batches={config.loss.mini_batches} must be between 1 and "
            f"rollout.questions={settings.questions}."
        )
    if config.loss.mini_batch_turns and config.loss.mini_batches != 1:
        raise command.ConfigError(
            f"loss.mini_batches={config.loss.mini_batches} splits by questions and "
            f"loss.mini_batch_turns={config.loss.mini_batch_turns} by turns. Use one: set "
            "loss.mini_batches to 1 or loss.mini_batch_turns to 0."
        )
    if config.model.remat not in decoder.REMAT:
        raise command.ConfigError(
            f"model.remat={config.model.remat!r} is unknown; valid: {', '.join(decoder.REMAT)}."
        )
    check_data(config.data)
    trackers.check(config.trackers)
    own = config.data.environment.id and not (config.data.train or config.data.held_out)
    if not (config.tools.names or config.tools.mcp or own):
        raise command.ConfigError(
            "tools.names and tools.mcp are empty; every turn of the agent calls a tool. Name one: "
            "--config.tools.names=base_generator"
        )
    bounds = config.loss.clip_low, config.loss.clip_high
    if config.loss.variant == "gspo" and max(bounds) > 1e-2:
        logging.warning(
            "loss.variant=gspo with loss.clip_low=%s and loss.clip_high=%s: ratios of whole turns "
            "never get so far from 1, so nothing will be clipped. Its paper (arXiv 2507.18071) "
            "takes --config.loss.clip_low=3e-4 --config.loss.clip_high=4e-4 "
            "--config.loss.dual_clip=0.",
            *bounds,
        )
    sessions.rollout_settings(config, temperature=settings.temperature)


def check_data(settings):
    """Raises ConfigError if `config.data` names no questions or has an unknown value."""
    if not (settings.train or settings.environment.id):
        raise command.ConfigError(
            "data.train is empty; give a file of questions, or data.environment.id."
        )
    for name in ("train", "held_out"):
        if settings[name]:
            command.check_local(f"data.{name}", settings[name])
    if settings.too_long not in fitting.CHOICES:
        valid = ", ".join(fitting.CHOICES)
        raise command.ConfigError(
            f"data.too_long={settings.too_long!r} is unknown; valid: {valid}."
        )
    with command.checking_config():
        for format in (settings.format, settings.held_out_format or settings.format):
            data.check_options(
                format=format, index_base=settings.index_base, bad_rows=settings.bad_rows
            )
