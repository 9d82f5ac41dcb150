"""Measures the update against the peers a user would otherwise take, in one interleaved run.

    python -m experiments.benchmark update --models=nano,20m \\
        --torch_python=.venv/bin/python --tunix_python=tunix/bin/python --out=update.json
    python -m experiments.benchmark update --models=1.5b,7b-lora --out=update.json

The second line is for one accelerator with 139 GiB and takes less than ten minutes. The peers are
optional (on a GPU, set XLA_PYTHON_CLIENT_PREALLOCATE=false to leave them memory). Each runs in an
environment of its own, made by

    python3 -m venv tunix && tunix/bin/pip install google-tunix jax==0.10.2 flax==0.12.8
    make test        (its .venv holds torch and transformers)

A step is everything from laid-out samples to new weights: the reference pass, forward and backward
of the policy, clipping, AdamW. All train the same samples from the same weights with the same loss,
gradient accumulation and precision; policy loss and KL must agree before anything is timed. The
learning rate is so small that the weights, and so the steps, stay the same. Rounds alternate
between the contestants; a comparison is the median over rounds of the ratio within a round. Laying
out samples is not timed, except Tunix's packing, which is part of its step.

    uniform      full rows of one turn each: speed per padded token
    lognormal    the method's turns, ten prompt tokens for each response token, 1 to 3 turns, 8
                 rollouts a question; see loads.py

Each peer uses its own layout: torch pads to the longest prompt and the longest response of the step
(as TRL does), Tunix to the longest that the configuration allows; "tunix-packed" switches on its
packing of the policy's pass. Logits: torch makes them at response positions, Tunix everywhere.

    useful tok/s     tokens of the samples / s, each sample counted alone
    useful/computed  share of the computed tokens; above 1 where prefixes are shared
    MFU              6 N (LoRA: 4 N) FLOPs a useful token with the unembedding in N, plus causal
                     attention at half of T * T, over the best matmul rate of this run. No credit
                     for recomputation or the reference pass. A shared prefix counts once.
    done             the same share for the FLOPs that are really needed: unembedding at response
                     positions only, and the forward pass of the reference.

Dimensions:
  Q questions    G rollouts of a question    S samples (turns)    B rows    T tokens in a row
  A response tokens of a row    D model width    V vocabulary
"""

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags, logging

from experiments.running import command
from experiments.speed import loads, measure
from experiments.speed.peers import link
from flow_grpo_jax import files, logprobs, loss, optimizer, packing, update
from models import huggingface, lora, qwen2
from models.attention import kernels

LOSS = dict(clip_low=0.2, clip_high=0.3, dual_clip=3.0, kl_coef=1e-3)
# Too small to change a weight: every step starts from the same ones.
OPTIMIZER = dict(lr=1e-12, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.01, clip_norm=1.0)
# Largest relative difference of policy loss and KL, by compute dtype. Measured: 1e-6 in float32.
AGREEMENT = {"float32": 1e-4, "bfloat16": 5e-2}
PEERS = {"torch": "torch", "tunix": "tunix", "tunix-packed": "tunix"}
SAME_LOSS = ("torch", "tunix")  # packed rows change what Tunix's loss averages over
PROBE_VOCABULARY, PROBE_WIDTH, PROBE_TOKENS = 151_936, 256, (1_024, 4_096)


# ---- what is measured --------------------------------------------------------------------------


@dataclasses.dataclass
class Contestant:
    """Something that can do the step.

    step: () -> dict with seconds, and policy, kl, grad_norm, compiled, peak_bytes as far as the
      contestant reports them. computed_tokens: padding included. layout: in words.
    flops: (by the usual formula, really needed).
    """

    step: object
    computed_tokens: int
    layout: str
    flops: tuple[float, float]
    reports: list = dataclasses.field(default_factory=list)


