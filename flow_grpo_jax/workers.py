"""Threads for calls of tools and environments."""

import concurrent.futures
import contextlib
import functools
import queue
import threading


class Workers(concurrent.futures.Executor):
    """At most `count` threads. A call that hangs for ever does not keep the process from ending.

    `ThreadPoolExecutor` waits for all its threads when Python ends; these end with it.
    """

    def __init__(self, count, name):
        self._count, self._name = count, name
        self._calls = queue.SimpleQueue()  # (Future, function), None for each thread at the end
        self._threads, self._ended, self._lock = [], False, threading.Lock()

    def submit(self, function, /, *arguments, **named):
        future = concurrent.futures.Future()
        with self._lock:
            if self._ended:
                raise RuntimeError("The workers have ended.")
            self._calls.put((future, functools.partial(function, *arguments, **named)))
            if len(self._threads) < self._count:
                name = f"{self._name}-{len(self._threads)}"
                self._threads.append(threading.Thread(target=self._work, name=name, daemon=True))
                self._threads[-1].start()
        return future

    def shutdown(self, wait=True, *, cancel_futures=False):
        with self._lock:
            self._ended = True
            left = []
            with contextlib.suppress(queue.Empty):  # a thread may take the last one meanwhile
                while True:
                    left.append(self._calls.get_nowait())
            for call in filter(None, left):
                if cancel_futures:
                    call[0].cancel()
                    call[0].set_running_or_notify_cancel()
                else:
                    self._calls.put(call)
            for _ in self._threads:
                self._calls.put(None)
        if wait:
            for thread in self._threads:
                thread.join()

    def _work(self):
        while (call := self._calls.get()) is not None:
            future, run = call
            if not future.set_running_or_notify_cancel():
                continue
            try:
                result = run()
            except BaseException as error:  # noqa: BLE001  told by the Future
                future.set_exception(error)
            else:
                future.set_result(result)
            del call, future, run  # what they hold may go while this thread waits
