"""vLLM's and SGLang's `/classify`: `model` selects the run, and the reply has every class's probability in order."""

from __future__ import annotations

import time
import uuid
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel

from labeltune.serve.desk import Desk
from labeltune.serve.hosted import Answer, Hosted
from labeltune.serve.refusals import Refusal
from labeltune.serve.replies import REFUSALS, Reply
from labeltune.serve.scores import ALL, class_names, class_scores


class Asked(BaseModel):
    """One text or several."""

    model: str | None = None
    """The run; may be left out where one is served."""
    input: str | list[str]
    truncate_prompt_tokens: int | None = None
    """-1 or the run's window: cut what the window does not hold [long text is read in windows]."""
    use_activation: bool | None = None
    """False: logits instead of probabilities."""
    activation: bool | None = None
    """The older name of `use_activation`."""


class Classified(BaseModel):
    """One answer. probs: of the run's labels, in their order."""

    index: int
    label: str | None
    probs: list[float]
    num_classes: int


class Usage(BaseModel):
    """Tokens that were read."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int = 0
    prompt_tokens_details: None = None


class Reported(BaseModel):
    """The answers, in order."""

    id: str
    object: str = "list"
    created: int
    model: str
    data: list[Classified]
    usage: Usage


class Nested(BaseModel):
    """An error as OpenAI's clients expect it."""

    error: dict[str, Any]


def router(desk: Desk) -> APIRouter:
    """The routes."""
    nested: dict[int | str, dict[str, Any]] = {status: {**about, "model": Nested} for status, about in REFUSALS.items()}
    routes = APIRouter(tags=["vLLM and SGLang"])

    @routes.post("/classify", response_model=Reported, responses=nested)
    @routes.post("/v1/classify", response_model=Reported, responses=nested)
    async def classify(asked: Asked, request: Request) -> Reply:
        """The most probable class of each text, and the probabilities of all."""
        hosted = desk.find(asked.model)
        class_names(hosted)
        items = [asked.input] if isinstance(asked.input, str) else asked.input
        cut = _cut(hosted, asked.truncate_prompt_tokens)
        answers = await desk.answers(request, hosted.name, items, ALL, truncate=cut)
        raw = asked.use_activation is False or asked.activation is False
        data = [_one(index, answer, raw) for index, answer in enumerate(answers)]
        return Reply(_report(hosted, data, sum(answer.tokens for answer in answers)))

    @routes.get("/v1/models", responses=REFUSALS)
    async def models() -> Reply:
        """The runs, as OpenAI's clients list models."""
        listed = [
            {"id": one.name, "object": "model", "owned_by": "labeltune", "max_model_len": one.encoder.max_tokens}
            for one in desk.fleet.hosted
        ]
        return Reply({"object": "list", "data": listed})

    return routes


def _cut(hosted: Hosted, tokens: int | None) -> bool:
    window = hosted.encoder.max_tokens
    if tokens is not None and not (tokens == -1 or tokens >= window):
        raise Refusal(
            422, f"truncate_prompt_tokens: a text is cut to the run's window of {window} tokens, or not at all"
        )
    return tokens is not None


def _one(index: int, answer: Answer, raw: bool) -> dict[str, Any]:
    names, probs = class_names(answer.hosted), class_scores(answer, "none" if raw else None)
    label = answer.prediction.label or names[max(range(len(probs)), key=probs.__getitem__)]
    return {"index": index, "label": label, "probs": probs, "num_classes": len(names)}


def _report(hosted: Hosted, data: list[dict[str, Any]], tokens: int) -> dict[str, Any]:
    usage = {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0, "prompt_tokens_details": None}
    return {
        "id": f"classify-{uuid.uuid4().hex}",
        "object": "list",
        "created": int(time.time()),
        "model": hosted.name,
        "data": data,
        "usage": usage,
    }
