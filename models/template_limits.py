"""Chat templates as transformers renders them, within bounds on work, length and depth.

A template is a program of another maker, and Jinja's sandbox bounds neither loops nor texts. Here
every loop, call and operation on texts and lists takes from a budget, sizes are known before they
are built, and there are only those filters and methods of which that holds: each single step is
short, so the budget ends all of them.

Source: `_cached_compile_jinja_template` in transformers, for what a template may use and sees.
"""

import contextvars
import datetime
import functools
import inspect
import json

import jinja2
from jinja2 import ext, nodes, runtime, utils, visitor
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError, safe_range

MAX_TEMPLATE = 2**17  # characters; the longest of known models have 20,000
MAX_WORK = 500_000  # steps of one rendering, about 1 s; a turn of a published template takes 50
MAX_TEXT = 2**23  # characters of one text, and of all texts in one list
MAX_ITEMS, MAX_DEPTH = 2**17, 50  # of one list or mapping, those inside it included
MAX_BITS = 4096  # of an integer
DAY = "%d %b %Y"  # form of `date_string`, as in Llama 3's template
CHARACTERS, NODES = 256, 16  # of a text, and of a template's body, that cost as much as one step

FILTERS = (
    *("abs", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first", "float"),
    *("format", "groupby", "indent", "int", "items", "join", "last", "length", "list", "lower"),
    *("map", "max", "min", "reject", "rejectattr", "replace", "reverse", "safe", "select"),
    *("selectattr", "sort", "string", "title", "tojson", "trim", "unique", "upper", "wordcount"),
)
# What looks at no more than one value, however large it is.
SHORT_FILTERS = ("count", "d", "default", "first", "last", "length")
SHORT_TESTS = ("boolean", "defined", "integer", "iterable", "mapping", "none", "number", "sequence")
SHORT_TESTS += ("string", "undefined")
METHODS = {
    str: (
        *("capitalize", "count", "endswith", "find", "index", "isalnum", "isalpha", "isdigit"),
        *("islower", "isnumeric", "isspace", "isupper", "join", "lower", "lstrip", "partition"),
        *("removeprefix", "removesuffix", "replace", "rfind", "rindex", "rpartition", "rsplit"),
        *("rstrip", "split", "splitlines", "startswith", "strip", "swapcase", "title", "upper"),
    ),
    dict: ("copy", "get", "items", "keys", "values"),
    list: ("copy", "count", "index"),
    tuple: ("count", "index"),
    utils.Cycler: ("next", "reset"),
    runtime.LoopContext: ("changed", "cycle"),
}
_left = contextvars.ContextVar("steps left", default=None)  # [int] of the rendering


class TooMuch(Exception):
    """A template does more than it may."""


def render(text, **values):
    """Returns what a template makes of the values.

    Raises:
      TooMuch: it goes over a bound.
      what a template may raise: `chat_template.ERRORS`.
    """
    token = _left.set([MAX_WORK])
    try:
        template = _compiled(text)
        return _joined(template.root_render_func(template.new_context(values)))
    finally:
        _left.reset(token)


@functools.lru_cache(64)
def _compiled(text):
    if len(text) > MAX_TEMPLATE:
        raise TooMuch(f"it has {len(text):,} characters; the most are {MAX_TEMPLATE:,}")
    return _ENVIRONMENT.from_string(text)


# ---- what things cost --------------------------------------------------------------------------


def _spend(steps):
    left = _left.get()
    left[0] -= steps
    if left[0] < 0:
        raise TooMuch(f"it takes more than {MAX_WORK:,} steps")


def _paid(value):
    """Returns the value, paid for by its size; TooMuch if it is too large."""
    if isinstance(value, str):
        _check_length(len(value))
        _spend(1 + len(value) // CHARACTERS)
    elif isinstance(value, list | tuple | dict):
        _spend(1 + _weight(value))
    elif isinstance(value, int) and value.bit_length() > MAX_BITS:
        raise TooMuch("an integer grows too large")
    elif isinstance(value, range):
        _spend(1 + len(value) // NODES)
    else:
        _spend(1)
    return value


def _check_length(characters):
    if characters > MAX_TEXT:
        raise TooMuch(f"a text grows over {MAX_TEXT:,} characters")


def _weight(value):
    """Returns the steps of a walk through a list or mapping; a part counts wherever it stands."""
    items = characters = depth = 0
    level = [value]
    while level:
        inner = []
        for each in level:
            if isinstance(each, str):
                characters += len(each)
                continue
            parts = (*each.keys(), *each.values()) if isinstance(each, dict) else each
            items += len(parts)
            if items > MAX_ITEMS or depth > MAX_DEPTH:
                raise TooMuch(f"a list grows over {MAX_ITEMS:,} items or {MAX_DEPTH} levels")
            inner += [part for part in parts if isinstance(part, str | list | tuple | dict)]
        level, depth = inner, depth + 1
    _check_length(characters)
    return items + characters // CHARACTERS


def _joined(parts):
    """Joins texts one by one, so that the whole is never longer than one may be."""
    kept, length = [], 0
    for part in parts:
        length += len(part)
        _check_length(length)
        _spend(1)
        kept.append(part)
    _spend(length // CHARACTERS)
    return "".join(kept)


def _check_replace(text, old, new="", count=-1):
    found = text.count(old) if count is None or count < 0 else min(count, text.count(old))
    _check_length(len(text) + found * max(0, len(new) - len(old)))


def _check_join(separator, parts):
    if isinstance(parts, list | tuple):
        _check_length(len(separator) * len(parts) + sum(len(str(part)) for part in parts))


def _check_format(text, *values):
    """Widths such as %99999d grow a text, as does one that is shown for many %s."""
    if any(len(run) > 3 for run in _digits(text)) or "*" in text:
        raise TooMuch("a format has a width")
    shown = 1000 + sum(len(str(_paid(value))) for value in values)
    _check_length(len(text) + text.count("%") * 12 * shown)


def _digits(text):
    return "".join(c if c.isdigit() else " " for c in text).split()


def _check_indent(text, width=4, *_, **__):
    width = len(width) if isinstance(width, str) else width
    _check_length(len(text) + width * (1 + text.count("\n")))


def _check_method(owner, name, arguments):
    if name == "replace":
        _check_replace(owner, *arguments)
    elif name == "join":
        _check_join(owner, *arguments)


# ---- the environment ---------------------------------------------------------------------------


class Environment(ImmutableSandboxedEnvironment):
    """Jinja with bounds; see the module."""

    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)
    concat = staticmethod(_joined)

    def __init__(self):
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[Generation, ext.loopcontrols],
            finalize=_paid,
        )
        checks = {"replace": _check_replace, "format": _check_format, "indent": _check_indent}
        checks["join"] = lambda parts, separator="", *_: _check_join(separator, parts)
        own = {"tojson": _tojson, "join": _join}
        known = {name: own.get(name, self.filters[name]) for name in FILTERS}
        self.filters = {
            n: _bounded(call, n in SHORT_FILTERS, checks.get(n)) for n, call in known.items()
        }
        self.filters |= {"_counted": _counted, "_entered": _entered, "_paid": _pay, "_added": _add}
        self.tests = {n: _bounded(test, n in SHORT_TESTS, None) for n, test in self.tests.items()}
        self.globals = {
            "cycler": utils.Cycler,
            "dict": _mapping,
            "joiner": utils.Joiner,
            "namespace": Namespace,
            "raise_exception": _raise,
            "range": safe_range,
            "strftime_now": _now,
        }
        self._callable = (*self.globals.values(),)

    def _parse(self, source, name, filename):
        tree = _Bounds().visit(super()._parse(source, name, filename))
        return tree.set_environment(self)

    def call(__self, __context, __called, *arguments, **named):
        owner, name = getattr(__called, "__self__", None), getattr(__called, "__name__", "")
        known = (runtime.Macro, runtime.Undefined, runtime.BlockReference, utils.Joiner)
        if isinstance(owner, tuple(METHODS)):
            kind = next(kind for kind in METHODS if isinstance(owner, kind))
            if name not in METHODS[kind]:
                raise SecurityError(f"it calls {name} of a {kind.__name__}, which it may not")
            for argument in (owner, *arguments) if kind in (str, dict, list, tuple) else arguments:
                _paid(argument)
            _check_method(owner, name, arguments)
        elif not isinstance(__called, known) and __called not in __self._callable:
            raise SecurityError(f"it calls {__called!r:.80}, which it may not")
        result = super().call(__context, __called, *arguments, **named)
        return _paid(list(result) if isinstance(result, _VIEWS) else result)

    def call_binop(self, context, operator, left, right):
        for side in (left, right):
            _paid(side)
        if operator == "+" and isinstance(left, str) and isinstance(right, str):
            _check_length(len(left) + len(right))
        elif operator == "%" and isinstance(left, str):
            _check_format(left, *(right if isinstance(right, tuple) else (right,)))
        elif operator == "*":
            _check_product(left, right)
        elif operator == "**" and not _is_small_power(left, right):
            raise TooMuch("a power grows too large")
        return _paid(super().call_binop(context, operator, left, right))


_VIEWS = (type({}.items()), type({}.keys()), type({}.values()))


def _check_product(left, right):
    for sequence, times in ((left, right), (right, left)):
        if isinstance(sequence, str | list | tuple) and isinstance(times, int):
            _check_length(len(sequence) * times)


def _is_small_power(left, right):
    if isinstance(left, int) and isinstance(right, int):
        return left.bit_length() * right <= MAX_BITS
    return all(isinstance(side, int | float) for side in (left, right))


def _bounded(function, is_short, check):
    """Returns a filter or test that pays for its arguments and its result, one step if short."""
    skipped = 1 if hasattr(function, "jinja_pass_arg") else 0  # the context

    @functools.wraps(function)
    def short(*arguments, **named):
        _spend(1)
        return function(*arguments, **named)

    @functools.wraps(function)
    def bounded(*arguments, **named):
        for argument in (*arguments[skipped:], *named.values()):
            _paid(argument)
        if check is not None:
            check(*arguments[skipped:], **named)
        result = function(*arguments, **named)
        return iter(Counted(result, 1)) if inspect.isgenerator(result) else _paid(result)

    return short if is_short else bounded


class _Bounds(visitor.NodeTransformer):
    """Adds to a template's tree what takes from the budget."""

    def visit_For(self, node):
        if node.recursive:
            raise jinja2.TemplateSyntaxError("loops must not be recursive", node.lineno)
        cost = _cost(node)
        self.generic_visit(node)
        node.iter = _filtered(node.iter, "_counted", cost)
        return node

    def _visit_body(self, node):
        entered = _filtered(nodes.Const(""), "_entered", _cost(node))
        self.generic_visit(node)
        node.body.insert(0, nodes.Output([entered]))
        return node

    visit_Macro = visit_CallBlock = visit_Block = _visit_body

    def _visit_list(self, node):
        self.generic_visit(node)
        return node if getattr(node, "ctx", "load") != "load" else _filtered(node, "_paid")

    visit_List = visit_Tuple = visit_Dict = _visit_list

    def visit_Concat(self, node):
        self.generic_visit(node)
        return _filtered(nodes.List(node.nodes), "_added")

    def visit_Compare(self, node):
        self.generic_visit(node)
        node.expr = _filtered(node.expr, "_paid")
        for operand in node.ops:
            operand.expr = _filtered(operand.expr, "_paid")
        return node

    def visit_Getitem(self, node):
        is_slice = isinstance(node.arg, nodes.Slice)
        self.generic_visit(node)
        if is_slice:
            node.node = _filtered(node.node, "_paid")
        return node


def _cost(node):
    return 1 + sum(1 for _ in node.find_all(nodes.Node)) // NODES


def _filtered(node, name, *constants):
    return nodes.Filter(node, name, [nodes.Const(c) for c in constants], [], None, None)


# Filters that only `_Bounds` writes. With a context, so that Jinja folds none of them.


@jinja2.pass_context
def _counted(context, value, cost):
    return Counted(value, cost)


class Counted:
    """What a loop goes through; each item takes `cost` from the budget."""

    def __init__(self, value, cost):
        self._value, self._cost = value, cost

    def __len__(self):
        return len(self._value)

    def __iter__(self):
        for item in self._value:
            _spend(self._cost)
            yield item


@jinja2.pass_context
def _entered(context, value, cost):
    _spend(cost)
    return value


@jinja2.pass_context
def _pay(context, value):
    return _paid(value)


@jinja2.pass_context
def _add(context, parts):
    return _joined(str(_paid(part)) for part in parts)


# ---- what a template may call ------------------------------------------------------------------


class Generation(ext.Extension):
    """{% generation %} marks what an assistant wrote, for training; it changes no text."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


class Namespace(utils.Namespace):
    """Variables that a loop may set; it shows none of them, since they may hold each other."""

    def __repr__(self):
        return "<Namespace>"


def _mapping(*values, **named):
    return dict(*values, **named)


def _raise(message):
    raise jinja2.TemplateError(message)


@jinja2.pass_context
def _now(context, form):
    """Returns the time in a form; of the day that the values call date_string, if they do."""
    _check_length(1000 * len(form))
    day = context.parent.get("date_string")
    if day is None:
        return datetime.datetime.now().strftime(form)
    try:
        return datetime.datetime.strptime(day, DAY).strftime(form)
    except ValueError as error:
        raise jinja2.TemplateError(f"date_string={day!r:.40} is no day like 26 Jul 2024") from error


def _tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    if indent is not None and (len(indent) if isinstance(indent, str) else indent) > 8:
        raise TooMuch("an indent is over 8")
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _join(parts, separator="", attribute=None):
    if attribute is not None:
        parts = [part[attribute] for part in parts]
    return _joined(str(p) if not i else f"{separator}{p}" for i, p in enumerate(parts))


_ENVIRONMENT = Environment()
