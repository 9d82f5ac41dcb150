"""Measures the engine against the peers a user would otherwise take, in one interleaved run.

    python -m experiments.benchmark engine --models=nano \\
        --torch_python=.venv/bin/python --tunix_python=tunix/bin/python --out=engine.jsonl
    python -m experiments.benchmark engine --quick --trace --out=engine.jsonl

The second line is for one accelerator, on random weights made on the spot: the largest of 7B, 1.5B
and 0.5B that fits, without peers. It is meant to take two to three minutes on one H100; on CPU it
takes the nano size. On a GPU, JAX takes three quarters of the memory unless
XLA_PYTHON_CLIENT_MEM_FRACTION=0.95 is set; with peers, XLA_PYTHON_CLIENT_PREALLOCATE=false leaves
them some. For devices that are absent, see `experiments.benchmark ahead`.

The peers are optional. Each runs in an environment of its own, made by

    python3 -m venv tunix && tunix/bin/pip install google-tunix jax==0.10.2 flax==0.12.8
    make test        (its .venv holds torch and transformers)

All answer the same prompts with the same weights and precision, at temperature 1, on the same
cores, at most `slots` requests at once. Nothing stops a response early: every request gets exactly
its number of tokens, which is checked. After a few tokens for everyone to warm up, rounds alternate
between the contestants, with other prompts in each round, and a comparison is the median over
rounds of the ratio within one.

    prefill      as many prompts as slots, of one length, each answered with one token
    uniform      as many requests as slots, of one length
    queue        three times as many, of mixed lengths, all there from the start
    trace        agents: G = 8, three turns, a growing memory, tools in between
    single       one request after the other

See traffic.py. transformers' `generate` and Tunix's `Sampler` take what is ready as a batch, at
most `slots`, and run it to its longest response; "torch-continuous" is transformers' continuous
batching with its shared prefixes. Time in which all agents wait for tools passes on the clock, but
is not waited for. Tunix's prompts and batches are padded to powers of two, so that it compiles few
programs; compilation in a timed run is left out.

    tok/s     generated tokens per second of the whole load; "prompt": tokens of prompts
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

--trace shows the time of each kernel in one prefill call and in a few decode calls of full slots.
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
from experiments.speed import decoding, measure, summary, tracing, traffic
from experiments.speed.peers import drive, link
from flow_grpo_jax import files
from models import decoder, huggingface
from models.engine import placement, types
from models.engine.engine import Engine

USUAL = {"loads": list(traffic.LOADS), "rounds": 3}
QUICK = {"loads": ["prefill", "uniform", "trace"], "rounds": 1}
QUICK_QUESTIONS = 4  # of the trace
TRACED_CALLS = 3  # of decoding
TRACED = 2**31  # in the place of the number of a round


# ---- ours --------------------------------------------------------------------------------------


@dataclasses.dataclass
class Advance:
    """One `advance` of our engine. queued: requests waited for a slot."""

    seconds: float
    queued: bool
    counts: dict


def our_settings(size, longest, memory, *, dtype, platform, chosen):
    """Returns the arguments of our engine, except weights and mesh.

    Args:
      longest: tokens of the longest request. memory: bytes for model and engine; None for no limit.
      chosen: {name: value} in place of those of `size.engine`; None takes these.

    Raises:
      ConfigError: the engine does not fit.
    """
    own = {name: value or size.engine[name] for name, value in chosen.items()}
    most = -(-longest // own["page_size"]) * own["page_size"]
    separate = platform in placement.SLICES_ARE_COPIED
    with command.checking_config():
        tokens = size.cache_tokens(most, memory, dtype.itemsize, separate=separate)
    return own | dict(
        slots=size.slots,
        max_length=most,
        cache_tokens=tokens,
        dtype=dtype,
        separate=separate,
        constraints=False,
    )


class OurEngine:
    """Our engine; the loads that it runs have no longer requests than its settings allow."""

    def __init__(self, model, *, overlap, settings):
        """settings: of `our_settings`."""
        started = time.perf_counter()
        self.slots, self.page = settings["slots"], settings["page_size"]
        self.prefill_size = settings["prefill_tokens"] * settings["prefill_rows"]
        with command.checking_config():
            self.engine = Engine(
                {"policy": model}, overlap=overlap, in_flight="finish", seed=0, **settings
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
            "fill": _share(total("drawn_tokens"), slot_steps),
            "fill_queued": _share(_total(queued, "drawn_tokens"), _total(queued, "slot_steps")),
            "wasted": _share(total("wasted_steps"), slot_steps),
            "waited": _share(total("waited_steps"), slot_steps),
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

    def trace(self, load):
        """Returns `tracing.kernels` of a first advance, which prefills, and of decoding alone."""
        for c, (turn, *_) in enumerate(load.chains[: self.slots]):
            sampling = types.Sampling(max_tokens=turn.new)
            self.engine.submit(types.Request(turn.prompt, sampling, address=(TRACED, c)))
        found = {"prefill": tracing.kernels(self.engine.advance)}
        while self.engine.pending:
            before = self.engine.statistics.prefill_calls
            self.engine.advance()
            if self.engine.statistics.prefill_calls == before:
                break

        def decode():
            for _ in range(TRACED_CALLS):
                self.engine.advance()

        found["decode"] = tracing.kernels(decode)
        while self.engine.pending:
            self.engine.advance()
        return found

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


# ---- the command -------------------------------------------------------------------------------


def define_flags():
    sizes = ", ".join(traffic.SIZES)
    flags.DEFINE_bool("quick", False, f"One round of {', '.join(QUICK['loads'])}.")
    flags.DEFINE_bool("trace", False, "Also show the time of each kernel.")
    flags.DEFINE_list("models", None, f"Of {sizes}. By default what fits; on CPU nano.")
    flags.DEFINE_list("loads", None, f"Of {', '.join(traffic.LOADS)}; by default all.")
    flags.DEFINE_string("torch_python", "", "Interpreter for the torch peers; empty = without.")
    flags.DEFINE_string("tunix_python", "", "Interpreter for the Tunix peer; empty = without it.")
    flags.DEFINE_bool("torch_continuous", True, "Also run transformers' continuous batching.")
    flags.DEFINE_integer("rounds", None, "Timed runs of each contestant.", lower_bound=1)
    flags.DEFINE_integer("threads", 0, "CPU threads of torch; 0 = one for each core.", 0)
    flags.DEFINE_integer("seed", 0, "Of weights and requests.")
    for name in traffic.ON_CPU:
        flags.DEFINE_integer(name, None, "Of our engine; by default what suits the model.", 1)
    flags.DEFINE_bool("overlap", None, "Of our engine; by default on accelerators.")
    flags.DEFINE_string("out", "", "File to write, one line of JSON for each model and load.")


def start_peers(stack, values, model, dtype, size):
    """Starts peers and loads the model; returns ({name: link.Peer}, {library: version})."""
    interpreters = {"torch": values.torch_python, "tunix": values.tunix_python}
    names = [name for name, (program, _) in summary.PEERS.items() if interpreters[program]]
    if not values.torch_continuous:
        names = [name for name in names if name != "torch-continuous"]
    if not names:
        return {}, {}
    threads = values.threads or len(os.sched_getaffinity(0))
    folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory())) / "model"
    huggingface.save(folder, model, dtype=np.dtype(dtype))
    peers, versions = {}, {}
    for name in names:
        program, how = summary.PEERS[name]
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


def size_of(name, quick):
    """Returns the EngineSize of a name; with --quick its trace has fewer questions."""
    size = traffic.SIZES[name]
    most = QUICK_QUESTIONS if quick else size.questions
    return dataclasses.replace(size, questions=min(size.questions, most))


def longest_of(size, names, seed):
    """Returns the tokens of the longest request of several loads."""
    return max(traffic.LOADS[name](size, seed, 0).longest[2] for name in names)


def measure_size(name, values):
    """Measures all loads of one size; yields (load, its record: results and their settings)."""
    size, on_cpu = size_of(name, values.quick), jax.default_backend() == "cpu"
    dtype = jnp.dtype(jnp.float32 if on_cpu else jnp.bfloat16)
    overlap = not on_cpu if values.overlap is None else values.overlap
    settings = our_settings(
        size,
        longest_of(size, values.loads, values.seed),
        measure.memory(),
        dtype=dtype,
        platform=jax.default_backend(),
        chosen={key: getattr(values, key) for key in traffic.ON_CPU},
    )
    make = jax.jit(functools.partial(decoder.Decoder, config=size.dims, dtype=dtype))
    model = jax.block_until_ready(make(jax.random.key(values.seed)))
    with contextlib.ExitStack() as stack:
        peers, versions = start_peers(stack, values, model, dtype, size)
        ours = OurEngine(model, overlap=overlap, settings=settings)
        for load_name in values.loads:
            make_load = functools.partial(traffic.LOADS[load_name], size, values.seed)
            load = make_load(0)
            contestants = {summary.OURS: ours.run} | {
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
                "engine": {key: settings[key] for key in (*traffic.ON_CPU, "cache_tokens")}
                | {"overlap": overlap, "layout": ours.engine.layout},
                "dtype": dtype.name,
                "matmul_flops_per_second": rate,
                "copy_bytes_per_second": bandwidth,
                "versions": versions,
                "results": summary.summarise(reports, load, limit, size.slots),
            }
            measure.write_lines(
                [
                    "",
                    f"{name}, {load_name}: {len(load.turns)} requests, {load.prompt_tokens:,} "
                    f"prompt and {load.new_tokens:,} new tokens, {size.slots} slots; {dtype.name}, "
                    f"matmul {rate / 1e12:.2f} TFLOP/s, copy {bandwidth / 1e9:,.0f} GB/s",
                    *summary.table(record["results"]),
                ]
            )
            yield load_name, record
        if values.trace:
            found = ours.trace(traffic.uniform(size, values.seed, TRACED))
            for what, kernels in found.items():
                measure.write_lines(tracing.table(f"{name}, {what}", kernels))
            yield "kernels", {"kernels": found}


def main():
    values = measure.settled(flags.FLAGS, USUAL, QUICK)
    fits = lambda: traffic.largest_that_fits(measure.memory())
    default = ["nano" if jax.default_backend() == "cpu" else fits()]
    models = measure.known("models", values.models or default, traffic.SIZES)
    measure.known("loads", values.loads, traffic.LOADS)
    about = measure.about(values, ("rounds", "threads", "seed"))
    lines = []
    for name in models:
        for load, record in measure_size(name, values):
            lines.append(json.dumps(about | {"model": name, "load": load} | record) + "\n")
            if values.out:
                files.replace_text(pathlib.Path(values.out), "".join(lines))