class OurUpdate:
    """The update of this repository on one size."""

    def __init__(self, size, *, dtype, remat, attend, chunk, seed):
        key_model, key_reference, key_adapters = jax.random.split(jax.random.key(seed), 3)
        make = functools.partial(qwen2.Qwen2, config=size.dims)
        assemble = update.whole_model
        if size.rank:
            self.frozen = jax.jit(functools.partial(make, dtype=dtype))(key_model)
            settings = lora.Settings(size.rank, 2.0 * size.rank, tuple(lora.TARGETS))
            params = jax.jit(functools.partial(lora.init, settings=settings))(
                self.frozen, key_adapters
            )
            assemble = lora.combine
        else:
            params = jax.jit(make)(key_model)
            # Near the policy, as in training: far from it everyone bounds KL in another way.
            mix = lambda ours, other: (0.9 * ours + 0.1 * other).astype(dtype)
            self.frozen = jax.jit(lambda *keys: jax.tree.map(mix, *map(make, keys)))(
                key_model, key_reference
            )
        adamw = optimizer.make(warmup_steps=0, moment_dtype="float32", **OPTIMIZER)
        self.state = update.init(params, adamw)
        self.make_update = functools.partial(
            update.Update,
            adamw,
            numbers=loss.Numbers(sequence_ratio=False, tis_cap=0.0, **LOSS),
            execution=qwen2.Execution(dtype=dtype, remat=remat, attend=kernels.make(attend)),
            temperature=1.0,
            chunk=chunk,
            assemble=assemble,
            epochs=1,
            old_logprobs="sampler",
            donate_params=True,
        )

    def save(self, folder):
        """Writes policy and reference as Hugging Face folders; returns their paths."""
        paths = {"folder": folder / "policy", "reference": folder / "reference"}
        huggingface.save(paths["folder"], self.state.params)
        huggingface.save(paths["reference"], self.frozen, dtype=np.float32)
        return {name: str(path) for name, path in paths.items()}

    def step(self, run, batches):
        """Runs one optimizer step by an Update from `make_update`."""
        jax.block_until_ready(self.state)
        started = time.perf_counter()
        self.state, metrics = run(self.state, self.frozen, [batches])
        jax.block_until_ready(self.state)
        return {
            "seconds": time.perf_counter() - started,
            "policy": metrics["loss/policy"],
            "kl": metrics["loss/kl"],
            "grad_norm": metrics["optim/grad_norm"],
            "compiled": run.compile_count,
            "peak_bytes": measure.peak_bytes(),
        }


def useful_flops(size, *, tokens, pairs, sampled):
    """Returns FLOPs of training (by the usual formula, really needed).

    Args:
      tokens: how many must be computed. pairs: how many pairs of a query and a key that it sees
        these have. sampled: how many of the tokens carry loss.
    """
    dims = size.dims
    layers = dims.num_hidden_layers * dims.layer_parameters
    head = dims.vocab_size * dims.hidden_size
    width = dims.num_hidden_layers * dims.num_attention_heads * dims.head_dim
    passes = 4 if size.rank else 6
    usual = passes * (layers + head) * tokens + 12 * width * pairs
    reference = 2 * layers * tokens + 2 * head * sampled + 4 * width * pairs
    done = passes * (layers * tokens + head * sampled) + 12 * width * pairs + reference
    return float(usual), float(done)


