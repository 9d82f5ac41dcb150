"""The warm start of any model: replies of demonstrations or of a file, by the update of training.

The model is full or has adapters, and what fits Flow-GRPO with the same config fits here: rows,
sharding and engine are the same.
"""

import hashlib
import json
import pathlib

import jax
import jax.numpy as jnp
from absl import logging

from agents import effects
from experiments.configs import common
from experiments.running import command, places, sessions, tokens
from experiments.warmstarting import conversations, material, probes
from flow_grpo_jax import checkpoint, data, supervised, update
from models import huggingface, lora, model_card, sharding
from models.engine import placement

CARD = """
# Warm start of {start}

Trained by `experiments.warmstart` of flow_grpo_jax to write the replies of {modules} in {material}:
{steps} steps of {batch} replies, {trained}. The prompts are those of flow_grpo_jax (`{prompts}`).
"""
SHOWN = {  # of the metrics of an update, and their names here
    supervised.LOSS: "loss",
    "policy/entropy": "entropy",
    **{
        name: name
        for name in (
            *("optim/grad_norm", "optim/skipped", "compile/count"),
            *("tokens/trained", "tokens/padding_share", "tokens/sharing"),
        )
    },
}


class Replies:
    """Trains on the replies of named modules; `learners.Learner` says the rest."""

    def __init__(self, config, workdir, optimizer):
        settings = config.warmstart
        _check(settings)
        self._config, self._limits = config, limits(config)
        self._folder = sessions.locate_model(settings.start)
        vocabulary = tokens.load(
            self._folder, stops=config.engine.stop_ids, switches=tokens.switches(config.model)
        )
        paths, held_out = [settings.data], [settings.held_out]
        if settings.worlds:
            shown = material.demonstrate(config, workdir, vocabulary=vocabulary)
            paths.append(shown[0])
            held_out.append(shown[1])
        read = lambda paths: self._read([path for path in paths if path], vocabulary)
        with command.checking_config():
            encoded = read(paths)
            self._probes = probes.chosen(read(held_out), settings.probes)
            rows = [{"id": identity(each), "encoded": each} for each in encoded]
            self._batches = data.QuestionBatches(rows, batch=settings.batch, seed=settings.seed)
        self._describe(encoded)
        self._session = session = sessions.build(_of_session(config, self._folder))
        self._shapes = sessions.batch_shapes(config, session.mesh)
        self._program = supervised.make_update(
            optimizer,
            execution=sessions.execution(config, session.mesh),
            chunk=config.batch.logprob_chunk,
            assemble=session.assemble,
            donate_params=not placement.shares(session.params, sessions.compute_dtype(config)),
            shardings=session.shardings,
            batch_sharding=sharding.batch_sharding(session.mesh),
        )
        held = [identity(each) for each in self._probes]
        self.facts = {
            "reference": checkpoint.fingerprint(session.frozen),
            "held_out": _digest(held),
        }
        self.state = update.init(session.params, optimizer, shardings=session.shardings)
        session.release()

    def _read(self, paths, vocabulary):
        """Returns the Encoded of files."""
        settings = self._config.warmstart
        examples = []
        for path in paths:
            examples += conversations.read(
                places.resolve(path) if isinstance(path, str) else path,
                modules=settings.modules,
                replies=settings.replies,
                bad_rows=settings.bad_rows,
            )
        how = dict(limits=self._limits, too_long=settings.too_long, bad_rows=settings.bad_rows)
        return conversations.encode(examples, vocabulary, **how) if examples else []

    def _describe(self, encoded):
        settings = self._config.warmstart
        of = {module: len(found) for module, found in probes.by_module(encoded).items()}
        logging.info(
            "%d replies to learn (%s), %.1f epochs; %d held out",
            len(encoded),
            ", ".join(f"{module} {count}" for module, count in of.items()),
            settings.steps * settings.batch / len(encoded),
            len(self._probes),
        )

    def step(self, state):
        batch = [row["encoded"].tokens for row in next(self._batches)]
        parts = supervised.lay_out(batch, self._shapes)
        state, values = self._program(state, self._session.frozen, parts)
        return state, {name: values[found] for found, name in SHOWN.items()}

    def measure(self, state):
        values, session = {}, self._session
        for module, found in probes.by_module(self._probes).items():
            values[f"held_out/loss/{module}"] = supervised.cross_entropy(
                self._program,
                state.params,
                session.frozen,
                [each.tokens for each in found],
                self._shapes,
            )
        if not self._probes:
            return values
        session.serve(state.params)
        system = session.system
        written = probes.generate(
            system.engine, system.tokenizer, self._probes, limits=self._limits
        )
        session.release()
        return values | probes.compare(self._probes, written, system.tools)

    def position(self):
        return self._batches.get_state()

    def go_to(self, position):
        self._batches.set_state(position)

    def write(self, state, folder):
        config = self._config
        settings, rank = config.warmstart, config.model.lora.rank
        model = state.params
        if rank:
            with jax.default_device(jax.devices("cpu")[0]):
                adapters = jax.tree.map(jnp.asarray, jax.device_get(state.params))
                whole = huggingface.load(self._folder, dtype=jnp.float32)
                model = lora.merged(lora.combine(adapters, whole), donate=True)
        known = model_card.of_base(self._folder)
        text = CARD.format(
            start=known.get("base_model", settings.start),
            modules=", ".join(settings.modules) or "all modules",
            material=" and ".join(
                filter(None, (settings.worlds, pathlib.Path(settings.data).name))
            ),
            steps=int(state.step),
            batch=settings.batch,
            trained=f"a LoRA adapter of rank {rank}, merged" if rank else "all parameters",
            prompts=config.rollout.prompts,
        )
        front = {"library_name": "transformers", "pipeline_tag": "text-generation", **known}
        front[model_card.PROMPTS] = config.rollout.prompts
        huggingface.save(
            folder,
            model,
            base_folder=self._folder,
            dtype=sessions.compute_dtype(config),
            stops=config.engine.stop_ids,
            card=model_card.render(front, text),
        )

    def close(self):
        self._session.close()


