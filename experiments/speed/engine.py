"""Measures the engine against the peers a user would otherwise take, in one interleaved run.

    python -m experiments.benchmark engine --models=nano \\
        --torch_python=.venv/bin/python --tunix_python=tunix/bin/python --out=engine.jsonl
    python -m experiments.benchmark engine --models=7b --loads=uniform,trace --out=engine.jsonl

The second line is for one accelerator with 139 GiB, on random weights made on the spot, and is
meant to take less than ten minutes; it has not been run on one yet. The peers are optional (on a
GPU, set XLA_PYTHON_CLIENT_PREALLOCATE=false to leave them memory). Each runs in an environment of
its own, made by

    python3 -m venv tunix && tunix/bin/pip install google-tunix jax==0.10.2 flax==0.12.8
    make test        (its .venv holds torch and transformers)

All answer the same prompts with the same weights and precision, at temperature 1, on the same
cores, at most `slots` requests at once. Nothing stops a response early: every request gets exactly
its number of tokens, which is checked. After a few tokens for everyone to warm up, rounds alternate
between the contestants, with other prompts in each round, and a comparison is the median over
rounds of the ratio within one.

    uniform      as many requests as slots, of one length
    queue        three times as many, of mixed lengths, all there from the start
    trace        agents: G = 8, three turns, a growing memory, tools in between
    single       one request after the other

See traffic.py. transformers' `generate` and Tunix's `Sampler` take what is ready as a batch, at
most `slots`, and run it to its longest response; "torch-continuous" is transformers' continuous
batching with its shared prefixes. Time in which all agents wait for tools passes on the clock, but
is not waited for. Tunix's prompts and batches are padded to powers of two, so that it compiles few
programs; compilation in a timed run is left out.

    tok/s     generated tokens per second of the whole load
    first     ms from when a request could be sent to its first token, median / 95th percentile; a
              static batch draws it then, but shows it only at its end
    fill      share of the slots' decode steps that drew a token; "queued": while requests waited
    wasted    share of the slots' decode steps spent on padding or on a response that had ended
    hits      prompt tokens found in the cache, as a share of the longest common prefix with any
              earlier prompt; "pages": as a share of that prefix in whole pages
    limit     the load's shortest possible time over its measured time. Shortest: prefill of what
              is not shared, at the best matmul rate of this run; decode with all slots full, each
              step either reading weights and cache at the best copy bandwidth or computing,
              whichever takes longer; never less than the longest chain alone. A processor's caches
              may beat it.
    decode    the same for the steps that only decode, with their actual fill
"""

import contextlib
import dataclasses
import functools
import itertools
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
from experiments.speed import decoding, measure, traffic
from experiments.speed.peers import drive, link
from flow_grpo_jax import files
from models import huggingface, qwen2
from models.engine import types
from models.engine.engine import Engine

PEERS = {  # name -> (program, how it is loaded)
    "torch": ("torch", dict(how="static")),
    "torch-continuous": ("torch", dict(how="continuous")),
    "tunix": ("tunix", {}),
}
OURS = "ours"


# ---- ours --------------------------------------------------------------------------------------


@dataclasses.dataclass
class Advance:
    """One `advance` of our engine. queued: requests waited for a slot."""

    seconds: float
    queued: bool
    counts: dict


