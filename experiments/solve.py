"""Answers one question and shows the way: a live panel on a terminal, plain lines in a pipe.

The answer alone goes to standard output, so it can be piped; the rest goes to standard error.

    python -m experiments.solve --query="What is the capital of Spain?"         the shipped model
    python -m experiments.solve --query=… --workdir=runs/quickstart             a trained planner
    python -m experiments.solve --query=… --model=/models/Qwen2.5-7B-Instruct   a local folder
    python -m experiments.solve --query=… --url=http://127.0.0.1:8000/v1 --model=NAME
"""

import dataclasses
import json
import signal
import sys
import time

import jax
from absl import flags, logging
from ml_collections import config_flags

from agents import drive, prompts, trajectory
from agents import solve as agent
from agents.backends import errors, server
from experiments.configs import common, quickstart
from experiments.running import backends, command, fields, sessions, signals, stored, trust
from experiments.solving import panel
from flow_grpo_jax import rollout
from models import huggingface, model_card

INTERRUPTED = 130  # exit code: 128 + SIGINT
ADVICE = {
    errors.Fatal: "Asking again does not help: check --url, --model and --api_key_variable; where "
    "it is about length, give the config that the model was trained with, --config=FILE "
    "(experiments/configs/quickstart.py for the quickstart's), or less of "
    "--config.rollout.max_module_tokens=N, max_response_tokens and max_prompt_tokens.",
    errors.BadOutput: "Does --url lead to OpenAI's chat API, up to and including /v1? A model that "
    "thinks may need more tokens: --config=FILE --config.rollout.max_module_tokens=N.",
    errors.Retryable: "See that the server runs and has room at --url, then ask again.",
}
DESCRIBE_SECONDS = 5.0


def solve(
    config,
    query,
    *,
    workdir=None,
    should_stop=lambda: False,
    on_event=lambda event: None,
    doing=lambda what: None,
):
    """Solves one question greedily with a model on this machine; returns the Trajectory.

    workdir: of a run, for the planner of its newest checkpoint.
    doing: called with what begins, where that takes long.
    """
    doing(f"loading {_described(config)}")
    session = sessions.build(config, training=False)
    try:
        if workdir:
            doing(f"loading the newest checkpoint of {workdir}")
            session.serve(stored.restore_params(workdir, config)[1])
        kept = jax.config.jax_compilation_cache_dir
        doing("compiling prefill and decode" + (f", or reading them from {kept}" if kept else ""))
        session.system.engine.warmup()
        [[solved]] = rollout.collect(
            [_question(query)],
            group=1,
            step=0,
            system=session.system,
            settings=sessions.rollout_settings(config, temperature=0.0),
            should_stop=should_stop,
            on_event=on_event,
        )
    finally:
        session.close()
    return solved


def _described(config):
    """Returns a model's folder and size: what loading and compiling take grows with it."""
    dims = huggingface.model_config(sessions.model_folder(config))
    leaves = jax.tree.leaves(sessions.abstract_model(dims))
    millions = sum(leaf.size for leaf in leaves) / 1e6
    return (
        f"{config.model.path}: {millions:,.0f} million parameters in {dims.num_hidden_layers} "
        f"layers, as {config.model.dtype}"
    )


def solve_by_servers(config, query, *, on_event=lambda event: None):
    """Solves one question with servers alone; returns the Trajectory. No model is loaded.

    A backend repeats a request that fails. If that does not help, the question is started again, as
    in rollouts, unless that is hopeless or no time is left.

    Args:
      config: all its `backends` but the judge are of kind "server". The planner is answered by the
        one of the base generator.

    Raises:
      drive.Failed: what failed in the last attempt.
    """
    settings = sessions.rollout_settings(config, temperature=0.0)
    made = backends.build(config.backends)
    try:
        models = made.models | {"planner": backends.planner(made, config.backends.base_generator)}
        tools = sessions.start_tools(config)
        for attempt in range(1, settings.infra_retries + 2):
            deadline = time.monotonic() + settings.trajectory_seconds
            try:
                found = _attempt(query, models, tools, settings, deadline, on_event)
                return dataclasses.replace(found, attempts=attempt)
            except drive.Failed as failed:
                pause = getattr(failed.__cause__, "retry_after", None) or 0.0
                hopeless = isinstance(failed.__cause__, errors.Fatal)
                late = time.monotonic() + pause >= deadline
                if hopeless or late or attempt > settings.infra_retries:
                    raise
                time.sleep(pause)
        raise AssertionError("the last attempt returns or raises")
    finally:
        made.close()


