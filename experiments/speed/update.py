"""Measures the update against the peers a user would otherwise take, in one interleaved run.

    python -m experiments.benchmark update --models=nano,20m \\
        --torch_python=.venv/bin/python --tunix_python=tunix/bin/python --out=update.json
    python -m experiments.benchmark update --quick --trace --out=update.json

The second line is for one accelerator: the largest models that fit (1.5B or 0.5B in full, 7B by
LoRA), in as large micro-batches as fit, without peers. It is meant to take three minutes on one
H100; on CPU it takes the nano size. On a GPU, JAX takes three quarters of the memory unless
XLA_PYTHON_CLIENT_MEM_FRACTION=0.95 is set; with peers, XLA_PYTHON_CLIENT_PREALLOCATE=false leaves
them some. For devices that are absent, see `experiments.benchmark ahead`.

The peers are optional. Each runs in an environment of its own, made by

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

--trace shows the time of each kernel in one of our steps.

Dimensions:
  Q questions    G rollouts of a question    B rows    T tokens in a row
"""

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags, logging

from experiments.running import command
from experiments.speed import chunks, loads, measure, step, tracing
from experiments.speed.peers import link
from flow_grpo_jax import files, packing

# Largest relative difference of policy loss and KL, by compute dtype. Measured: 1e-6 in float32.
AGREEMENT = {"float32": 1e-4, "bfloat16": 5e-2}
PEERS = {"torch": "torch", "tunix": "tunix", "tunix-packed": "tunix"}
SAME_LOSS = ("torch", "tunix")  # packed rows change what Tunix's loss averages over
USUAL = {"loads": list(loads.LOADS), "rounds": 5, "logprobs": True, "layouts": packing.LAYOUTS}
QUICK = USUAL | {"rounds": 2, "logprobs": False, "layouts": ("tree",)}


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


# ---- one load ----------------------------------------------------------------------------------


