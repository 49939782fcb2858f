"""Each wire form with a client of its protocol: unmodified, and the same answers as offline."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import InferenceClient
from scipy.special import softmax

import labeltune
from labeltune.schema import Prediction

from .conftest import Running, sentences

TEXTS = sentences(7)


def offline(run: Path, rows: list[Any]) -> list[Prediction]:
    return labeltune.load(run).predict(rows, scores=True)


def close(value: float) -> Any:
    return pytest.approx(value, abs=2e-5)


def ranked(prediction: Prediction) -> list[dict[str, Any]]:
    pairs = sorted((prediction.scores or {}).items(), key=lambda pair: -pair[1])
    return [{"label": label, "score": close(score)} for label, score in pairs]


def post(served: Running, path: str, asked: Any) -> Any:
    reply = served.client.post(path, json=asked)
    assert reply.status_code == 200, reply.text
    return reply.json()


# text-embeddings-inference


def test_tei_tells_a_text_a_batch_and_a_pair_apart(served: Running, runs: dict[str, Path]) -> None:
    expected = [ranked(one) for one in offline(runs["moods"], TEXTS)]
    assert post(served, "/tei/moods/predict", {"inputs": TEXTS[0]}) == expected[0]
    assert post(served, "/tei/moods/predict", {"inputs": [TEXTS[0]]}) == expected[0]
    assert post(served, "/tei/moods/predict", {"inputs": [[text] for text in TEXTS]}) == expected
    pair = {"one": TEXTS[0], "two": TEXTS[1]}
    expected = [ranked(one) for one in offline(runs["classification"], [pair])]
    assert post(served, "/tei/classification/predict", {"inputs": TEXTS[:2]}) == expected[0]
    assert post(served, "/tei/classification/predict", {"inputs": [TEXTS[:2]]}) == expected
    refused = served.client.post("/tei/moods/predict", json={"inputs": TEXTS[:2]})
    assert refused.status_code == 422
    assert "pairs" in refused.json()["error"]


@pytest.mark.parametrize("inputs", [[], [[]], ""])
@pytest.mark.parametrize("run", ["moods", "classification"])
def test_tei_without_a_text_is_the_clients_fault(served: Running, run: str, inputs: object) -> None:
    reply = served.client.post(f"/tei/{run}/predict", json={"inputs": inputs})
    assert reply.status_code == 422 and reply.json()["error"]


def test_tei_gives_logits_and_cuts_where_asked(served: Running, runs: dict[str, Path]) -> None:
    raw = post(served, "/tei/moods/predict", {"inputs": TEXTS[0], "raw_scores": True})
    (said,) = offline(runs["moods"], TEXTS[:1])
    temperature = labeltune.load(runs["moods"]).labeller.calibration.temperature
    logits = {one["label"]: one["score"] for one in raw}
    assert said.scores is not None
    names = list(said.scores)
    assert softmax([logits[name] / temperature for name in names]) == close(list(said.scores.values()))
    cut = labeltune.load(runs["moods"], settings={"data.long": "truncate"}).predict(TEXTS[-1:], scores=True)
    assert post(served, "/tei/moods/predict", {"inputs": TEXTS[-1], "truncate": True}) == ranked(cut[0])


def test_tei_answers_at_the_root_where_one_run_is_served(served: Running) -> None:
    several = served.client.post("/predict", json={"inputs": "a"})
    assert several.status_code == 422
    assert "moods" in several.json()["error"]
    assert served.client.get("/tei/moods/info").json()["model_type"]["classifier"]["id2label"]["0"] == "calm"


# Hugging Face


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client counts a server on this machine as the network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


@pytest.mark.usefixtures("online")
def test_inference_client_classifies_texts(served: Running, runs: dict[str, Path]) -> None:
    client = InferenceClient(f"{served.url}/models/moods")
    for text, said in zip(TEXTS, offline(runs["moods"], TEXTS), strict=True):
        got = client.text_classification(text)
        assert [{"label": one.label, "score": one.score} for one in got] == ranked(said)
    assert len(client.text_classification("a", top_k=1)) == 1
    scores = [one.score for one in client.text_classification("a", function_to_apply="sigmoid")]
    assert sum(scores) != pytest.approx(1, abs=1e-6)


@pytest.mark.usefixtures("online")
def test_inference_client_finds_entities(served: Running, runs: dict[str, Path]) -> None:
    client = InferenceClient(f"{served.url}/models/names")
    found = 0
    for text, said in zip(TEXTS, offline(runs["names"], TEXTS), strict=True):
        got = client.token_classification(text, aggregation_strategy="simple")
        assert [(one.start, one.end, one.entity_group, one.word) for one in got] == [
            (span.start, span.end, span.label, span.text) for span in said.spans or ()
        ]
        assert [one.score for one in got] == close([span.score for span in said.spans or ()])
        found += len(got)
        left_out = client.token_classification(text, ignore_labels=["PER", "LOC"])
        assert not left_out
    assert found, "the tagger must find something, or nothing is compared"


# KServe v2


@pytest.fixture
def triton(served: Running) -> Any:
    http = pytest.importorskip("tritonclient.http")
    with http.InferenceServerClient(served.url.removeprefix("http://")) as client:
        yield client


@pytest.mark.parametrize("binary", [False, True], ids=["json", "binary"])
def test_tritonclient_infers(triton: Any, runs: dict[str, Path], binary: bool) -> None:
    import tritonclient.http as http

    assert triton.is_server_live()
    assert triton.is_server_ready()
    assert triton.is_model_ready("moods")
    assert triton.get_model_metadata("moods")["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": [-1]}]
    tensor = http.InferInput("text", [len(TEXTS), 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[text.encode()] for text in TEXTS], object), binary_data=binary)
    outputs = [http.InferRequestedOutput(name, binary_data=binary) for name in ("label", "scores")]
    said = offline(runs["moods"], TEXTS)
    for wanted in (outputs, None):
        got = triton.infer("moods", [tensor], outputs=wanted, request_id="7")
        labels = [one.decode() if isinstance(one, bytes) else one for one in got.as_numpy("label")]
        assert labels == [one.label for one in said]
        assert got.as_numpy("scores") == close(np.array([list((one.scores or {}).values()) for one in said]))
        assert got.get_response()["id"] == "7"


def test_every_task_has_tensors(triton: Any, runs: dict[str, Path]) -> None:
    import tritonclient.http as http

    wanted = {"multilabel": "scores", "regression": "value", "ordinal": "label", "names": "spans", "moods": "score"}
    for name, output in wanted.items():
        tensor = http.InferInput("text", [2], "BYTES")
        tensor.set_data_from_numpy(np.array(TEXTS[:2], object))
        got = triton.infer(name, [tensor]).as_numpy(output)
        assert len(got) == 2
        assert output in [one["name"] for one in triton.get_model_metadata(name)["outputs"]]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": "words"}, "inputs of 'moods' are text"),
        ({"datatype": "FP32"}, "BYTES"),
        ({"shape": [3]}, "shape"),
        ({"data": [1]}, "texts"),
        ({"parameters": {"binary_data_size": 9}}, "bytes are left"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(served: Running, change: dict[str, Any], said: str) -> None:
    tensor = {"name": "text", "datatype": "BYTES", "shape": [1], "data": ["a"]} | change
    reply = served.client.post("/v2/models/moods/infer", json={"inputs": [tensor]})
    assert reply.status_code == 400
    assert said in reply.json()["error"]


def test_outputs_are_bytes_where_the_request_or_they_themselves_ask_for_it(served: Running) -> None:
    tensor = {"name": "text", "datatype": "BYTES", "shape": [1], "data": ["a"]}
    for every, own, raw in ((True, None, True), (True, False, False), (False, True, True), (None, None, False)):
        parameters = {} if own is None else {"parameters": {"binary_data": own}}
        asked = {"inputs": [tensor], "outputs": [{"name": "label", **parameters}]}
        asked |= {} if every is None else {"parameters": {"binary_data_output": every}}
        reply = served.client.post("/v2/models/moods/infer", json=asked)
        assert reply.status_code == 200 and ("inference-header-content-length" in reply.headers) is raw


# vLLM and SGLang


@pytest.mark.parametrize("path", ["/classify", "/v1/classify"])
def test_classify_selects_the_run_by_model(served: Running, runs: dict[str, Path], path: str) -> None:
    said = offline(runs["moods"], TEXTS)
    got = post(served, path, {"model": "moods", "input": TEXTS})
    assert [one["label"] for one in got["data"]] == [one.label for one in said]
    assert [one["probs"] for one in got["data"]] == [close(list((one.scores or {}).values())) for one in said]
    assert got["data"][0]["num_classes"] == 3
    assert got["usage"]["prompt_tokens"] == got["usage"]["total_tokens"] > len(TEXTS)
    (value,) = post(served, path, {"model": "regression", "input": TEXTS[0]})["data"]
    assert value["probs"] == close([offline(runs["regression"], TEXTS[:1])[0].value])
    refused = served.client.post(path, json={"model": "nobody", "input": "a"})
    assert refused.status_code == refused.json()["error"]["code"] == 404
    assert "moods" in [one["id"] for one in served.client.get("/v1/models").json()["data"]]
