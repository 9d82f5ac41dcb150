"""The host side of one weight set: its queue, its slots and what they have generated so far."""

import dataclasses

import numpy as np

from models.engine import programs, sampling, types


@dataclasses.dataclass
class Running:
    """A request in a slot. `checked` tokens are known to hold no stop string."""

    id: int
    request: types.Request
    weights_version: int
    tokens: list[int] = dataclasses.field(default_factory=list)
    logprobs: list[float] = dataclasses.field(default_factory=list)
    checked: int = 0

    def completion(self, stop_reason):
        return types.Completion(
            tokens=np.asarray(self.tokens, np.int32),
            logprobs=np.asarray(self.logprobs, np.float32),
            stop_reason=stop_reason,
            weights_version=self.weights_version,
        )


class Pool:
    """Queue and slots of one weight set. `state` is the device side, see `programs.State`."""

    def __init__(self, state, *, slots, prompt_buckets, prefill_rows):
        self.state = state
        self.table = [None] * slots  # slot -> Running
        self.rows = prefill_rows
        self.queues = {bucket: {} for bucket in prompt_buckets}  # bucket -> id -> Request, in order

    def occupied(self):
        """[(slot, Running)] of the requests that run."""
        return [(slot, running) for slot, running in enumerate(self.table) if running]

    def submit(self, id, request):
        self._queue_for(len(request.tokens))[id] = request

    def cancel(self, id, *, weights_version):
        """Takes a request out of the queue or its slot; its Completion, or None if not here."""
        for queue in self.queues.values():
            if id in queue:
                return Running(id, queue.pop(id), weights_version).completion("cancelled")
        for slot, running in self.occupied():
            if running.id == id:
                self.table[slot] = None
                return running.completion("cancelled")
        return None

    def next_batch(self):
        """[(slot, id, Request)] for one prefill call: prompts of one bucket, the longest-waiting
        request always among them; empty when nothing waits or no slot is free.
        """
        free = [slot for slot, running in enumerate(self.table) if running is None]
        waiting = [queue for queue in self.queues.values() if queue]
        if not free or not waiting:
            return []
        queue = min(waiting, key=lambda queue: next(iter(queue)))
        ids = list(queue)[: self.rows]
        return [(slot, id, queue.pop(id)) for slot, id in zip(free, ids, strict=False)]

    def enter(self, batch, *, weights_version):
        """Marks the batch's slots as taken and returns its `programs.Admission` in NumPy arrays."""
        for slot, id, request in batch:
            self.table[slot] = Running(id, request, weights_version)
        bucket = bucket_for(len(batch[0][2].tokens), self.queues)
        return admission(batch, bucket=bucket, rows=self.rows, slots=len(self.table))

    def keep(self):
        """bool [B]: slots whose request is still wanted."""
        return np.array([running is not None for running in self.table])

    def _queue_for(self, tokens):
        return self.queues[bucket_for(tokens, self.queues)]


def bucket_for(length, buckets):
    """The smallest of the ascending buckets that holds `length`, or None."""
    return next((bucket for bucket in buckets if length <= bucket), None)


def admission(batch, *, bucket, rows, slots):
    """`programs.Admission` of at most `rows` entries (slot, id, Request), the rest padding."""
    new = programs.Admission(
        token_PT=np.zeros((rows, bucket), np.int32),
        length_P=np.ones(rows, np.int32),
        slot_P=np.full(rows, slots, np.int32),
        limit_P=np.ones(rows, np.int32),
        stop_PE=np.full((rows, programs.STOP_IDS), programs.NO_TOKEN, np.int32),
        address_PA=np.zeros((rows, programs.ADDRESS_PARTS), np.uint32),
        parts_P=np.zeros(rows, np.int32),
        parameters=sampling.Parameters(
            temperature_B=np.zeros(rows, np.float32),
            top_p_B=np.ones(rows, np.float32),
            min_p_B=np.zeros(rows, np.float32),
            top_k_B=np.zeros(rows, np.int32),
        ),
    )
    for row, (slot, _, request) in enumerate(batch):
        wanted = request.sampling
        new.token_PT[row, : len(request.tokens)] = request.tokens
        new.length_P[row] = len(request.tokens)
        new.slot_P[row] = slot
        new.limit_P[row] = wanted.max_tokens
        new.stop_PE[row, : len(wanted.stop_ids)] = wanted.stop_ids
        new.address_PA[row, : len(request.address)] = request.address
        new.parts_P[row] = len(request.address)
        new.parameters.temperature_B[row] = wanted.temperature
        new.parameters.top_p_B[row] = wanted.top_p
        new.parameters.min_p_B[row] = wanted.min_p
        new.parameters.top_k_B[row] = min(wanted.top_k, 2**31 - 1)
    return new
