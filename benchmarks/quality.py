"""How well predicted Dice agrees with true Dice, on cases that no fold has seen.

    python benchmarks/quality.py 027 --images "$samunet_raw/Dataset027_ACDC/imagesTs" \\
        --labels "$samunet_raw/Dataset027_ACDC/labelsTs" --output preds027

predicts the images with ``--save_uncertainty`` by a trained model (folds whose validation wrote ``calibration.json``),
scores them, and prints, over cases and for every class:

* rank correlation (Spearman) of predicted and true Dice, with its 95 % interval from 2000 bootstrap samples of cases;
* mean error: of predicted Dice, in Dice;
* of the worst fifth of the cases by true Dice, the share that is among the worst fifth by predicted Dice;
* of the same cases, the share that quality.csv marks to look at, and how many cases it marks.

Masks that are in ``--output`` already are kept. Without ``--images`` and ``--labels`` the dataset's imagesTs and
labelsTs are taken.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from samunet import api, paths
from samunet.dataset.layout import find_dataset
from samunet.errors import SamunetError
from samunet.imageio.registry import ending_of

_SAMPLES = 2000


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", help="a dataset with a trained model: 27, 027 or Dataset027_ACDC")
    parser.add_argument("--images", type=Path, help="images to predict (default: the dataset's imagesTs)")
    parser.add_argument("--labels", type=Path, help="their references (default: the dataset's labelsTs)")
    parser.add_argument("--output", type=Path, required=True, help="folder for the masks")
    parser.add_argument("--configuration", default="2d")
    parser.add_argument("--folds", nargs="+", help="default: all that are finished")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args(argv)
    try:
        figures = measure(arguments)
    except SamunetError as error:
        print(f"{error.message}\n  -> {error.hint}" if error.hint else error.message, file=sys.stderr)
        return 1
    print(as_table(figures))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 0


def measure(arguments: argparse.Namespace) -> dict:
    """Predict, score and compare."""
    name = find_dataset(arguments.dataset)
    images = arguments.images or paths.raw_folder() / name / "imagesTs"
    labels = arguments.labels or paths.raw_folder() / name / "labelsTs"
    options = api.PredictionOptions(save_uncertainty=True, skip_existing=True)
    api.predict(
        images,
        arguments.output,
        dataset=name,
        configuration=arguments.configuration,
        folds=arguments.folds,
        options=options,
    )
    summary = api.evaluate(predictions=arguments.output, references=labels)
    quality = json.loads((arguments.output / "quality.json").read_text())
    if quality["calibration"]["threshold"] is None:
        raise SamunetError(f"there is no predicted Dice to compare: {quality['calibration']['about']}")
    rows = {row["case"]: row for row in quality["cases"]}
    true = {_case(Path(case["prediction_file"])): case["metrics"] for case in summary["metric_per_case"]}
    figures = {"dataset": name, "about": quality["calibration"]["about"], "classes": {}}
    classes = {key: doubt["name"] for key, doubt in quality["cases"][0]["classes"].items()}
    for key, title in classes.items():
        pairs = [(rows[case]["classes"][key]["predicted_Dice"], scores[key]["Dice"]) for case, scores in true.items()]
        figures["classes"][title] = compare(pairs)
    means = [
        (rows[case]["predicted_Dice"], _mean([scores[key]["Dice"] for key in classes])) for case, scores in true.items()
    ]
    figures["mean of classes"] = compare(means) | {"found_by_marks": found_by_marks(rows, true, classes)}
    figures["marked"] = sum(bool(row["look"]) for row in rows.values())
    return figures


def compare(pairs: list[tuple[float | None, float | None]]) -> dict:
    """Figures of one column of predicted and true Dice; cases that lack either are left out."""
    known = np.array([pair for pair in pairs if not any(value is None or math.isnan(value) for value in pair)])
    if len(known) < 5:
        return {"cases": len(known)}
    predicted, true = known.T
    worst = max(1, round(len(known) / 5))
    both = set(np.argsort(predicted, kind="stable")[:worst]) & set(np.argsort(true, kind="stable")[:worst])
    rng = np.random.default_rng(0)
    drawn = (rng.integers(0, len(known), len(known)) for _ in range(_SAMPLES))
    samples = [spearmanr(predicted[index], true[index]).statistic for index in drawn if np.ptp(true[index]) > 0]
    low, high = np.nanpercentile(samples, (2.5, 97.5))
    return {
        "cases": len(known),
        "predicted": float(predicted.mean()),
        "true": float(true.mean()),
        "rank_correlation": float(spearmanr(predicted, true).statistic),
        "interval": [float(low), float(high)],
        "mean_error": float(np.abs(predicted - true).mean()),
        "worst_fifth_found": len(both) / worst,
    }


def found_by_marks(rows: dict, true: dict, classes: dict) -> float:
    """Share of the worst fifth by true Dice that quality.csv marks."""
    dice = {case: _mean([scores[key]["Dice"] for key in classes]) for case, scores in true.items()}
    order = sorted((case for case in dice if not math.isnan(dice[case])), key=dice.__getitem__)
    worst = order[: max(1, round(len(order) / 5))]
    return sum(bool(rows[case]["look"]) for case in worst) / len(worst)


def as_table(figures: dict) -> str:
    """The figures for people."""
    lines = [f"{figures['dataset']}: {figures['about']}; {figures['marked']} cases marked", ""]
    lines.append("| | cases | predicted | true | rank correlation (95 %) | mean error | worst fifth found |")
    lines.append("|---|---|---|---|---|---|---|")
    for name, row in {**figures["classes"], "mean of classes": figures["mean of classes"]}.items():
        if "rank_correlation" not in row:
            lines.append(f"| {name} | {row['cases']} | too few | | | | |")
            continue
        low, high = row["interval"]
        lines.append(
            f"| {name} | {row['cases']} | {row['predicted']:.3f} | {row['true']:.3f} | "
            f"{row['rank_correlation']:.2f} ({low:.2f} to {high:.2f}) | {row['mean_error']:.3f} | "
            f"{row['worst_fifth_found']:.2f} |"
        )
    lines += ["", f"of the worst fifth, marked: {figures['mean of classes']['found_by_marks']:.2f}"]
    return "\n".join(lines)


def _case(mask: Path) -> str:
    return mask.name[: -len(ending_of(mask))]


def _mean(values: list[float | None]) -> float:
    known = [value for value in values if value is not None and not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan


if __name__ == "__main__":
    sys.exit(main())
