"""Train fold 0 of a preprocessed dataset for some seconds with one decision of the plans changed, and print the Dice.

    python benchmarks/ablation.py 004 --seconds 90 --set head=sam
    python benchmarks/ablation.py 027 --seconds 150 --set learning_rate=4e-4 --patch_size 8

The Dice is that of the few validation cases that every training monitors, on their stored grid, without mirroring.
Nothing is written to the results folder. Compare runs made on the same quiet machine, and look at the iterations too.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path

from samunet import paths
from samunet.dataset.description import read_description
from samunet.dataset.layout import find_dataset
from samunet.encoders import ENCODERS
from samunet.files import read_json
from samunet.plans import read_plans
from samunet.preprocessing.run import stored_cases
from samunet.training.options import TrainingOptions
from samunet.training.trainer import Trainer


def main() -> None:
    """Train once and print the log as JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("--seconds", type=float, default=90)
    parser.add_argument("--seed", type=int, default=12345)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="changes of the small network's plan")
    parser.add_argument("--patch_size", type=int, help="of the small encoder")
    arguments = parser.parse_args()
    if arguments.patch_size:
        ENCODERS["small"] = replace(ENCODERS["small"], patch_size=arguments.patch_size)
    folder = paths.preprocessed_folder() / find_dataset(arguments.dataset)
    plans, description = read_plans(folder / "samunetPlans.json"), read_description(folder)
    configuration = plans.configuration("2d")
    changes = {key: _value(text) for key, text in (item.split("=", 1) for item in arguments.set)}
    network = replace(configuration.networks["bundled"], **changes)
    split = read_json(folder / "splits_final.json")[0]
    with tempfile.TemporaryDirectory() as scratch:
        trainer = Trainer(
            folder=Path(scratch),
            configuration=configuration,
            network=network,
            description=description,
            train=stored_cases(folder, plans, configuration, split["train"]),
            validation=stored_cases(folder, plans, configuration, split["val"]),
            options=TrainingOptions(seconds=arguments.seconds, seed=arguments.seed),
            identity="ablation",
            run={},
        )
        trainer.train()
        for entry in trainer.state.log:
            print(json.dumps(entry))


def _value(text: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


if __name__ == "__main__":
    main()
