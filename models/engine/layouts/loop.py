"""Any platform. Loops to the end of the longest sequence of a small group.

Spans that a query cannot see leave its bits unchanged, so results do not depend on company.

Dimensions:
  P sequences    T queries of each    M pages of a page table    G pages    Z tokens of a page
  J = 2 K heads of keys and values    N query heads    H head size
"""

import jax
import jax.numpy as jnp

from models.engine.layouts import heads_first

PLATFORMS = ("cpu", "gpu", "tpu")
KEYS = 64  # of a span
TOGETHER = 8  # sequences of like length that make a group

fits, spec = heads_first.fits, heads_first.spec
empty, write = heads_first.empty, heads_first.write


def widths(most):
    """Returns the widths of page tables that programs are compiled for; `most` is the last."""
    return (most,)


def attend(q_PTNH, cache_JGZH, table_PM, position_PT):
    """Attends group by group, so that long sequences cost short ones nothing; see `cache`."""
    P = q_PTNH.shape[0]
    if P <= TOGETHER or P % TOGETHER:
        return _group(q_PTNH, cache_JGZH, table_PM, position_PT)
    order_P = jnp.argsort(position_PT[:, -1])
    back_P = jnp.argsort(order_P)
    cut = lambda x: x[order_P].reshape(P // TOGETHER, TOGETHER, *x.shape[1:])
    o = jax.lax.map(
        lambda group: _group(group[0], cache_JGZH, *group[1:]),
        (cut(q_PTNH), cut(table_PM), cut(position_PT)),
    )
    return o.reshape(q_PTNH.shape)[back_P]


def _group(q_PTNH, cache_JGZH, table_PM, position_PT):
    return heads_first.over_spans(q_PTNH, cache_JGZH, table_PM, position_PT, keys=KEYS, whole=False)
