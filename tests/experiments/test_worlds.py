"""The worlds: splits, golds, demonstrations through the real loop, and the warm start."""

import collections
import dataclasses
import datetime
import hashlib
import itertools
import json
import pathlib
import random
import re
import statistics

import jax
import numpy as np
import pytest

from agents import drive, effects, parsing, prompts, solve
from experiments import warmstart
from experiments.configs import quickstart as quickstart_config
from experiments.configs import worlds as worlds_config
from experiments.running import command, limits, sessions
from experiments.warmstarting import material, nano
from experiments.worlds import catalogue, chains, game24, tables, world
from flow_grpo_jax import data, metrics, rewards
from flow_grpo_jax.answers import game24 as answers_game24
from models import decoder, huggingface, model_card
from models.tokenizer import Tokenizer
from tools import knowledge_base, protocol, text_index

DATA = "experiments/data/quickstart"
NAMES = tuple(catalogue.WORLDS)
TOOLS = quickstart_config.get_config().tools.names
QUICKSTART = catalogue.WORLDS["quickstart"]
ARTICLES = {article.title: article for article in knowledge_base.articles()}


@pytest.fixture(scope="module")
def tools(tmp_path_factory):
    """The tools of the mixture, with the articles of all worlds."""
    config = worlds_config.get_config("all")
    path = tmp_path_factory.mktemp("worlds") / "articles.db"
    text_index.build(path, material.documents(catalogue.WORLDS.values()))
    config.tools.knowledge_search.index = str(path)
    return sessions.make_tools(config)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.load(f"{DATA}/model")


def drawn(name, split, count, *, seed=0):
    return list(
        itertools.islice(catalogue.WORLDS[name].questions(split, random.Random(seed)), count)
    )


# ---- splits --------------------------------------------------------------------------------------


def things(problem):
    """What a problem is about: entities of the knowledge base, dates, or the set of numbers."""
    if problem.numbers:
        return {tuple(sorted(problem.numbers))}
    dates = set(re.findall(r"\d{4}-\d\d-\d\d", problem.question))
    moves = [stage.moves["right"] for stage in problem.stages]
    asked = {move.context for move in moves} | {problem.answer}
    asked |= {re.sub(r"^\d+ | \d+$", "", r) for move in moves for r in move.context.split(", ")}
    return dates | (asked & set(chains.splits()["all"].by_title))


@pytest.mark.parametrize("name", NAMES)
def test_splits_share_nothing(name):
    seen = {
        split: set().union(*map(things, drawn(name, split, 400))) for split in ("train", "held_out")
    }
    assert min(map(len, seen.values())) > 80
    assert not seen["train"] & seen["held_out"]
    with pytest.raises(ValueError, match="split='test' is unknown; valid: train, held_out, all"):
        drawn(name, "test", 1)


def test_all_sets_of_24_are_in_one_split():
    splits = game24.splits()
    sets = {split: [n for part in parts.values() for n in part] for split, parts in splits.items()}
    assert sorted(sets["train"] + sets["held_out"]) == sorted(sets["all"])
    assert not set(sets["train"]) & set(sets["held_out"])
    assert len(set(sets["all"])) == len(sets["all"]) == 1293


def test_sources_are_equally_frequent_and_questions_distinct():
    for each in catalogue.WORLDS.values():
        size = len(each.sources)
        problems = world.distinct(each, "held_out", 5 * size + 1, seed=3)
        counts = collections.Counter(problem.source for problem in problems)
        assert counts == dict.fromkeys(each.sources, 5) | {each.sources[0]: 6}
        assert len({problem.question for problem in problems}) == len(problems)
    (only,) = drawn("tables", "train", 1)
    draws = iter(range(100_000))  # of a world that is soon told apart from one with more
    few = world.World("few", (), (only.source,), lambda split, rng: (next(draws), only)[1])
    with pytest.raises(ValueError, match="few has fewer than 1000000 different .*: 1 of tables"):
        world.distinct(few, "train", 1_000_000, seed=0)


def test_the_last_of_many_questions_is_still_found():
    like = drawn("tables", "train", 1)[0]

    def draw(split, rng):
        number = rng.randrange(300)
        return dataclasses.replace(like, question=str(number), source=f"s{min(number % 3, 1)}")

    rare = world.World("rare", (), ("s0", "s1"), draw)  # 100 and 200
    assert len(world.distinct(rare, "train", 200, seed=0)) == 200
    with pytest.raises(ValueError, match="fewer than 202 .*: 100 of s0"):
        world.distinct(rare, "train", 202, seed=0)


