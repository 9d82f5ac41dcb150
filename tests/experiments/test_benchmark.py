import sys
import types

import numpy as np
import pytest

from experiments import benchmark
from experiments.benchmarks import loads, update
from experiments.benchmarks.peers import link
from models import qwen2

TOY = loads.Size(
    qwen2.Config(97, 32, 48, 2, 4, 2, 8, initializer_range=0.3),
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
    assert "valid: loading, search, update" in capsys.readouterr().err


def test_unknown_names_in_a_flag_are_refused():
    with pytest.raises(update.command.ConfigError, match="--models holds 2b; valid: nano"):
        update.known("models", ["nano", "2b"], loads.SIZES)
    assert update.known("models", ["nano"], loads.SIZES) == ["nano"]


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
    assert max(max(tokens_of(s)) for s in load.samples) < size.shape.vocab_size


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
    size = loads.Size(qwen2.Config(10, 4, 6, 2, 2, 1, 2), 8, 1, 1, 1, 1)
    usual, done = update.useful_flops(size, tokens=5, pairs=15, sampled=2)
    # A pair costs 2 products of 2 numbers in 2 heads of 2 layers, forward: 4 * 2 * 4 = 32.
    assert usual == 6 * (240 + 40) * 5 + 3 * 32 * 15
    assert done == 6 * (240 * 5 + 40 * 2) + 3 * 32 * 15 + (2 * (240 * 5 + 40 * 2) + 32 * 15)
    adapters = loads.Size(size.shape, 8, 1, 1, 1, 1, rank=1)
    assert update.useful_flops(adapters, tokens=5, pairs=15, sampled=2)[0] == 4 * 280 * 5 + 1440


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_flops_do_not_depend_on_the_layout_unless_prefixes_are_shared(layout):
    load = loads.lognormal(TOY, seed=0)
    shapes = dict(row_lengths=(64, load.longest), rows=(4, 2))
    alone = update.flops_alone(TOY, load)
    assert update.flops_of_batches(TOY, loads.micro_batches(load, layout, **shapes)) == alone
    tree = update.flops_of_batches(TOY, loads.micro_batches(load, "tree", **shapes))
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


# ---- peers -------------------------------------------------------------------------------------


def executable(path, text):
    path.write_text(f"#!{sys.executable}\n{text}")
    path.chmod(0o755)
    return str(path)


def test_a_peer_answers_requests_whatever_its_libraries_print(tmp_path):
    python = executable(
        tmp_path / "python",
        "import os, sys\n"
        "from experiments.benchmarks.peers import serve\n"
        "def add(a, b):\n"
        "    print('noise'); os.write(1, b'more noise'); return {'sum': a + b}\n"
        "serve.serve({'add': add})\n",
    )
    with link.Peer("torch", python, threads=1) as peer:
        assert peer.ask("add", a=1, b=2) == {"sum": 3}
        assert peer.ask("add", a=[1], b=[2]) == {"sum": [1, 2]}
        with pytest.raises(RuntimeError, match=r"asked to 'take'(.|\n)*KeyError: 'take'"):
            peer.ask("take")


def test_a_peer_that_cannot_be_started_is_named(tmp_path):
    with pytest.raises(ValueError, match="--tunix_python=.*absent cannot be started"):
        link.Peer("tunix", str(tmp_path / "absent"), threads=1)


@pytest.mark.slow
def test_a_whole_run_at_toy_size_against_torch(monkeypatch):
    """All layouts and the torch peer agree on policy loss, KL and gradient norm, or this raises."""
    monkeypatch.setitem(loads.SIZES, "toy", TOY)
    values = types.SimpleNamespace(
        loads=["uniform", "lognormal"],
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
    found = update.benchmark_size("toy", values)
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
    found = update.logprob_temporaries(chunk=512)
    assert found["ours 4096"] <= found["naive 4096"] / 8
    assert found["ours 4096"] <= 1.05 * found["ours 1024"]
