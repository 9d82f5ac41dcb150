"""Turns a config into the parts of a run: model, tokenizer, engine, tools, limits."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging

from agents import prompts
from experiments.running import backends, command, compiled, determinism, places, tokens
from flow_grpo_jax import (
    batching,
    judge,
    loss,
    mixture,
    optimizer,
    rollout,
    scoring,
    services,
    symbolic,
    update,
    workers,
)
from models import decoder, hardware, hub, huggingface, lora, sharding
from models.attention import kernels
from models.engine import cache, placement, shapes
from models.engine.replicas import Replicas
from models.gguf import folder as gguf_folder
from tools import toolbox
from tools.sandbox import selftest

WEIGHT_SETS = 2  # of the engine: policy and frozen
LAYERS = ("auto", "separate", "stacked")  # of the engine
ROOM = 0.9  # of the free memory that the engine's own layers and all that comes later may take
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


@dataclasses.dataclass
class Session:
    """The parts of a run.

    params: what is trained, float32 on the mesh: a whole Decoder, or LoRA adapters.
    frozen: Decoder in the compute dtype on the mesh: reference policy, LoRA's base.
    shardings: NamedSharding of each of `params`, structured like them.
    assemble: (params, frozen) -> Decoder, the policy.
    released: whether the engine's memory is given up.
    backends: what answers for each module and for the judge.
    system: engine, tokenizer, tools, ...; its engine serves "policy" and "frozen".
    scorer: decides on answers.
    """

    mesh: jax.sharding.Mesh
    params: Any
    frozen: decoder.Decoder
    shardings: Any
    assemble: Callable
    dtype: jax.typing.DTypeLike
    backends: backends.Backends
    released: bool = False
    system: services.System | None = None
    scorer: scoring.Scorer | None = None

    def weights(self):
        """Returns the engine's weight sets by name."""
        return {"policy": self.assemble(self.params, self.frozen), "frozen": self._base()}

    @property
    def kernels(self):
        """What runs on this device, by part of the system."""
        return {"engine": self.system.engine.layout}

    def serve(self, params):
        """Hands the engine new weights of the policy; no copy is made where it can share them."""
        engine = self.system.engine
        engine.set_weights("policy", self.assemble(params, self.frozen))
        if self.released:
            engine.set_weights("frozen", self._base())
            self.released = False

    def take_steps(self, program, state, mini_batches, *, release):
        """Returns (state, metrics) of an `update.Update`; the engine then serves the new weights.

        release: whether it gives up its memory meanwhile.
        """
        if release:
            self.release()
        state, metrics = program(state, self.frozen, mini_batches)
        self.serve(state.params)
        return state, metrics

    def release(self):
        """Frees the engine's memory on the devices until `serve`."""
        self.system.engine.release()
        self.released = True

    def close(self):
        """Ends everything beside the engine: tools, episodes, calls of servers, checkers."""
        self.system.close()
        self.backends.close()
        self.scorer.close()

    def _base(self):
        """Returns the frozen model in the structure of the policy: adapters are zero."""
        if self.assemble is update.whole_model:
            return self.frozen
        zeros = lambda leaf, place: jnp.zeros(leaf.shape, self.dtype, device=place)
        return self.assemble(jax.tree.map(zeros, self.params, self.shardings), self.frozen)


def compute_dtype(config):
    if config.model.dtype not in DTYPES:
        raise command.ConfigError(
            f"model.dtype={config.model.dtype!r} is unknown; valid: {', '.join(DTYPES)}."
        )
    return DTYPES[config.model.dtype]


def execution(config, mesh):
    """Returns the `Execution` of whole rows that a config asks for."""
    residual = None
    if mesh.size > 1:
        residual = sharding.residual_sharding(mesh, sequence=config.mesh.sequence)
    with command.checking_config():
        attend = kernels.make(config.model.attention, mesh=mesh)
        return decoder.Execution(compute_dtype(config), config.model.remat, attend, residual)


