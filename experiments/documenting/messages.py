"""The error messages of the commands, read from the source, by topic.

A message is the text of a `raise`, of a call of `_stop`, of a warning or error in the log, or of
one of the functions in BUILT, which make sentences about flags and configs; ABSL is what the
library of flags says by itself. What is filled in when it is raised is shown as `…`. Left out is
what the model reads (UNSEEN), and what checkers say to each other (INNER).
"""

import ast
import fnmatch
import re

from experiments.running import command, places

PACKAGES = ("agents", "experiments", "flow_grpo_jax", "models", "tools")
GAP = "…"
# Classes whose texts become results of tools, or never leave the program.
UNSEEN = (
    "AssertionError",
    "HttpError",
    "ParseError",
    "PromptTooLong",
    "Refused",
    "SystemExit",
    "TooLarge",
    "TooLate",
    "TooLong",
    "ToolError",
    "Unreadable",
    "Unsupported",
)
INNER = (
    "experiments/speed/peers/*",
    "flow_grpo_jax/answers/*",
    "tools/sandbox/helper.py",
    "tools/sandbox/layers.py",
    "tools/sandbox/seccomp.py",
)
BUILT = {
    "experiments/configs/ranges.py": ast.Yield,
    "experiments/running/command.py": ast.Return,
    "experiments/running/fields.py": ast.Yield,
}
STOP = ("_stop", "sys.stderr.write")
LOGGED = ("logging.error", "logging.warning")
LEVELS = ("logging.ERROR", "logging.WARNING")  # first argument of "logging.log…", then the text
FILLED = re.compile(r"%[-.\d]*[a-z]")  # in what is logged
ABSL = (
    f"Unknown command line flag {GAP}",
    f"Missing value for flag {GAP}",
    f"{GAP} does not take an argument",
    f"flag --{GAP}={GAP}: value should be one of {GAP}",
    *(
        f"flag --{GAP}={GAP}: {GAP} is not {wanted}"
        for kind in ("integer", "number")
        for wanted in (f"{kind} >= {GAP}", f"a non-negative {kind}", f"a positive {kind}")
    ),
    f"flag --{GAP}={GAP}: {GAP} is not {GAP} in the range {GAP}",
)
# The first pattern that matches a file counts.
TOPICS = (
    ("experiments/__main__.py", "flags"),
    ("experiments/configs/*", "flags"),
    ("experiments/running/command.py", "flags"),
    ("experiments/running/compiled.py", "flags"),
    ("experiments/running/determinism.py", "flags"),
    ("experiments/running/fields.py", "flags"),
    ("experiments/running/limits.py", "flags"),
    ("flow_grpo_jax/batching.py", "flags"),
    ("flow_grpo_jax/credit.py", "flags"),
    ("flow_grpo_jax/logprobs.py", "flags"),
    ("flow_grpo_jax/loss.py", "flags"),
    ("flow_grpo_jax/optimizer.py", "flags"),
    ("flow_grpo_jax/update.py", "flags"),
    ("experiments/running/backends.py", "servers"),
    ("experiments/running/fitting.py", "questions"),
    ("experiments/running/sessions.py", "models"),
    ("experiments/running/tokens.py", "models"),
    ("experiments/running/*", "runs"),
    ("experiments/train.py", "runs"),
    ("experiments/index.py", "tools"),
    ("experiments/plan.py", "devices"),
    ("experiments/planning/*", "devices"),
    ("experiments/benchmark.py", "devices"),
    ("experiments/speed/*", "devices"),
    ("experiments/serving/*", "serving"),
    ("experiments/serve.py", "serving"),
    ("experiments/*", "commands"),
    ("models/attention/*", "devices"),
    ("models/engine/*", "devices"),
    ("models/hardware.py", "devices"),
    ("models/sharding.py", "devices"),
    ("models/*", "models"),
    ("flow_grpo_jax/bounds/*", "questions"),
    ("flow_grpo_jax/benchmarks/*", "questions"),
    ("flow_grpo_jax/data.py", "questions"),
    ("flow_grpo_jax/datasets/*", "questions"),
    ("agents/questions.py", "questions"),
    ("flow_grpo_jax/judge.py", "servers"),
    ("flow_grpo_jax/rewards.py", "servers"),
    ("flow_grpo_jax/scoring.py", "servers"),
    ("flow_grpo_jax/symbolic.py", "servers"),
    ("flow_grpo_jax/processes.py", "hosts"),
    ("flow_grpo_jax/wire.py", "hosts"),
    ("flow_grpo_jax/*", "runs"),
    ("agents/*", "servers"),
    ("tools/*", "tools"),
)
LONGEST = 160  # characters of a message that are shown
FEWEST = 3  # words of its beginning that say enough


