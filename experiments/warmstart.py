"""Supervised warm start of a small model from demonstrations; writes a Hugging Face folder.

    python -m experiments.warmstart --config=experiments/configs/quickstart.py --workdir=DIR

Trains a model on the demonstrations of `config.warmstart.worlds` (`experiments/worlds`), logs the
share of held-out module calls written without an error, and leaves DIR/model for
`config.model.path`, with DIR/train.jsonl and DIR/held_out.jsonl, which do not overlap, and
DIR/articles.db for knowledge_search if a world has articles of its own. The model starts from the
folder `config.warmstart.start`, or from random weights of `config.warmstart.model` with a
byte-level BPE tokenizer made for the worlds.

Dimensions:
  B rows    T tokens in a row, several samples packed    D model width    V vocabulary
"""

import functools
import itertools
import json
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags, logging
from ml_collections import config_flags

from experiments.running import command, fields, sessions
from experiments.worlds import catalogue, world
from models import decoder, huggingface, model_card, precision
from models.attention import masks
from models.tokenizer import Tokenizer, train_byte_bpe
from tools import knowledge_base, text_index

CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "{{ '<|im_start|>' + message['content'] + '<|im_end|>\n' }}"
    "{% else %}{{ message['content'] + '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>' }}{% endif %}"
)
FRONT = {"library_name": "transformers", model_card.PROMPTS: "compact"}
CARD = """
# Nano model of the {worlds}

Qwen2.5 architecture, made by `experiments.warmstart` of flow_grpo_jax from demonstrations. It knows
the forms of the agent's modules and the facts of no question; it is of no use outside the agent.
"""


def corpus(worlds, *, tools, samples, max_turns):
    """Yields text for the tokenizer: all articles, and demonstrations of all questions."""
    shown = world.demonstrations(worlds, tools=tools, seed=0, max_turns=max_turns, split="all")
    for sample in itertools.islice(shown, samples):
        yield "\n".join([*(m["content"] for m in sample.messages), sample.response])
    for _, text in documents(worlds):
        yield from [text] * 4


def documents(worlds):
    """Returns (title, text) of the knowledge base and of what the worlds add to it."""
    known = {article.title: article.text for article in knowledge_base.articles()}
    return list((known | {title: text for w in worlds for title, text in w.documents()}).items())


def encode(sample, tokenizer):
    """Returns (tokens, response length): chat prompt, response, end-of-turn token."""
    response = [*tokenizer.encode(sample.response), tokenizer.eos_ids[0]]
    return [*tokenizer.chat(sample.messages), *response], len(response)


def copying(tokenizer, rng):
    """Makes a random token string twice, the second time as response: pure look-up.

    Teaches copying of any token (arXiv 2209.11895) far faster than demonstrations alone.
    """
    tokens = rng.integers(0, tokenizer.vocab_size, rng.integers(4, 25)).tolist()
    marker = tokenizer.chat([{"role": "user", "content": ""}])
    return [*tokens, *marker, *tokens, tokenizer.eos_ids[0]], len(tokens) + 1


def training_stream(stream, tokenizer, *, seed, copy_samples):
    """Yields encoded samples: demonstrations, every other of the first `copy_samples` copying."""
    rng = np.random.default_rng(seed)
    for index in itertools.count():
        if index < copy_samples and index % 2:
            yield copying(tokenizer, rng)
        else:
            yield encode(next(stream), tokenizer)


def packed_rows(encoded, *, rows, length, prompt_weight):
    """Packs samples first-fit into batches of (token_BT, segment_BT, weight_BT), NumPy.

    weight_BT: weight of the prediction *of* the token: 1 on responses, prompt_weight on prompts.
    """
    while True:
        token_BT = np.zeros((rows, length), np.int32)
        segment_BT = np.zeros((rows, length), np.int32)
        weight_BT = np.zeros((rows, length), np.float32)
        used, segments, full = [0] * rows, [0] * rows, False
        while not full:
            tokens, response = next(encoded)
            if len(tokens) > length:  # invented names can be very long
                continue
            row = next((b for b in range(rows) if used[b] + len(tokens) <= length), None)
            full = row is None  # the sample that no longer fits is dropped: the stream is endless
            if not full:
                span = slice(used[row], used[row] + len(tokens))
                segments[row] += 1
                token_BT[row, span], segment_BT[row, span] = tokens, segments[row]
                weight_BT[row, span] = prompt_weight
                weight_BT[row, span.start] = 0.0
                weight_BT[row, span.stop - response : span.stop] = 1.0
                used[row] = span.stop
        yield token_BT, segment_BT, weight_BT


@functools.partial(precision.in_dtype, dtype=jnp.float32)
def prediction(model, token_BT, segment_BT):
    """Returns each token's log-prob given its past, and whether it is the most likely one."""
    hidden_BTD = model.hidden(token_BT, masks.until_of_segments(segment_BT))
    logits_BTV = model.logits(hidden_BTD[:, :-1])
    logp_BT = -optax.softmax_cross_entropy_with_integer_labels(logits_BTV, token_BT[:, 1:])
    return logp_BT, logits_BTV.argmax(-1) == token_BT[:, 1:]


def loss_fn(model, token_BT, segment_BT, weight_BT):
    logp_BT, _ = prediction(model, token_BT, segment_BT)
    return -(logp_BT * weight_BT[:, 1:]).sum() / weight_BT.sum()