def our_batches(size, load, layout, *, uniform):
    """Returns the TurnBatches of our step on a load.

    uniform: whether all samples are as long as a row.
    """
    T, tokens = -(-load.longest // 64) * 64, size.row * size.rows
    shapes = {(T, tokens // T)}
    if layout == "padded" and not uniform:  # a row for each turn: many short ones at once
        shapes |= {(T // 4, 4 * tokens // T)}
    elif not uniform:  # what does not fill the large micro-batch goes into single rows
        shapes |= {(T // 4, 1), (T, 1)}
    lengths, rows = zip(*sorted(shapes), strict=True)
    return loads.micro_batches(load, layout, row_lengths=lengths, rows=rows)


def layouts_of(load_name, layouts):
    """Returns those of several layouts that differ on a load: rows of one length are all alike."""
    return ("padded",) if load_name == "uniform" else layouts


def our_contestants(ours, size, load, name, layouts):
    """Returns {name: Contestant} of the layouts that differ on this load."""
    contestants = {}
    for layout in layouts_of(name, layouts):
        batches = our_batches(size, load, layout, uniform=name == "uniform")
        shapes = sorted({batch.token_BT.shape for batch in batches})
        contestants[f"ours {layout}"] = Contestant(
            functools.partial(ours.step, ours.make_update(), batches),
            sum(batch.token_BT.size for batch in batches),
            f"{len(batches)} micro-batches of {' or '.join('x'.join(map(str, s)) for s in shapes)}",
            step.flops_of_batches(size, batches),
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
    return Contestant(
        functools.partial(peer.ask, "step"),
        reply["computed_tokens"],
        reply["layout"],
        step.flops_alone(size, load),
    )


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
    flags.DEFINE_bool("quick", False, "Two rounds: uniform rows and, not for LoRA, trees.")
    flags.DEFINE_bool("trace", False, "Also show the time of each kernel of our steps.")
    flags.DEFINE_list("models", None, f"Of {', '.join(loads.SIZES)}. By default what fits here.")
    flags.DEFINE_list("loads", None, f"Of {', '.join(loads.LOADS)}; by default both.")
    flags.DEFINE_list("layouts", None, f"Ours, of {', '.join(packing.LAYOUTS)}; by default all.")
    flags.DEFINE_string("torch_python", "", "Interpreter for the torch peer; empty = without it.")
    flags.DEFINE_string("tunix_python", "", "Interpreter for the Tunix peers; empty = without.")
    flags.DEFINE_bool("tunix_packed", True, "Also run Tunix with its sequence packing.")
    flags.DEFINE_bool("torch_compile", False, "Compile the torch peer's models.")
    flags.DEFINE_integer("rounds", None, "Timed steps of each contestant.", lower_bound=1)
    flags.DEFINE_integer("threads", 0, "CPU threads of torch; 0 = one for each core.", 0)
    flags.DEFINE_string("attention", "auto", "Of models/attention/kernels.py.")
    flags.DEFINE_string("remat", "dots", "What our backward pass recomputes; models/decoder.py.")
    flags.DEFINE_integer("chunk", 512, "Tokens whose logits we hold at once.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "Of weights and samples.")
    flags.DEFINE_bool("logprobs", None, "Also measure the memory of log-probs.")
    flags.DEFINE_string("out", "", "JSON file to write.")


def measure_size(name, values):
    """Measures all loads of one size; returns {load: results}."""
    size = loads.SIZES[name].fitted(measure.memory())
    if size is None:
        raise command.ConfigError(
            f"--models={name} does not fit into the {measure.memory() / 2**30:.1f} GiB that JAX "
            "has here. Choose a smaller model, or on a GPU set XLA_PYTHON_CLIENT_MEM_FRACTION=0.95."
        )
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
            ours = step.OurUpdate(
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
                optimizer=step.OPTIMIZER,
                loss=step.LOSS,
            )
            for peer in peers.values():
                versions |= peer.ask("load", **paths, **settings)["versions"]
        for load_name in values.loads[:1] if values.quick and size.rank else values.loads:
            load = loads.LOADS[load_name](size, values.seed)
            contestants = our_contestants(ours, size, load, load_name, values.layouts)
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
                "micro_batch_rows": size.rows,
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
            if values.trace:
                records[load_name]["kernels"] = traced = {
                    contestant: tracing.kernels(contestants[contestant].step)
                    for contestant in contestants
                    if contestant.startswith("ours")
                }
                for contestant, found in traced.items():
                    title = f"{name}, {load_name}, {contestant}"
                    measure.write_lines(tracing.table(title, found))
    return records


def models_that_fit(memory):
    """Returns the names of the models to measure on an accelerator with so many bytes."""
    fitting = [
        [name for name in names if loads.SIZES[name].fitted(memory)]
        for names in loads.ON_ACCELERATOR
    ]
    return [names[0] for names in fitting if names]


def default_models(quick):
    if jax.default_backend() == "cpu":
        return ["nano"] if quick else ["nano", "20m"]
    return models_that_fit(measure.memory())


def main():
    values = measure.settled(flags.FLAGS, USUAL, QUICK)
    models = values.models or default_models(values.quick)
    measure.known("models", models, loads.SIZES)
    measure.known("loads", values.loads, loads.LOADS)
    measure.known("layouts", values.layouts, packing.LAYOUTS)
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
        report["logprob_temporaries"] = temporaries = chunks.temporaries(values.chunk)
        few, many = chunks.TOKENS
        of_naive = temporaries[f"ours {many}"] / temporaries[f"naive {many}"]
        of_few = temporaries[f"ours {many}"] / temporaries[f"ours {few}"]
        measure.write_lines(
            [
                "",
                f"log-probs, V = {chunks.VOCABULARY:,}: temporary MiB, forward and backward",
                *[f"{name:<12} {size / 2**20:10,.0f}" for name, size in temporaries.items()],
                f"ours / naive at {many:,} tokens: {of_naive:.3f}; ours at {many:,} / "
                f"{few:,} tokens: {of_few:.3f}",
            ]
        )
        save()
