"""The page at `/`: one file, no build, and a policy under which it can ask nobody but this server."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from fastapi import APIRouter
from starlette.responses import HTMLResponse

from labeltune.serve.desk import Desk

POLICY = "; ".join(
    (
        "default-src 'none'",
        "connect-src 'self'",
        "img-src data:",
        "script-src 'unsafe-inline'",
        "style-src 'unsafe-inline'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)


def router(desk: Desk) -> APIRouter:
    """The route."""
    routes = APIRouter()

    @routes.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        return HTMLResponse(_page(), headers={"Content-Security-Policy": POLICY, "Referrer-Policy": "no-referrer"})

    return routes


@lru_cache(maxsize=1)
def _page() -> str:
    return (Path(__file__).parent / "page.html").read_text("utf-8")
