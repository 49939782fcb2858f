"""Hugging Face's inference payloads, so that `huggingface_hub.InferenceClient("http://…/models/NAME")` works."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from labeltune.serve.desk import Desk
from labeltune.serve.hosted import Answer
from labeltune.serve.refusals import Refusal
from labeltune.serve.replies import REFUSALS, Reply
from labeltune.serve.runs import said
from labeltune.serve.scores import ALL, Apply, ranked


class Parameters(BaseModel):
    """What the two tasks may be told."""

    model_config = ConfigDict(extra="forbid")

    function_to_apply: Apply | None = None
    """Text classification: a function of the logits [the run's own, calibrated]."""
    top_k: Annotated[int, Field(ge=1)] | None = None
    """Text classification: so many labels [all]."""
    aggregation_strategy: Literal["none", "simple", "first", "average", "max"] | None = None
    """Token classification: the run decides on whole entities itself; `none` is refused."""
    ignore_labels: list[str] | None = None
    """Token classification: entities that are left out."""
    stride: Annotated[int, Field(ge=0)] | None = None
    """Token classification: taken and not used; the run has an overlap of its own."""


class Asked(BaseModel):
    """One text or several."""

    inputs: str | list[str]
    parameters: Parameters | None = None


class Entity(BaseModel):
    """A labelled range of characters."""

    entity_group: str
    score: float
    word: str
    start: int
    end: int


class Scored(BaseModel):
    """A label and its score."""

    label: str
    score: float


def router(desk: Desk) -> APIRouter:
    """The route; the run's task says which of the two forms the reply has."""
    routes = APIRouter(tags=["Hugging Face inference"], responses=REFUSALS)

    @routes.post("/models/{name}", response_model=list[list[Scored]] | list[Entity] | list[list[Entity]])
    async def infer(name: str, asked: Asked, request: Request) -> Reply:
        """`text-classification`: a list of labels for each text. `token-classification`: the entities."""
        hosted, parameters = desk.find(name), asked.parameters or Parameters()
        if hosted.task.targets == "units" and parameters.aggregation_strategy == "none":
            raise Refusal(422, "the run decides on whole entities: leave aggregation_strategy out")
        items = [asked.inputs] if isinstance(asked.inputs, str) else asked.inputs
        answers = await desk.answers(request, name, items, ALL)
        if answers[0].hosted.task.targets != "units":
            return Reply([ranked(one, parameters.function_to_apply)[: parameters.top_k] for one in answers])
        entities = [_entities(answer, parameters) for answer in answers]
        return Reply(entities[0] if isinstance(asked.inputs, str) else entities)

    return routes


def _entities(answer: Answer, parameters: Parameters) -> list[dict[str, Any]]:
    spans = said(answer)["spans"]
    left_out = set(parameters.ignore_labels or ())
    return [
        {
            name: span["label" if name == "entity_group" else "text" if name == "word" else name]
            for name in Entity.model_fields
        }
        for span in spans
        if span["label"] not in left_out
    ]
