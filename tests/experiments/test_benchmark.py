import dataclasses
import functools
import itertools
import subprocess
import sys
import types

import jax
import numpy as np
import pytest

from experiments import benchmark
from experiments.configs import quickstart
from experiments.planning import benchmarks, programs
from experiments.speed import (
    chunks,
    decoding,
    engine,
    loads,
    measure,
    rollout,
    sandbox,
    step,
    summary,
    tracing,
    traffic,
    update,
)
from experiments.speed.peers import drive, link
from models import decoder

TOY = loads.UpdateSize(
    decoder.Config(97, 32, 48, 2, 4, 2, 8, initializer_range=0.3),
    row=64,
    rows=4,
    batches=2,
    divide=80,
    questions=1,
)


def tokens_of(sample):
    return sample.prompt_tokens + sample.response_tokens


# ---- the command -------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["benchmark"], ["benchmark", "updates"]])
def test_an_unknown_benchmark_is_refused_with_the_valid_names(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        benchmark.main(arguments)
    assert stop.value.code == 2
    assert (
        "valid: ahead, engine, loading, rollout, sandbox, search, update" in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--help"], "  search    Measures the text search"),
        (["sandbox", "--help"], "--rounds: Times"),
        (["update", "--help"], "--models=nano,20m \\\n        --torch_python"),
    ],
)
def test_help_lists_the_benchmarks_and_the_flags_of_each(arguments, said):
    process = subprocess.run(
        [sys.executable, "-m", "experiments.benchmark", *arguments], capture_output=True, text=True
    )
    assert process.returncode == 0 and said in process.stdout and not process.stderr
    assert "Dimensions:" not in process.stdout
    assert max(map(len, process.stdout.splitlines())) <= 110


def test_unknown_names_in_a_flag_are_refused():
    with pytest.raises(update.command.ConfigError, match="--models holds 2b; valid: nano"):
        measure.known("models", ["nano", "2b"], loads.SIZES)
    assert measure.known("models", ["nano"], loads.SIZES) == ["nano"]


@pytest.mark.slow
def test_the_sandbox_is_measured_against_a_fresh_interpreter(monkeypatch):
    monkeypatch.setattr(sandbox, "TURNS", 1)
    found = sandbox.measure(rounds=1, programs=8)
    assert found["print/ratio"] > 0 and found["threads8/sandbox/per_second"] > 0
    assert found["numpy/fresh/p50"] > 0 and found["level"] in ("standard", "strict")


# ---- loads -------------------------------------------------------------------------------------