def test_shipped_questions_are_those_of_the_quickstart(tmp_path):
    for split, count in (("train", 600), ("held_out", 120)):
        problems = world.distinct(QUICKSTART, split, count, seed=0)
        world.write(tmp_path / "rows.jsonl", problems, split)
        assert (tmp_path / "rows.jsonl").read_bytes() == pathlib.Path(
            DATA, f"{split}.jsonl"
        ).read_bytes()


# ---- golds, computed another way -----------------------------------------------------------------


def owner(name):
    """The article that a family name, a capital or a symbol stands for, by the tables alone."""
    (found,) = (
        article
        for article in ARTICLES.values()
        if article.title.endswith(f" {name}")
        and article.kind == "person"
        or name == article.facts.get("capital")
        and article.kind == "country"
        or name == f"symbol {article.facts.get('symbol')}"
    )
    return found


def fact(title, *names):
    for name in names:
        title = ARTICLES[title].facts[name]
    return title


def having(kind, name, value):
    return sum(a.kind == kind and a.facts[name] == value for a in ARTICLES.values())


def number(name):
    return int(owner(name).facts["number"])


CHAINS = {  # pattern of a question -> its answer
    r"In which country was (.+) born\?": lambda name: owner(name).facts["country"],
    r"What is the capital of the country where (.+) was born\?": lambda name: fact(
        owner(name).facts["country"], "capital"
    ),
    r"On which continent is the country with the capital (.+)\?": lambda name: owner(name).facts[
        "continent"
    ],
    r"What is the atomic number of the element with the (symbol \w+)\?": number,
    r"What is the atomic number of the element with the (symbol \w+) plus (\d+)\?": lambda a, b: (
        number(a) + int(b)
    ),
    r"What is the atomic number of the (symbol \w+) plus that of the (symbol \w+)\?": lambda a, b: (
        number(a) + number(b)
    ),
    r"How many works by the author of (.+) are listed\?": lambda work: having(
        "work", "author", fact(work, "author")
    ),
    r"How many places are listed of the country where the author of (.+) was born\?": (
        lambda work: having("place", "country", fact(work, "author", "country"))
    ),
    r"How many places are listed of the country of (.+)\?": lambda place: having(
        "place", "country", fact(place, "country")
    ),
    r"(?:Which was published|Who was born) earlier, (.+) or (.+)\?": lambda a, b: min(
        (a, b), key=lambda title: int(fact(title, "year"))
    ),
    r"What is the calling code of the country where the author of (.+) was born plus (\d+)\?": (
        lambda work, more: int(fact(work, "author", "country", "code")) + int(more)
    ),
    r"What is the calling code of the country of (.+) plus that of (.+)\?": lambda a, b: (
        int(fact(a, "country", "code")) + int(fact(b, "country", "code"))
    ),
}


def test_golds_of_chains_follow_from_the_tables():
    used = collections.Counter()
    for problem in drawn("chains", "held_out", 200) + drawn("chains", "train", 200):
        (pattern, found), *more = (
            (pattern, found)
            for pattern in CHAINS
            if (found := re.fullmatch(pattern, problem.question))
        )
        used[pattern] += 1
        assert not more and str(CHAINS[pattern](*found.groups())) == problem.answer, problem
    assert min(used.values()) > 3 and set(used) == set(CHAINS)


def test_golds_of_tables_and_dates_follow_from_their_questions():
    functions = {"total": sum, "smallest": min, "largest": max, "median": statistics.median}
    day = datetime.date.fromisoformat
    counts = collections.Counter()
    for problem in drawn("tables", "train", 300):
        text, gold = problem.question, problem.answer
        if found := re.fullmatch(r".+?: (.+)\. What is the (\w+)(.*)\?", text):
            rows, first, links = found.groups()
            value = functions[first]([int(row.split()[-1]) for row in rows.split(", ")])
            for link, second in re.findall(r" (\w+) (\d+)", links):
                value = value + int(second) if link == "plus" else value * int(second)
            for name, told in (row.rsplit(" ", 1) for row in rows.split(", ")):
                assert told in ARTICLES[name].facts.values()
        else:
            first, *last = (day(date) for date in re.findall(r"\d{4}-\d\d-\d\d", text))
            if last:
                value = (last[0] - first).days
            else:
                later = sum(map(int, re.findall(r"(\d+) days", text)))
                value = first + datetime.timedelta(later)
                value = f"{value:%A}" if "weekday" in text else value
        counts[problem.source] += 1
        assert str(value) == gold, problem
    assert set(counts) == set(tables.WORLD.sources)


