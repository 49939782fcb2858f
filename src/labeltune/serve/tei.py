"""text-embeddings-inference's `/predict`: here `["a", "b"]` is one pair, and `[["a"], ["b"]]` are two texts."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from labeltune.serve.desk import Desk
from labeltune.serve.hosted import Hosted
from labeltune.serve.refusals import Refusal
from labeltune.serve.replies import REFUSALS, Reply
from labeltune.serve.scores import ALL, class_names, ranked

Sequence = Annotated[list[str], Field(min_length=1, max_length=2)]
"""A text, or a pair of texts."""


class Asked(BaseModel):
    """One text, one pair, or a batch of texts or pairs."""

    inputs: str | Sequence | list[Sequence]
    raw_scores: bool = False
    """Logits instead of probabilities."""
    truncate: bool | None = False
    """Cut what one window does not hold; without it, a long text is read in windows, as the run was trained to."""
    truncation_direction: Literal["left", "right", "Left", "Right"] = "right"


class Scored(BaseModel):
    """A label and its score."""

    label: str
    score: float


Predicted = list[Scored] | list[list[Scored]]


def router(desk: Desk) -> APIRouter:
    """The routes: `/predict` where one run is served, `/tei/NAME/predict` for each of several."""
    routes = APIRouter(tags=["text-embeddings-inference"], responses=REFUSALS)

    @routes.post("/predict", response_model=Predicted)
    async def predict(asked: Asked, request: Request) -> Reply:
        """Labels with their scores, for the only run."""
        return Reply(await _predict(desk, request, desk.find(None), asked))

    @routes.post("/tei/{name}/predict", response_model=Predicted)
    async def predict_named(name: str, asked: Asked, request: Request) -> Reply:
        """Labels with their scores."""
        return Reply(await _predict(desk, request, desk.find(name), asked))

    @routes.get("/info")
    async def info() -> Reply:
        """The only run, as its clients expect to hear of it."""
        return Reply(_info(desk, desk.find(None)))

    @routes.get("/tei/{name}/info")
    async def info_named(name: str) -> Reply:
        """One run, as its clients expect to hear of it."""
        return Reply(_info(desk, desk.find(name)))

    return routes


async def _predict(desk: Desk, request: Request, hosted: Hosted, asked: Asked) -> list[Any]:
    class_names(hosted)
    if not asked.inputs:
        raise Refusal(422, "there is no text")
    if asked.truncation_direction.lower() == "left":
        raise Refusal(422, "a text is cut at its end only: leave truncation_direction out")
    batch = isinstance(asked.inputs, list) and isinstance(asked.inputs[0], list)
    sequences: Any = asked.inputs if batch else [asked.inputs]
    items = [_item(hosted, one) for one in sequences]
    answers = await desk.answers(request, hosted.name, items, ALL, truncate=bool(asked.truncate))
    found = [ranked(answer, "none" if asked.raw_scores else None) for answer in answers]
    return found if batch else found[0]


def _item(hosted: Hosted, texts: str | list[str]) -> str | dict[str, str]:
    """A text, or a pair as the two fields of the run's template."""
    if isinstance(texts, str):
        return texts
    if not texts:
        raise Refusal(422, "there is no text")
    if len(texts) == 1:
        return texts[0]
    if len(hosted.fields) != 2:
        raise Refusal(422, f"{hosted.name!r} reads no pairs (a template with two fields does); [[…], […]] is a batch")
    return dict(zip(hosted.fields, texts, strict=True))


def _info(desk: Desk, hosted: Hosted) -> dict[str, Any]:
    names = class_names(hosted)
    ids = {str(number): name for number, name in enumerate(names)}
    return {
        "model_id": hosted.name,
        "model_sha": None,
        "model_dtype": hosted.config.model.dtype,
        "model_type": {"classifier": {"id2label": ids, "label2id": {name: int(i) for i, name in ids.items()}}},
        "max_concurrent_requests": desk.config.max_pending,
        "max_input_length": hosted.encoder.max_tokens,
        "max_batch_tokens": desk.fleet.engine_of(hosted).budget,
        "max_client_batch_size": desk.config.max_texts,
    }