def make_update(config, variant, *, mesh, params, shardings, assemble=update.whole_model):
    """Returns (optimizer, Update) of a config.

    Args:
      variant: of `loss.VARIANTS`.
      params: what is trained, arrays or shapes; their memory is taken for the new ones unless the
        engine may read it.
      shardings: of these on `mesh`.
      assemble: of `update.Update`.
    """
    numbers = loss.Numbers(
        clip_low=config.loss.clip_low,
        clip_high=config.loss.clip_high,
        dual_clip=config.loss.dual_clip,
        kl_coef=config.loss.kl_coef,
        sequence_ratio=variant.sequence_ratio,
        tis_cap=config.loss.tis_cap,
    )
    with command.checking_config():
        adamw = optimizer.make(**config.optim)
        return adamw, update.Update(
            adamw,
            numbers=numbers,
            execution=execution(config, mesh),
            temperature=config.rollout.temperature,
            chunk=config.batch.logprob_chunk,
            epochs=config.loss.epochs,
            old_logprobs=config.loss.old_logprobs,
            assemble=assemble,
            donate_params=not placement.shares(params, compute_dtype(config)),
            shardings=shardings,
            batch_sharding=sharding.batch_sharding(mesh),
        )


def start_update(config, variant, session):
    """Returns (Update, State at step 0) of a Session."""
    adamw, step_program = make_update(
        config,
        variant,
        mesh=session.mesh,
        params=session.params,
        shardings=session.shardings,
        assemble=session.assemble,
    )
    return step_program, update.init(session.params, adamw, shardings=session.shardings)


def locate_model(path):
    """Returns the folder of a model by path, URL or name on the hub, as `hub.locate`.

    Raises:
      ConfigError: it is not on this disk, or there is no model.
    """
    try:
        with command.checking_config():
            folder = hub.locate(path, root=places.base(path))
            values = huggingface.read_config(folder)
    except ImportError as error:  # of a URL's protocol
        raise command.ConfigError(str(error)) from error
    try:
        huggingface.config_from_dict(values)
    except ValueError as error:
        raise command.ConfigError(f"{folder}: {error}") from error
    return folder


def model_folder(config):
    if not config.model.path:
        raise command.ConfigError(
            "model.path is empty; give the Hugging Face folder of a model, e.g. "
            "--config.model.path=/models/Qwen2.5-7B-Instruct, or the name on the hub of one that "
            "was downloaded: Qwen/Qwen2.5-7B-Instruct."
        )
    return locate_model(config.model.path)


def model_files(config):
    """Returns (config.json, names of the files) of the model's folder."""
    folder = model_folder(config)
    return huggingface.read_config(folder), gguf_folder.opened(folder).names()


def is_gguf(config):
    return isinstance(gguf_folder.opened(model_folder(config)), gguf_folder.GgufFolder)


def make_grammars(vocabulary, *, vocab_size):
    """Returns the `Grammars` of a Tokenizer; needs the extra `grammar`.

    vocab_size: of the model, at least that of the tokenizer.
    """
    from models.engine import grammar

    return grammar.Grammars(vocabulary.json, vocab_size=vocab_size, eos_ids=vocabulary.eos_ids)


def build(config, *, training=True, environment=None):
    """Loads the model on the mesh and sets up everything around it.

    training: False keeps no float32 parameters beside those that answer.
    environment: of `System`.
    """
    folder = model_folder(config)
    if config.rollout.grammar:
        command.need("grammar")
    answering = backends.build(config.backends)
    determinism.ask(training and config.deterministic)
    with command.checking_config():
        sizes = config.mesh
        mesh = sharding.make_mesh(data=sizes.data, fsdp=sizes.fsdp, tensor=sizes.tensor)
    compiled.keep(config.compile_cache, device=mesh.devices.flat[0].platform)
    tools = start_tools(config)
    params, frozen, shardings, assemble = load_weights(config, folder, mesh, training=training)
    judged = isinstance(answering.judge, str)  # by a model of the engine
    vocabulary = tokens.load(
        folder,
        stops=config.engine.stop_ids,
        switches=tokens.switches(config.model),
        conversations=(tokens.CONVERSATION, *((tokens.REPAIR,) if judged else ())),
    )
    with command.checking_config():
        serving = placement.meshes(tensor=config.engine.tensor, replicas=config.engine.replicas)
    session = Session(
        mesh=mesh,
        params=params,
        frozen=frozen,
        shardings=shardings,
        assemble=assemble,
        dtype=compute_dtype(config),
        backends=answering,
    )
    grammars = None
    if config.rollout.grammar:
        grammars = make_grammars(vocabulary, vocab_size=frozen.config.vocab_size)
    with command.checking_config():
        engine = Replicas(
            session.weights(),
            meshes=serving,
            separate=separates_layers(config, session, serving[0], training=training),
            prefill_calls=config.engine.prefill_calls,
            overlap=config.engine.overlap,
            in_flight="finish",
            seed=config.seed,
            decode_text=vocabulary.decode,
            **engine_shapes(config),
        )
    session.system = services.System(
        engine,
        vocabulary,
        tools,
        workers.Workers(config.tools.workers, "tool"),
        models=answering.models,
        grammars=grammars,
        environment=environment,
    )
    session.scorer = make_scorer(config, answering, engine=engine, vocabulary=vocabulary)
    return session


