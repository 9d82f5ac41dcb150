"""The question files of a config, read as it says."""

from experiments.running import command, sessions
from flow_grpo_jax import data


def read(config, path):
    """Returns the questions of `path`, which may be one of the config's own files or another.

    Raises:
      ConfigError: it cannot be read, or rows are not questions.
    """
    own_format = config.data.held_out_format if path == config.data.held_out else ""
    judged = [kind for kind, decider in config.reward.items() if decider == "judge"]
    with command.checking_config():
        return data.read_questions(
            sessions.resolve(path),
            format=own_format or config.data.format,
            index_base=config.data.index_base,
            bad_rows=config.data.bad_rows,
            judged=judged,
        )
