"""Epochs of a training with frozen blocks, with and without ``--feature_cache``, in one run on the same data.

    OMP_NUM_THREADS=1 python benchmarks/feature_cache.py --size 256 --json cache.json

Slices of generated volumes are planned, preprocessed and trained on through samunet's own functions, once without and
once with the cache for each way to adapt the encoder. Its weights are random: time does not depend on their values. An
epoch is timed from its first batch to its end, its check of the monitored cases included (all of them: there are no
validation cases). The first epoch with the cache fills it. CPU seconds are those of the process: they hardly depend on
what else runs on the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path

PLANS = {
    "decoder": ["-components", "decoder"],
}
CASES, SLICES, SIDE = 4, 4, 96
LIMIT = 10**10


def main() -> None:
    arguments = build_parser().parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for name in ("raw", "preprocessed", "results", "checkpoints"):
            os.environ[f"samunet_{name}"] = str(Path(folder) / name)
            (Path(folder) / name).mkdir()
        write_weights(arguments.encoder)
        write_dataset(Path(folder) / "raw" / "Dataset999_Generated")
        result = compare(arguments)
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--encoder", default="vit_b", choices=["vit_b", "vit_l", "vit_h", "vit_t"])
    parser.add_argument("--size", type=int, default=256, help="side of the input in pixels, a multiple of 16")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=2, help="of 100 iterations each")
    parser.add_argument("--plans", nargs="+", default=list(PLANS), choices=list(PLANS))
    parser.add_argument("--json", type=Path, help="file for the result")
    return parser


def compare(arguments: argparse.Namespace) -> dict:
    """Train with and without the cache; times of every epoch, and the ratio of the last ones."""
    import torch

    from samunet.commands import run_command

    result: dict = {key: getattr(arguments, key) for key in ("encoder", "size", "batch", "epochs")}
    result |= {"slices": CASES * SLICES, "threads": torch.get_num_threads(), "machine": platform.machine()}
    for name in arguments.plans:
        flags = ["-d", "999", "-encoder", arguments.encoder, "-image_size", str(arguments.size)]
        if run_command("samunet_plan_and_preprocess", [*flags, *PLANS[name], "-overwrite_plans_name", name]):
            raise SystemExit("planning failed")
        plain, cached = (train(name, arguments, limit) for limit in (None, LIMIT))
        ratio = {
            key: plain["epochs"][-1][key] / cached["epochs"][-1][key] for key in ("wall_s", "cpu_s", "training_wall_s")
        }
        result[name] = {"plain": plain, "cached": cached, "ratio_of_last_epochs": ratio}
    return result


def train(plans_name: str, arguments: argparse.Namespace, limit: int | None) -> dict:
    """Train on all cases; the times of every epoch and what the cache did."""
    from samunet import api
    from samunet.files import read_json
    from samunet.training.trainer import Trainer

    times = []
    add_point = Trainer._add_point

    def timed(trainer, *values, **check):
        add_point(trainer, *values, **check)
        times.append((time.monotonic(), time.process_time()))

    Trainer._add_point = timed
    try:
        options = api.TrainingOptions(
            epochs=arguments.epochs, batch_size=arguments.batch, feature_cache=limit, overwrite=True
        )
        folder = api.train(999, "2d", "all", options, plans_name, progress=False)
    finally:
        Trainer._add_point = add_point
    log, run = read_json(folder / "training_log.json"), read_json(folder / "run.json")
    last = {entry["epoch"]: index for index, entry in enumerate(log)}  # of every epoch; 0 is before the first step
    epochs = []
    for epoch in range(1, max(last) + 1):
        first, end = last[epoch - 1], last[epoch]
        points = list(zip(log[first:end], log[first + 1 : end + 1]))
        steps = [entry["iteration"] - before["iteration"] for before, entry in points]
        seconds = [count * arguments.batch / entry["images_per_second"] for count, (_, entry) in zip(steps, points)]
        epochs.append(
            {
                "wall_s": times[end][0] - times[first][0],
                "cpu_s": times[end][1] - times[first][1],
                "training_wall_s": sum(seconds),
                "data_share": sum(s * entry["data_share"] for s, (_, entry) in zip(seconds, points)) / sum(seconds),
                "loss": sum(count * entry["loss"] for count, (_, entry) in zip(steps, points)) / sum(steps),
            }
        )
    return {"epochs": epochs, "dtype": run["dtype"], "feature_cache": run.get("feature_cache")}


def write_weights(encoder: str) -> None:
    """A checkpoint of the encoder, under its published name, with the values that it is built with."""
    import torch

    from samunet import paths
    from samunet.encoders import encoder_facts
    from samunet.network.encoders import build_encoder
    from samunet.network.heads import SamHead

    torch.manual_seed(0)
    facts = encoder_facts(encoder)
    head = SamHead(4, facts.native_size // facts.patch_size, facts.patch_size, facts.embedding).state_dict()
    state = {f"image_encoder.{name}": value for name, value in build_encoder(facts).state_dict().items()} | head
    torch.save(state, paths.checkpoints_folder() / facts.checkpoint_file)


def write_dataset(folder: Path) -> None:
    """A few slices of each of a few of the demo's volumes, all of one size."""
    import SimpleITK as sitk

    from samunet.conversion.phantoms import LABELS, draw_phantom

    for index in range(CASES):
        image, label, *_ = draw_phantom(0, index)
        first = len(image) // 2 - SLICES // 2
        middle = slice(first, first + SLICES), slice(SIDE), slice(SIDE)
        for array, name in ((image, f"imagesTr/case_{index}_0000"), (label, f"labelsTr/case_{index}")):
            path = folder / f"{name}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            volume = sitk.GetImageFromArray(array[middle])
            volume.SetSpacing((1.2, 1.2, 3.0))
            sitk.WriteImage(volume, str(path))
    description = {"channel_names": {"0": "MRI"}, "labels": LABELS, "numTraining": CASES, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(description))


if __name__ == "__main__":
    main()