def test_golds_of_24_are_worth_24_and_none_means_none():
    for problem in drawn("game24", "held_out", 60):
        row = data.as_question(problem.row("x"))
        assert rewards.score(row, problem.answer).value == 1
        assert row["numbers"] == list(problem.numbers)
    ops = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b}
    for numbers in game24.splits()["held_out"]["chain"][:20]:  # those that pairs do not solve
        assert game24.found(numbers, "pairs") == "none"
        assert answers_game24.solution(numbers)
        halves = {
            (tuple(sorted((a, b))), tuple(sorted((c, d))))
            for a, b, c, d in itertools.permutations(numbers)
        }
        values = {
            ops[y](ops[x](*first), ops[z](*second)) * sign
            for first, second in halves
            for x, y, z in itertools.product(ops, repeat=3)
            for sign in (1, -1)
        }
        assert not {24, -24} & values


# ---- demonstrations through the real loop --------------------------------------------------------


def play(problem, tools, *, flawless, seed=0):
    """Solves a problem in the real loop, with the real tools and the actor as all models."""
    actor = world.Actor(problem, random.Random(seed), flawless=flawless)

    def heard(event):
        if isinstance(event, effects.ToolCall):
            actor.advance()

    solver = solve.solve(
        {"id": "x", "question": problem.question},
        tools=tools,
        prompt_set=prompts.COMPACT,
        max_turns=6,
    )
    ask = lambda request: effects.Reply(actor.reply(request))
    return drive.to_the_end(solver, ask=ask, tools=tools, on_event=heard)


@pytest.mark.parametrize("name", NAMES)
def test_demonstrations_earn_the_reward_with_the_real_tools(name, tools):
    each = catalogue.WORLDS[name]
    for problem in world.distinct(each, "held_out", 4 * len(each.sources), seed=2):
        trajectory = play(problem, tools, flawless=True)
        row = data.as_question(problem.row("x"))
        assert rewards.score(row, trajectory.answer).value == 1, problem
        assert len(trajectory.turns) == len(problem.stages) and trajectory.stop == "verified"
        assert [turn.result for turn in trajectory.turns] == [
            next(m.result for m in stage.moves.values() if m.command == turn.command)
            for stage, turn in zip(problem.stages, trajectory.turns, strict=True)
        ]


@pytest.mark.parametrize("name", NAMES)
def test_every_move_gives_what_the_real_tool_says(name, tools):
    refusal = world.refusal_of_words(tools["python_coder"])
    for problem in drawn(name, "train", 8, seed=4):
        for move in (move for stage in problem.stages for move in stage.moves.values()):
            (arguments,) = parsing.calls(move.command, tools[move.tool])
            try:
                result = protocol.call(tools[move.tool], arguments)
            except protocol.ToolError as error:
                assert move.result is None and str(error) == refusal
            else:
                asked = isinstance(result, protocol.Ask)
                assert (world.UNKNOWN if asked else result) == move.result


@pytest.mark.parametrize("name", NAMES)
def test_the_planner_is_demonstrated_badly_and_the_others_well(name, tools):
    each, rng = catalogue.WORLDS[name], random.Random(0)
    turns = worlds_config.SIZES[name][0]
    how = dict(tools=tools, max_turns=turns)
    shown = world.trajectories(each.questions("train", rng), rng, **how)
    ends = [samples[-1].response != "Answer: unknown" for samples in itertools.islice(shown, 150)]
    assert 0.25 < statistics.mean(ends) < 0.8
    shown = world.trajectories(each.questions("train", rng), rng, flawless=True, **how)
    assert all(samples[-1].response != "Answer: unknown" for samples in itertools.islice(shown, 50))


@pytest.mark.parametrize("name", NAMES)
def test_demonstrations_fit_the_limits_of_the_config(name, tools, tokenizer):
    """All but rare ones: invented names can be very long."""
    turns, prompt, planned, written = worlds_config.SIZES[name]
    shown = world.demonstrations(
        [catalogue.WORLDS[name]], tools=tools, seed=0, max_turns=turns, split="held_out"
    )
    within = []
    for sample in itertools.islice(shown, 300):
        most = planned if sample.role == "planner" else written
        within.append(
            len(tokenizer.chat(sample.messages)) <= prompt
            and len(tokenizer.encode(sample.response)) < most
        )
    assert statistics.mean(within) > 0.98


