"""The HTTP side: routes, access, and streaming."""

import asyncio
import contextlib
import hmac

from starlette import applications, exceptions, requests, responses, routing

from experiments.running import addresses
from experiments.serving import answers, errors, monitoring, protocol
from experiments.serving.framing import MAX_BODY_BYTES

GONE = 499  # unread: the client has left
OPEN_PATHS = ("/health",)  # need no key
STREAM_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}


class Json(responses.JSONResponse):
    def render(self, content):
        return answers.to_json(content)


def make(service, *, api_key, created, facts):
    """Builds the ASGI application.

    Args:
      service: `service.Service`.
      api_key: None, or what clients must send as a bearer token.
      created: Unix seconds that /v1/models reports.
      facts: further fields of the model that it reports.
    """
    routes = Routes(service, created, facts)
    app = applications.Starlette(
        routes=[
            routing.Route("/v1/chat/completions", routes.chat, methods=["POST"]),
            routing.Route("/v1/completions", routes.completions, methods=["POST"]),
            routing.Route("/v1/models", routes.models),
            routing.Route("/v1/models/{name:path}", routes.model),
            routing.Route("/health", routes.health),
            routing.Route("/metrics", routes.metrics),
        ],
        exception_handlers={
            errors.ApiError: _api_error,
            exceptions.HTTPException: _http_error,
            requests.ClientDisconnect: _gone,
            Exception: _defect,
        },
    )
    app.router.redirect_slashes = False
    paths = {route.path for route in app.routes}
    return Gate(app, service.monitor, paths, api_key)


class Routes:
    """The handlers."""

    def __init__(self, service, created, facts):
        self._service = service
        self._model = {
            "id": service.model,
            "object": "model",
            "created": created,
            "owned_by": "flow_grpo_jax",
            **facts,
        }

    async def chat(self, request):
        return await self._generate(request, self._service.parser.chat)

    async def completions(self, request):
        return await self._generate(request, self._service.parser.completion)

    async def models(self, request):
        return Json({"object": "list", "data": [self._model]})

    async def model(self, request):
        self._check_model(request.path_params["name"])
        return Json(self._model)

    async def health(self, request):
        if self._service.ready:
            return Json({"status": "ok"})
        return Json({"status": "failed" if self._service.failure else "stopping"}, 503)

    async def metrics(self, request):
        headers = {"content-type": monitoring.CONTENT_TYPE}
        return responses.Response(self._service.metrics(), headers=headers)

    def _check_model(self, name):
        if name != self._service.model:
            raise errors.ApiError(
                404,
                f"There is no model {errors.shown(name)} here; this server has "
                f"{self._service.model!r}.",
                param="model",
                code="model_not_found",
            )

    async def _generate(self, request, parse):
        body = await asyncio.to_thread(protocol.from_json, await _body(request))
        if isinstance(body, dict) and body.get("model") is not None:
            self._check_model(body["model"])
        ask = await asyncio.to_thread(parse, body)  # a long prompt takes a while to tokenize
        work = await self._service.open(ask)
        if ask.stream:
            return EventStream(self._events(ask, work), work.close)
        try:
            return await _unless_gone(request.receive, self._whole(ask, work))
        finally:
            work.close()

    async def _whole(self, ask, work):
        choices = self._service.choices(ask)
        found = [None] * len(choices)
        async for index, update in work:
            found[index] = choices[index].take(update)
        return Json(self._service.answer(ask).whole(found, answers.usage(ask, choices)))

    async def _events(self, ask, work):
        """The data of each event of a stream."""
        answer, choices = self._service.answer(ask), self._service.choices(ask)
        more = {"usage": None} if ask.include_usage else {}
        try:
            for index in range(len(choices)):
                opening = answer.opening(index)
                if opening is not None:
                    yield answer.chunk([opening], **more)
            async for index, update in work:
                new, entries, finish = choices[index].take(update)
                if new or entries or finish:
                    yield answer.chunk([answer.piece(index, new, entries, finish)], **more)
            if ask.include_usage:
                yield answer.chunk([], usage=answers.usage(ask, choices))
        except errors.ApiError as error:
            yield error.body


