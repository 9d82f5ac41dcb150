"""Held-out replies: how likely they are, and whether the model's own have the form of their module.

What a module wrote is read by the parser of the agent. Who plans names a tool, one of the config's
or the held-out reply's, which may be of an environment; who writes commands calls one: the tool
whose command the held-out reply is. Analysts and the base model have no form.
"""

import collections
import functools
import itertools

from agents import parsing
from experiments.warmstarting import conversations
from models.engine.types import Request, Sampling


def chosen(encoded, count):
    """Returns `count` of the held-out Encoded, or all if they are fewer: of each module in turn."""
    of = by_module(encoded)
    turns = itertools.zip_longest(*of.values())
    return list(itertools.islice(filter(None, itertools.chain(*turns)), count))


def by_module(encoded):
    """Returns module -> its Encoded, "reply" for conversations of no module; sorted."""
    found = collections.defaultdict(list)
    for each in encoded:
        found[each.example.module or "reply"].append(each)
    return dict(sorted(found.items()))


def generate(engine, vocabulary, encoded, *, limits):
    """Returns the policy's greedy replies to held-out prompts: [(text, token ids)].

    Args:
      engine: serves "policy".
      vocabulary: Tokenizer.
      encoded: `conversations.Encoded`.
      limits: `conversations.Limits`; replies end at them.
    """
    places, found = {}, [None] * len(encoded)
    for place, each in enumerate(encoded):
        sampling = Sampling(
            max_tokens=limits.reply[each.example.module],
            temperature=0.0,
            stop_ids=vocabulary.eos_ids,
        )
        request = Request(each.prompt_tokens, sampling, "policy", address=(place,))
        places[engine.submit(request)] = place
    while engine.pending:
        for key, completion in engine.advance():
            tokens = tuple(completion.tokens.tolist())
            ended = completion.stop_reason == "stop"
            text = vocabulary.decode(tokens[:-1] if ended else tokens)
            found[places[key]] = text, tokens
    return found


def compare(encoded, replies, tools):
    """Returns metrics of replies: the share that is read, and that is the held-out one exactly.

    Args:
      encoded: `conversations.Encoded`.
      replies: of `generate`, for each.
      tools: name -> Tool.
    """
    exact, read = collections.defaultdict(list), collections.defaultdict(list)
    for each, (text, tokens) in zip(encoded, replies, strict=True):
        module = each.example.module
        exact[module or "reply"].append(tokens == each.reply_tokens)
        if reader := reader_of(each.example, tools):
            read[module].append(_reads(reader, text))
    shares = {
        f"held_out/{name}/{module}": sum(hits) / len(hits)
        for name, found in (("parsed", read), ("exact", exact))
        for module, hits in sorted(found.items())
    }
    return shares


def reader_of(example: conversations.Example, tools):
    """Returns the function that reads replies like an Example's, or None; it raises ParseError."""
    if example.module == "planner":
        names = tuple(dict.fromkeys((*tools, *_named(example.reply))))
        return lambda text: parsing.plan(text, names)
    if example.module == "executor":
        readers = [functools.partial(parsing.calls, tool=tool) for tool in tools.values()]
        return next((reader for reader in readers if _reads(reader, example.reply)), None)
    return {"verifier": parsing.verdict, "generator": parsing.answer}.get(example.module)


def _named(plan):
    """Returns the tool that a plan names, whatever tools there are; () if it names none."""
    try:
        return (parsing.plan(plan, tuple(plan.split())).tool,)
    except parsing.ParseError:
        return ()


def _reads(reader, text):
    try:
        reader(text)
    except parsing.ParseError:
        return False
    return True
