"""Predicted against true Dice of the validation cases of 004's fold 0, each predicted from the other cases.

Reads `samunet_results`, in which the fold is trained: `samunet_train 004 2d 0`.
"""

import os
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from scipy.stats import spearmanr
from svg import FIGURES

from samunet.evaluation.quality import Calibration, read_calibration

CLASSES = {"1": ("anterior", "#D55E00", "o"), "2": ("posterior", "#0072B2", "s")}


def main() -> None:
    fold = next(Path(os.environ["samunet_results"], "Dataset004_Hippocampus").glob("samunetTrainer__*__2d/fold_0"))
    calibration, words = read_calibration([fold], tta=True)
    if calibration is None:
        raise SystemExit(f"{fold}: {words}")
    cases = list(calibration.cases)
    others = [Calibration(cases[:index] + cases[index + 1 :], tta=True) for index in range(len(cases))]
    predicted = [other.predict(case) for other, case in zip(others, cases, strict=True)]
    figure, axes = plt.subplots(figsize=(7.2, 6.2), dpi=100)
    for key, (name, colour, marker) in CLASSES.items():
        x, y = np.array([row[key] for row in predicted]), np.array([case[key]["Dice"] for case in cases])
        label = f"{name}: rank correlation {spearmanr(x, y).statistic:.2f}, mean error {np.abs(x - y).mean():.3f}"
        axes.scatter(x, y, s=70, color=colour, marker=marker, alpha=0.8, label=label)
        print(f"{label}, {len(cases)} cases")
    low, high = np.floor(20 * min(axes.get_xlim()[0], axes.get_ylim()[0])) / 20, 1.0
    axes.plot([low, high], [low, high], color="#8c959f", linewidth=1.5, zorder=0)
    axes.set(xlim=(low, high), ylim=(low, high))
    axes.set_xlabel("predicted Dice", fontsize=18)
    axes.set_ylabel("true Dice", fontsize=18)
    axes.tick_params(labelsize=16)
    axes.legend(fontsize=16, loc="lower left", bbox_to_anchor=(-0.15, 1), frameon=False)
    figure.tight_layout()
    figure.savefig(FIGURES / "predicted_dice.png")


if __name__ == "__main__":
    main()