def _attempt(query, models, tools, settings, deadline, on_event):
    def ask(request):
        planning = request.role == "planner"
        most = settings.max_response_tokens if planning else settings.max_module_tokens
        waiting = models[request.role].submit(request.messages, max_tokens=most, deadline=deadline)
        return waiting.result()

    solver = agent.solve(
        _question(query),
        tools=tools,
        prompt_set=settings.prompt_set,
        max_turns=settings.max_turns,
        budget=prompts.Budget(settings.max_prompt_tokens, backends.estimated_tokens),
        on_refusal=on_event,
    )
    return drive.to_the_end(solver, ask=ask, tools=tools, on_event=on_event)


def what_to_do(failed):
    """Returns advice by the cause of a `drive.Failed`; "" where there is none."""
    return next((text for kind, text in ADVICE.items() if isinstance(failed.__cause__, kind)), "")


def _question(query):
    return {"id": "query", "question": query}


def check_query(query):
    """Raises ConfigError for a text that is not a question."""
    if not query.strip():
        raise command.ConfigError("--query is empty; write a question.")
    try:
        query.encode()
    except UnicodeEncodeError as error:
        raise command.ConfigError("--query is not valid text in UTF-8.") from error


def choose_config(config, *, model, url, workdir, api_key_variable, trusted=False):
    """Returns the config for one question: the one given, a run's own, or the model's.

    trusted: whether the user trusts the maker of `workdir`.
    """
    if url and not model:
        raise command.ConfigError("--url needs the name of a model there: --model=NAME.")
    if url and workdir:
        raise command.ConfigError("--workdir is for a planner on this machine; leave out --url.")
    if api_key_variable and not url:
        raise command.ConfigError("--api_key_variable is the key of a server; give its --url.")
    if model and workdir:
        raise command.ConfigError("--workdir brings its own model; leave out --model.")
    folder = model
    if model and not url:
        folder = sessions.locate_model(model)
    if workdir:
        trust.check_links(workdir, trusted=trusted)
    if config is not None:
        fields.check(config)
    elif workdir:
        config, _ = stored.open_config(
            workdir,
            uses=lambda config: ("model", "tools", "backends", "compile_cache"),
            trusted=trusted,
            instead="Or give a config of your own instead: --config=FILE.",
        )
    elif url:
        config = common.base()
    else:
        config = for_one_question(folder) if model else quickstart.get_config()
    if url:
        backends.serve_all(config, url=url, model=model, api_key_variable=api_key_variable)
        config.backends.judge.kind = "none"
    elif model:
        config.model.path = folder
    return config


def for_one_question(folder):
    """Returns the defaults, with an engine for one request and no more length than there is."""
    c = common.base()
    dims = huggingface.model_config(folder)
    _fit(c, dims.max_position_embeddings, model_card.prompts(folder))
    c.model.path = folder
    on_cpu = jax.default_backend() == "cpu"
    c.model.dtype = "float32" if on_cpu else "bfloat16"
    c.engine.overlap = not on_cpu
    c.engine.slots, c.engine.replicas = 1, 1
    c.engine.cache_tokens = 2 * (c.rollout.max_prompt_tokens + c.rollout.max_module_tokens)
    return c


def fit_to_server(config):
    """Fits lengths and prompts to what the server tells of its model, if it tells."""
    asked = config.backends.base_generator
    try:
        facts = server.describe(
            asked.url,
            asked.model,
            api_key_variable=asked.api_key_variable,
            seconds=DESCRIBE_SECONDS,
        )
    except (errors.Retryable, errors.Fatal, errors.BadOutput, ValueError):
        return  # the first request will say what is wrong
    longest = facts.get("max_model_len")
    _fit(config, longest if isinstance(longest, int) else None, facts.get(model_card.PROMPTS))


