"""labeltune's own form: `/runs`, with all that a run can say."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from labeltune.answers import Wish, answer_fields, read_text
from labeltune.schema import Prediction, in_column
from labeltune.serve.desk import ADMIN_SCOPE, Desk
from labeltune.serve.hosted import Answer, Hosted
from labeltune.serve.refusals import Refusal
from labeltune.serve.replies import REFUSALS, Refused, Reply

ADMIN: dict[int | str, dict[str, Any]] = {403: {"model": Refused, "description": "not an admin's key"}}


class Asked(BaseModel):
    """Texts, or rows with the columns of the training data."""

    model_config = ConfigDict(extra="forbid")

    texts: list[str] | str | None = None
    rows: list[dict[str, Any]] | None = None
    scores: bool = False
    """Give every label's probability."""
    min_score: Annotated[float, Field(ge=0, le=1)] | None = None
    """Below it the model abstains: the label is null, a span is left out."""


class Span(BaseModel):
    """Characters `start:end` of the text."""

    start: int
    end: int
    label: str
    score: float
    text: str


class Said(BaseModel):
    """One answer; which fields it has depends on the task."""

    label: str | None = None
    score: float | None = None
    labels: list[str] | None = None
    scores: dict[str, float] | None = None
    value: float | None = None
    spans: list[Span] | None = None
    text: str | None = None
    """The text that spans count in, where it was put together from tokens."""


class Predicted(BaseModel):
    """The answers, in order."""

    predictions: list[Said]


class About(BaseModel):
    """A run that is served."""

    name: str
    task: str
    labels: list[str]
    fields: list[str]
    """What a row holds; a run with one field takes plain texts."""
    column: str
    """Where the training data had the text."""
    backbone: str
    max_tokens: int
    """Of one window."""
    long: str
    """What becomes of longer text: `window`, `truncate` or `error`."""


class Loaded(BaseModel):
    """Where a run lies on the server's machine."""

    folder: str


class Listed(BaseModel):
    """All runs."""

    runs: list[About]


def router(desk: Desk) -> APIRouter:
    """The routes."""
    routes = APIRouter(tags=["labeltune"], responses=REFUSALS)

    @routes.get("/runs", response_model=Listed)
    async def list_runs() -> Reply:
        """The runs that are served."""
        return Reply({"runs": [about(hosted) for hosted in desk.fleet.hosted]})

    @routes.get("/runs/{name}", response_model=About)
    async def show_run(name: str) -> Reply:
        """One run: its task, labels and backbone."""
        return Reply(about(desk.find(name)))

    @routes.post("/runs/{name}/predict", response_model=Predicted)
    async def predict(name: str, asked: Asked, request: Request) -> Reply:
        """Label texts or rows; the same answers as `labeltune predict`, each text by itself."""
        wish = Wish(asked.min_score, asked.scores)
        answers = await desk.answers(request, name, _items(asked), wish)
        return Reply({"predictions": [said(answer) for answer in answers]})

    @routes.put("/runs/{name}", response_model=About, responses=ADMIN)
    async def load(name: str, asked: Loaded, request: Request) -> Reply:
        """Load a run folder under this name, or load it anew; what it was asked before is answered by the old one."""
        _refuse_others(request)
        return Reply(about(await desk.load(name, asked.folder)))

    @routes.delete("/runs/{name}", status_code=204, responses=ADMIN)
    async def unload(name: str, request: Request) -> Response:
        """Take a run out, once what it was asked is answered."""
        _refuse_others(request)
        await desk.unload(name)
        return Response(status_code=204)

    return routes


def _refuse_others(request: Request) -> None:
    if not request.scope.get(ADMIN_SCOPE):
        raise Refusal(403, "runs are loaded and unloaded with an admin's key alone")


def about(hosted: Hosted) -> dict[str, Any]:
    """What anybody may know of a run."""
    data = hosted.config.data
    return {
        "name": hosted.name,
        "task": hosted.config.task,
        "labels": list(hosted.labels.names),
        "fields": list(hosted.fields),
        "column": data.text or "text",
        "backbone": str(hosted.config.model.name).rstrip("/").rpartition("/")[2],
        "max_tokens": hosted.encoder.max_tokens,
        "long": data.long,
    }


def said(answer: Answer) -> dict[str, Any]:
    """The answer as `labeltune predict` writes it."""
    prediction: Prediction = in_column(answer.example, answer.prediction)
    fields = answer_fields(prediction)
    if prediction.spans is not None and (text := read_text(answer.example)) not in answer.example.fields.values():
        fields["text"] = text
    return fields


def _items(asked: Asked) -> list[str] | list[dict[str, Any]]:
    if (asked.texts is None) == (asked.rows is None):
        raise Refusal(422, "give either texts or rows")
    if asked.rows is not None:
        return asked.rows
    return [asked.texts] if isinstance(asked.texts, str) else list(asked.texts or ())
