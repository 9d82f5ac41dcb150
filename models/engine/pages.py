"""The pages of the KV cache: who holds them, shared prefixes, and what is safe to hand out.

A page holds the keys and values of `size` consecutive tokens of one sequence, in all layers. The
device knows nothing of this file; it reads page tables.

A full page of a prompt is listed under a key made of the weights that compute it and of all tokens
up to its end. Requests whose prompts begin alike hold the same pages. A page that nobody holds
stays listed until the space is wanted; the least recently used goes first.

Dimensions:
  R requests
"""

import collections
import dataclasses
import hashlib

import numpy as np


@dataclasses.dataclass(eq=False)
class Page:
    """holders: requests that read it. ready: the call that fills it was dispatched.

    key: what it is listed under, None if it is not listed.
    """

    number: int
    holders: int = 1
    ready: bool = False
    key: bytes | None = None


class Pages:
    """All pages of an engine: `count` pages of `size` tokens."""

    def __init__(self, count, size):
        self.count, self.size = count, size
        self._free = list(range(count - 1, -1, -1))
        self._listed = {}  # key -> Page
        self._idle = collections.OrderedDict()  # key -> listed Page without holder, oldest first

    @property
    def available(self):
        """Pages that can be handed out now."""
        return len(self._free) + len(self._idle)

    def take(self):
        """Hands out a page for one holder. At least one must be available."""
        if not self._free:
            _, oldest = self._idle.popitem(last=False)
            self._free_up(oldest)
        return Page(self._free.pop())

    def release(self, page):
        """Gives up one hold."""
        page.holders -= 1
        if page.holders:
            return
        if page.key is not None and page.ready:
            self._idle[page.key] = page
        else:
            self._free_up(page)

    def find(self, keys):
        """Returns the listed pages of the longest known prefix, each held once more."""
        pages = []
        for key in keys:
            page = self._listed.get(key)
            if page is None:
                break
            self._idle.pop(key, None)
            page.holders += 1
            pages.append(page)
        return pages

    def known(self, keys):
        """Counts the first keys that have a page which is filled or about to be."""
        return next((n for n, key in enumerate(keys) if key not in self._listed), len(keys))

    def list_under(self, key, page):
        """Offers a page to later requests, unless another one with this content is listed."""
        if key not in self._listed:
            page.key = key
            self._listed[key] = page

    def unlist(self, weights):
        """Forgets the pages whose keys begin with `weights`; holders keep theirs until the end."""
        for key in [key for key in self._listed if key.startswith(weights)]:
            page = self._listed[key]
            if self._idle.pop(key, None):
                self._free_up(page)
            else:
                self._unlist(page)

    def _free_up(self, page):
        self._unlist(page)
        self._free.append(page.number)

    def _unlist(self, page):
        if page.key is not None:
            del self._listed[page.key]
            page.key = None


class Ledger:
    """Which requests hold pages, and whether one may take more so that all can still end.

    book: the `Pages`.
    holders: id -> request with pages, a `seats.Running`.
    claimed: pages that the holders may still want, all together.
    """

    def __init__(self, count, size):
        self.book = Pages(count, size)
        self.holders, self.claimed = {}, 0

    def admit(self, running, keys):
        """Gives a request the pages of its prompt; False if it has to wait for them.

        Args:
          keys: of the full pages of its prompt.
        """
        size, tokens = self.book.size, len(running.prompt)
        # The last token is always computed: its logits draw the first token.
        shared = self.book.find(keys[: (tokens - 1) // size])
        running.keys, running.pages = keys, shared
        wanted = count_for(tokens, size) - len(shared)
        if not self.may_take(np.array([wanted]), [running]):
            for page in shared:
                self.book.release(page)
            running.keys, running.pages = [], []
            return False
        first = len(shared)
        running.shared = first * size
        self.holders[running.id] = running
        self.claimed += running.wanted_pages
        self.take(running, wanted)
        for key, page in zip(keys[first:], running.pages[first:], strict=False):
            self.book.list_under(key, page)
        return True

    def may_take(self, wanted_R, runnings):
        """Tells whether all running requests could still end if these took so many pages."""
        total, left = int(wanted_R.sum()), self.book.available
        if total == 0:
            return True
        new = [running for running in runnings if running.id not in self.holders]
        if self.claimed + sum(running.wanted_pages for running in new) <= left:
            return True
        if total > left:
            return False
        taken = dict(zip([running.id for running in runnings], wanted_R.tolist(), strict=True))
        everybody = [*self.holders.values(), *new]
        taken_R = np.array([taken.get(running.id, 0) for running in everybody])
        most_R = np.array([running.wanted_pages for running in everybody])
        private_R = np.array([running.private_pages for running in everybody])
        return all_can_finish(most_R - taken_R, private_R + taken_R, left - total)

    def take(self, running, count):
        """Gives a holder so many pages, which `may_take` allowed."""
        running.pages += [self.book.take() for _ in range(count)]
        self.claimed -= count

    def settle(self, running):
        """Gives up what an ended request might still have wanted."""
        self.claimed -= running.wanted_pages
        running.most_pages = len(running.pages)

    def let_go(self, running):
        """Takes back the pages of a settled request; False while others wait for it to fill one."""
        if any(page.holders > 1 and not page.ready for page in running.pages):
            return False
        for page in running.pages:
            self.book.release(page)
        running.pages = []
        del self.holders[running.id]
        return True


def count_for(tokens, size):
    """Returns how many pages of `size` tokens hold so many tokens."""
    return -(-tokens // size)


def prefix_digests(tokens, size):
    """Returns, for each full page of a prompt, bytes that stand for all tokens up to its end.

    A page's key is the name of the weights and this.

    Args:
      tokens: ids.
      size: tokens in a page.
    """
    ids = np.asarray(tokens, np.int32)
    digest, digests = hashlib.blake2b(digest_size=16), []
    for end in range(size, len(ids) + 1, size):
        digest.update(ids[end - size : end].tobytes())
        digests.append(digest.digest())
    return digests


def all_can_finish(wanted_R, freed_R, available):
    """Tells whether requests can all be served to their end, one by one (banker's algorithm).

    Args:
      wanted_R: int [R], pages that each request may still want.
      freed_R: int [R], pages that come free for sure when it ends, those it holds now.
      available: pages that can be handed out now.
    """
    order_R = np.argsort(wanted_R, kind="stable")
    before_R = np.cumsum(freed_R[order_R]) - freed_R[order_R]
    return bool((wanted_R[order_R] <= available + before_R).all())
