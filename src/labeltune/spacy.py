"""A run as a pipe of spaCy: it sets `doc.ents` where it is a tagger, `doc.cats` where it judges texts.

    nlp = spacy.blank("en")
    nlp.add_pipe("labeltune", config={"run": "runs/names"})

Installed, it is found by its name; the run's folder stands in the pipeline's own configuration, so that `nlp.to_disk`
and `spacy.load` work while the folder stays where it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from spacy.language import Language
from spacy.tokens import Doc, SpanGroup
from spacy.util import filter_spans

from labeltune.answers import refuse_score
from labeltune.predict import Predictor, load
from labeltune.schema import Prediction, SpanPrediction

SPANS = "labeltune"
"""The group in `doc.spans` that holds the found spans with their scores, as spaCy's own span categoriser does."""


@Language.factory(
    "labeltune",
    default_config={"settings": {}, "min_score": None},
    assigns=["doc.ents", "doc.cats", "doc.spans"],
)
def make_pipe(
    nlp: Language, name: str, run: str, settings: Mapping[str, Any], min_score: float | None
) -> LabeltunePipe:
    """The pipe of the run in the folder `run`. settings: those that may differ from the training's."""
    return LabeltunePipe(load(run, settings=settings), min_score)


@dataclass(frozen=True)
class LabeltunePipe:
    """A predictor that writes its answers into documents. min_score: below it a span or a category is left out."""

    predictor: Predictor
    min_score: float | None = None

    def __post_init__(self) -> None:
        refuse_score(self.min_score)

    def __call__(self, doc: Doc) -> Doc:
        """The same document, answered."""
        return next(self.pipe([doc]))

    def pipe(self, stream: Iterable[Doc], batch_size: int = 256) -> Iterator[Doc]:
        """The documents in order, answered in batches; a text of white space alone is left as it is."""
        left = iter(stream)
        while docs := list(islice(left, batch_size)):
            told = [doc for doc in docs if doc.text.strip()]
            predictions = self.predictor.predict([doc.text for doc in told], min_score=self.min_score, scores=True)
            for doc, prediction in zip(told, predictions, strict=True):
                self._write(doc, prediction)
            yield from docs

    def _write(self, doc: Doc, prediction: Prediction) -> None:
        if prediction.spans is not None:
            _mark(doc, prediction.spans)
        elif prediction.scores is not None:
            least = self.min_score or 0.0
            doc.cats |= {name: score for name, score in prediction.scores.items() if score >= least}
        if prediction.value is not None:
            doc.cats["value"] = prediction.value


def _mark(doc: Doc, found: Sequence[SpanPrediction]) -> None:
    """Spans grow to the tokens of the document that they touch; of two that then overlap the longer one stays."""
    scores = {}
    for span in found:
        tokens = doc.char_span(span.start, span.end, label=span.label, alignment_mode="expand")
        if tokens is not None:
            scores[tokens] = span.score
    kept = filter_spans(scores)
    doc.ents = tuple(kept)
    doc.spans[SPANS] = SpanGroup(doc, name=SPANS, spans=kept, attrs={"scores": [scores[span] for span in kept]})