def start_tools(config):
    """Returns `make_tools`; ConfigError if one cannot be used: its service does not answer."""
    tools = make_tools(config)
    with command.checking_config():
        toolbox.probe(tools)
    return tools


def make_tools(config):
    """Returns name -> Tool; refuses a machine that does not hold programs as the config asks."""
    config_tools = config.tools
    here = lambda path: places.resolve(path) if path else ""
    settings = {name: dict(config_tools[name]) for name in toolbox.MAKERS}
    for arguments in settings.values():
        if "index" in arguments:
            arguments["index"] = here(arguments["index"])
    with command.checking_config():
        tools = toolbox.build(
            config_tools.names,
            settings,
            mcp=config_tools.mcp,
            record=here(config_tools.record),
            replay=config_tools.replay,
        )
    if facts := sandbox_facts(tools):
        for line in selftest.describe(facts):
            logging.info("%s", line)
    return tools


def sandbox_facts(tools):
    """Returns the facts of `selftest.examine` about model-written programs; {} if none run."""
    return dict(tools["python_coder"].facts) if "python_coder" in tools else {}


def make_scorer(config, answering, *, engine=None, vocabulary=None):
    """Returns the `Scorer` that a config's `reward` and `backends.judge` ask for.

    engine, vocabulary: for a judge that is one of the engine's models.
    """
    reward = config.reward
    deciders = {kind: reward[kind] for kind in scoring.DECIDERS}
    judged_by, checker = None, None
    with command.checking_config():
        if isinstance(answering.judge, str):
            longest = max(config.rollout.max_response_tokens, config.rollout.max_module_tokens)
            ask = judge.ask_engine(
                engine,
                vocabulary,
                weights=answering.judge,
                max_tokens=min(reward.judge_tokens, longest),
                max_prompt_tokens=config.rollout.max_prompt_tokens,
            )
            judged_by = judge.Judge(
                ask, name=answering.judge, remembers=answering.judge == "frozen"
            )
        elif answering.judge is not None:
            ask = judge.ask_server(answering.judge, max_tokens=reward.judge_tokens)
            verdicts = answering.caches.get(config.backends.judge.cache)
            judged_by = judge.Judge(ask, name=answering.judge.name, cache=verdicts)
        if "math_verify" in deciders.values():
            checker = symbolic.Symbolic()
        return scoring.Scorer(
            deciders,
            judged_by=judged_by,
            symbolic=checker,
            judge_characters=reward.judge_characters,
        )


def engine_shapes(config):
    """Returns the engine's arguments that decide its shapes, except weights and mesh."""
    settings, engine = config.rollout, config.engine
    longest = max(settings.max_response_tokens, settings.max_module_tokens)
    max_length = settings.max_prompt_tokens + longest
    return dict(
        slots=engine.slots,
        max_length=max_length,
        cache_tokens=engine.cache_tokens or WEIGHT_SETS * engine.slots * max_length,
        page_size=engine.page_size,
        prefill_tokens=engine.prefill_tokens,
        prefill_rows=engine.prefill_rows,
        decode_steps=engine.decode_steps,
        dtype=compute_dtype(config),
        constraints=config.rollout.grammar,
    )


