"""Serves a model over HTTP as OpenAI's API: /v1/chat/completions, /v1/completions, /v1/models.

    python -m experiments.serve --model=runs/planner --port=8000

Also /health and, for Prometheus, /metrics. Needs the extra `serve`; `response_format` needs the
extra `grammar`. Without an API key only this machine can reach it. SIGTERM ends it: no new
requests, running ones may end within --stop_seconds, exit code 0.
"""

import os
import pathlib
import signal
import socket
import time

import jax
from absl import flags, logging

from experiments.configs import ranges
from experiments.running import addresses, command, sessions, tokens
from models import hardware, hub, huggingface, model_card, sharding
from models.engine import placement
from models.engine.engine import Engine

ENGINE = dict(
    page_size=32,
    prefill_tokens=64,
    prefill_rows=8,
    prefill_calls=4,
    decode_steps=8,
    in_flight="finish",
    seed=0,
)
KEY_VARIABLE = "FLOW_GRPO_API_KEY"
LENGTH = 4096


def make(
    folder,
    *,
    name,
    slots,
    max_length,
    cache_tokens,
    dtype,
    tensor,
    queue,
    top_logprobs,
    grammar,
    api_key,
    stop_seconds,
    stop_ids=(),
    thinking=False,
):
    """Builds the `serving.server.Server` of a Hugging Face folder; its programs are compiled.

    Args are the flags, except `folder`, which is --model, and `api_key`: None or the key. None for
    name, max_length, dtype or grammar means what their flags say.

    Raises:
      ConfigError: settings that do not fit the model, this machine or what is installed.
    """
    command.need("serve")
    from experiments.serving import (
        app,
        connection,
        engine_thread,
        protocol,
        server,
        service,
        text,
    )

    folder = sessions.locate_model(folder)
    config = huggingface.model_config(folder)
    switches = {"enable_thinking": thinking}
    words = tokens.load(folder, stops=stop_ids, switches=switches, conversations=(("user",),))
    max_length = _max_length(max_length, config)
    _check_sizes(
        config, slots=slots, top_logprobs=top_logprobs, cache=cache_tokens or slots * max_length
    )
    if grammar is None:
        grammar = command.installed("grammar")
    elif grammar:
        command.need("grammar")
    engine = _engine(
        folder,
        config,
        dtype=dtype,
        tensor=tensor,
        slots=slots,
        max_length=max_length,
        cache_tokens=cache_tokens,
        top_logprobs=top_logprobs,
        constraints=grammar,
        decode_text=words.decode,
    )
    vocabulary = text.Vocabulary(words)
    grammars = sessions.make_grammars(words, vocab_size=config.vocab_size) if grammar else None
    parser = protocol.Parser(
        words,
        max_length=max_length,
        vocab_size=config.vocab_size,
        top_logprobs=top_logprobs,
        most_answers=slots + queue,
    )
    thread = engine_thread.EngineThread(engine)
    served = service.Service(
        thread,
        parser,
        vocabulary,
        grammars,
        model=name or hub.name_of(folder) or pathlib.Path(folder).absolute().name,
        slots=slots,
        queue=queue,
    )
    facts = {"max_model_len": max_length}  # as vLLM calls it
    if known := model_card.prompts(folder):
        facts[model_card.PROMPTS] = known
    application = app.make(served, api_key=api_key, created=int(time.time()), facts=facts)
    return server.Server(
        application,
        served,
        thread,
        stop_seconds=stop_seconds,
        most_connections=connection.most_connections(),
    )