def test_uniform_rows_are_all_full():
    load = loads.uniform(TOY, seed=0)
    assert {len(tokens_of(s)) for s in load.samples} == {TOY.row} == {load.longest}
    assert len(load.samples) == TOY.rows * TOY.batches
    assert load.useful_tokens == 8 * 64 and load.sampled_tokens == 8 * (64 // 11)


@pytest.mark.parametrize("name", loads.SIZES)
def test_the_log_normal_load_has_the_shape_of_the_method(name):
    size = loads.SIZES[name]
    load = loads.lognormal(size, seed=0)
    assert len(load.samples) == size.questions * sum(loads.TURNS)
    assert len(load.samples) % size.rows == 0  # peers take whole micro-batches
    prompts = np.array([len(s.prompt_tokens) for s in load.samples])
    responses = np.array([len(s.response_tokens) for s in load.samples])
    assert prompts.max() <= load.most_prompt and responses.max() <= load.most_response
    assert 6 < prompts.sum() / responses.sum() < 12
    assert 0.1 < load.useful_tokens / len(load.samples) / load.longest < 0.3
    assert min(min(tokens_of(s)) for s in load.samples) >= 2  # ids that peers read as padding, end
    assert max(max(tokens_of(s)) for s in load.samples) < size.dims.vocab_size


def test_turns_continue_each_other_and_rollouts_start_alike():
    load = loads.lognormal(TOY, seed=3)
    end = loads.END // TOY.divide
    by_trajectory = {}
    for sample in load.samples:
        by_trajectory.setdefault(sample.trajectory, []).append(sample)
    assert sorted(map(len, by_trajectory.values())) == sorted(loads.TURNS)
    assert len({turns[0].prompt_tokens for turns in by_trajectory.values()}) == 1
    for turns in by_trajectory.values():
        for before, after in zip(turns[:-1], turns[1:], strict=True):
            shared = before.prompt_tokens[:-end]
            assert after.prompt_tokens[: len(shared)] == shared
            assert after.prompt_tokens[-end:] == before.prompt_tokens[-end:]
            assert len(after.prompt_tokens) > len(before.prompt_tokens)


def test_a_seed_fixes_the_load():
    again = [loads.lognormal(TOY, seed) for seed in (0, 0, 1)]
    assert again[0].samples == again[1].samples != again[2].samples


@pytest.mark.parametrize("layout", ["padded", "packed", "tree"])
def test_every_layout_holds_all_sampled_tokens(layout):
    load = loads.lognormal(TOY, seed=0)
    batches = loads.micro_batches(load, layout, row_lengths=(64, load.longest), rows=(4, 2))
    assert sum(int(b.mask_BA.sum()) for b in batches) == load.sampled_tokens
    weight = sum(float(b.weight_BA.sum()) for b in batches)
    assert weight == pytest.approx(1.0)  # each sample 1 / samples, spread over its tokens


# ---- arithmetic --------------------------------------------------------------------------------


def test_flops_of_a_model_small_enough_to_count_by_hand():
    # D 4, F 6, 2 layers, 2 query heads and 1 kv head of 2: a layer has
    # 4*4 (q) + 4*2 (k) + 4*2 (v) + 4*4 (o) + 3*4*6 = 120 weights; the head has 10*4 = 40.
    size = loads.UpdateSize(decoder.Config(10, 4, 6, 2, 2, 1, 2), 8, 1, 1, 1, 1)
    usual, done = step.useful_flops(size, tokens=5, pairs=15, sampled=2)
    # A pair costs 2 products of 2 numbers in 2 heads of 2 layers, forward: 4 * 2 * 4 = 32.
    assert usual == 6 * (240 + 40) * 5 + 3 * 32 * 15
    assert done == 6 * (240 * 5 + 40 * 2) + 3 * 32 * 15 + (2 * (240 * 5 + 40 * 2) + 32 * 15)
    adapters = loads.UpdateSize(size.dims, 8, 1, 1, 1, 1, rank=1)
    assert step.useful_flops(adapters, tokens=5, pairs=15, sampled=2)[0] == 4 * 280 * 5 + 1440


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_flops_do_not_depend_on_the_layout_unless_prefixes_are_shared(layout):
    load = loads.lognormal(TOY, seed=0)
    shapes = dict(row_lengths=(64, load.longest), rows=(4, 2))
    alone = step.flops_alone(TOY, load)
    assert step.flops_of_batches(TOY, loads.micro_batches(load, layout, **shapes)) == alone
    tree = step.flops_of_batches(TOY, loads.micro_batches(load, "tree", **shapes))
    assert tree[0] < 0.7 * alone[0]


def contestant(seconds, policy=1.0):
    reports = [dict(seconds=s, policy=policy, kl=0.5, peak_bytes=2**30) for s in (9.0, *seconds)]
    return update.Contestant(None, 200, "", (6e3, 8e3), reports)


def test_a_comparison_is_the_median_of_ratios_within_rounds():
    # The first step is not timed. A machine that slows down changes no ratio.
    contestants = {"ours padded": contestant([1, 2, 4]), "torch": contestant([3, 4, 12])}
    load = types.SimpleNamespace(useful_tokens=100)
    results = update.summarise(contestants, load, rate=1e4)
    ours = results["ours padded"]
    assert ours["faster_than"]["torch"] == {"median": 3.0, "range": [2.0, 3.0]}
    assert (ours["median_seconds"], ours["useful_share"]) == (2.0, 0.5)
    assert ours["mfu"] == pytest.approx(6e3 / 2 / 1e4)
    assert ours["useful_tokens_per_second"] == 50.0
    lines = update.table(results)
    assert "x torch" in lines[0] and "3.00 [2.00, 3.00]" in lines[1]
    assert len(set(map(len, lines))) == 1


def test_steps_that_differ_are_not_compared():
    dtype = np.dtype(np.float32)
    same = {"ours padded": contestant([1]), "torch": contestant([1], policy=1.00001)}
    update.check_agreement(same, dtype)
    update.check_agreement(same | {"tunix-packed": contestant([1], policy=7.0)}, dtype)
    with pytest.raises(RuntimeError, match="torch computes policy = 1.01"):
        update.check_agreement(same | {"torch": contestant([1], policy=1.01)}, dtype)


# ---- what fits, what is quick ------------------------------------------------------------------

GiB = 2**30


def test_micro_batches_of_the_update_fit_into_the_memory():
    size = loads.SIZES["1.5b"]
    parameters = 28 * (2 * 1536 * 14 * 128 + 3 * 1536 * 8960) + 151_936 * 1536
    assert size.bytes == pytest.approx(22 * parameters + 1.45e6 * 16_384)  # 52.9 GiB were in use
    lora = loads.SIZES["7b-lora"]
    assert lora.bytes / GiB == pytest.approx(103.4, rel=0.01)  # in use on one H200
    rows = lambda size, memory: (f := size.fitted(memory * GiB)) and (f.rows, f.batches)
    assert [rows(lora, memory) for memory in (139, 75, 59, 39)] == [(4, 4), (2, 8), (1, 16), None]
    assert lora.fitted(None) is lora
    found = [update.models_that_fit(memory * GiB) for memory in (139, 75, 39, 15.75, 4)]
    assert found == [["1.5b", "7b-lora"]] * 2 + [["0.5b"]] * 2 + [[]]


def test_the_cache_of_the_engine_fits_into_the_memory():
    found = [traffic.largest_that_fits(memory * GiB) for memory in (139, 75, 59, 39, 15.75)]
    assert found == ["7b", "7b", "7b", "1.5b", "0.5b"]
    size = traffic.SIZES["7b"]
    layers, head = 28 * (2 * 3584 * 32 * 128 + 3 * 3584 * 18944), 2 * 152_064 * 3584
    room = 0.85 * 59 * GiB - 2 * (2 * layers + head)
    position = 2 * 4 * 128 * 28 * 2
    assert size.cache_tokens(8_192, 59 * GiB, 2, separate=True) == int(room / position)
    assert size.cache_tokens(8_192, None, 2, separate=True) == 2 * 64 * 8_192
    with pytest.raises(
        ValueError, match="tokens fit into the cache, and a request has up to 8,192"
    ):
        size.cache_tokens(8_192, 31 * GiB, 2, separate=True)


def test_flags_that_are_not_given_are_as_quick_wants_them():
    flag = lambda value: types.SimpleNamespace(value=value)

    class Flags(dict):
        quick = property(lambda self: self["quick"].value)

    usual, quick = {"rounds": 3, "loads": ["a", "b"]}, {"rounds": 1}
    given = dict(rounds=flag(None), loads=flag(None), seed=flag(0))
    found = [
        measure.settled(Flags(quick=flag(wanted), **given | other), usual, quick)
        for wanted, other in ((False, {}), (True, {}), (True, {"rounds": flag(7)}))
    ]
    assert [(values.rounds, values.loads, values.seed) for values in found] == [
        (3, ["a", "b"], 0),
        (1, ["a", "b"], 0),
        (7, ["a", "b"], 0),
    ]


def profile(plane, line, *events):
    events = [types.SimpleNamespace(name=name, duration_ns=ns) for name, ns in events]
    return types.SimpleNamespace(
        name=plane, lines=[types.SimpleNamespace(name=line, events=events)]
    )


def test_kernels_of_a_profile_are_summed_by_name():
    found = tracing.summed(
        [
            profile("/device:GPU:0", "Stream #14(Compute)", ("gemm", 2e6), ("copy", 1e6)),
            profile("/device:GPU:0", "Stream #15", ("gemm", 3e6)),
            profile("/device:GPU:0", "XLA Modules", ("jit_decode", 9e6)),
            profile("/host:CPU", "python", ("step", 9e6)),
            profile("/host:CPU", "tf_XLAEigen/1", ("fusion", 4e6), ("end: fusion", 1e6)),
            profile("Task Environment", "Stream", ("x", 1e6)),
        ]
    )
    assert found["by_name"] == [["gemm", 0.005, 2], ["fusion", 0.004, 1], ["copy", 0.001, 1]]
    assert found["kernels"] == pytest.approx(0.01)
    lines = tracing.table("decode", found | {"wall": 0.02})
    assert lines[1] == "decode: 20.0 ms, kernels 10.0 ms"
    assert lines[3].split() == ["gemm", "5.000", "50.0%", "2"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "v5e:1x1",
            marks=pytest.mark.skipif(not programs.has_libtpu(), reason="libtpu is missing"),
        ),
    ],
)
def test_programs_of_the_benchmarks_are_compiled_ahead_of_time(monkeypatch, device):
    monkeypatch.setitem(loads.SIZES, "toy", TOY)
    monkeypatch.setitem(traffic.SIZES, "tiny", TINY)
    dtype = np.dtype(np.float32)
    if device != "cpu":
        dtype = jax.numpy.dtype(jax.numpy.bfloat16)
        [device] = programs.devices(benchmarks.hardware.topology(device))
    else:
        device = jax.devices()[0]
    found = dict(benchmarks.engine_programs("tiny", device, None, dtype))
    assert list(found) == ["prefill", "decode"] and min(found.values()) > 0
    found = dict(benchmarks.update_programs("toy", device, None, dtype))
    assert list(found)[-2:] == ["accumulate 4 x 64", "finish"]
    weights = 97 * 32 * 2 + 2 * (2 * 32 * 6 * 8 + 3 * 32 * 48)
    assert found["accumulate 4 x 64"] > 16 * weights  # with moments, gradients and parameters


