"""The warm start of any model: replies of demonstrations or of a file, by the update of training.

The model is full or has adapters, and what fits Flow-GRPO with the same config fits here: rows,
sharding and engine are the same.
"""

import re

import jax
import jax.numpy as jnp

from agents import effects, parsing, prompts
from experiments.configs import common
from experiments.running import command, sessions, tokens
from experiments.warmstarting import conversations, material
from flow_grpo_jax import checkpoint, data, supervised, update
from models import huggingface, lora, model_card, sharding
from models.engine import placement
from models.engine.types import Request, Sampling

CARD = """
# Warm start of {start}

Trained by `experiments.warmstart` of flow_grpo_jax on the replies of {modules} in {material}.
The prompts are those of flow_grpo_jax (`{prompts}`).
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
        _check(config)
        self._config = config
        self._folder = sessions.locate_model(settings.start)
        vocabulary = load_vocabulary(config, self._folder)
        paths, held_out = [settings.data], [settings.held_out]
        if settings.worlds:
            shown = material.demonstrate(config, workdir, vocabulary=vocabulary)
            paths.append(shown[0])
            held_out.append(shown[1])
        with command.checking_config():
            self._examples = read(config, paths, vocabulary)
            self._held_out = read(config, held_out, vocabulary)
        rows = [{"id": identity(each), "encoded": each} for each in self._examples]
        with command.checking_config():
            self._batches = data.QuestionBatches(rows, batch=settings.batch, seed=settings.seed)
        self._session = session = sessions.build(_of_session(config))
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
        self.facts = {
            "reference": checkpoint.fingerprint(session.frozen),
            "examples": sessions_hash([row["id"] for row in rows]),
        }
        self.state = update.init(session.params, optimizer, shardings=session.shardings)