def bind(host, port, *, api_key):
    """Binds a socket that does not listen yet; `port` 0 takes any free one.

    Raises:
      ConfigError: other machines could reach it and there is no key, or it cannot be bound.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        raise command.ConfigError(f"--host={host} is unknown: {error}.") from error
    family, kind, protocol, _, address = found[0]
    if not addresses.is_local(address[0]) and not api_key:
        raise command.ConfigError(
            f"--host={host} can be reached from other machines, so clients need a key: set the "
            f"environment variable {KEY_VARIABLE} (or --api_key, which other users of this machine "
            "can read)."
        )
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise command.ConfigError(
            f"Cannot listen on {host} port {port}: {error.strerror}. Use another --port."
        ) from error
    return listener


def _max_length(asked, config):
    longest = config.max_position_embeddings
    if asked is not None and asked > longest:
        raise command.ConfigError(
            f"--max_length={asked} is more than the {longest} positions that the model was made "
            "for (max_position_embeddings in its config.json)."
        )
    return asked or min(LENGTH, longest)


def _check_sizes(config, *, slots, top_logprobs, cache):
    """Raises ConfigError for what no program can have; cache: tokens of all slots."""
    if top_logprobs > config.vocab_size:
        raise command.ConfigError(
            f"--top_logprobs={top_logprobs} is more than the {config.vocab_size} tokens of the "
            "model's vocabulary."
        )
    if cache > ranges.MOST:
        raise command.ConfigError(
            f"--slots={slots} of the longest answers are a cache of {cache:,} tokens; the most are "
            f"{ranges.MOST:,}. Use fewer, or a smaller --max_length."
        )


def _engine(folder, config, *, dtype, tensor, **settings):
    devices = jax.local_devices()
    if not 1 <= tensor <= len(devices):
        raise command.ConfigError(f"--tensor={tensor}, but there are {len(devices)} devices.")
    on_cpu = devices[0].platform == "cpu"
    dtype = sessions.DTYPES[dtype or ("float32" if on_cpu else "bfloat16")]
    mesh = sharding.make_mesh(tensor=tensor, devices=devices[:tensor])
    with command.checking_config():
        shardings = sharding.parameter_shardings(mesh, sessions.abstract_model(config))
    weights = huggingface.load(folder, dtype=dtype, shardings=shardings)
    with command.checking_config():
        engine = Engine(
            {"policy": weights},
            dtype=dtype,
            mesh=mesh,
            overlap=not on_cpu,
            separate=_separates_layers(weights, mesh, dtype),
            **ENGINE,
            **settings,
        )
    engine.warmup()
    return engine


def _separates_layers(weights, mesh, dtype):
    """Returns whether the engine is to keep one array a layer: where that is faster and, beside the
    stacked ones that were read, leaves room for the cache."""
    device = mesh.devices.flat[0]
    if device.platform not in placement.SLICES_ARE_COPIED:
        return False
    free = hardware.free_bytes(device)
    return free is None or 2 * placement.layer_bytes(weights, mesh, dtype) <= free


def define_flags():
    flags.DEFINE_string(
        "model",
        None,
        "Hugging Face folder of a model, or the name on the hub of one in its cache here.",
    )
    flags.DEFINE_string(
        "name",
        None,
        "What clients call the model; its name on the hub or the folder's if not given.",
    )
    flags.DEFINE_string("host", "127.0.0.1", "Address to listen on.")
    flags.DEFINE_integer("port", 8000, "Port to listen on; 0 is any free one.", 0, 65535)
    flags.DEFINE_string("api_key", None, f"What clients must send; better set {KEY_VARIABLE}.")
    flags.DEFINE_integer("slots", 16, "Answers drawn at once.", 1, ranges.MOST_OF_LIST)
    flags.DEFINE_integer(
        "max_length", None, f"Tokens of prompt and answer; {LENGTH}, or fewer if it must be.", 2
    )
    flags.DEFINE_integer(
        "cache_tokens", 0, "Tokens in the cache; 0 is slots * max_length.", 0, ranges.MOST
    )
    flags.DEFINE_enum("dtype", None, list(sessions.DTYPES), "bfloat16, or on a CPU float32.")
    flags.DEFINE_integer("tensor", 1, "Devices that share the model.", 1)
    flags.DEFINE_integer("queue", 512, "Answers that may wait for a slot; more get status 429.", 0)
    flags.DEFINE_integer("top_logprobs", 5, "Most alternatives that clients may ask for.", 0)
    flags.DEFINE_bool(
        "grammar", None, "Whether to offer response_format; if not given, if it is installed."
    )
    flags.DEFINE_multi_string(
        "stop_ids", [], "A token that ends an answer beside those the model names, by id or text."
    )
    flags.DEFINE_bool("thinking", False, "What Qwen3's chat template sees as enable_thinking.")
    flags.DEFINE_integer("stop_seconds", 30, "Time for running requests after SIGTERM.", 0)


def main():
    values = flags.FLAGS
    command.need("serve")
    api_key = values.api_key or os.environ.get(KEY_VARIABLE) or None
    listener = bind(values.host, values.port, api_key=api_key)
    server = make(
        values.model,
        name=values.name,
        slots=values.slots,
        max_length=values.max_length,
        cache_tokens=values.cache_tokens,
        dtype=values.dtype,
        tensor=values.tensor,
        queue=values.queue,
        top_logprobs=values.top_logprobs,
        grammar=values.grammar,
        api_key=api_key,
        stop_ids=values.stop_ids,
        thinking=values.thinking,
        stop_seconds=values.stop_seconds,
    )
    host, port = listener.getsockname()[:2]
    logging.info("serving on http://%s:%d/v1", f"[{host}]" if ":" in host else host, port)
    known = model_card.prompts(values.model)
    default = "those of its --config, since the folder's README.md names none"
    logging.info("prompts of experiments.solve --url=…: %s", known or default)

    def stop(*_):  # until the server handles signals itself, and again after it has ended
        server.should_exit = True

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    server.run([listener])


if __name__ == "__main__":
    define_flags()
    command.run(main, required=("model",))
