"""KServe's v2 protocol (Open Inference): a run is a model with tensors of texts in, labels and scores out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.metadata import version
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field, ValidationError
from starlette.responses import Response

from labeltune.answers import Wish
from labeltune.serve.desk import Desk
from labeltune.serve.hosted import Answer, Hosted
from labeltune.serve.refusals import Refusal
from labeltune.serve.replies import REFUSALS, Reply
from labeltune.serve.runs import said
from labeltune.serve.tensors import LENGTH, Input, Output, Parameters, texts_of


class Wanted(BaseModel):
    """A tensor of the reply that is asked for."""

    name: str
    parameters: Parameters | None = None


class Asked(BaseModel):
    """A request: one tensor for each field that the run reads."""

    id: str | None = None
    parameters: Parameters | None = None
    inputs: Annotated[list[Input], Field(min_length=1)]
    outputs: list[Wanted] | None = None


SCHEMA: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": Asked.model_json_schema(ref_template="#/components/schemas/{model}")}
        },
    }
}


def router(desk: Desk) -> APIRouter:
    """The routes."""
    routes = APIRouter(prefix="/v2", tags=["KServe v2"], responses=REFUSALS)

    @routes.get("")
    async def server() -> Reply:
        """The server."""
        return Reply({"name": "labeltune", "version": version("labeltune"), "extensions": ["binary_tensor_data"]})

    @routes.get("/health/live", response_class=Response)
    async def live() -> Response:
        """Whether the server lives."""
        return Response()

    @routes.get("/health/ready", response_class=Response)
    async def ready() -> Response:
        """Whether the server answers."""
        desk.refuse_unready()
        return Response()

    @routes.get("/models/{name}")
    @routes.get("/models/{name}/versions/{_version}", include_in_schema=False)
    async def model(name: str) -> Reply:
        """A run's tensors."""
        return Reply(_about(desk.find(name)))

    @routes.get("/models/{name}/ready", response_class=Response)
    @routes.get("/models/{name}/versions/{_version}/ready", include_in_schema=False)
    async def model_ready(name: str) -> Response:
        """Whether a run answers."""
        desk.refuse_unready()
        desk.find(name)
        return Response()

    @routes.post("/models/{name}/infer", openapi_extra=SCHEMA)
    @routes.post("/models/{name}/versions/{_version}/infer", include_in_schema=False)
    async def infer(name: str, request: Request) -> Response:
        """Labels for tensors of texts; bytes behind the JSON where the client sends or wants them."""
        hosted = desk.find(name)
        asked, behind = _parsed(await request.body(), request.headers.get(LENGTH))
        items = _items(hosted, asked, behind)
        wish = Wish(asked.parameters.min_score if asked.parameters else None, True)
        answers = await desk.answers(request, name, items, wish)
        return _reply(hosted, asked, _outputs(answers[0].hosted, answers))

    return routes


# In


def _parsed(body: bytes, length: str | None) -> tuple[Asked, bytes]:
    if length is not None and not (length.isdecimal() and int(length) <= len(body)):
        raise Refusal(400, f"{LENGTH} is no number of bytes that the body has")
    end = len(body) if length is None else int(length)
    try:
        return Asked.model_validate_json(body[:end]), body[end:]
    except ValidationError as error:
        faults = error.errors(include_input=False, include_url=False)
        raise RequestValidationError([{**fault, "loc": ("body", *fault["loc"])} for fault in faults]) from None


def _items(hosted: Hosted, asked: Asked, behind: bytes) -> list[str] | list[dict[str, str]]:
    columns: dict[str, list[str]] = {}
    for tensor in asked.inputs:
        columns[tensor.name], behind = texts_of(tensor, behind)
    if set(columns) != set(hosted.fields) or len(asked.inputs) != len(columns):
        raise Refusal(400, f"the inputs of {hosted.name!r} are {', '.join(hosted.fields)}")
    if len({len(texts) for texts in columns.values()}) > 1:
        raise Refusal(400, "the inputs are not of one length")
    if len(hosted.fields) == 1:
        return columns[hosted.fields[0]]
    return [dict(zip(columns, texts, strict=True)) for texts in zip(*columns.values(), strict=True)]


# Out


def _outputs(hosted: Hosted, answers: Sequence[Answer]) -> list[Output]:
    count, predictions = len(answers), [answer.prediction for answer in answers]
    if hosted.task.targets == "units":
        spans = [json.dumps(said(answer)["spans"], ensure_ascii=False) for answer in answers]
        return [Output("spans", spans, [count])]
    if hosted.config.task == "regression":
        return [Output("value", np.array([p.value for p in predictions], np.float32), [count])]
    rows = [list((p.scores or {}).values()) for p in predictions]
    scores = Output("scores", np.array(rows, np.float32), [count, len(hosted.labels)])
    if hosted.config.task == "multilabel":
        return [Output("labels", [json.dumps(p.labels, ensure_ascii=False) for p in predictions], [count]), scores]
    labels = Output("label", [p.label or "" for p in predictions], [count])
    return [labels, Output("score", np.array([p.score for p in predictions], np.float32), [count]), scores]


def _reply(hosted: Hosted, asked: Asked, outputs: list[Output]) -> Response:
    found = {output.name: output for output in outputs}
    every = bool(asked.parameters and asked.parameters.binary_data_output)
    wanted = asked.outputs or [Wanted(name=name) for name in found]
    heads, raws = [], []
    for one in wanted:
        if one.name not in found:
            raise Refusal(400, f"the outputs of {hosted.name!r} are {', '.join(found)}")
        own = one.parameters.binary_data if one.parameters else None
        if every if own is None else own:
            head, raw = found[one.name].binary()
            heads.append(head)
            raws.append(raw)
        else:
            heads.append(found[one.name].plain())
    named = {"id": asked.id} if asked.id is not None else {}
    reply = Reply({"model_name": hosted.name, "model_version": "1", **named, "outputs": heads})
    if not raws:
        return reply
    first = bytes(reply.body)
    headers = {LENGTH: str(len(first)), "content-type": "application/octet-stream"}
    return Response(first + b"".join(raws), headers=headers)


def _about(hosted: Hosted) -> dict[str, Any]:
    outputs = [output.head() for output in _outputs(hosted, ())]
    for output in outputs:
        output["shape"] = [-1, *output["shape"][1:]]
    return {
        "name": hosted.name,
        "versions": ["1"],
        "platform": "labeltune",
        "inputs": [{"name": field, "datatype": "BYTES", "shape": [-1]} for field in hosted.fields],
        "outputs": outputs,
    }
