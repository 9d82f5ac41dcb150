"""The whole server: HTTP, the engine's thread, and the end of both."""

import asyncio

import uvicorn

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
    """

    def __init__(self, app, service, thread, *, stop_seconds):
        config = uvicorn.Config(
            app,
            lifespan="off",
            ws="none",
            access_log=False,
            log_config=None,
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
        self._thread.start(asyncio.get_running_loop(), self._failed)
        try:
            await self.serve(sockets=sockets)
        finally:
            await asyncio.to_thread(self._thread.stop)

    async def shutdown(self, sockets=None):
        self._service.close()
        asyncio.get_running_loop().call_later(self._stop_seconds, self._service.abort)
        await super().shutdown(sockets=sockets)

    def _failed(self, failure):
        self._service.fail(failure)
        self.should_exit = True