def separates_layers(config, session, mesh, *, training):
    """Returns whether the engine is to keep layers in arrays of their own; `placement.copies`.

    Args:
      mesh: of one engine.
      training: whether moments of the optimizer are still to come.
    """
    layers = config.engine.layers
    if layers not in LAYERS:
        raise command.ConfigError(
            f"engine.layers={layers!r} is unknown; valid: {', '.join(LAYERS)}."
        )
    device, dtype = mesh.devices.flat[0], compute_dtype(config)
    if layers != "auto" or device.platform not in placement.SLICES_ARE_COPIED:
        return layers == "separate"
    settings, dims = engine_shapes(config), session.frozen.config
    layout, *_ = cache.candidates(device.platform, dims, size=settings["page_size"], dtype=dtype)
    needed = shapes.of(dims, layout=layout, **settings).cache_bytes(mesh)
    needed += placement.layer_bytes(session.frozen, mesh, dtype)
    if training and not config.model.lora.rank:  # the policy's will differ from the frozen ones
        needed += placement.layer_bytes(session.frozen, mesh, dtype)
    if training:
        masters = jax.tree.leaves(session.params)
        needed += 2 * sum(leaf.addressable_shards[0].data.nbytes for leaf in masters)
    free = hardware.free_bytes(device)
    if free is None or needed <= ROOM * free:
        return True
    logging.warning(
        "Moments, cache and layers of the engine's own would take %.1f of %.1f free GiB, so the "
        "engine shares stacked layers, which decodes more slowly. --config.engine.layers=separate "
        "insists; a smaller engine.cache_tokens makes room.",
        needed / 2**30,
        free / 2**30,
    )
    return False


def load_weights(config, folder, mesh, *, training=True):
    """Loads (params, frozen, shardings, assemble) from a folder; see `Session`."""
    dtype = compute_dtype(config)
    with command.checking_config():
        dims = huggingface.model_config(folder)
        whole = sharding.parameter_shardings(mesh, abstract_model(dims))
        if config.model.lora.rank:
            settings = lora.Settings(**config.model.lora)
    if not config.model.lora.rank:
        master = jnp.float32 if training else dtype
        with command.checking_config():
            params = huggingface.load(folder, dtype=master, shardings=whole)
        cast = lambda tree: jax.tree.map(lambda x: x.astype(dtype), tree)
        frozen = params if dtype == master else jax.jit(cast, out_shardings=whole)(params)
        return params, frozen, whole, update.whole_model
    with command.checking_config():
        frozen = huggingface.load(folder, dtype=dtype, shardings=whole)
    make = functools.partial(lora.init, settings=settings)
    key = jax.random.key(config.seed)
    with command.checking_config():
        shardings = sharding.parameter_shardings(mesh, jax.eval_shape(make, frozen, key))
    params = jax.jit(make, out_shardings=shardings)(frozen, key)
    return params, frozen, shardings, lora.combine


def abstract_model(dims, dtype=jnp.float32):
    """Returns a Decoder of shapes; dims: decoder.Config."""
    return jax.eval_shape(lambda key: decoder.Decoder(key, dims, dtype), jax.random.key(0))


def batch_shapes(config, mesh):
    """Returns the arguments of `batching.build` that say which shapes there are."""
    shares = mesh.shape["data"] * mesh.shape["fsdp"]
    shapes = dict(
        layout=config.batch.layout,
        row_lengths=tuple(config.batch.row_lengths),
        rows=tuple(rows * shares for rows in config.batch.rows),
        response_lengths=tuple(config.batch.response_lengths),
    )
    with command.checking_config():
        batching.check_buckets(**shapes)
    return shapes


def question_batches(config, questions):
    """Returns the endless batches of training questions that a config asks for."""
    settings = dict(batch=config.rollout.questions, seed=config.seed)
    with command.checking_config():
        return mixture.batches(questions, weights=config.data.mixture.to_dict(), **settings)


def weighting(config, variant, step):
    """Returns the arguments of `batching.build` that say what turns count, and in which step."""
    if turns := config.loss.mini_batch_turns:
        seed = (config.seed, step)
        split = functools.partial(batching.shuffled, turns=turns, seed=seed)
    else:
        split = functools.partial(batching.by_questions, mini_batches=config.loss.mini_batches)
    longest = config.rollout.max_turns * config.rollout.max_response_tokens
    return dict(weigh=variant.weigh, split=split, constant_length=longest)


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
        infra_retries=config.rollout.infra_retries,
    )
