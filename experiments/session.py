"""Builds from a config what every command needs: model, tokenizer, engine, tools, limits."""

import concurrent.futures
import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import ml_collections

from agents import prompts
from experiments import command
from flow_grpo_jax import checkpoint, rollout, update
from models import huggingface, qwen2, sharding, tokenizer
from models.engine.engine import Engine
from tools import toolbox

ROOT = pathlib.Path(__file__).parent.parent  # relative paths of configs start here
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


@dataclasses.dataclass
class Session:
    """What a run works with.

    params: float32 masters on the mesh; the initial policy, and the frozen modules' weights.
    shardings: NamedSharding of each parameter, structured like params.
    """

    mesh: jax.sharding.Mesh
    params: qwen2.Qwen2
    shardings: qwen2.Qwen2
    tokenizer: tokenizer.Tokenizer
    engine: Engine
    tools: dict
    pool: concurrent.futures.ThreadPoolExecutor


def resolve(path):
    """A path of a config: absolute and remote ones as they are, others from the repository root."""
    return path if "://" in path or pathlib.Path(path).is_absolute() else str(ROOT / path)


def compute_dtype(config):
    if config.model.dtype not in DTYPES:
        raise command.ConfigError(
            f"model.dtype={config.model.dtype!r} is unknown; valid: {', '.join(DTYPES)}."
        )
    return DTYPES[config.model.dtype]


def build(config):
    """Loads the model on the mesh and sets up everything around it."""
    if not config.model.path:
        raise command.ConfigError(
            "model.path is empty; give the Hugging Face folder of a Qwen2.5 model, e.g. "
            "--config.model.path=/models/Qwen2.5-7B-Instruct."
        )
    folder = resolve(config.model.path)
    with command.checking_config():
        mesh = sharding.make_mesh(**config.mesh)
    model_config = huggingface.config_from_dict(huggingface.read_config(folder))
    abstract = jax.eval_shape(lambda key: qwen2.Qwen2(key, model_config), jax.random.key(0))
    with command.checking_config():
        shardings = sharding.parameter_shardings(mesh, abstract)
    params = huggingface.load(folder, shardings=shardings)
    text = tokenizer.Tokenizer.load(folder)
    if not text.eos_ids:
        raise command.ConfigError(
            f"Nothing ends a reply of the model in {folder}: neither generation_config.json nor "
            "the tokenizer names an end token. Add eos_token_id to generation_config.json."
        )
    settings = config.rollout
    engine = Engine(
        {"policy": params, "frozen": params},
        slots=config.engine.slots,
        prompt_buckets=tuple(config.engine.prompt_buckets),
        max_length=settings.max_prompt_tokens
        + max(settings.max_response_tokens, settings.max_module_tokens),
        decode_steps=config.engine.decode_steps,
        prefill_rows=config.engine.prefill_rows,
        seed=config.seed,
        decode_text=text.decode,
        dtype=compute_dtype(config),
    )
    with command.checking_config():
        tools = toolbox.build(
            config.tools.names,
            top_k=config.tools.search_results,
            python_seconds=config.tools.python_seconds,
        )
    pool = concurrent.futures.ThreadPoolExecutor(config.tools.workers, "tool")
    return Session(mesh, params, shardings, text, engine, tools, pool)


def rollout_settings(config, *, temperature):
    if config.rollout.prompts not in prompts.SETS:
        raise command.ConfigError(
            f"rollout.prompts={config.rollout.prompts!r} is unknown; "
            f"valid: {', '.join(prompts.SETS)}."
        )
    return rollout.Settings(
        prompt_set=prompts.SETS[config.rollout.prompts],
        max_turns=config.rollout.max_turns,
        temperature=temperature,
        max_prompt_tokens=config.rollout.max_prompt_tokens,
        max_response_tokens=config.rollout.max_response_tokens,
        max_module_tokens=config.rollout.max_module_tokens,
        call_seconds=config.rollout.call_seconds,
        trajectory_seconds=config.rollout.trajectory_seconds,
        in_flight=config.rollout.in_flight,
    )


def run_config(workdir):
    """(ConfigDict, hash) of a run."""
    path = pathlib.Path(workdir) / "config.json"
    if not path.exists():
        raise command.ConfigError(f"{workdir} holds no run: {path} does not exist.")
    stored = json.loads(path.read_text())
    return ml_collections.ConfigDict(stored["config"]), stored["hash"]


def restore_policy(workdir, config, *, step=None):
    """(step, params in host memory, meta) of a run's checkpoint.

    Raises:
      ConfigError: the run has no checkpoint, or not that one.
    """
    shape = huggingface.config_from_dict(huggingface.read_config(resolve(config.model.path)))
    optimizer = update.make_optimizer(**config.optim)
    # The optimizer's moments come along: host memory holds what one accelerator may not.
    device = jax.sharding.SingleDeviceSharding(jax.devices("cpu")[0])
    like = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device),
        jax.eval_shape(
            lambda key: update.init(qwen2.Qwen2(key, shape), optimizer), jax.random.key(0)
        ),
    )
    folder = pathlib.Path(workdir) / "checkpoints"
    if not folder.is_dir():
        raise command.ConfigError(f"{workdir} has no checkpoint: {folder} does not exist.")
    checkpoints = checkpoint.Checkpoints(folder, keep=None)
    restored = checkpoints.restore(like, step=step)
    checkpoints.close()
    if restored is None:
        raise command.ConfigError(f"{workdir} has no checkpoint yet.")
    step, state, meta = restored
    return step, state.params, meta
