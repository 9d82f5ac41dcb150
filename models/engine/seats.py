"""The host side of one version of a weight set: the request in each slot and what it has drawn.

Dimensions:
  B slots    P rows of one prefill call    T tokens of a row    M pages of a page table
  E stop ids of a slot    A address parts    W words of a mask of allowed tokens
"""

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
    seats: "Seats | None" = None
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

    def quota(self, steps):
        """Returns the most tokens that it may draw in the next call of so many steps."""
        quota = min(steps, self.request.sampling.max_tokens - self.dispatched)
        if self.request.constraint is None:
            return quota
        return (
            min(quota, 1) if self.dispatched == len(self.tokens) else 0
        )  # its mask needs them all

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

    def cut_at_stop_string(self, decode_text):
        """Truncates to the token that completes a stop string; whether there was one."""
        stops = self.request.sampling.stop_strings
        if not stops:
            return False

        def holds_stop(tokens):
            text = decode_text(tokens)
            return any(stop in text for stop in stops)

        checked, self.checked = self.checked, len(self.tokens)
        if not holds_stop(self.tokens):
            return False
        lengths = range(checked + 1, len(self.tokens) + 1)
        self._cut(next(n for n in lengths if holds_stop(self.tokens[:n])))
        return True

    def _cut(self, length):
        """Leaves the first `length` drawn tokens."""
        for column in (self.tokens, self.logprobs, self.raw_logprobs, self.versions):
            del column[length:]
        del self.top_logprobs[length:]

    def completion(self, stop_reason=None, *, first=0):
        """Returns the Completion of the tokens from `first` on; without a reason it goes on."""
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


class Seats:
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
        """Continues on other weights."""
        self.version, self.weights = version, weights
        self.namespace = f"{self.name}\0{version}\0".encode()  # begins the keys of their pages

    def occupied(self):
        """Returns [(slot, Running)] of the requests that run."""
        return [(slot, running) for slot, running in enumerate(self.running) if running]

    def free_slot(self):
        """Returns the first free slot, or None."""
        return next((slot for slot, running in enumerate(self.running) if running is None), None)

    def enter(self, running, slot):
        """Gives a request with the pages of its prompt a slot."""
        self.running[slot] = self.filling[running.id] = running
        running.seats, running.version, running.slot = self, self.version, slot
        self.write_table(running)

    def write_table(self, running):
        """Tells the page table which pages a request holds by now."""
        numbers = [page.number for page in running.pages]
        self.table_BM[running.slot, : len(numbers)] = numbers

    def rows_to_fill(self, shapes):
        """Returns [(Running, first token, tokens)]: the oldest prompts, as far as the rows go.

        A prompt waits until the pages it shares are filled.

        Args:
          shapes: the engine's `shapes.Shapes`.
        """
        size, rows = shapes.prefill_tokens, []
        for running in self.filling.values():
            last_shared = running.cursor // shapes.page_size - 1
            if running.cursor and not running.pages[last_shared].ready:
                continue
            starts = range(running.cursor, len(running.prompt), size)
            for start in starts[: shapes.prefill_rows - len(rows)]:
                rows.append((running, start, min(size, len(running.prompt) - start)))
            if len(rows) == shapes.prefill_rows:
                break
        return rows

    def allowed(self, quota_B, shapes):
        """Returns uint32 [B, W], masks of the slots that draw; None if the engine has none."""
        allowed_BW = shapes.all_allowed(shapes.slots)
        if allowed_BW is not None:
            for slot in np.flatnonzero(quota_B):
                constraint = self.running[slot].request.constraint
                if constraint is not None:
                    allowed_BW[slot] = constraint.allowed()
        return allowed_BW

    def check_finite(self, logprobs):
        """Raises FloatingPointError if one of the log-probs drawn here is not finite."""
        if not np.isfinite(logprobs).all():
            raise FloatingPointError(
                f"Weights {self.name!r}, version {self.version}, gave logits that are not "
                "finite. Check the update they come from; the cache they wrote is lost too, so "
                "build a new engine."
            )

    @property
    def decoding(self):
        """Whether a request draws tokens."""
        return any(running.prefilled for _, running in self.occupied())

    @property
    def busy(self):
        """Whether any request needs these weights."""
        return bool(self.filling) or any(self.running)


def chunk(rows, *, shapes, width):
    """Builds the `programs.Chunk` of a prefill call, unused rows as padding.

    Args:
      rows: at most as many (Running, first token, tokens) as the call has rows.
      shapes: the engine's `shapes.Shapes`.
      width: M.
    """
    P = shapes.prefill_rows
    new = programs.Chunk(
        token_PT=np.zeros((P, shapes.prefill_tokens), np.int32),
        start_P=np.zeros(P, np.int32),
        count_P=np.zeros(P, np.int32),
        table_PM=np.zeros((P, width), np.int32),
        slot_P=np.full(P, shapes.slots, np.int32),
        limit_P=np.ones(P, np.int32),
        stop_PE=np.full((P, programs.STOP_IDS), programs.NO_TOKEN, np.int32),
        address_PA=np.zeros((P, programs.ADDRESS_PARTS), np.uint32),
        parts_P=np.zeros(P, np.int32),
        parameters=None,  # when all rows are known
        allowed_PW=shapes.all_allowed(P),
    )
    samplings = [sampling.NOTHING] * P
    for row, (running, start, tokens) in enumerate(rows):
        request, wanted = running.request, running.request.sampling
        new.token_PT[row, :tokens] = request.tokens[start : start + tokens]
        new.start_P[row], new.count_P[row] = start, tokens
        numbers = [page.number for page in running.pages[:width]]
        new.table_PM[row, : len(numbers)] = numbers
        if start + tokens < len(request.tokens) or running.ended:
            continue
        new.slot_P[row] = running.slot
        new.limit_P[row] = wanted.max_tokens
        new.stop_PE[row, : len(wanted.stop_ids)] = wanted.stop_ids
        new.address_PA[row, : len(request.address)] = request.address
        new.parts_P[row] = len(request.address)
        samplings[row] = wanted
        if request.constraint is not None:
            new.allowed_PW[row] = request.constraint.allowed()
    return new._replace(parameters=sampling.as_parameters(samplings))