def test_the_quickstart_is_demonstrated_as_it_was(tools, tokenizer):
    """The digest was taken before there were further worlds; the shipped model comes from them."""
    shown = world.demonstrations(
        [QUICKSTART], tools=tools, seed=0, max_turns=3, tokenizer=tokenizer, real_share=0.3
    )
    digest = hashlib.sha256()
    for sample in itertools.islice(shown, 3000):
        digest.update(json.dumps([sample.role, sample.messages, sample.response]).encode())
    assert digest.hexdigest()[:16] == "5e9dc19e96abdb53"


def test_strings_to_copy_can_repeat_their_tokens(tokenizer):
    """As 12 tokens make up to 24; of the whole vocabulary, tokens hardly come again."""
    rng = np.random.default_rng(0)
    for distinct, most in ((12, 12), (0, 24)):
        told = []
        for _ in range(100):
            tokens, count = nano.copying(tokenizer, rng, distinct=distinct)
            assert tokens[: count - 1] == tokens[-count:-1]
            assert len({*tokens[: count - 1]}) <= most
            told.append(len({*tokens[: count - 1]}) / (count - 1))
        assert np.mean(told) < 0.8 if distinct else np.mean(told) > 0.98


def test_a_low_temperature_shows_the_likeliest_move_more_often(tools):
    """Odds of 0.45, 0.35 and 0.2 to the power of 2: 0.2025, 0.1225 and 0.04, of 0.365."""
    shown = world.demonstrations([QUICKSTART], tools=tools, seed=0, max_turns=1, temperature=0.5)
    plans = (sample for sample in shown if sample.role == "planner")
    chosen = [sample.response.split()[-1] for sample in itertools.islice(plans, 1500)]
    for tool, share in (("knowledge_search", 0.555), ("base_generator", 0.336)):
        assert abs(chosen.count(tool) / 1500 - share) < 0.04  # three standard errors


def test_a_config_says_how_well_the_planner_is_shown(tokenizer, tmp_path):
    """Whoever searches first, or computes of numbers, is right; base_generator knows nothing."""
    config = quickstart_config.get_config()
    config.warmstart.update(
        modules=("planner",),
        demonstrations=300,
        probes=1,
        train_questions=30,
        held_out_questions=30,
    )

    def shown(**changes):
        config.warmstart.update(changes)
        path, _ = material.demonstrate(config, tmp_path, vocabulary=tokenizer)
        lines = path.read_text(encoding="utf-8").splitlines()
        assert len(lines) == 300
        return [[m["content"] for m in json.loads(line)["messages"]] for line in lines]

    def share_of_asking(**changes):
        return statistics.mean("base_generator" in reply for *_, reply in shown(**changes))

    def most_turns(**changes):
        return 1 + max("".join(prompt).count("| CONTINUE") for *prompt, _ in shown(**changes))

    assert (asking := share_of_asking()) > 0.25
    assert abs(share_of_asking(temperature=0.1) - asking) > 0.05
    assert most_turns(temperature=1.0) == config.rollout.max_turns == 3
    assert most_turns(max_turns=5) == 5
    assert share_of_asking(flawless=True) == 0


def test_worlds_take_turns_by_whole_trajectories(tools):
    worlds = [game24.WORLD, tables.WORLD]
    shown = world.demonstrations(worlds, tools=tools, seed=0, max_turns=3)
    samples = list(itertools.islice(shown, 600))
    begun = [sample for sample in samples if sample.role == "analyst"]
    of_24 = sum("Make 24" in sample.messages[-1]["content"] for sample in begun)
    assert 0.3 < of_24 / len(begun) < 0.7
    for one, two in itertools.pairwise(samples):
        assert (two.role == "analyst") == (one.role == "generator")


@pytest.mark.parametrize("name", ["quickstart", "chains", "tables"])
def test_invented_problems_have_solutions(name, tokenizer):
    rng = random.Random(0)
    invent = catalogue.WORLDS[name].invent(tokenizer)
    problems = [invent(rng) for _ in range(60)]
    assert all(problem.answer and problem.stages for problem in problems)


def test_a_name_that_several_share_has_no_page():
    people = [
        knowledge_base.Article(name, "person", "", {"country": "X"})
        for name in ("Ann Bo", "Cy Bo", "Di Ek", "Fay X")
    ]
    country = knowledge_base.Article("X", "country", "", {"capital": "Ek Town"})
    found = {page.title: page.text for page in chains.pages([*people, country])}
    assert found == {
        "Ek": "Ek is the family name of Di Ek.",
        "Ek Town": "Ek Town is the capital of X.",
    }