def limits(config):
    """Returns the `conversations.Limits` of a config: what rollouts and rows allow."""
    settings, batch = config.rollout, config.batch
    reply = dict.fromkeys(effects.ROLES, settings.max_module_tokens)
    reply["planner"] = settings.max_response_tokens
    return conversations.Limits(
        prompt=settings.max_prompt_tokens,
        reply=reply | {"": max(reply.values())},
        row=batch.row_lengths[-1],
        row_replies=batch.response_lengths[-1],
    )


def identity(encoded):
    """Returns what tells an Encoded from others: a digest of its token ids."""
    return _digest(encoded.tokens)


def _digest(values):
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]


def _check(settings):
    """Raises ConfigError for fields of `config.warmstart` that name nothing."""
    if not settings.start:
        raise command.ConfigError(
            "warmstart.start is empty; give the folder of the model to go on from, such as "
            "--config.warmstart.start=Qwen/Qwen2.5-0.5B-Instruct, or warmstart.prompt_weight above "
            "0 to make a new one of warmstart.model."
        )
    if not (settings.worlds or settings.data):
        raise command.ConfigError(
            "warmstart.worlds and warmstart.data are empty: there is nothing to learn. Name a "
            "world, or a file of conversations (docs/warmstart.md)."
        )
    if unknown := [module for module in settings.modules if module not in effects.ROLES]:
        raise command.ConfigError(
            f"warmstart.modules has {', '.join(unknown)}; valid: {', '.join(effects.ROLES)}."
        )
    for name, valid in (
        ("replies", conversations.REPLIES),
        ("bad_rows", conversations.CHOICES),
        ("too_long", conversations.CHOICES),
    ):
        if settings[name] not in valid:
            raise command.ConfigError(
                f"warmstart.{name}={settings[name]!r} is unknown; valid: {', '.join(valid)}."
            )


def _of_session(config, folder):
    """Returns the config of a Session with the model alone: nothing else answers or decides."""
    config = material.without_articles(config)
    defaults = common.base()
    with config.unlocked():
        config.model.path = str(folder)
        config.backends, config.reward = defaults.backends, defaults.reward
        config.rollout.grammar = False
    return config