# ---- peers -------------------------------------------------------------------------------------


def executable(path, text):
    path.write_text(f"#!{sys.executable}\n{text}")
    path.chmod(0o755)
    return str(path)


def test_a_peer_answers_requests_whatever_its_libraries_print(tmp_path):
    python = executable(
        tmp_path / "python",
        "import os, sys\n"
        "from experiments.speed.peers import serve\n"
        "def add(a, b):\n"
        "    print('noise'); os.write(1, b'more noise'); return {'sum': a + b}\n"
        "serve.serve({'add': add})\n",
    )
    with link.Peer("torch", python, threads=1, measured="update") as peer:
        assert peer.ask("add", a=1, b=2) == {"sum": 3}
        assert peer.ask("add", a=[1], b=[2]) == {"sum": [1, 2]}
        with pytest.raises(RuntimeError, match=r"asked to 'take'(.|\n)*KeyError: 'take'"):
            peer.ask("take")


def test_a_peer_that_cannot_be_started_is_named(tmp_path):
    with pytest.raises(ValueError, match="--tunix_python=.*absent cannot be started"):
        link.Peer("tunix", str(tmp_path / "absent"), threads=1, measured="update")


@pytest.mark.slow
def test_a_whole_run_at_toy_size_against_torch(monkeypatch):
    """All layouts and the torch peer must agree on policy loss, KL and gradient norm."""
    monkeypatch.setitem(loads.SIZES, "toy", TOY)
    values = types.SimpleNamespace(
        quick=False,
        trace=False,
        loads=["uniform", "lognormal"],
        layouts=["padded", "packed", "tree"],
        torch_python=sys.executable,
        torch_compile=False,
        tunix_python="",
        tunix_packed=False,
        threads=1,
        rounds=1,
        remat="dots",
        attention="auto",
        chunk=512,
        seed=0,
    )
    found = update.measure_size("toy", values)
    layouts = ["ours padded", "ours packed", "ours tree"]
    assert list(found["uniform"]["results"]) == ["ours padded", "torch"]
    assert list(found["lognormal"]["results"]) == [*layouts, "torch"]
    for measured in found.values():
        norms = [result["grad_norm"] for result in measured["results"].values()]
        assert norms == pytest.approx([norms[0]] * len(norms), rel=1e-4)
    shares = [found["lognormal"]["results"][name]["useful_share"] for name in layouts]
    assert shares[0] < 1 < shares[2]