class OurEngine:
    """Our engine on one load."""

    def __init__(self, model, size, load, *, dtype, overlap, settings):
        started = time.perf_counter()
        page = settings["page_size"]
        most = -(-load.longest[2] // page) * page
        self.slots, self.page = size.slots, page
        self.prefill_size = settings["prefill_tokens"] * settings["prefill_rows"]
        # Room for running requests, and as much again for remembered ones.
        self.engine = Engine(
            {"policy": model},
            slots=size.slots,
            max_length=most,
            cache_tokens=2 * size.slots * most,
            dtype=dtype,
            separate=True,
            overlap=overlap,
            in_flight="finish",
            seed=0,
            constraints=False,
            **settings,
        )
        self.engine.warmup()
        self.compile_seconds = time.perf_counter() - started

    def run(self, number, load):
        """Runs one pass over a load; returns its report."""
        self.number, self.steps = number, []
        self.keys, self.fresh, self.first = {}, {}, {}
        run = drive.continuously(load.chains, self.submit, self.poll)
        prompts = [load.chains[c][t].prompt for c, t in run.order]
        could, in_pages = traffic.common_prefixes(prompts, self.page)
        queued = [step for step in self.steps if step.queued]
        total = functools.partial(_total, self.steps)
        shared, slot_steps = total("shared_tokens"), total("slot_steps")
        return run.report() | {
            "fill": total("drawn_tokens") / slot_steps,
            "fill_queued": _share(_total(queued, "drawn_tokens"), _total(queued, "slot_steps")),
            "wasted": total("wasted_steps") / slot_steps,
            "waited": total("waited_steps") / slot_steps,
            "hits": _share(shared, could) if in_pages else None,
            "hits_in_pages": _share(shared, in_pages),
            "could_share": could,
            "steps": len(self.steps),
            "decode_calls": total("decode_calls"),
            "prefill_calls": total("prefill_calls"),
            "prefill_fill": total("prefill_tokens") / total("prefill_calls") / self.prefill_size,
            "compiled": self.engine.compile_count,
            "compile_seconds": self.compile_seconds,
            "peak_bytes": measure.peak_bytes(),
            # Each step that only decodes: seconds, decode steps, tokens.
            "decoding": [
                (step.seconds, step.counts["slot_steps"] // self.slots, step.counts["drawn_tokens"])
                for step in self.steps
                if step.counts["decode_calls"] and not step.counts["prefill_calls"]
            ],
        }

    def submit(self, key, turn):
        sampling = types.Sampling(max_tokens=turn.new)
        request = types.Request(turn.prompt, sampling, address=(self.number, *key))
        id = self.engine.submit(request)
        self.keys[id], self.fresh[id] = key, None

    def poll(self, wait):
        before = dataclasses.asdict(self.engine.statistics)
        queued, started = self.engine.pending > self.slots, time.perf_counter()
        finished = self.engine.advance()
        now = time.perf_counter()
        after = dataclasses.asdict(self.engine.statistics)
        counts = {name: after[name] - before[name] for name in after}
        self.steps.append(Advance(now - started, queued, counts))
        ended = {id for id, _ in finished}
        # Requests that wait for a slot have no token yet; only the oldest can have one.
        for id in list(itertools.islice(self.fresh, self.slots)):
            if id in ended or len(self.engine.partial(id).tokens):
                self.first[id] = now
                del self.fresh[id]
        return [
            (self.keys.pop(id), len(completion.tokens), self.first.pop(id, now))
            for id, completion in finished
        ]


def _total(steps, name):
    return sum(step.counts[name] for step in steps)


def _share(part, whole):
    return part / whole if whole else None


# ---- one load ----------------------------------------------------------------------------------


def check_same_work(reports, load):
    """Raises RuntimeError unless all generated exactly the tokens that the load asks for."""
    wanted = [
        [c, t, turn.new] for c, chain in enumerate(load.chains) for t, turn in enumerate(chain)
    ]
    for name, report in reports.items():
        if report["tokens"] != wanted:
            generated = sum(count for *_, count in report["tokens"])
            raise RuntimeError(
                f"{name} generated {generated} tokens in {len(report['tokens'])} requests, not "
                f"{load.new_tokens} in {len(wanted)} as asked: speeds do not compare."
            )


def run_rounds(contestants, make_load, rounds, *, slots, dtype):
    """Runs a short warm-up, then the rounds.

    Args:
      contestants: name -> function of (number of the round, EngineLoad) that returns a report.
      make_load: number of the round -> EngineLoad.

    Returns:
      ({name: [report of each timed round]}, best matmul FLOP/s, best bytes/s of a copy).
    """
    reports, rate, bandwidth = {name: [] for name in contestants}, 0.0, 0.0
    few = traffic.first_tokens(make_load(0), slots)
    for run in contestants.values():
        run(0, few)
    for number in range(1, rounds + 1):
        load = make_load(number)
        rate = max(rate, measure.matmul_rate(dtype))
        bandwidth = max(bandwidth, measure.copy_bandwidth())
        latest = {name: run(number, load) for name, run in contestants.items()}
        check_same_work(latest, load)
        for name, report in latest.items():
            reports[name].append(report)
        seconds = ", ".join(f"{name} {r['seconds']:.2f} s" for name, r in latest.items())
        logging.info("round %d of %d: %s", number, rounds, seconds)
    return reports, rate, bandwidth


def summarise(reports, load, limit, slots):
    """Returns {name: values} of a measured load."""
    seconds = {name: np.array([r["seconds"] for r in rounds]) for name, rounds in reports.items()}
    shared = max((r.get("could_share", 0) for r in reports[OURS]), default=0)
    shortest = limit.seconds(load, slots, shared)
    results = {}
    for name, rounds in reports.items():
        median = float(np.median(seconds[name]))
        first = np.concatenate([r["first"] for r in rounds])
        middle = lambda key, rounds=rounds: _median([r.get(key) for r in rounds])
        results[name] = {
            "seconds": seconds[name].tolist(),
            "median_seconds": median,
            "tokens_per_second": load.new_tokens / median,
            "first_seconds": {f"p{q}": float(np.percentile(first, q)) for q in (50, 95)},
            **{
                key: middle(key)
                for key in (
                    "fill",
                    "fill_queued",
                    "wasted",
                    "waited",
                    "hits",
                    "hits_in_pages",
                    "steps",
                    "decode_calls",
                    "prefill_calls",
                    "prefill_fill",
                )
            },
            "compiled": rounds[-1].get("compiled"),
            "compile_seconds": rounds[-1].get("compile_seconds"),
            "peak_bytes": rounds[-1]["peak_bytes"],
            "limit": shortest / median,
            "decode_limit": decode_share(rounds, load, limit),
            "faster_than": {
                other: measure.spread(seconds[other] / seconds[name])
                for other in PEERS
                if other in reports and other != name
            },
        }
    return results


def _median(values):
    return None if None in values else float(np.median(values))


def decode_share(rounds, load, limit):
    """Returns the share of the limit in steps that only decode; None where there are none."""
    steps_alone = [step for r in rounds for step in r.get("decoding", ())]
    if not steps_alone:
        return None
    seen = decoding.context(load) / max(1, sum(turn.new - 1 for turn in load.turns))
    best = sum(
        limit.decode_seconds(steps, tokens, tokens * seen) for _, steps, tokens in steps_alone
    )
    return best / sum(seconds for seconds, *_ in steps_alone)


# ---- report ------------------------------------------------------------------------------------


def table(results):
    """Returns the lines of a table."""
    peers = [name for name in PEERS if name in results]
    percent = lambda share: "-" if share is None else f"{100 * share:.0f} %"
    number = lambda value, spec="": "-" if value is None else format(value, spec)
    head = ["", "s", "tok/s", "first", "fill", "queued", "wasted", "hits", "pages"]
    head += ["programs", "compile s", "GiB", "limit", "decode", *[f"x {peer}" for peer in peers]]
    rows = [head]
    for name, r in results.items():
        ratios = [r["faster_than"].get(peer) for peer in peers]
        first = [f"{1e3 * r['first_seconds'][q]:,.0f}" for q in ("p50", "p95")]
        rows.append(
            [
                name,
                f"{r['median_seconds']:.2f}",
                f"{r['tokens_per_second']:,.0f}",
                " / ".join(first),
                percent(r["fill"]),
                percent(r["fill_queued"]),
                percent(r["wasted"]),
                number(r["hits"], ".3f"),
                number(r["hits_in_pages"], ".3f"),
                number(r["compiled"]),
                number(r["compile_seconds"], ".1f"),
                f"{r['peak_bytes'] / 2**30:.2f}",
                number(r["limit"], ".3f"),
                number(r["decode_limit"], ".3f"),
                *["-" if q is None else measure.as_text(q) for q in ratios],
            ]
        )
    return measure.aligned(rows)


# ---- the command -------------------------------------------------------------------------------


def define_flags():
    sizes = ", ".join(traffic.SIZES)
    flags.DEFINE_list("models", None, f"Of {sizes}. By default nano; on an accelerator 7b.")
    flags.DEFINE_list("loads", list(traffic.LOADS), f"Of {', '.join(traffic.LOADS)}.")
    flags.DEFINE_string("torch_python", "", "Interpreter for the torch peers; empty = without.")
    flags.DEFINE_string("tunix_python", "", "Interpreter for the Tunix peer; empty = without it.")
    flags.DEFINE_bool("torch_continuous", True, "Also run transformers' continuous batching.")
    flags.DEFINE_integer("rounds", 3, "Timed runs of each contestant.", lower_bound=1)
    flags.DEFINE_integer("threads", 0, "CPU threads of torch; 0 = one for each core.", 0)
    flags.DEFINE_integer("seed", 0, "Of weights and requests.")
    for name in traffic.ON_CPU:
        flags.DEFINE_integer(name, None, "Of our engine; by default what suits the model.", 1)
    flags.DEFINE_bool("overlap", None, "Of our engine; by default on accelerators.")
    flags.DEFINE_string("out", "", "File to write, one line of JSON for each model and load.")


def start_peers(stack, values, model, dtype, size):
    """Starts peers and loads the model; returns ({name: link.Peer}, {library: version})."""
    interpreters = {"torch": values.torch_python, "tunix": values.tunix_python}
    names = [name for name, (program, _) in PEERS.items() if interpreters[program]]
    if not values.torch_continuous:
        names = [name for name in names if name != "torch-continuous"]
    if not names:
        return {}, {}
    threads = values.threads or len(os.sched_getaffinity(0))
    folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory())) / "model"
    huggingface.save(folder, model, dtype=np.dtype(dtype))
    peers, versions = {}, {}
    for name in names:
        program, how = PEERS[name]
        peers[name] = stack.enter_context(
            link.Peer(program, interpreters[program], threads=threads, measured="engine")
        )
        settings = dict(folder=str(folder), dtype=dtype.name, threads=threads, slots=size.slots)
        versions |= peers[name].ask("load", **settings, **how)["versions"]
    return peers, versions


