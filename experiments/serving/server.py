"""The whole server: HTTP, the engine's thread, and the end of both."""

import asyncio
import errno
import functools

import uvicorn
from absl import logging

from experiments.serving import connection

NO_DESCRIPTOR = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
LOG_SECONDS = 10  # between lines about the same trouble
CHECK_SECONDS = 0.25
ACCEPTED_AT_ONCE = 256
KEEP_ALIVE_SECONDS = 75
LAST_SECONDS = 5  # for clients to read their last answer


class Server(uvicorn.Server):
    """Runs until a signal comes, `should_exit` is set or the engine fails.

    Then it takes no new connections or requests and lets running ones end; after `stop_seconds` the
    rest get an error.

    Args:
      app: ASGI application of `service`.
      service: `service.Service`.
      thread: its EngineThread, not started.
      stop_seconds: int.
      most_connections: int.
    """

    def __init__(self, app, service, thread, *, stop_seconds, most_connections):
        config = uvicorn.Config(
            app,
            http=functools.partial(
                connection.Connection, most=most_connections, refused=service.monitor.count
            ),
            backlog=ACCEPTED_AT_ONCE,
            lifespan="off",
            ws="none",
            access_log=False,
            log_config=None,
            log_level="error",  # what clients do wrong is counted, not logged
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=stop_seconds + LAST_SECONDS,
        )
        super().__init__(config)
        self._service, self._thread, self._stop_seconds = service, thread, stop_seconds

    def run(self, sockets):
        """Serves bound sockets.

        Raises:
          RuntimeError: the engine has failed.
        """
        asyncio.run(self._run(sockets))
        failure = self._service.failure
        if failure is not None:
            raise RuntimeError(f"The engine has failed: {failure}") from failure

    async def _run(self, sockets):
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(_log)
        self._thread.start(loop, self._failed)
        checking = asyncio.create_task(self._check_connections())
        try:
            await self.serve(sockets=sockets)
        finally:
            checking.cancel()
            await asyncio.to_thread(self._thread.stop)

    async def _check_connections(self):
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            for each in tuple(self.server_state.connections):
                each.check(loop.time())

    async def shutdown(self, sockets=None):
        self._service.close()
        asyncio.get_running_loop().call_later(self._stop_seconds, self._service.abort)
        await super().shutdown(sockets=sockets)

    def _failed(self, failure):
        self._service.fail(failure)
        self.should_exit = True


def _log(loop, context):
    """Logs what goes wrong in the event loop; that no connection can be taken, once in a while."""
    failure = context.get("exception")
    if isinstance(failure, OSError) and failure.errno in NO_DESCRIPTOR:
        message = "no new connection can be taken (%s); raise the limit with `ulimit -n`"
        logging.log_every_n_seconds(logging.ERROR, message, LOG_SECONDS, failure.strerror)
    else:
        loop.default_exception_handler(context)