class EventStream(responses.Response):
    """Server-sent events, until the end or until the client has gone; `close` is called after."""

    media_type = "text/event-stream"

    def __init__(self, events, close):
        super().__init__(headers=STREAM_HEADERS)
        del self.headers["content-length"]
        self._events, self._close = events, close

    async def __call__(self, scope, receive, send):
        try:
            await _unless_gone(receive, self._send_all(send))
        finally:
            self._close()

    async def _send_all(self, send):
        async def write(data, more=True):
            await send({"type": "http.response.body", "body": data, "more_body": more})

        headers = self.raw_headers
        await send({"type": "http.response.start", "status": self.status_code, "headers": headers})
        async with contextlib.aclosing(self._events) as events:
            async for event in events:
                await write(b"data: " + answers.to_json(event) + b"\n\n")
        await write(b"data: [DONE]\n\n")
        await write(b"", more=False)


class Gate:
    """ASGI middleware: checks access and counts answers.

    Without a key, only requests to a local name are answered: a page in a browser on this machine
    could otherwise reach the server by letting its own name point here.
    """

    def __init__(self, app, monitor, paths, api_key):
        self._app, self._monitor, self._paths = app, monitor, paths
        self._api_key = None if api_key is None else api_key.encode()

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"] if scope["path"] in self._paths else "other"

        async def counted(message):
            if message["type"] == "http.response.start":
                self._monitor.count(message["status"], path)
            await send(message)

        error = self._refusal(requests.Request(scope))
        app = self._app if error is None else _api_error(None, error)
        await app(scope, receive, counted)

    def _refusal(self, request):
        """Returns the ApiError for a client that may not ask, or None."""
        if request.scope["path"] in OPEN_PATHS:
            return None
        if self._api_key is None:
            host = request.headers.get("host", "")
            if addresses.names_this_machine(host):
                return None
            return errors.ApiError(
                403,
                "This server has no API key and answers to local names only, not to "
                f"{errors.shown(host)}.",
                code="host_not_allowed",
            )
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        known = hmac.compare_digest(key.strip().encode("latin-1"), self._api_key)
        if scheme.lower() == "bearer" and known:
            return None
        return errors.ApiError(
            401,
            "The API key is missing or wrong; send it as `Authorization: Bearer KEY`.",
            code="invalid_api_key",
            headers={"www-authenticate": "Bearer"},
        )


async def _body(request):
    """The body of a request. A page of another site cannot send this content type unasked."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise errors.ApiError(415, "Send the body as content-type: application/json.")
    body, size = bytearray(), 0
    async for part in request.stream():  # to its end: many clients read no answer before that
        size += len(part)
        if size <= MAX_BODY_BYTES:
            body += part
    if size > MAX_BODY_BYTES:
        raise errors.ApiError(413, f"The body exceeds {MAX_BODY_BYTES} bytes.")
    return bytes(body)


async def _unless_gone(receive, work):
    """The result of a coroutine, which is cancelled if the client leaves before."""

    async def gone():
        while (await receive())["type"] != "http.disconnect":
            pass

    job, leaving = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait((job, leaving), return_when=asyncio.FIRST_COMPLETED)
        return job.result() if job.done() else responses.Response(status_code=GONE)
    finally:
        job.cancel()
        leaving.cancel()
        await asyncio.gather(job, leaving, return_exceptions=True)


def _api_error(request, error):
    return Json(error.body, error.status, headers=error.headers)


def _http_error(request, error):
    """Answers errors of the router: no such path, or another method."""
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code)
    path = errors.shown(request.scope["path"])  # request.url fails with a wrong host
    message = f"{error.detail}: {errors.shown(request.method)} {path}."
    return _api_error(
        request, errors.ApiError(error.status_code, message, code=code, headers=error.headers)
    )


def _gone(request, error):
    return responses.Response(status_code=GONE)


def _defect(request, error):
    """Answers for a defect, whose traceback the server logs."""
    return _api_error(request, errors.ApiError(500, "The server has failed on this request."))
