"""Train fold 0 of a preprocessed dataset for some seconds with decisions of the plans changed, and print the Dice.

    python benchmarks/ablation.py 004 --seconds 90 --set head=sam
    python benchmarks/ablation.py 004 --seconds 300 --num_cases 8 --weights random
    python benchmarks/ablation.py 004 --iterations 900 --set 'mirror_axes=[0,1]' rotation=180
    python benchmarks/ablation.py 027 --seconds 150 --weights pretraining/small_latest.safetensors --seed 1
    python benchmarks/ablation.py 027 --iterations 400 --num_cases 8 --ema 0.99

The Dice is that of the fold's validation cases on their stored grid, from one input along the first plane, and averaged
over mirrored inputs and planes as the plan has them; the last line has both with what was changed. With ``--ema`` it
has them also of the weights' exponential average over the updates, which samunet itself does not keep. Nothing is
written to the results folder. Compare runs made on the same quiet machine, and look at the iterations too.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path

from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from samunet import paths
from samunet.dataset.description import read_description
from samunet.dataset.layout import find_dataset
from samunet.dataset.splits import patients, subsample_cases
from samunet.encoders import ENCODERS
from samunet.files import read_json
from samunet.models.pretrained import pretrained_weights
from samunet.plans import read_plans
from samunet.preprocessing.run import stored_cases
from samunet.training.options import TrainingOptions
from samunet.training.trainer import Trainer

_CONFIGURATION = {"mirror_axes", "rotation", "foreground_share", "planes"}


def main() -> None:
    """Train once and print the log as JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("-p", default="samunetPlans", metavar="NAME", help="name of the plans")
    parser.add_argument("--seconds", type=float, help="in the training loop (default: 90)")
    parser.add_argument("--iterations", type=int, help="instead, on a machine that is not quiet")
    parser.add_argument("--seed", type=int, default=12345)
    parser.add_argument("--num_cases", type=int, help="train on so many of the fold's cases, drawn with seed 12345")
    parser.add_argument("--weights", default="bundled", help="bundled, random, or a file (default: bundled)")
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="KEY=VALUE", help="changes of the plan, or of its small network"
    )
    parser.add_argument("--patch_size", type=int, help="of the small encoder, with random weights")
    parser.add_argument("--ema", type=float, metavar="DECAY", help="score the average of the weights as well")
    arguments = parser.parse_args()
    if arguments.patch_size:
        ENCODERS["small"] = replace(ENCODERS["small"], patch_size=arguments.patch_size)
    folder = paths.preprocessed_folder() / find_dataset(arguments.dataset)
    plans, description = read_plans(folder / f"{arguments.p}.json"), read_description(folder)
    configuration = plans.configuration("2d")
    changes = {key: _value(text) for key, text in (item.split("=", 1) for item in arguments.set)}
    own = {key: changes.pop(key) for key in _CONFIGURATION & changes.keys()}
    configuration = configuration.changed(**own)
    network = configuration.networks["small"].changed(**changes)
    split = read_json(folder / "splits_final.json")[0]
    names = sorted(split["train"])
    if arguments.num_cases:
        groups = patients(sorted(split["train"] + split["val"]), description.groups)
        names = subsample_cases(names, arguments.num_cases, 12345, groups)
    base = None
    if arguments.weights != "random":
        given = None if arguments.weights == "bundled" else Path(arguments.weights)
        base = pretrained_weights(network.encoder, checkpoint=given)
    validation = stored_cases(folder, plans, configuration, description, split["val"], raw=None)
    with tempfile.TemporaryDirectory() as scratch:
        trainer = Trainer(
            folder=Path(scratch),
            configuration=configuration,
            network=network,
            description=description,
            train=stored_cases(folder, plans, configuration, description, names, raw=None),
            validation=validation,
            options=TrainingOptions(
                seconds=None if arguments.iterations else arguments.seconds or 90,
                iterations=arguments.iterations,
                seed=arguments.seed,
            ),
            identity="ablation",
            run={},
            base=base,
        )
        average = None
        if arguments.ema:
            average = AveragedModel(trainer.model, multi_avg_fn=get_ema_multi_avg_fn(arguments.ema))
            trainer.optimizer.register_step_post_hook(lambda *_: average.update_parameters(trainer.model))
        trainer.train()
        for entry in trainer.state.log:
            print(json.dumps(entry))
        trainer.monitored = validation
        scores = {"dice": trainer._monitor(), "averaged_dice": trainer._monitor(averaged=True)}
        if average:
            trainer.model.load_state_dict(average.module.state_dict())
            scores |= {"ema_dice": trainer._monitor(), "ema_averaged_dice": trainer._monitor(averaged=True)}
    scores = {name: round(score, 4) for name, score in scores.items()}
    setting = {key: value for key, value in vars(arguments).items() if value}
    print(json.dumps(setting | {"iterations": trainer.state.iteration} | scores))


def _value(text: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


if __name__ == "__main__":
    main()
