"""The application: every wire form on one desk, health for those who watch, and errors that are always JSON."""

from __future__ import annotations

from importlib.metadata import version

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from labeltune.serve import classify, huggingface, kserve, page, runs, tei
from labeltune.serve.desk import Desk, Gone
from labeltune.serve.measures import CONTENT_TYPE, Measures
from labeltune.serve.refusals import Refusal, body
from labeltune.serve.replies import Reply

FORMS = (runs, tei, huggingface, kserve, classify, page)
"""Each with `router(desk)`."""


def make_app(desk: Desk, measures: Measures) -> FastAPI:
    """The routes without keys and limits of bodies, which `guard` puts around them."""
    app = FastAPI(
        title="labeltune",
        version=version("labeltune"),
        description="Classifiers and taggers on shared backbones.",
        docs_url=None,  # its page loads scripts from elsewhere
        redoc_url=None,
    )
    for form in FORMS:
        app.include_router(form.router(desk))
    _watch(app, desk, measures)
    app.add_exception_handler(Refusal, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Gone, _gone)
    app.add_exception_handler(Exception, _broken)
    return app


def _watch(app: FastAPI, desk: Desk, measures: Measures) -> None:
    @app.get("/health", tags=["health"])
    async def health() -> Reply:
        """Whether the server lives."""
        return Reply({"status": "ok"})

    @app.get("/ready", tags=["health"], responses={503: {"description": "loading, or about to stop"}})
    async def ready() -> Reply:
        """Whether it answers; 503 while it is loading or about to stop."""
        return Reply({"status": desk.state}, 200 if desk.state == "ready" else 503)

    @app.get("/metrics", tags=["health"], response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Counters and histograms for Prometheus."""
        return PlainTextResponse(measures.render(), headers={"content-type": CONTENT_TYPE})


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return Reply(body(request.url.path, error), error.status, dict(error.headers))


async def _invalid(request: Request, error: Exception) -> Response:
    """The first fault, by place; what was sent is not repeated."""
    assert isinstance(error, RequestValidationError)
    fault = error.errors()[0]
    place = ".".join(str(part)[:50] for part in fault["loc"][1:]) or "the body"
    broken = fault["type"] == "json_invalid"
    return await _refused(request, Refusal(400 if broken else 422, f"{place}: {fault['msg'][:200]}"))


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return await _refused(request, Refusal(error.status_code, str(error.detail), dict(error.headers or {})))


async def _broken(request: Request, error: Exception) -> Response:
    """A fault of ours: the log has its traceback."""
    return Reply(body(request.url.path, Refusal(500, "the server failed; its log says how")), 500)


async def _gone(request: Request, error: Exception) -> Response:
    """Nobody reads it; 499 is what others log for a client that closed the connection."""
    return Response(status_code=499)