@pytest.mark.slow
def test_memory_of_logprobs_does_not_grow_with_tokens():
    found = chunks.temporaries(chunk=512)
    assert found["ours 4096"] <= found["naive 4096"] / 8
    assert found["ours 4096"] <= 1.05 * found["ours 1024"]


# ---- the agent loop ----------------------------------------------------------------------------


def latencies(load):
    return rollout.Latencies(load, seconds=0.01, sigma=1.0, seed=0)


@pytest.fixture(scope="module")
def scripted():
    config = quickstart.get_config()
    config.tools.names = ("knowledge_search", "base_generator")
    return rollout.scripted(config, turns=3, answers=2)


@pytest.mark.parametrize("load", rollout.LOADS)
def test_the_loop_is_measured_with_a_script_for_an_engine(scripted, load):
    how = dict(in_flight=4, waves=2, group=2, seed=0)
    found, trajectories = rollout.solve_in_waves(scripted, latencies=latencies(load), **how)
    assert (found["trajectories"], found["turns"], found["broken"]) == (8, 24, 0)
    shares = [found[f"{name}_share"] for name in ("engine", "idle", "driver")]
    assert 0.95 < sum(shares) <= 1 and min(shares) > 0
    assert sum(found["ms_per_turn"].values()) == pytest.approx(found["driver_ms_per_turn"])
    assert found["tool_s"] >= sum(itertools.islice(latencies(load).drawn, 24)) * (load != "zero")
    for trajectory in trajectories:
        lengths = [len(turn.prompt_tokens) for turn in trajectory.turns]
        assert lengths[0] > 500 and lengths[0] + 150 < lengths[1] < lengths[2] - 150
        assert {turn.verdict for turn in trajectory.turns} == {"CONTINUE"}
        assert not any(turn.parse_failures for turn in trajectory.turns)
    lines = rollout.table([(("script", 4, load), found)])
    assert load in lines[1] and len(set(map(len, lines))) == 1