def flops_alone(size, load):
    """Returns `useful_flops` of the samples, each on its own."""
    length_S = np.array([len(s.prompt_tokens) + len(s.response_tokens) for s in load.samples])
    return useful_flops(
        size,
        tokens=int(length_S.sum()),
        pairs=int((length_S * (length_S + 1) // 2).sum()),
        sampled=load.sampled_tokens,
    )


def flops_of_batches(size, batches):
    """Returns `useful_flops` of TurnBatches: a shared prefix counts once."""
    tokens = pairs = 0
    for batch in batches:
        # Of each key: the queries that see it.
        seen_by_BT = batch.until_BT - np.arange(batch.until_BT.shape[1])
        real_BT = batch.until_BT > 0
        tokens += int(real_BT.sum())
        pairs += int(seen_by_BT[real_BT].sum())
    return useful_flops(
        size, tokens=tokens, pairs=pairs, sampled=sum(int(b.mask_BA.sum()) for b in batches)
    )


def logprob_temporaries(chunk):
    """Returns temporary bytes of log-probs, forward and backward, by method and tokens.

    The programs are only compiled. V is Qwen's vocabulary; D is small, so that logits dominate.
    """
    config = qwen2.Config(PROBE_VOCABULARY, PROBE_WIDTH, PROBE_WIDTH, 1, 4, 1, 64)
    model = jax.eval_shape(lambda: qwen2.Qwen2(jax.random.key(0), config))

    def ours(model, hidden_BAD, target_BA):
        how = dict(temperature=1.0, chunk=chunk)
        mask_BA = jnp.ones(target_BA.shape, bool)
        return logprobs.token_logprobs(model, hidden_BAD, target_BA, mask_BA, **how)[0].sum()

    def naive(model, hidden_BAD, target_BA):
        logp_BAV = jax.nn.log_softmax(model.logits(hidden_BAD))
        return jnp.take_along_axis(logp_BAV, target_BA[:, :, None], axis=-1).sum()

    temporaries = {}
    for name, function in (("ours", ours), ("naive", naive)):
        for tokens in PROBE_TOKENS:
            arguments = (
                model,
                jax.ShapeDtypeStruct((1, tokens, PROBE_WIDTH), jnp.float32),
                jax.ShapeDtypeStruct((1, tokens), jnp.int32),
            )
            compiled = jax.jit(jax.grad(function, argnums=(0, 1))).lower(*arguments).compile()
            temporaries[f"{name} {tokens}"] = compiled.memory_analysis().temp_size_in_bytes
    return temporaries


# ---- one load ----------------------------------------------------------------------------------


def our_contestants(ours, size, load, name):
    """Returns {name: Contestant} of the layouts that differ on this load."""
    contestants = {}
    for layout in packing.LAYOUTS if name == "lognormal" else ("padded",):
        T, tokens = -(-load.longest // 64) * 64, size.row * size.rows
        shapes = {(T, tokens // T)}
        if name == "lognormal":  # what does not fill the large micro-batch goes into single rows
            shapes |= {(T // 4, 1), (T, 1)}
        lengths, rows = zip(*sorted(shapes), strict=True)
        batches = loads.micro_batches(load, layout, row_lengths=lengths, rows=rows)
        shapes = sorted({batch.token_BT.shape for batch in batches})
        contestants[f"ours {layout}"] = Contestant(
            functools.partial(ours.step, ours.make_update(), batches),
            sum(batch.token_BT.size for batch in batches),
            f"{len(batches)} micro-batches of {' or '.join('x'.join(map(str, s)) for s in shapes)}",
            flops_of_batches(size, batches),
        )
    return contestants


def peer_contestant(peer, name, size, load):
    """Makes the Contestant of a running peer."""
    samples = [
        dict(
            prompt=s.prompt_tokens,
            response=s.response_tokens,
            logprobs=s.logprobs,
            advantage=float(load.adv_QG.flat[s.trajectory]),
        )
        for s in load.samples
    ]
    reply = peer.ask(
        "batch",
        samples=samples,
        rows=size.rows,
        max_prompt=load.most_prompt,
        max_response=load.most_response,
        packed=load.longest if name == "tunix-packed" else 0,
    )
    step = functools.partial(peer.ask, "step")
    return Contestant(step, reply["computed_tokens"], reply["layout"], flops_alone(size, load))


def check_agreement(contestants, dtype):
    """Raises RuntimeError unless the first steps computed the same policy loss and KL."""
    limit = AGREEMENT[dtype.name]
    comparable = {
        name: c.reports[0]
        for name, c in contestants.items()
        if name.startswith("ours") or name in SAME_LOSS
    }
    first, *others = comparable
    for value in ("policy", "kl"):
        reference = comparable[first][value]
        for name in others:
            apart = abs(comparable[name][value] - reference)
            if apart > limit * max(abs(reference), 1e-2):
                raise RuntimeError(
                    f"{name} computes {value} = {comparable[name][value]:.7g}, {first} "
                    f"{reference:.7g}: they do not do the same step, so speeds do not compare."
                )


def run_rounds(contestants, rounds, dtype):
    """Runs the rounds; returns the best matmul rate seen in between."""
    for name, contestant in contestants.items():
        report = contestant.step()
        logging.info("%-14s first step %6.1f s, %s", name, report["seconds"], contestant.layout)
        contestant.reports.append(report)
    check_agreement(contestants, dtype)
    rate = 0.0
    for number in range(rounds):
        rate = max(rate, measure.matmul_rate(dtype))
        for contestant in contestants.values():
            contestant.reports.append(contestant.step())
        logging.info("round %d of %d", number + 1, rounds)
    return rate


def summarise(contestants, load, rate):
    """Returns {name: values} of a measured load."""
    seconds = {
        name: np.array([report["seconds"] for report in c.reports[1:]])
        for name, c in contestants.items()
    }
    results = {}
    for name, contestant in contestants.items():
        median = float(np.median(seconds[name]))
        usual, done = contestant.flops
        first = contestant.reports[0]
        results[name] = {
            "layout": contestant.layout,
            "seconds": seconds[name].tolist(),
            "median_seconds": median,
            "computed_tokens": contestant.computed_tokens,
            "computed_tokens_per_second": contestant.computed_tokens / median,
            "useful_tokens_per_second": load.useful_tokens / median,
            "useful_share": load.useful_tokens / contestant.computed_tokens,
            "mfu": usual / median / rate,
            "mfu_done": done / median / rate,
            "compiled": first.get("compiled"),
            "peak_bytes": contestant.reports[-1]["peak_bytes"],
            "policy": first["policy"],
            "kl": first["kl"],
            "grad_norm": first.get("grad_norm"),
            # The other's time over this one's, within a round.
            "faster_than": {
                other: measure.spread(seconds[other] / seconds[name])
                for other in contestants
                if other in PEERS and other != name
            },
        }
    return results


# ---- report ------------------------------------------------------------------------------------


def table(results):
    """Returns the lines of a table."""
    peers = [name for name in PEERS if name in results]
    head = ["", "s/step", "tok/s", "useful tok/s", "useful/comp.", "MFU", "done", "programs", "GiB"]
    rows = [head + [f"x {peer}" for peer in peers]]
    for name, r in results.items():
        ratios = [r["faster_than"].get(peer) for peer in peers]
        rows.append(
            [
                name,
                f"{r['median_seconds']:.3f}",
                f"{r['computed_tokens_per_second']:,.0f}",
                f"{r['useful_tokens_per_second']:,.0f}",
                f"{r['useful_share']:.3f}",
                f"{r['mfu']:.3f}",
                f"{r['mfu_done']:.3f}",
                "-" if r["compiled"] is None else str(r["compiled"]),
                f"{r['peak_bytes'] / 2**30:.2f}",
                *["-" if q is None else measure.as_text(q) for q in ratios],
            ]
        )
    return measure.aligned(rows)


# ---- the command -------------------------------------------------------------------------------


def define_flags():
    flags.DEFINE_list("models", None, f"Of {', '.join(loads.SIZES)}. By default what fits here.")
    flags.DEFINE_list("loads", list(loads.LOADS), f"Of {', '.join(loads.LOADS)}.")
    flags.DEFINE_string("torch_python", "", "Interpreter for the torch peer; empty = without it.")
    flags.DEFINE_string("tunix_python", "", "Interpreter for the Tunix peers; empty = without.")
    flags.DEFINE_bool("tunix_packed", True, "Also run Tunix with its sequence packing.")
    flags.DEFINE_bool("torch_compile", False, "Compile the torch peer's models.")
    flags.DEFINE_integer("rounds", 5, "Timed steps of each contestant.", lower_bound=1)
    flags.DEFINE_integer("threads", 0, "CPU threads of torch; 0 = one for each core.", 0)
    flags.DEFINE_string("attention", "auto", "Of models/attention/kernels.py.")
    flags.DEFINE_string("remat", "dots", "What our backward pass recomputes; models/qwen2.py.")
    flags.DEFINE_integer("chunk", 512, "Tokens whose logits we hold at once.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "Of weights and samples.")
    flags.DEFINE_bool("logprobs", True, "Also measure the memory of log-probs.")
    flags.DEFINE_string("out", "", "JSON file to write.")


def measure_size(name, values):
    """Measures all loads of one size; returns {load: results}."""
    size = loads.SIZES[name]
    on_cpu = jax.default_backend() == "cpu"
    dtype = jnp.dtype(jnp.float32 if on_cpu else jnp.bfloat16)
    interpreters = {"torch": values.torch_python, "tunix": values.tunix_python}
    pythons = {peer: interpreters[kind] for peer, kind in PEERS.items() if interpreters[kind]}
    if not values.tunix_packed:
        pythons.pop("tunix-packed", None)
    if size.rank and pythons:
        logging.info("%s: the peers train whole models only, so they sit this one out", name)
        pythons = {}
    records = {}
    with contextlib.ExitStack() as stack:
        threads = values.threads or len(os.sched_getaffinity(0))
        peers = {
            peer: stack.enter_context(
                link.Peer(PEERS[peer], python, threads=threads, measured="update")
            )
            for peer, python in pythons.items()
        }
        with command.checking_config():
            ours = OurUpdate(
                size,
                dtype=dtype,
                remat=values.remat,
                attend=values.attention,
                chunk=values.chunk,
                seed=values.seed,
            )
        versions = {}
        if peers:
            folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
            paths = ours.save(folder)
            settings = dict(
                dtype=dtype.name,
                threads=threads,
                compiled=values.torch_compile,
                remat=not on_cpu,
                optimizer=OPTIMIZER,
                loss=LOSS,
            )
            for peer in peers.values():
                versions |= peer.ask("load", **paths, **settings)["versions"]
        for load_name in values.loads:
            load = loads.LOADS[load_name](size, values.seed)
            contestants = our_contestants(ours, size, load, load_name)
            for peer_name, peer in peers.items():
                if not (peer_name == "tunix-packed" and load_name == "uniform"):
                    contestants[peer_name] = peer_contestant(peer, peer_name, size, load)
            rate = run_rounds(contestants, values.rounds, dtype)
            records[load_name] = {
                "samples": len(load.samples),
                "useful_tokens": load.useful_tokens,
                "sampled_tokens": load.sampled_tokens,
                "matmul_flops_per_second": rate,
                "peer_versions": versions,
                "results": summarise(contestants, load, rate),
            }
            measure.write_lines(
                [
                    "",
                    f"{name}, {load_name}: {len(load.samples)} samples, {load.useful_tokens:,} "
                    f"tokens, {load.sampled_tokens:,} sampled; {dtype.name}, matmul "
                    f"{rate / 1e12:.2f} TFLOP/s",
                    *table(records[load_name]["results"]),
                ]
            )
    return records


def main():
    values = flags.FLAGS
    default = ["nano", "20m"] if jax.default_backend() == "cpu" else ["1.5b", "7b-lora"]
    models = measure.known("models", values.models or default, loads.SIZES)
    measure.known("loads", values.loads, loads.LOADS)
    report = measure.about(values, ("rounds", "remat", "attention", "chunk", "seed")) | {
        "models": {}
    }

    def save():
        if values.out:
            path = pathlib.Path(values.out)
            files.replace_text(path, json.dumps(report, indent=2) + "\n")

    for name in models:
        report["models"][name] = measure_size(name, values)
        save()
    if values.logprobs:
        report["logprob_temporaries"] = temporaries = logprob_temporaries(values.chunk)
        few, many = PROBE_TOKENS
        of_naive = temporaries[f"ours {many}"] / temporaries[f"naive {many}"]
        of_few = temporaries[f"ours {many}"] / temporaries[f"ours {few}"]
        measure.write_lines(
            [
                "",
                f"log-probs, V = {PROBE_VOCABULARY:,}: temporary MiB, forward and backward",
                *[f"{name:<12} {size / 2**20:10,.0f}" for name, size in temporaries.items()],
                f"ours / naive at {many:,} tokens: {of_naive:.3f}; ours at {many:,} / "
                f"{few:,} tokens: {of_few:.3f}",
            ]
        )
        save()
