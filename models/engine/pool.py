"""The host side of one version of a weight set: who runs in which slot and what they have drawn."""

import dataclasses

import numpy as np

from models.engine import programs, sampling, types


@dataclasses.dataclass(eq=False)
class Running:
    """A request from its submission to its Completion.

    digests: of its full prompt pages.    keys: of these, while it has pages.
    pages: those it holds, in order.    most_pages: to its end.
    shared: prompt tokens whose pages others had filled.
    cursor: prompt tokens that are shared or whose prefill was dispatched.
    dispatched: most tokens it may have drawn in all calls dispatched so far.
    checked: drawn tokens known to hold no stop string.
    ended: its Completion was made; it stays only while others wait for a page that it fills.
    """

    id: int
    request: types.Request
    most_pages: int
    digests: list
    pool: "Pool | None" = None
    version: int = 0
    keys: list = dataclasses.field(default_factory=list)
    pages: list = dataclasses.field(default_factory=list)
    shared: int = 0
    cursor: int = 0
    dispatched: int = 0
    checked: int = 0
    slot: int | None = None
    ended: bool = False
    tokens: list = dataclasses.field(default_factory=list)
    logprobs: list = dataclasses.field(default_factory=list)
    raw_logprobs: list = dataclasses.field(default_factory=list)
    versions: list = dataclasses.field(default_factory=list)
    top_logprobs: list = dataclasses.field(default_factory=list)

    @property
    def prompt(self):
        return self.request.tokens

    @property
    def prefilled(self):
        return self.cursor == len(self.prompt)

    @property
    def wanted_pages(self):
        """Pages it may still want."""
        return self.most_pages - len(self.pages)

    @property
    def private_pages(self):
        """Pages that it holds and that nobody else can ever hold."""
        return len(self.pages) - len(self.keys)

    def take(self, tokens, drawn, cells, version):
        """Appends drawn tokens.

        Args:
          tokens: list of ids.
          drawn: a fetched `programs.Drawn`.
          cells: index of these tokens in its arrays.
        """
        self.tokens += tokens
        self.logprobs += drawn.logprob[cells].tolist()
        self.raw_logprobs += drawn.raw_logprob[cells].tolist()
        self.versions += [version] * len(tokens)
        top = self.request.sampling.top_logprobs
        if top:
            ids, values = drawn.top_id[cells][:, :top], drawn.top_logprob[cells][:, :top]
            for row in zip(ids.tolist(), values.tolist(), strict=True):
                self.top_logprobs.append(tuple(zip(*row, strict=True)))

    def cut(self, length):
        """Leaves the first `length` drawn tokens."""
        for column in (self.tokens, self.logprobs, self.raw_logprobs, self.versions):
            del column[length:]
        del self.top_logprobs[length:]

    def completion(self, stop_reason=None, *, first=0):
        """The Completion of the tokens from `first` on; None as a reason if it goes on."""
        return types.Completion(
            tokens=np.asarray(self.tokens[first:], np.int32),
            logprobs=np.asarray(self.logprobs[first:], np.float32),
            raw_logprobs=np.asarray(self.raw_logprobs[first:], np.float32),
            top_logprobs=tuple(self.top_logprobs[first:]),
            stop_reason=stop_reason,
            weights_version=self.version,
            token_versions=np.asarray(self.versions[first:], np.int32),
            shared_tokens=self.shared,
        )


class Pool:
    """Slots of one version of one weight set.

    weights: list of arrays, the programs' first argument.    state: `programs.Slots`.
    running: slot -> Running or None.    filling: id -> Running with prompt tokens to compute.
    table_BM: int32, page numbers of each slot.
    """

    def __init__(self, name, version, weights, *, state, slots, table_width):
        self.name, self.state = name, state
        self.running = [None] * slots
        self.filling = {}
        self.table_BM = np.zeros((slots, table_width), np.int32)
        self.take_over(version, weights)

    def take_over(self, version, weights):
        """Goes on with other weights."""
        self.version, self.weights = version, weights
        self.namespace = f"{self.name}\0{version}\0".encode()  # begins the keys of their pages

    def occupied(self):
        """[(slot, Running)] of the requests that run."""
        return [(slot, running) for slot, running in enumerate(self.running) if running]

    def free_slot(self):
        """The first free slot, or None."""
        return next((slot for slot, running in enumerate(self.running) if running is None), None)

    def enter(self, running, slot):
        self.running[slot] = self.filling[running.id] = running
        running.pool, running.version, running.slot = self, self.version, slot
        self.extend(running, [])

    def extend(self, running, new):
        """Gives a request that runs here more pages."""
        running.pages += new
        numbers = [page.number for page in running.pages]
        self.table_BM[running.slot, : len(numbers)] = numbers

    @property
    def busy(self):
        return bool(self.filling) or any(self.running)


def chunk(rows, *, size, count, slots, table_width, vocabulary_words):
    """`programs.Chunk` of at most `count` (Running, first token, tokens), the rest padding.

    Args:
      size: T of the call.
      table_width: M.
      vocabulary_words: W of the masks of allowed tokens, 0 for an engine without.
    """
    new = programs.Chunk(
        token_PT=np.zeros((count, size), np.int32),
        start_P=np.zeros(count, np.int32),
        count_P=np.zeros(count, np.int32),
        table_PM=np.zeros((count, table_width), np.int32),
        slot_P=np.full(count, slots, np.int32),
        limit_P=np.ones(count, np.int32),
        stop_PE=np.full((count, programs.STOP_IDS), programs.NO_TOKEN, np.int32),
        address_PA=np.zeros((count, programs.ADDRESS_PARTS), np.uint32),
        parts_P=np.zeros(count, np.int32),
        parameters=sampling.Parameters(
            temperature_B=np.zeros(count, np.float32),
            top_p_B=np.ones(count, np.float32),
            min_p_B=np.zeros(count, np.float32),
            top_k_B=np.zeros(count, np.int32),
        ),
        allowed_PW=np.full((count, vocabulary_words), 2**32 - 1, np.uint32)
        if vocabulary_words
        else None,
    )
    for row, (running, start, tokens) in enumerate(rows):
        request, wanted = running.request, running.request.sampling
        new.token_PT[row, :tokens] = request.tokens[start : start + tokens]
        new.start_P[row], new.count_P[row] = start, tokens
        numbers = [page.number for page in running.pages[:table_width]]
        new.table_PM[row, : len(numbers)] = numbers
        if start + tokens < len(request.tokens) or running.ended:
            continue
        new.slot_P[row] = running.slot
        new.limit_P[row] = wanted.max_tokens
        new.stop_PE[row, : len(wanted.stop_ids)] = wanted.stop_ids
        new.address_PA[row, : len(request.address)] = request.address
        new.parts_P[row] = len(request.address)
        new.parameters.temperature_B[row] = wanted.temperature
        new.parameters.top_p_B[row] = wanted.top_p
        new.parameters.min_p_B[row] = wanted.min_p
        new.parameters.top_k_B[row] = min(wanted.top_k, 2**31 - 1)
        if vocabulary_words and request.constraint is not None:
            new.allowed_PW[row] = request.constraint.allowed()
    return new