def test_a_seed_fixes_latencies_and_no_text_is_written_twice(scripted):
    assert latencies("lognormal").drawn == latencies("lognormal").drawn
    assert np.median(latencies("lognormal").drawn) == pytest.approx(0.01, rel=0.1)
    assert latencies("zero").drawn == [0.0]
    prose, again = rollout.Prose(0), rollout.Prose(0)
    pieces = [prose.piece("result") for _ in range(50)]
    assert pieces == [again.piece("result") for _ in range(50)]
    assert len(set(pieces)) == 50 and 1_000 < np.median([*map(len, pieces)]) < 2_000


def test_the_shares_of_a_run_are_of_its_wall_time():
    turn = types.SimpleNamespace(prompt_tokens=(1, 2, 3))
    trajectories = [types.SimpleNamespace(broken=False, turns=[turn] * 5)] * 2
    seconds = dict(engine=1.0, tokens=0.5, solvers=0.25, calls=0.15, driver=0.1, idle=2.0)
    found = rollout.summarise(trajectories, seconds, wall=4.0, tool_seconds=[3.0, 5.0])
    shares = [found[f"{name}_share"] for name in ("engine", "idle", "driver")]
    assert shares == [0.25, 0.5, 0.25] and found["tools_at_once"] == 2.0
    assert found["driver_ms_per_turn"] == pytest.approx(100.0) and found["turns_per_s"] == 2.5


def test_sizes_of_the_loop_are_numbers():
    assert rollout.sizes(["64", "512"]) == [64, 512]
    for wrong in (["many"], ["0"], []):
        with pytest.raises(update.command.ConfigError, match="--in_flight=.*from 1 up"):
            rollout.sizes(wrong)


@pytest.mark.slow
def test_the_loop_is_measured_with_a_model():
    config = quickstart.get_config()
    config.engine.slots, config.tools.names = 4, ("knowledge_search", "base_generator")
    agent = rollout.modelled(config)
    how = dict(in_flight=4, waves=1, group=2, seed=0)
    found, _ = rollout.solve_in_waves(agent, latencies=latencies("zero"), **how)
    agent.session.close()
    assert (found["trajectories"], found["broken"]) == (4, 0)
    assert found["engine_share"] > 0.5


# ---- the engine's loads ------------------------------------------------------------------------

TINY = traffic.EngineSize(
    dataclasses.replace(TOY.dims, num_hidden_layers=1),
    slots=4,
    prompt=12,
    response=6,
    queue=9,
    singles=2,
    divide=80,
    questions=1,
    tool_seconds=5.0,
    engine=dict(page_size=4, prefill_tokens=8, prefill_rows=4, prefill_calls=4, decode_steps=2),
)


def test_loads_of_the_engine_have_exact_counts():
    load = {name: make(TINY, 0, 1) for name, make in traffic.LOADS.items()}
    assert [len(load[name].chains) for name in load] == [4, 4, 9, 8, 1]
    assert [len(load[name].turns) for name in load] == [4, 4, 9, 24, 2]
    assert load["prefill"].prompt_tokens == 4 * 12 and load["prefill"].new_tokens == 4
    assert load["uniform"].prompt_tokens == 4 * 12 and load["uniform"].new_tokens == 4 * 6
    assert load["single"].longest == (12, 6, 18)
    assert len({len(turn.prompt) for turn in load["queue"].turns}) > 3
    assert all(2 <= turn.new <= 24 for turn in load["queue"].turns)


def test_agents_remember_more_each_turn_and_wait_for_tools():
    load, end = traffic.trace(TINY, 0, 1), loads.END // 80
    assert len({chain[0].prompt for chain in load.chains}) == 1  # the rollouts of one question
    for chain in load.chains:
        assert [turn.wait > 0 for turn in chain] == [False, True, True]
        assert max(turn.wait for turn in chain) <= traffic.CLIP * TINY.tool_seconds
        for before, after in zip(chain[:-1], chain[1:], strict=True):
            known = len(before.prompt) - end
            assert after.prompt[:known] == before.prompt[:known]
            assert after.prompt[-end:] == before.prompt[-end:]
            assert len(after.prompt) > len(before.prompt)


