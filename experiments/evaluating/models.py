"""What answers in an evaluation: an engine with two sets of weights, or a server with an API."""

import concurrent.futures
import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from experiments.evaluating import plan
from experiments.running import backends, command, sessions, stored
from flow_grpo_jax import checkpoint, services, workers
from models import huggingface


@dataclasses.dataclass(frozen=True)
class Source:
    """Where the trained planner comes from; all empty: there is none.

    workdir, step: of a run; None is the newest checkpoint.
    model: a Hugging Face folder; or, with url, a model's name there.
    url, api_key_variable: a server that answers for every module.
    """

    workdir: str | None = None
    step: int | None = None
    model: str | None = None
    url: str | None = None
    api_key_variable: str | None = None

    def __post_init__(self):
        if self.workdir and (self.model or self.url):
            raise command.ConfigError("--workdir brings the planner; leave out --model and --url.")
        if self.step is not None and not self.workdir:
            raise command.ConfigError("--step is of a run; give its --workdir.")
        if self.url and not self.model:
            raise command.ConfigError("--url needs the name of a model there: --model=NAME.")
        if self.api_key_variable and not self.url:
            raise command.ConfigError("--api_key_variable is the key of a server; give its --url.")

    @property
    def modes(self):
        """Modes that it can answer for."""
        if self.url:
            return ("trained", "bare")
        first = ("trained",) if self.workdir or self.model else ()
        return (*first, "untrained", "bare")


@dataclasses.dataclass
class Answering:
    """system: of the rollouts.
    planner: function of a `plan.Arm`: makes what answers its planner; the driver looks at each of
      them in every round.
    weights: "trained", "untrained" -> facts that identify them, JSON-able.
    parameters: of a planner; None of a server's.
    parts: what is closed at the end; it has the `backends`.
    """

    system: services.System
    planner: Callable
    weights: dict
    parameters: int | None
    parts: Any

    def close(self):
        self.parts.close()


def build(config, source):
    """Loads what a `Source` names and what a config says around it; returns an `Answering`."""
    return _by_server(config) if source.url else _by_engine(config, source)


def adapted(config, source):
    """Returns a copy of a config for a `Source`: its server, or its folder without adapters."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        if source.url:
            backends.serve_all(
                config,
                url=source.url,
                model=source.model,
                api_key_variable=source.api_key_variable,
            )
            planner = config.backends.base_generator
            for name in (*plan.SAMPLING, planner.token_field):
                if name in planner.extra:
                    raise command.ConfigError(
                        f"backends.base_generator.extra.{name}={planner.extra[name]!r} would also "
                        "be the planner's, which is sampled as eval.temperature, "
                        "rollout.max_response_tokens and --protocol say; leave it out."
                    )
            if config.backends.judge.kind in backends.ENGINE:
                raise command.ConfigError(
                    f"backends.judge.kind={config.backends.judge.kind!r} is a model of this "
                    "machine, and with --url none is loaded; let a server judge."
                )
        elif source.model:
            folder = sessions.locate_model(source.model)
            config.model.lora.rank = 0
            config.model.path = config.model.path or folder
    return config


# ---- on this machine ---------------------------------------------------------------------------


def _by_engine(config, source):
    session = sessions.build(config, training=False)
    try:
        weights = {"untrained": {"source": config.model.path, "fingerprint": _print(session)}}
        if source.workdir:
            step, params, _ = stored.restore_params(source.workdir, config, step=source.step)
            facts = {"source": str(source.workdir), "step": step}
        elif source.model:
            params, facts = _read(source.model, session), {"source": str(source.model)}
        if source.workdir or source.model:
            session.serve(params)
            facts["fingerprint"] = checkpoint.fingerprint(params)
            weights["trained"] = facts
        session.system.engine.warmup()
    except BaseException:
        session.close()
        raise
    planners = {"trained": "policy", "untrained": "frozen", "bare": "frozen"}
    count = sum(leaf.size for leaf in jax.tree.leaves(session.frozen))
    return Answering(session.system, lambda arm: planners[arm.mode], weights, count, session)


def _print(session):
    return checkpoint.fingerprint(session.frozen)


def _read(path, session):
    """Returns the weights of a Hugging Face folder, which must be of the base's shape."""
    folder = sessions.locate_model(path)
    ours, base = huggingface.model_config(folder), session.frozen.config
    if ours != base:
        fields = [f.name for f in dataclasses.fields(base)]
        other = [name for name in fields if getattr(ours, name) != getattr(base, name)]
        raise command.ConfigError(
            f"--model={path} differs from model.path in {', '.join(other)}; the planner and the "
            "frozen modules must be of one shape. For one model in all modules, give it as "
            f"--config.model.path={path} alone."
        )
    with command.checking_config():
        return huggingface.load(folder, dtype=session.dtype, shardings=session.shardings)


# ---- on a server -------------------------------------------------------------------------------


class NoEngine:
    """The engine of a system whose models are all on servers: nothing is ever asked of it."""

    pending = 0
    layout = "none"


class Estimated:
    """The tokenizer of models on a server: prompts have about so many tokens."""

    eos_ids = ()

    def chat(self, messages):
        return range(backends.estimated_tokens(messages))


@dataclasses.dataclass
class _Served:
    backends: backends.Backends
    pool: concurrent.futures.Executor

    def close(self):
        self.pool.shutdown(wait=False, cancel_futures=True)
        self.backends.close()


def _by_server(config):
    made = backends.build(config.backends)
    try:
        tools = sessions.start_tools(config)
    except BaseException:
        made.close()
        raise
    pool = workers.Workers(config.tools.workers, "tool")
    system = services.System(NoEngine(), Estimated(), tools, pool, models=made.models)
    served = config.backends.base_generator
    weights = {"trained": {"source": served.url, "model": served.model}}

    def planner(arm):
        further = {"top_p": arm.top_p} if arm.top_p != 1 else {}
        if arm.frequency_penalty:
            further["frequency_penalty"] = arm.frequency_penalty
        how = dict(temperature=arm.temperature, further=further)
        return backends.planner(made, served, **how)

    return Answering(system, planner, weights, None, _Served(made, pool))
