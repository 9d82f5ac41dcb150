"""Batched generation with named weight sets. One thread drives it: submit, then step until done.

    engine = Engine({"policy": model, "frozen": model}, slots=64, prompt_buckets=(64, 192),
                    max_length=256)
    id = engine.submit(Request(tokens, Sampling(max_tokens=32), address=(step, question, rollout)))
    while engine.pending:
        for id, completion in engine.step(): ...

Every weight set that is used has a pool of slots of its own; all pools run the same compiled
programs. The shapes of those programs never depend on the traffic, so a request's tokens depend on
its prompt, weights, sampling, address and the seed, and not on its slot, its neighbours or the
order of arrival.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from models.engine import pool, programs


class Engine:
    """Serves requests to the weight sets it is given.

    Args:
      weights: name -> Qwen2, all of one config. The engine keeps these arrays (a copy only where
        dtype or device differ): donate them to no other program while it may still use them.
      slots: requests that run at once per weight set; the cache takes slots * max_length positions,
        from the first use of the weight set on.
      prompt_buckets: prompt lengths to compile for. A prompt is padded to the smallest that fits.
      max_length: most prompt and response tokens of one request.
      decode_steps: tokens drawn per decode call, between two admissions of waiting requests.
      prefill_rows: prompts per prefill call.
      seed: start of every request's randomness, in [0, 2**32).
      decode_text: token ids -> text, needed for stop strings.
      dtype: of weights, activations and cache; logits and log-probs are float32.
    """

    def __init__(
        self,
        weights,
        *,
        slots,
        prompt_buckets,
        max_length,
        decode_steps=8,
        prefill_rows=8,
        seed=0,
        decode_text=None,
        dtype=jnp.float32,
    ):
        for name, value in dict(
            slots=slots,
            max_length=max_length,
            decode_steps=decode_steps,
            prefill_rows=prefill_rows,
        ).items():
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1.")
        if not prompt_buckets or min(prompt_buckets) < 1 or max(prompt_buckets) >= max_length:
            raise ValueError(
                f"prompt_buckets={tuple(prompt_buckets)} must hold lengths from 1 to "
                f"max_length - 1 = {max_length - 1}."
            )
        if not 0 <= seed < 2**32:
            raise ValueError(f"seed={seed} is outside [0, 2**32).")
        if not weights:
            raise ValueError("weights is empty; give at least one named model.")
        self._slots, self._max_length = slots, max_length
        self._buckets = tuple(sorted(set(prompt_buckets)))
        self._rows = min(prefill_rows, slots)
        self._decode_text, self._dtype = decode_text, dtype
        self._seed = np.uint32(seed)
        self._device = jax.local_devices()[0]

        first = next(iter(weights.values()))
        self._config = first.config
        self._names = _names(first)
        self._treedef = jax.tree.structure(first)
        self._weights, self._versions = {}, {}
        for name, model in weights.items():
            self._weights[name] = self._adopted(name, model)
            self._versions[name] = 0

        self._pools = {}
        self._home = {}  # id of a request that was not delivered -> name of its weights
        self._cancelled = []
        self._next_id = 0
        self._compile_count = 0
        self._prefill = jax.jit(self._counted(programs.prefill), donate_argnums=1)
        self._decode = jax.jit(self._counted(programs.decode, steps=decode_steps), donate_argnums=1)

    @property
    def pending(self):
        """Requests submitted whose Completion was not returned yet."""
        return len(self._home)

    @property
    def compile_count(self):
        """Traces of the engine's programs so far."""
        return self._compile_count

    def submit(self, request):
        """Queues a request and returns its id. ValueError says what the engine cannot serve."""
        self._check(request)
        id, self._next_id = self._next_id, self._next_id + 1
        self._home[id] = request.weights
        self._pool(request.weights).submit(id, request)
        return id

    def cancel(self, id):
        """Ends a request; the next `step` returns what it has, with stop_reason "cancelled".

        Returns whether there was anything to end: False once its Completion was returned.
        """
        if not 0 <= id < self._next_id:
            raise ValueError(f"cancel({id}): no request has this id; use what submit() returned.")
        name = self._home.get(id)
        if name is None:
            return False
        completion = self._pools[name].cancel(id, weights_version=self._versions[name])
        if completion is not None:
            self._cancelled.append((id, completion))
        return completion is not None

    def set_weights(self, name, model):
        """Replaces a weight set from the next `step` on and raises its version by one.

        Requests in flight go on with the new weights over the cache the old ones wrote; their
        Completion carries the version at which they started, so a caller can leave them out.
        """
        self._check_name(name)
        self._weights[name] = self._adopted(name, model)
        self._versions[name] += 1

    def step(self):
        """Admits what fits, draws up to `decode_steps` tokens in every slot, and returns
        [(id, Completion)] of the requests that ended.
        """
        finished, self._cancelled = self._cancelled, []
        # Everything is dispatched before anything is fetched.
        work = [
            (name, pool_, self._admit(name, pool_), self._advance(name, pool_))
            for name, pool_ in self._pools.items()
        ]
        for name, pool_, admitted, advanced in work:
            admitted, advanced = jax.device_get((admitted, advanced))
            finished += self._collect(name, pool_, admitted, advanced)
        for id, _ in finished:
            del self._home[id]
        return finished

    def warmup(self):
        """Compiles every program, so that serving compiles nothing."""
        name = next(iter(self._weights))
        pool_ = self._pool(name)
        if pool_.occupied():
            raise ValueError("warmup() must come before the first step().")
        for bucket in self._buckets:
            nobody = pool.admission([], bucket=bucket, rows=self._rows, slots=self._slots)
            pool_.state, *_ = self._prefill(self._weights[name], pool_.state, nobody, self._seed)
        pool_.state, *_ = self._decode(self._weights[name], pool_.state, pool_.keep())
        jax.block_until_ready(pool_.state)

    def _admit(self, name, pool_):
        """Prefills waiting requests into free slots; [(slots, device results)] of the calls."""
        calls = []
        while batch := pool_.next_batch():
            new = pool_.enter(batch, weights_version=self._versions[name])
            pool_.state, *drawn = self._prefill(self._weights[name], pool_.state, new, self._seed)
            calls.append(([slot for slot, _, _ in batch], drawn))
        return calls

    def _advance(self, name, pool_):
        """Dispatches one decode call for the slots that may go on; its device results or None."""
        occupied = pool_.occupied()
        if all(running.request.sampling.max_tokens == 1 for _, running in occupied):
            return None
        pool_.state, *drawn = self._decode(self._weights[name], pool_.state, pool_.keep())
        return drawn

    def _collect(self, name, pool_, admitted, advanced):
        """Hands the drawn tokens to their requests; [(id, Completion)] of those that ended."""
        ended = set()
        for slots, (token_P, logprob_P, live_P) in admitted:
            self._check_finite(name, logprob_P[: len(slots)])
            for row, slot in enumerate(slots):
                running = pool_.table[slot]
                running.tokens.append(int(token_P[row]))
                running.logprobs.append(float(logprob_P[row]))
                if not live_P[row]:
                    ended.add(slot)
        if advanced is not None:
            token_CB, logprob_CB, live_B = advanced
            drawn_CB = token_CB != programs.NO_TOKEN
            self._check_finite(name, logprob_CB[drawn_CB])
            drawn_B = drawn_CB.sum(0)
            for slot, running in pool_.occupied():
                running.tokens += token_CB[: drawn_B[slot], slot].tolist()
                running.logprobs += logprob_CB[: drawn_B[slot], slot].tolist()
                if not live_B[slot]:
                    ended.add(slot)
        finished = []
        for slot, running in pool_.occupied():
            stopped = self._cut_at_stop_string(running)
            if stopped or slot in ended:
                by_id = running.tokens[-1] in running.request.sampling.stop_ids
                pool_.table[slot] = None
                reason = "stop" if stopped or by_id else "length"
                finished.append((running.id, running.completion(reason)))
        return finished

    def _cut_at_stop_string(self, running):
        """Truncates to the token that completes a stop string; whether there was one."""
        stops = running.request.sampling.stop_strings
        if not stops:
            return False

        def holds_stop(tokens):
            text = self._decode_text(tokens)
            return any(stop in text for stop in stops)

        checked, running.checked = running.checked, len(running.tokens)
        if not holds_stop(running.tokens):
            return False
        lengths = range(checked + 1, len(running.tokens) + 1)
        end = next(n for n in lengths if holds_stop(running.tokens[:n]))
        del running.tokens[end:], running.logprobs[end:]
        return True

    def _check_finite(self, name, logprobs):
        if not np.isfinite(logprobs).all():
            raise FloatingPointError(
                f"Weights {name!r}, version {self._versions[name]}, gave logits that are not "
                "finite. Check the update they come from; the cache they wrote is lost too, so "
                "build a new engine."
            )

    def _check(self, request):
        self._check_name(request.weights)
        tokens, sampling = len(request.tokens), request.sampling
        if not tokens:
            raise ValueError("Request.tokens is empty; a prompt needs at least one token.")
        if tokens > self._buckets[-1]:
            raise ValueError(
                f"A prompt of {tokens} tokens exceeds the largest of prompt_buckets="
                f"{self._buckets}; add a larger bucket or shorten the prompt."
            )
        if tokens + sampling.max_tokens > self._max_length:
            raise ValueError(
                f"{tokens} prompt tokens and max_tokens={sampling.max_tokens} exceed max_length="
                f"{self._max_length}; raise max_length or lower max_tokens to at most "
                f"{self._max_length - tokens}."
            )
        ids = (*request.tokens, *sampling.stop_ids)
        low, high = min(ids), max(ids)
        if low < 0 or high >= self._config.vocab_size:
            raise ValueError(
                f"Token id {low if low < 0 else high} is outside the vocabulary of "
                f"{self._config.vocab_size}; check that the tokenizer belongs to the model."
            )
        if len(sampling.stop_ids) > programs.STOP_IDS:
            raise ValueError(
                f"{len(sampling.stop_ids)} stop_ids; the engine takes {programs.STOP_IDS}. "
                "Use stop_strings for the rest."
            )
        if sampling.stop_strings and self._decode_text is None:
            raise ValueError("stop_strings need Engine(decode_text=...), such as tokenizer.decode.")
        address = request.address
        if len(address) > programs.ADDRESS_PARTS or not all(0 <= n < 2**32 for n in address):
            raise ValueError(
                f"address={address} must hold at most {programs.ADDRESS_PARTS} integers in "
                "[0, 2**32)."
            )

    def _check_name(self, name):
        if name not in self._weights:
            raise ValueError(
                f"No weights named {name!r}; this engine serves {sorted(self._weights)}."
            )

    def _pool(self, name):
        if name not in self._pools:
            state = programs.empty_state(
                self._config, slots=self._slots, max_length=self._max_length, dtype=self._dtype
            )
            self._pools[name] = pool.Pool(
                jax.device_put(state, self._device),
                slots=self._slots,
                prompt_buckets=self._buckets,
                prefill_rows=self._rows,
            )
        return self._pools[name]

    def _adopted(self, name, model):
        """The model's arrays on the engine's device, in its dtype, in the order of `_names`."""
        found = _names(model)
        if model.config != self._config or found != self._names:
            different = sorted(set(found.items()) ^ set(self._names.items()))
            raise ValueError(
                f"Weights {name!r} differ from the engine's model in config or shapes "
                f"({model.config} against {self._config}; {different}). Give every weight set the "
                "same architecture, or build another engine."
            )
        leaves = jax.tree.leaves(model)
        return [jax.device_put(jnp.asarray(leaf, self._dtype), self._device) for leaf in leaves]

    def _counted(self, program, **static):
        @functools.wraps(program)
        def traced(leaves, state, *rest):
            self._compile_count += 1
            model = jax.tree.unflatten(self._treedef, leaves)
            return program(model, state, *rest, dtype=self._dtype, **static)

        return traced


def _names(model):
    """{name: shape} of a model's arrays."""
    leaves = jax.tree_util.tree_flatten_with_path(model)[0]
    return {
        "/".join(
            str(getattr(part, "name", getattr(part, "key", part))) for part in path
        ): leaf.shape
        for path, leaf in leaves
    }
