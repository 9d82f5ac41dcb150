"""Answers one question with a live trace in the terminal; the answer is the last line.

    python -m experiments.solve --config=experiments/configs/quickstart.py \\
        --query="What is the capital of the country of Mount Kenya?" [--workdir=RUN] [--json]
"""

import json
import sys

from absl import flags
from ml_collections import config_flags

from agents import effects, trajectory
from experiments import command, session
from flow_grpo_jax import rollout


def solve(config, query, *, workdir=None, on_event=lambda event: None):
    """Solves one question greedily; returns the Trajectory."""
    run = session.build(config)
    if workdir:
        run.serve(session.restore_params(workdir, config)[1])
    try:
        [[found]] = rollout.collect(
            [{"id": "query", "question": query}],
            group=1,
            engine=run.engine,
            tokenizer=run.tokenizer,
            tools=run.tools,
            pool=run.pool,
            models=run.backends.models,
            settings=session.rollout_settings(config, temperature=0.0),
            step=0,
            on_event=on_event,
        )
    finally:
        run.close()
    return found


class Trace:
    """Writes what each module says as it is said."""

    def __init__(self, file):
        self.file, self.speaker, self.turn = file, "", 0

    def __call__(self, event):
        if isinstance(event, effects.ModelRequest):
            if event.turn > self.turn:
                self.turn = event.turn
                self.file.write(f"── turn {event.turn} " + "─" * 40 + "\n")
            self.speaker = event.role
        elif isinstance(event, effects.ToolCall):
            self.speaker = "tool"
        elif isinstance(event, effects.Reply):
            self._say(event.text)
        elif isinstance(event, effects.Interrupted):
            self._say(f"Interrupted: {event}")
        elif event.ask is None:
            self._say(f"Error: {event.text}" if event.error else event.text)

    def _say(self, text):
        for line in text.strip().splitlines() or [""]:
            self.file.write(f"{self.speaker:>10} │ {line}\n")
        self.file.flush()


def define_flags():
    config_flags.DEFINE_config_file("config", lock_config=True)
    flags.DEFINE_string("query", None, "The question.")
    flags.DEFINE_string("workdir", None, "Use the planner of this run's newest checkpoint.")
    flags.DEFINE_bool("json", False, "Print the trajectory as one JSON object, no trace.")


def main():
    values = flags.FLAGS
    trace = (lambda event: None) if values.json else Trace(sys.stderr)
    found = solve(values.config, values.query, workdir=values.workdir, on_event=trace)
    if found.status in ("infra_error", "timeout"):
        raise RuntimeError(f"The question was not solved: {found.error}.")
    if values.json:
        question = {"question": values.query, "answer": None}
        line = trajectory.to_json(
            found, question=question, step=0, reward=None, reward_source=None, advantage=None
        )
        sys.stdout.write(json.dumps(line) + "\n")
    else:
        sys.stdout.write(f"{found.answer}\n")


if __name__ == "__main__":
    define_flags()
    command.run(main, required=("config", "query"))