def _fit(config, longest, named):
    """Sets limits for a model of a length, and the prompts it was trained with, if known."""
    limits = config.rollout
    if longest:
        reply = min(limits.max_module_tokens, longest // 4)
        limits.max_response_tokens = limits.max_module_tokens = reply
        limits.max_prompt_tokens = min(limits.max_prompt_tokens, longest - reply)
    if named in prompts.SETS:
        limits.prompts = named


def define_flags():
    config_flags.DEFINE_config_file(
        "config", lock_config=True, help_string="Limits, tools and model; chosen if not given."
    )
    flags.DEFINE_string("query", None, "The question.")
    flags.DEFINE_string(
        "model",
        None,
        "Hugging Face folder of a model, or the name on the hub of one in its cache here; "
        "with --url, a model's name there.",
    )
    flags.DEFINE_string("url", None, "Server of OpenAI's API that answers for every module.")
    flags.DEFINE_string(
        "api_key_variable", None, "Environment variable that holds the server's key."
    )
    flags.DEFINE_string("workdir", None, "Use the planner of this run's newest checkpoint.")
    flags.DEFINE_bool("trust", False, trust.HELP)
    flags.DEFINE_bool("json", False, "Print the trajectory as one JSON object and nothing else.")


def main():
    values = flags.FLAGS
    check_query(values.query)
    if not values["verbosity"].present:  # else lines of the log between those of the trace
        logging.set_verbosity(logging.WARNING)
    interrupt = signals.StopSignal(signal.SIGINT)
    try:
        solved = _shown(values, interrupt)
    except (KeyboardInterrupt, rollout.Stopped):
        sys.stderr.write("interrupted\n")
        sys.exit(INTERRUPTED)
    except drive.Failed as failed:
        advice = what_to_do(failed)
        raise RuntimeError(f"The question was not solved: {failed} {advice}".strip()) from failed
    if solved.broken:
        raise RuntimeError(f"The question was not solved: {solved.error}")
    if values.json:
        question = {"question": values.query, "answer": None}
        line = trajectory.to_json(
            solved, question=question, step=0, reward=None, reward_source=None, advantage=None
        )
        sys.stdout.write(json.dumps(line) + "\n")
    else:
        turns = f"{len(solved.turns)} turn" + "s" * (len(solved.turns) != 1)
        notes = [solved.stop] if solved.stop != trajectory.Stop.VERIFIED else []
        notes += [solved.error] if solved.error else []
        sys.stderr.write(" · ".join([turns, f"{solved.seconds:.1f} s", *notes]) + "\n")
        sys.stderr.flush()
    if not solved.answer:
        why = solved.error or "The generator's reply has none in its form."
        raise RuntimeError(f"There is no answer. {why}")
    if not values.json:
        sys.stdout.write(panel.clean(solved.answer) + "\n")


def _shown(values, interrupt):
    """Returns the Trajectory; shows it while it is made unless JSON is asked for."""
    config = choose_config(
        values.config,
        model=values.model,
        url=values.url,
        workdir=values.workdir,
        api_key_variable=values.api_key_variable,
        trusted=values.trust,
    )

    def run(on_event, doing):
        if not values.url:
            return solve(
                config,
                values.query,
                workdir=values.workdir,
                should_stop=interrupt,
                on_event=on_event,
                doing=doing,
            )
        doing(f"asking {values.url}")
        if values.config is None:
            fit_to_server(config)
        return solve_by_servers(config, values.query, on_event=on_event)

    if values.json:
        return run(lambda event: None, lambda what: None)
    log = logging.get_absl_handler().python_handler
    with panel.make(sys.stderr) as shown:
        before = log.setStream(shown) if isinstance(shown, panel.Panel) else None
        try:
            return run(shown, shown.doing)
        finally:
            if before is not None:
                log.setStream(before)


if __name__ == "__main__":
    define_flags()
    command.run(main, required=("query",))