def test_rounds_differ_in_tokens_alone():
    first, second = traffic.trace(TINY, 0, 1).turns, traffic.trace(TINY, 0, 2).turns
    assert [turn.prompt for turn in first] != [turn.prompt for turn in second]
    shapes = [[(len(t.prompt), t.new, t.wait) for t in turns] for turns in (first, second)]
    assert shapes[0] == shapes[1]


def test_common_prefixes_counted_by_hand():
    #          earlier nothing   2 of it    5 of the first, of 6   all but the last token
    prompts = [(1, 2, 3, 4, 5), (1, 2, 9), (1, 2, 3, 4, 5, 6), (1, 2, 9)]
    assert traffic.common_prefixes(prompts, 2) == (0 + 2 + 5 + 2, 0 + 2 + 4 + 2)


def test_a_wait_passes_on_the_clock_without_being_waited_for():
    chains = [[((5,), 3, 0.0), ((6,), 2, 1_000.0)], [((7,), 1, 0.0)]]
    batches = []

    def generate(prompts, new):
        batches.append(prompts)
        return new, drive.time.perf_counter(), 0.0

    report = drive.in_batches(chains, generate, 8).report()
    assert batches == [[(5,), (7,)], [(6,)]]
    assert 1_000 <= report["seconds"] < 1_001
    assert report["tokens"] == [[0, 0, 3], [0, 1, 2], [1, 0, 1]]
    assert all(first < 1 for first in report["first"])


def test_the_limit_of_a_model_small_enough_to_count_by_hand():
    # As above: 2 layers of 120 weights, a head of 40; a pair costs 32 FLOPs; 2 * 2 * 2 numbers
    # of keys and values for a position.
    limit = decoding.Limit(
        decoder.Config(10, 4, 6, 2, 2, 1, 2), rate=10.0, bandwidth=1e9, itemsize=4
    )
    assert limit.decode_seconds(3, 5, 7) == (2 * 280 * 5 + 32 * 7) / 10
    assert limit.prefill_seconds(4, 2) == (2 * 240 * 2 + 2 * 40 + 32 * (3 + 4)) / 10
    slow = decoding.Limit(limit.dims, rate=1e9, bandwidth=10.0, itemsize=4)
    assert slow.decode_seconds(3, 5, 7) == 4 * (3 * 280 + 8 * 7) / 10


@pytest.mark.slow
def test_our_engine_does_all_of_a_tiny_trace():
    load = traffic.trace(TINY, 0, 1)
    make = functools.partial(decoder.Decoder, config=TINY.dims)
    model = jax.jit(make)(jax.random.key(0))
    settings = engine.our_settings(
        TINY, load.longest[2], None, dtype=np.dtype(np.float32), platform="cpu",
        chosen=dict.fromkeys(TINY.engine),
    )  # fmt: skip
    ours = engine.OurEngine(model, overlap=False, settings=settings)
    report = ours.run(1, load)
    engine.check_same_work({"ours": report}, load)
    assert report["hits_in_pages"] == 1.0 and 0.8 < report["hits"] <= 1.0
    assert report["fill"] + report["wasted"] + report["waited"] <= 1.0
    assert report["compiled"] == 2 and len(report["first"]) == 24
    longest_tools = max(sum(turn.wait for turn in chain) for chain in load.chains)
    assert report["seconds"] > longest_tools
    limit = decoding.Limit(TINY.dims, 1e12, 1e12, 4)
    results = summary.summarise({"ours": [report]}, load, limit, TINY.slots)
    assert 0 < results["ours"]["limit"] <= 1
    assert len(set(map(len, summary.table(results)))) == 1
    alone = ours.run(2, traffic.prefill(TINY, 0, 2))
    assert (alone["fill"], alone["decode_calls"], len(alone["tokens"])) == (None, 0, 4)
    found = ours.trace(traffic.uniform(TINY, 0, engine.TRACED))
    assert not ours.engine.pending
    for kernels in found.values():
        assert kernels["by_name"] and kernels["kernels"] > 0 and kernels["wall"] > 0
    report["tokens"][0][2] -= 1
    with pytest.raises(RuntimeError, match="ours generated .* in 24 requests"):
        engine.check_same_work({"ours": report}, load)