def test_worlds_are_chosen_by_name():
    assert catalogue.choose("chains", tools=("knowledge_search", "python_coder"))
    for names, tools, message in (
        ("", (), "must be one or more of quickstart,game24,chains,tables"),
        ("chains,chess", (), "chess"),
        ("tables,chains", ("knowledge_search",), "needs python_coder; add it to tools.names"),
    ):
        with pytest.raises(ValueError, match=message):
            catalogue.choose(names, tools=tools)


@pytest.mark.parametrize("arg", [*NAMES, "all"])
def test_the_config_of_each_world_is_whole(arg):
    config = worlds_config.get_config(arg)
    limits.check(config)
    names = {each.name for each in catalogue.choose(config.warmstart.worlds, tools=TOOLS)}
    assert names == (set(NAMES) if arg == "all" else {arg}) == set(config.data.mixture or {arg})
    with pytest.raises(ValueError, match="'chess'; valid: quickstart, game24, chains, tables, all"):
        worlds_config.get_config("chess")


# ---- warm start ----------------------------------------------------------------------------------


def small(config, **changes):
    config.warmstart.model.update(hidden_size=16, intermediate_size=16, num_hidden_layers=1)
    config.warmstart.update(steps=2, rows=2, probes=20, copy_samples=4, warmup_steps=1, **changes)
    return config


@pytest.mark.slow
def test_warmstart_writes_a_model_and_the_shipped_questions(tmp_path):
    c = small(quickstart_config.get_config(), tokenizer_samples=4000)
    shares = warmstart.warmstart(c, tmp_path)
    modules = ("analyst", "planner", "executor", "verifier", "generator")
    assert set(shares) >= {f"held_out/exact/{module}" for module in modules}
    for name in ("train.jsonl", "held_out.jsonl"):
        assert (tmp_path / name).read_bytes() == pathlib.Path(DATA, name).read_bytes()
    made, shipped = Tokenizer.load(tmp_path / "model"), Tokenizer.load(f"{DATA}/model")
    text = "Context: Mount Kenya, 1984\nSub-goal: country"
    assert made.encode(text) == shipped.encode(text) and made.eos_ids == shipped.eos_ids
    model = huggingface.load(tmp_path / "model")
    assert model.config.num_hidden_layers == 1 and model.config.vocab_size == made.vocab_size
    cards = [pathlib.Path(place, "model", "README.md").read_text() for place in (tmp_path, DATA)]
    assert cards[0] == cards[1] and model_card.prompts(f"{DATA}/model") == "compact"
    steps = [line["step"] for line in metrics.read(tmp_path / "warmstart.jsonl")]
    assert steps == [0, 1, 2]
    assert not (tmp_path / "articles.db").exists()


@pytest.mark.slow
def test_warmstart_goes_on_from_a_model(tmp_path, tokenizer):
    """All worlds, from a model of one small layer."""
    shape = dict(quickstart_config.get_config().warmstart.model)
    shape |= dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1)
    model = decoder.Decoder(jax.random.key(0), decoder.Config(**shape))
    huggingface.save(tmp_path / "before", model, tokenizer_folder=f"{DATA}/model")
    c = small(worlds_config.get_config(), start=str(tmp_path / "before"))
    c.warmstart.update(train_questions=24, held_out_questions=12, lr=1e-9)
    warmstart.warmstart(c, tmp_path)
    after = huggingface.load(tmp_path / "model")
    for a, b in zip(jax.tree.leaves(model), jax.tree.leaves(after), strict=True):
        assert a.shape == b.shape and abs(a - b).max() < 1e-6
    rows = data.read_questions(tmp_path / "train.jsonl")
    counts = collections.Counter(row["source"].split("/")[0] for row in rows)
    assert counts == dict.fromkeys(NAMES, 24)
    index = text_index.Index.open(tmp_path / "articles.db")
    assert index.search("country of Tolstoy", top_k=1)[0].title == "Tolstoy"
    index.close()
    with pytest.raises(command.ConfigError, match="differs in warmstart.lr"):
        warmstart.warmstart(small(c, lr=1e-8), tmp_path)
    c.warmstart.worlds = "chess"
    with pytest.raises(command.ConfigError, match="chess"):
        warmstart.warmstart(c, tmp_path / "chess")
