"""Use a run from Python: answers, all scores, and abstention below a score.

python examples/answer.py runs/requests "the lift is stuck"
"""

import sys

import labeltune


def main() -> None:
    folder, *texts = sys.argv[1:]
    predictor = labeltune.load(folder)
    for text, answer in zip(texts, predictor.predict(texts, min_score=0.5, scores=True), strict=True):
        if answer.spans is not None:  # a tagger
            print(text, [(span.text, span.label) for span in answer.spans])
            continue
        label = answer.label or "(not sure)"
        print(text, label, {name: round(score, 2) for name, score in answer.scores.items()})


if __name__ == "__main__":
    main()
