"""What an update needs by estimate, and which changes of the config would make it fit.

Dimensions:
  B rows of a micro-batch    T tokens in a row    A response tokens of a row
"""

import copy
import dataclasses

from experiments.planning import formulas, programs
from experiments.running import command
from models import sharding

SPARE = 0.1  # of a device's memory: estimates err, and other programs live there too
WORTH = 0.99  # a change that leaves more than this share of the bytes is not worth its price
ADAPTER = {"model.lora.rank": 32, "model.lora.alpha": 64.0}


@dataclasses.dataclass(frozen=True)
class Need:
    """Estimated bytes per device. temporaries: of a micro-batch of each row length."""

    parameters: int
    moments: int
    gradients: int
    frozen: int
    temporaries: dict

    @property
    def lasting(self):
        return self.parameters + self.moments + self.gradients + self.frozen

    @property
    def total(self):
        """While the largest program runs."""
        return self.lasting + max(self.temporaries.values())


@dataclasses.dataclass(frozen=True)
class Change:
    """flags: what to add to the command. price: what it costs. total: estimated bytes after it."""

    flags: dict
    price: str
    total: float


def setting(config, dims, mesh):
    """Returns the formulas.Setting of a config.

    Args:
      dims: decoder.Config.
      mesh: real or abstract.
    """
    return formulas.Setting(
        dims=dims,
        **{axis: mesh.shape[axis] for axis in sharding.AXES},
        sequence=config.mesh.sequence and mesh.shape["tensor"] > 1,
        dtype=config.model.dtype,
        remat=config.model.remat,
        chunk=config.batch.logprob_chunk,
        adapters=programs.adapters(config),
        reference=bool(config.loss.kl_coef),
    )


def need(config, dims, devices, *, scale=1.0):
    """Estimates the Need of a config on so many devices: inputs exactly, temporaries by formula.

    Args:
      dims: decoder.Config.
      scale: multiplies the formula, such as by its error for a compiled program of this config.
    """
    mesh = programs.abstract_mesh(config, devices)
    values = programs.inputs(config, dims, mesh)
    how = setting(config, dims, mesh)
    temporaries = {}
    for batch in values.batches:
        (rows, tokens), responses = batch.token_BT.shape, batch.index_BA.shape[1]
        temporaries[tokens] = scale * formulas.temporaries(how, rows, tokens, responses)
    own = programs.bytes_per_device
    return Need(
        parameters=own(values.params),
        moments=own(values.opt_state),
        gradients=own(values.grads),
        frozen=own(values.frozen),
        temporaries=temporaries,
    )


def changed(config, flags):
    """Returns a copy of a config with other values, by dotted names."""
    config = copy.deepcopy(config)
    config.update_from_flattened_dict(flags)
    return config


def advise(config, dims, devices, memory, *, scale=1.0):
    """Returns (changes, together): each Change alone, and those that make it fit together.

    Changes that save nothing are left out. `together` holds the first ones in order that suffice,
    without those that are not needed any more; None if even all of them do not fit.
    """

    def total(flags):
        return need(changed(config, flags), dims, devices, scale=scale).total

    limit, alone, chosen = (1 - SPARE) * memory, [], []
    least = before = total({})
    for candidate in CANDIDATES:
        found = candidate(config, dims, devices)
        if found is not None and total(found[0]) < WORTH * before:
            alone.append(Change(*found, total(found[0])))
        found = candidate(changed(config, _merged(chosen)), dims, devices)
        if least > limit and found is not None:
            after = total(_merged([*chosen, found]))
            if after < WORTH * least:
                chosen, least = [*chosen, found], after
    if least > limit:
        return alone, None
    for one in list(chosen):
        fewer = [other for other in chosen if other is not one]
        if total(_merged(fewer)) <= limit:
            chosen = fewer
    flags = _merged(chosen)
    return alone, Change(flags, "; ".join(price for _, price in chosen), total(flags))


def _merged(found):
    return {name: value for flags, _ in found for name, value in flags.items()}


# ---- candidates: (flags, price), or None where there is nothing to change ----------------------
# In the order in which they cost speed or change the method.


def _spread(config, dims, devices):
    """Proposes the mesh that needs least, with rows spread over `tensor`."""
    best, least = None, need(config, dims, devices).total
    for tensor in _divisors(devices):
        for fsdp in _divisors(devices // tensor):
            flags = {
                "mesh.data": devices // tensor // fsdp,
                "mesh.fsdp": fsdp,
                "mesh.tensor": tensor,
                "mesh.sequence": tensor > 1,
            }
            try:
                total = need(changed(config, flags), dims, devices).total
            except command.ConfigError:  # heads or rows that such a mesh does not divide
                continue
            if total < 0.95 * least:
                best, least = flags, total
    return best and (best, "more traffic between devices")


def _recompute(config, dims, devices):
    if config.model.remat == "full":
        return None
    return {"model.remat": "full"}, "the forward pass runs twice"


def _fewer_rows(config, dims, devices):
    if set(config.batch.rows) == {1}:
        return None
    rows = (1,) * len(config.batch.rows)
    return {"batch.rows": rows}, "more micro-batches, each at a lower rate"


def _small_moments(config, dims, devices):
    if config.optim.moment_dtype == "bfloat16":
        return None
    return {"optim.moment_dtype": "bfloat16"}, "moments rounded at random to 8 bits"


def _adapters(config, dims, devices):
    if config.model.lora.rank:
        return None
    return ADAPTER, "adapters are trained, not all parameters"


def _no_reference(config, dims, devices):
    if not config.loss.kl_coef or config.model.lora.rank:
        return None
    return {"loss.kl_coef": 0.0}, "nothing holds the policy near where it started"


def _shorter_rows(config, dims, devices):
    longest, response = max(config.batch.row_lengths), config.rollout.max_response_tokens
    half = longest // 2
    if half < 2 * response:
        return None
    buckets = zip(
        config.batch.row_lengths, config.batch.response_lengths, config.batch.rows, strict=True
    )
    kept = [bucket for bucket in buckets if bucket[0] < half]
    kept.append((half, max(response, config.batch.response_lengths[-1] // 2), 1))
    row_lengths, response_lengths, rows = zip(*kept, strict=True)
    flags = {
        "batch.row_lengths": row_lengths,
        "batch.response_lengths": response_lengths,
        "batch.rows": rows,
        "rollout.max_prompt_tokens": min(config.rollout.max_prompt_tokens, half - response),
    }
    return flags, "prompts are cut"


CANDIDATES = (
    _spread,
    _recompute,
    _fewer_rows,
    _small_moments,
    _adapters,
    _shorter_rows,
    _no_reference,
)


def _divisors(number):
    return [n for n in range(1, number + 1) if number % n == 0]