def collect():
    """Returns {topic: sorted messages} of all packages."""
    found = {topic: set() for _, topic in TOPICS}
    for package in PACKAGES:
        for path in sorted((places.ROOT / package).rglob("*.py")):
            name = str(path.relative_to(places.ROOT))
            if not any(fnmatch.fnmatchcase(name, pattern) for pattern in INNER):
                source = path.read_text(encoding="utf-8")
                found[topic_of(name)] |= set(messages(source, BUILT.get(name)))
    found[topic_of("experiments/running/command.py")] |= {*ABSL, *_of_values()}
    return {topic: sorted(texts, key=_order) for topic, texts in found.items()}


def topic_of(name):
    """Returns the topic of a file, by its path from the root."""
    return next(topic for pattern, topic in TOPICS if fnmatch.fnmatchcase(name, pattern))


def _of_values():
    """Yields what is said of a flag whose value has the wrong form."""
    for _, text in command.PLAIN:
        if text.startswith("it "):
            yield f"flag --{GAP}={GAP}: {text}"


def messages(source, built=None):
    """Yields the messages of a source, shortened; what says nothing by itself is left out.

    built: kind of node, beside `raise`, whose texts are messages.
    """
    nodes = list(ast.walk(ast.parse(source)))
    named, returned, makers = _named_texts(nodes), _returned(nodes), _makers(nodes)
    for node in nodes:
        for part in _texts(node, built, makers):
            for each in named.get(part.id, ()) if isinstance(part, ast.Name) else (part,):
                calls = isinstance(each, ast.Call) and isinstance(each.func, ast.Name)
                for text in returned.get(each.func.id, (each,)) if calls else (each,):
                    shown = rendered(text)
                    shown = shortened(FILLED.sub(GAP, shown) if _logged(node) else shown)
                    if len(re.findall(r"\w\w+", shown)) > 1:
                        yield shown


def _texts(node, built, makers):
    """Returns the expressions that hold the message of a node.

    makers: of `_makers`.
    """
    if logged := _logged(node):
        form, *values = logged
        return values if getattr(form, "value", "") == "%s" else (form,)
    if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
        name = _name(node.exc.func)
        return makers.get(name, () if name in UNSEEN else node.exc.args)
    if isinstance(node, ast.Call) and ast.unparse(node.func) in STOP:
        return node.args[:1]
    return (node.value,) if built and isinstance(node, built) and node.value else ()


def _logged(node):
    """Returns the text and what follows of a call that logs a warning or an error, else ()."""
    if not isinstance(node, ast.Call):
        return ()
    name = ast.unparse(node.func)
    if name in LOGGED:
        return node.args
    at_level = name.startswith("logging.log") and ast.unparse(node.args[0]) in LEVELS
    return node.args[1:] if at_level else ()


def _makers(nodes):
    """Returns {name of a function: what it hands to the exceptions that it returns}."""
    calls = [n.exc for n in nodes if isinstance(n, ast.Raise) and isinstance(n.exc, ast.Call)]
    called = {_name(call.func) for call in calls}
    return {
        node.name: [
            argument
            for inner in ast.walk(node)
            if isinstance(inner, ast.Return) and isinstance(inner.value, ast.Call)
            for argument in inner.value.args
        ]
        for node in nodes
        if isinstance(node, ast.FunctionDef) and node.name in called
    }


def _returned(nodes):
    """Returns {name of a function: the text expressions that it returns} of a source."""
    return {
        node.name: [n.value for n in ast.walk(node) if isinstance(n, ast.Return) and n.value]
        for node in nodes
        if isinstance(node, ast.FunctionDef)
    }


def _name(function):
    """Returns the last part of what is called."""
    return getattr(function, "attr", getattr(function, "id", ""))


def _named_texts(nodes):
    """Returns {name: the text expressions assigned to it} of a source."""
    found = {}
    for node in nodes:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            found.setdefault(node.targets[0].id, []).append(node.value)
    return found


def rendered(node):
    """Returns the text of an expression, with GAP for what is known only when it runs."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(map(rendered, node.values))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return rendered(node.left) + rendered(node.right)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):  # a text's method
        inner = rendered(node.func.value)
        return inner if node.func.attr in ("strip", "rstrip") else GAP
    return GAP


def shortened(text):
    """Returns one line: the first sentence of a message, or more where that has few words."""
    text = re.sub(rf"{GAP}(\s*{GAP})+", GAP, " ".join(text.split()))
    text = text.removeprefix("error: ")
    for end in re.finditer(r"[.?!:;](?= )", text):
        if len(re.findall(r"[A-Za-z]{2,}", text[: end.start()])) >= FEWEST:
            text = text[: end.start()] + end.group().strip(":;")
            break
    if len(text) > LONGEST:
        text = text[:LONGEST].rsplit(" ", 1)[0] + f" {GAP}"
    return re.sub(rf"(?<=\.){GAP}$|[:;]$", "", text)


def _order(text):
    words = re.sub(r"^[^A-Za-z]+", "", text)
    return words.lower(), text
