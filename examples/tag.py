"""Train a tagger from CoNLL columns (a word and a tag a line) and mark what it finds in new text.

    python examples/tag.py --out runs/orders

Spans come back as characters of the text. For tagging, the causal mask is removed unless `model.unmask` says otherwise.
"""

import argparse
from pathlib import Path

import labeltune

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--out", required=True)
    options = parser.parse_args()

    run = labeltune.train(
        HERE / "orders.conll",
        model=options.model,
        out=options.out,
        dev=0.25,
        settings={"train.lr": 3e-3, "train.epochs": 4},
    )
    print(f"dev span F1 {run.metrics['dev']['span_f1']:.2f}; labels {', '.join(run.labels.names)}")

    text = "two coffees for the terrace"
    for span in labeltune.load(options.out).predict(text)[0].spans:
        print(f"{text[span.start : span.end]!r} is {span.label} ({span.score:.2f})")


if __name__ == "__main__":
    main()
