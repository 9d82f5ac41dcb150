"""Several engines with the same weights, each on its own devices, behind the interface of one.

A request goes to an engine that is not busier than the others, among these to the one whose cache
holds most of its prompt. Its tokens do not depend on that choice.
"""

import dataclasses
import itertools

from models.engine import placement, types
from models.engine.engine import Engine

LEVELS = 4  # a quarter of the slots more makes an engine busier


class Replicas(types.Sampler):
    """The engines of this process.

    Every process must make one and call its `set_weights`, with the same sizes of meshes.

    Args:
      weights: name -> Decoder, all of one config, on a mesh of all devices or anywhere.
      meshes: of the engines, from `placement.meshes`.
      settings: further ones of each `Engine`.
    """

    def __init__(self, weights, *, meshes, dtype, separate, **settings):
        self._copies = placement.Copies(dtype, meshes, separate=separate)
        copies = {name: self._copies.make(name, model) for name, model in weights.items()}
        self._engines = [
            Engine(
                {name: models[n] for name, models in copies.items()},
                mesh=mesh,
                dtype=dtype,
                separate=separate,
                **settings,
            )
            for n, mesh in enumerate(meshes)
        ]
        self._working = []  # (index, Engine) that were given work
        self._places = {}  # id -> (index of the engine, its id)
        self._identities = {}  # the other way round
        self._ids = itertools.count()

    # ---- requests ------------------------------------------------------------------------------

    @property
    def slots(self):
        return sum(engine.slots for engine in self._engines)

    @property
    def pending(self):
        return len(self._places)

    @property
    def compile_count(self):
        return sum(engine.compile_count for engine in self._engines)

    @property
    def layout(self):
        return self._engines[0].layout

    @property
    def cache_bytes(self):
        return self._engines[0].cache_bytes

    @property
    def statistics(self):
        parts = [dataclasses.astuple(engine.statistics) for engine in self._engines]
        return types.Statistics(*map(sum, zip(*parts, strict=True)))

    def prefix(self, tokens):
        return self._engines[0].prefix(tokens)

    def cached_tokens(self, weights, prefix):
        return max(engine.cached_tokens(weights, prefix) for engine in self._engines)

    def submit(self, request, prefix=None):
        chosen = 0
        if len(self._engines) > 1:
            prefix = self.prefix(request.tokens) if prefix is None else prefix
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

    def _cost(self, index, weights, prefix):
        engine = self._engines[index]
        known = engine.cached_tokens(weights, prefix)
        return (engine.pending * LEVELS // engine.slots, -known, engine.pending)

    # ---- weights -------------------------------------------------------------------------------

    def set_weights(self, name, model):
        copies = self._copies.make(name, model)
        for engine, copy in zip(self._engines, copies, strict=True):
            engine.set_weights(name, copy)

    def release(self):
        for engine in self._engines:
            engine.release()
        self._copies.forget()

    # ---- one advance ---------------------------------------------------------------------------

    def warmup(self):
        for engine in self._engines:
            engine.warmup()

    def advance(self):
        self.dispatch()
        return self.collect()

    def dispatch(self):
        self._working = [(n, engine) for n, engine in enumerate(self._engines) if engine.pending]
        for _, engine in self._working:
            engine.dispatch()

    def collect(self):
        finished = []
        for chosen, engine in self._working:
            for inner, completion in engine.collect():
                id = self._identities.pop((chosen, inner))
                del self._places[id]
                finished.append((id, completion))
        return finished