@functools.partial(jax.jit, static_argnames="optimizer", donate_argnums=(0, 1))
@functools.partial(precision.in_dtype, dtype=jnp.float32)
def train_step(model, opt_state, batch, *, optimizer):
    loss, gradient = jax.value_and_grad(loss_fn)(model, *batch)
    updates, opt_state = optimizer.update(gradient, opt_state, model)
    return optax.apply_updates(model, updates), opt_state, loss


def exact_share(model, samples, tokenizer, *, length):
    """Returns role -> share of samples whose whole response is the model's greedy choice."""
    token_BT = np.zeros((len(samples), length), np.int32)
    segment_BT = np.zeros((len(samples), length), np.int32)
    response_BT = np.zeros((len(samples), length), bool)
    for b, sample in enumerate(samples):
        tokens, response = encode(sample, tokenizer)
        token_BT[b, : len(tokens)], segment_BT[b, : len(tokens)] = tokens, 1
        response_BT[b, len(tokens) - response : len(tokens)] = True
    right_BT = jax.jit(prediction)(model, token_BT, segment_BT)[1]
    right_B = np.all(np.asarray(right_BT) | ~response_BT[:, 1:], axis=1)
    roles = sorted({sample.role for sample in samples})
    return {
        role: float(np.mean([r for r, s in zip(right_B, samples, strict=True) if s.role == role]))
        for role in roles
    }


def prepare(config, workdir):
    """Writes the questions, the articles and the tokenizer of a config's worlds.

    Returns:
      (worlds, tools, tokenizer, model to start with).
    """
    settings = config.warmstart
    with command.checking_config():
        worlds = catalogue.choose(settings.worlds, tools=config.tools.names)
    for split, count in (
        ("train", settings.train_questions),
        ("held_out", settings.held_out_questions),
    ):
        asked = [p for w in worlds for p in world.distinct(w, split, count, seed=settings.seed)]
        world.write(workdir / f"{split}.jsonl", asked, split)
    if any(each.documents() for each in worlds):
        text_index.build(workdir / "articles.db", documents(worlds))
    config = config.copy_and_resolve_references()
    config.tools.knowledge_search.index = ""  # demonstrations search nothing: moves know results
    tools = sessions.make_tools(config)
    if settings.start:
        folder = sessions.locate_model(settings.start)
        return worlds, tools, folder, huggingface.load(folder)
    texts = corpus(
        worlds, tools=tools, samples=settings.tokenizer_samples, max_turns=config.rollout.max_turns
    )
    train_byte_bpe(
        list(texts),
        vocab_size=settings.model.vocab_size,
        chat_template=CHAT_TEMPLATE,
        folder=workdir / "tokenizer",
    )
    model = decoder.Decoder(jax.random.key(settings.seed), decoder.Config(**settings.model))
    return worlds, tools, workdir / "tokenizer", model


def warmstart(config, workdir):
    """Trains and writes workdir/model; returns the last held-out shares by role."""
    settings = config.warmstart
    workdir = pathlib.Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    worlds, tools, folder, model = prepare(config, workdir)
    tokenizer = Tokenizer.load(folder)
    how = dict(tools=tools, max_turns=config.rollout.max_turns)
    probes = world.demonstrations(worlds, seed=1, flawless=True, split="held_out", **how)
    fits = lambda sample: len(encode(sample, tokenizer)[0]) <= settings.row_length
    probes = list(itertools.islice(filter(fits, probes), settings.probes))
    shown = world.demonstrations(
        worlds, seed=settings.seed, tokenizer=tokenizer, real_share=settings.real_share, **how
    )
    batches = packed_rows(
        training_stream(shown, tokenizer, seed=settings.seed, copy_samples=settings.copy_samples),
        rows=settings.rows,
        length=settings.row_length,
        prompt_weight=settings.prompt_weight,
    )
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, settings.lr, settings.warmup_steps, settings.steps, settings.lr * settings.final_lr
    )
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(schedule, b1=0.9, b2=0.98, weight_decay=settings.weight_decay),
    )
    opt_state = optimizer.init(model)
    start, shares, losses, tokens = time.monotonic(), {}, [], 0
    with (workdir / "warmstart.jsonl").open("w") as log:
        for step in range(1, settings.steps + 1):
            batch = next(batches)
            tokens += int((batch[1] > 0).sum())
            model, opt_state, loss = train_step(model, opt_state, batch, optimizer=optimizer)
            losses.append(loss)
            if step % settings.probe_every == 0 or step == settings.steps:
                shares = exact_share(model, probes, tokenizer, length=settings.row_length)
                line = {
                    "step": step,
                    "loss": float(jnp.mean(jnp.stack(losses))),
                    "tokens": tokens,
                    "seconds": round(time.monotonic() - start, 1),
                    "exact": {role: round(share, 4) for role, share in shares.items()},
                }
                losses = []
                log.write(json.dumps(line) + "\n")
                log.flush()
                logging.info("warm start %s", json.dumps(line))
                huggingface.save(
                    workdir / "model",
                    model,
                    tokenizer_folder=folder,
                    card=model_card.render(FRONT, CARD.format(worlds=settings.worlds)),
                )
    return shares


def define_flags():
    config_flags.DEFINE_config_file("config", lock_config=True)
    flags.DEFINE_string("workdir", None, "Folder for the log, the tokenizer and the model.")


def main():
    fields.check(flags.FLAGS.config)
    warmstart(flags.FLAGS.config, flags.FLAGS.workdir)


if __name__ == "__main__":
    define_flags()
    command.run(main, required=("config", "workdir"))