def peer_contestant(peer, load, page_size):
    """Makes a function of (number, EngineLoad) that returns a running peer's report."""
    prompt, response, longest = load.longest
    prepared = peer.ask(
        "prepare",
        longest_prompt=prompt,
        longest_response=response,
        longest=longest,
        page_size=page_size,
    )
    return lambda number, load: prepared | peer.ask("run", chains=load.chains)


def measure_size(name, values):
    """Measures all loads of one size; yields (load, its record: results and their settings)."""
    size, on_cpu = traffic.SIZES[name], jax.default_backend() == "cpu"
    dtype = jnp.dtype(jnp.float32 if on_cpu else jnp.bfloat16)
    settings = {key: values[key].value or size.engine[key] for key in traffic.ON_CPU}
    overlap = not on_cpu if values.overlap is None else values.overlap
    make = jax.jit(functools.partial(qwen2.Qwen2, config=size.dims, dtype=dtype))
    model = jax.block_until_ready(make(jax.random.key(values.seed)))
    with contextlib.ExitStack() as stack:
        peers, versions = start_peers(stack, values, model, dtype, size)
        for load_name in values.loads:
            make_load = functools.partial(traffic.LOADS[load_name], size, values.seed)
            load = make_load(0)
            with command.checking_config():
                ours = OurEngine(model, size, load, dtype=dtype, overlap=overlap, settings=settings)
            contestants = {OURS: ours.run} | {
                peer_name: peer_contestant(peer, load, settings["page_size"])
                for peer_name, peer in peers.items()
            }
            reports, rate, bandwidth = run_rounds(
                contestants, make_load, values.rounds, slots=size.slots, dtype=dtype
            )
            limit = decoding.Limit(size.dims, rate, bandwidth, dtype.itemsize)
            record = {
                "requests": len(load.turns),
                "prompt_tokens": load.prompt_tokens,
                "new_tokens": load.new_tokens,
                "slots": size.slots,
                "engine": settings | {"overlap": overlap},
                "dtype": dtype.name,
                "matmul_flops_per_second": rate,
                "copy_bytes_per_second": bandwidth,
                "versions": versions,
                "results": summarise(reports, load, limit, size.slots),
            }
            measure.write_lines(
                [
                    "",
                    f"{name}, {load_name}: {len(load.turns)} requests, {load.prompt_tokens:,} "
                    f"prompt and {load.new_tokens:,} new tokens, {size.slots} slots; {dtype.name}, "
                    f"matmul {rate / 1e12:.2f} TFLOP/s, copy {bandwidth / 1e9:,.0f} GB/s",
                    *table(record["results"]),
                ]
            )
            yield load_name, record
            del ours, contestants


def main():
    values = flags.FLAGS
    default = ["nano"] if jax.default_backend() == "cpu" else ["7b"]
    models = measure.known("models", values.models or default, traffic.SIZES)
    measure.known("loads", values.loads, traffic.LOADS)
    about = measure.about(values, ("rounds", "threads", "seed"))
    lines = []
    for name in models:
        for load, record in measure_size(name, values):
            lines.append(json.dumps(about | {"model": name, "load": load} | record) + "\n")
            if values.out:
                files.replace_text(pathlib.Path(values.out), "".join(lines))
