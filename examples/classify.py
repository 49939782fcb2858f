"""Train a classifier from a CSV file and look at what it says.

    python examples/classify.py --out runs/requests

Twenty-four rows teach little: this shows the calls. `--model` takes any decoder in Hugging Face format.
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
        HERE / "requests.csv",
        model=options.model,
        out=options.out,
        dev=0.25,  # a quarter of the rows chooses the weights
        settings={"data.text": "request", "data.label": "team", "train.lr": 3e-3, "train.epochs": 4},
    )
    print(f"dev accuracy {run.metrics['dev']['accuracy']:.2f}; labels {', '.join(run.labels.names)}")

    predictor = labeltune.load(options.out)
    for answer in predictor.predict(["water runs down the wall", "the lamp is broken"]):
        print(f"{answer.label}  {answer.score:.2f}")


if __name__ == "__main__":
    main()
