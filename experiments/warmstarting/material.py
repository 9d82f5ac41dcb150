"""What worlds give a warm start: questions, articles and demonstrations, as files."""

import itertools

from agents import prompts
from experiments.running import command, sessions
from experiments.warmstarting import conversations
from experiments.worlds import catalogue, world
from tools import knowledge_base, text_index


def prepare(config, workdir):
    """Writes the questions of the worlds that a config names, and the articles that they add.

    Returns:
      (worlds, tools by name).
    """
    settings = config.warmstart
    with command.checking_config():
        worlds = catalogue.choose(settings.worlds, tools=config.tools.names)
    for split, count in (
        ("train", settings.train_questions),
        ("held_out", settings.held_out_questions),
    ):
        with command.checking_config():
            asked = [p for w in worlds for p in world.distinct(w, split, count, seed=settings.seed)]
        world.write(workdir / f"{split}.jsonl", asked, split)
    if any(each.documents() for each in worlds):
        text_index.build(workdir / "articles.db", documents(worlds))
    return worlds, sessions.make_tools(without_articles(config))


def turns(config):
    """Returns how many turns a demonstration may take."""
    return config.warmstart.max_turns or config.rollout.max_turns


def without_articles(config):
    """Returns a config that searches the knowledge base: demonstrations know all results."""
    config = config.copy_and_resolve_references()
    config.tools.knowledge_search.index = ""
    return config


def documents(worlds):
    """Returns (title, text) of the knowledge base and of what the worlds add to it."""
    known = {article.title: article.text for article in knowledge_base.articles()}
    return list((known | {title: text for w in worlds for title, text in w.documents()}).items())


def training(settings, worlds, *, tokenizer, **how):
    """Yields the endless samples to learn, as `config.warmstart` says; how: of `trajectories`."""
    return world.demonstrations(
        worlds,
        seed=settings.seed,
        tokenizer=tokenizer,
        real_share=settings.real_share,
        temperature=settings.temperature,
        flawless=settings.flawless,
        **how,
    )


def demonstrate(config, workdir, *, vocabulary):
    """Writes what worlds demonstrate as files of conversations, with the prompts of rollouts.

    Returns:
      (path, path of the held-out ones, which are flawless).
    """
    settings = config.warmstart
    worlds, tools = prepare(config, workdir)
    how = dict(tools=tools, max_turns=turns(config))
    how["prompt_set"] = sessions.rollout_settings(config, temperature=0.0).prompt_set
    how["budget"] = prompts.Budget(
        config.rollout.max_prompt_tokens, lambda messages: len(vocabulary.chat(messages))
    )
    shown = training(settings, worlds, tokenizer=vocabulary, **how)
    probes = world.demonstrations(worlds, seed=1, flawless=True, split="held_out", **how)
    paths = []
    for name, samples, count in (
        ("demonstrations", shown, settings.demonstrations),
        ("held_out_demonstrations", probes, settings.probes),
    ):
        wanted = (s for s in samples if not settings.modules or s.role in settings.modules)
        found = [
            conversations.Example(f"{name} {i}", s.role, s.messages, s.response)
            for i, s in enumerate(itertools.islice(wanted, count))
        ]
        paths.append(workdir / f"{name}.jsonl")
        conversations.write(paths[-1], found)
    return paths
