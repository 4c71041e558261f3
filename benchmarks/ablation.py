"""Train fold 0 of a preprocessed dataset for some seconds with decisions of the plans changed, and print the Dice.

    python benchmarks/ablation.py 004 --seconds 90 --set head=sam
    python benchmarks/ablation.py 004 --seconds 300 --num_cases 8 --weights random
    python benchmarks/ablation.py 004 --iterations 900 --set 'mirror_axes=[0,1]' rotation=180
    python benchmarks/ablation.py 027 --seconds 150 --weights pretraining/small_latest.safetensors --seed 1
    python benchmarks/ablation.py 027 --iterations 400 --num_cases 8 --ema 0.99

The Dice is that of the fold's validation cases on their stored grid, from one input along the first plane, and of their
masks as they are predicted, averaged over mirrored inputs and planes as the plan has them; the last line has both with
what was changed. With ``--ema`` it has them also of the weights' exponential average over the updates, which samunet
itself does not keep. Nothing is written to the results folder. Compare runs made on the same quiet machine, and look at
the iterations too.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from dataclasses import replace
from pathlib import Path

from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from samunet.dataset.layout import find_dataset
from samunet.dataset.splits import patients, subsample_cases
from samunet.encoders import ENCODERS
from samunet.evaluation.summary import evaluate_files
from samunet.files import read_json
from samunet.inference.options import PredictionOptions
from samunet.inference.predictor import Predictor
from samunet.models.pretrained import pretrained_weights
from samunet.training.options import TrainingOptions
from samunet.training.source import Source
from samunet.training.task import Material, Task
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
    source = Source(find_dataset(arguments.dataset), "2d", arguments.p)
    changes = {key: _value(text) for key, text in (item.split("=", 1) for item in arguments.set)}
    own = {key: changes.pop(key) for key in _CONFIGURATION & changes.keys()}
    source.configuration = source.configuration.changed(**own)
    network = source.configuration.networks["small"].changed(**changes)
    split = read_json(source.folder / "splits_final.json")[0]
    names = sorted(split["train"])
    if arguments.num_cases:
        groups = patients(sorted(split["train"] + split["val"]), source.description.groups)
        names = subsample_cases(names, arguments.num_cases, 12345, groups)
    base = None
    if arguments.weights != "random":
        given = None if arguments.weights == "bundled" else Path(arguments.weights)
        base = pretrained_weights(network.encoder, checkpoint=given)
    validation = source.stored(split["val"])
    options = TrainingOptions(
        seconds=None if arguments.iterations else arguments.seconds or 90,
        iterations=arguments.iterations,
        seed=arguments.seed,
    )
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["samunet_results"] = scratch
        task = Task(source, 0, options, {}, network, "", names, [], split["val"])
        task.folder.mkdir(parents=True)
        trainer = Trainer(task, Material(source.stored(names), validation, {}, base, {}, "ablation"))
        average = None
        if arguments.ema:
            average = AveragedModel(trainer.model, multi_avg_fn=get_ema_multi_avg_fn(arguments.ema))
            trainer.optimizer.register_step_post_hook(lambda *_: average.update_parameters(trainer.model))
        trainer.train()
        for entry in trainer.state.log:
            print(json.dumps(entry))
        trainer.monitored = validation
        scores = {"dice": trainer._monitor(), "averaged_dice": averaged_dice(trainer, split["val"])}
        if average:
            trainer.model.load_state_dict(average.module.state_dict())
            scores |= {"ema_dice": trainer._monitor(), "ema_averaged_dice": averaged_dice(trainer, split["val"])}
    scores = {name: round(score, 4) for name, score in scores.items()}
    setting = {key: value for key, value in vars(arguments).items() if value}
    print(json.dumps(setting | {"iterations": trainer.state.iteration} | scores))


def averaged_dice(trainer: Trainer, names: list[str]) -> float:
    """Mean Dice of the validation cases' masks, predicted as a user would."""
    source = trainer.task.source
    predictor = Predictor(
        [trainer.recipe.result], source.plans, source.configuration, trainer.network, source.description,
        PredictionOptions(tolerate_geometry=True, postprocessing=False),
    )  # fmt: skip
    cases = {name: source.raw.cases[name] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        predictor.predict_cases(cases, Path(folder), progress=False, own=True)
        files = {name: (predictor.mask_file(case, Path(folder)), case.label) for name, case in cases.items()}
        labels, reader = source.raw.description.labels, source.raw.description.reader
        return evaluate_files(files, labels, reader, tolerate_geometry=True)["foreground_mean"]["Dice"]


def _value(text: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


if __name__ == "__main__":
    main()
