"""Several engines with the same weights, each on its own devices, behind the interface of one.

A request goes to an engine that is not busier than the others, among these to the one whose cache
holds most of its prompt. Its tokens do not depend on that choice.
"""

import dataclasses
import itertools

from models.engine import types

LEVELS = 4  # a quarter of the slots more makes an engine busier


class Replicas:
    """The engines of this process.

    Args:
      engines: `engine.Engine`s of equal settings.
    """

    def __init__(self, engines):
        self._engines = engines
        self._places = {}  # id -> (index of the engine, its id)
        self._identities = {}  # the other way round
        self._ids = itertools.count()

    @property
    def pending(self):
        return len(self._places)

    @property
    def compile_count(self):
        return sum(engine.compile_count for engine in self._engines)

    @property
    def statistics(self):
        """Sums over the engines."""
        parts = [dataclasses.astuple(engine.statistics) for engine in self._engines]
        return types.Statistics(*map(sum, zip(*parts, strict=True)))

    def submit(self, request):
        """Queues a request and returns its id. ValueError says what no engine can serve."""
        chosen, prefix = 0, None
        if len(self._engines) > 1:
            prefix = self._engines[0].prefix(request.tokens)
            cost = lambda n: self._cost(n, request.weights, prefix)
            chosen = min(range(len(self._engines)), key=cost)
        inner = self._engines[chosen].submit(request, prefix)
        id = next(self._ids)
        self._places[id], self._identities[chosen, inner] = (chosen, inner), id
        return id

    def partial(self, id, first=0):
        chosen, inner = self._places[id]
        return self._engines[chosen].partial(inner, first)

    def cancel(self, id):
        if id not in self._places:
            return False
        chosen, inner = self._places[id]
        return self._engines[chosen].cancel(inner)

    def advance(self):
        """Advances every engine; their devices work at the same time."""
        finished = []
        working = [(n, engine) for n, engine in enumerate(self._engines) if engine.pending]
        for _, engine in working:
            engine.dispatch()
        for chosen, engine in working:
            for inner, completion in engine.collect():
                id = self._identities.pop((chosen, inner))
                del self._places[id]
                finished.append((id, completion))
        return finished

    def set_weights(self, name, models):
        """`Engine.set_weights` of each engine, with its own copy of the model."""
        for engine, model in zip(self._engines, models, strict=True):
            engine.set_weights(name, model)

    def release(self):
        for engine in self._engines:
            engine.release()

    def warmup(self):
        for engine in self._engines:
            engine.warmup()

    def _cost(self, index, weights, prefix):
        engine = self._engines[index]
        known = engine.cached_tokens(weights, prefix)
        return (engine.pending * LEVELS // engine.slots, -known, engine.pending)
