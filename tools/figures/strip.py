"""Real cases as image, reference and prediction: of each dataset the validation case of median Dice in fold 0.

Reads `samunet_raw` and `samunet_results`, in which fold 0 of 004 (Hippocampus, CC BY-SA 4.0) and 101
(UltrasoundNerve, CC BY 4.0) is trained: `samunet_train 004 2d 0`, `samunet_train 101 2d 0`.
"""

import json
import os
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import SimpleITK as sitk
from matplotlib.colors import to_rgb
from svg import FIGURES

DATASETS = {"Dataset004_Hippocampus": ".nii.gz", "Dataset101_UltrasoundNerve": ".png"}
COLOURS = ("#E69F00", "#56B4E9")  # M. Okabe and K. Ito's


def median_case(validation: Path) -> tuple[str, float]:
    """Name and Dice, averaged over classes, of the case in the middle."""
    cases = json.loads((validation / "summary.json").read_text(encoding="utf-8"))["metric_per_case"]
    scores = {}
    for case in cases:
        dice = [metrics["Dice"] for metrics in case["metrics"].values() if metrics["Dice"] is not None]
        if len(dice) == len(case["metrics"]):
            scores[Path(case["prediction_file"]).name] = float(np.mean(dice))
    ranked = sorted(scores, key=scores.get)
    return ranked[len(ranked) // 2], scores[ranked[len(ranked) // 2]]


def volume(path: Path) -> np.ndarray:
    """Voxels as `(z, y, x)`."""
    array = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    return array if array.ndim == 3 else array[None]


def painted(grey: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A slice in grey with the classes of a mask over it."""
    low, high = np.percentile(grey, [1, 99])
    picture = np.repeat(np.clip((grey - low) / (high - low), 0, 1)[..., None], 3, axis=-1)
    for value, colour in enumerate(COLOURS, start=1):
        picture[mask == value] = 0.4 * picture[mask == value] + 0.6 * np.array(to_rgb(colour))
    return picture


def main() -> None:
    raw, results = Path(os.environ["samunet_raw"]), Path(os.environ["samunet_results"])
    figure, axes = plt.subplots(2, 3, figsize=(7.2, 4.7), dpi=100, height_ratios=(1.5, 1))
    for row, (dataset, ending) in zip(axes, DATASETS.items(), strict=True):
        fold = next((results / dataset).glob("samunetTrainer__*__2d/fold_0"))
        name, dice = median_case(fold / "validation")
        case = name.removesuffix(ending)
        image = volume(raw / dataset / "imagesTr" / f"{case}_0000{ending}").astype(float)
        reference, prediction = volume(raw / dataset / "labelsTr" / name), volume(fold / "validation" / name)
        plane = int(np.argmax((reference > 0).sum(axis=(1, 2))))
        shown = image[plane].max(axis=1) > 0.1 * image[plane].max()  # without the black bands of a scanner's screen
        nothing = np.zeros_like(reference[plane])
        for place, mask in zip(row, (nothing, reference[plane], prediction[plane]), strict=True):
            place.imshow(painted(image[plane][shown], mask[shown]), interpolation="nearest", aspect="equal")
            place.set_axis_off()
        run = json.loads((fold / "run.json").read_text(encoding="utf-8"))
        minutes = run["training_seconds"] / 60
        print(
            f"{dataset}: {case}, plane {plane}, Dice {dice:.3f}, {run['iterations']} updates in {minutes:.0f} minutes"
        )
    for place, title in zip(axes[0], ("image", "reference", "prediction"), strict=True):
        place.set_title(title, fontsize=16)
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.01, top=0.92, wspace=0.02, hspace=0.03)
    figure.savefig(FIGURES / "strip.png")


if __name__ == "__main__":
    main()
