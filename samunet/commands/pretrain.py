"""``samunet_pretrain``: further training of an encoder on the images of a dataset, in pieces."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from samunet.commands.flags import DEVICE, PLANS_NAME, SEED, duration, finite
from samunet.commands.table import Flag, Group, Switch, command
from samunet.errors import UsageError


@command(
    "any encoder on the images of a dataset, without labels; in pieces",
    Flag(
        "-d",
        dest="dataset",
        metavar="ID",
        help="a preprocessed dataset, whose images in imagesTr and imagesTs are seen",
    ),
    Flag(
        "-encoder",
        help="vit_b, vit_l, vit_h, vit_t or small, as planned (default: that of --checkpoint or of the plans; "
        "else SAM where there is a GPU and its file, and small otherwise)",
    ),
    Flag("-c", dest="configuration", metavar="CONFIGURATION", help="whose slices and input are used (default: 2d)"),
    Flag("-p", dest="plans_name", metavar="NAME", help=f"plans' name (default: {PLANS_NAME})"),
    Switch("--no_test_images", dest="test_images", sets=False, help="leave out imagesTs"),
    Flag(
        "--checkpoint",
        type=Path,
        metavar="FILE",
        help="weights in SAM's layout to start from (default: the encoder's own)",
    ),
    Flag(
        "--out",
        dest="output",
        type=Path,
        metavar="FOLDER",
        help="for checkpoints, log and weights (default: among the results)",
    ),
    Group(
        None,
        Flag("--time_budget", dest="seconds", type=duration, metavar="T", help="length of this piece: 90s, 20m, 1.5h"),
        Flag("--iterations", type=int, metavar="N", help="updates over all pieces, or of the final decay"),
    ),
    Flag("--objective", choices=["mae"], help="what the encoder is asked: mae, to reconstruct what is hidden"),
    Switch("--final_decay", help="bring the rate to zero over this piece"),
    Flag("--batch_size", type=int, metavar="N", help="images per update (default: as memory allows, at most 12)"),
    Flag("--lr", dest="learning_rate", type=finite, help="learning rate (default: 1e-4)"),
    SEED,
    DEVICE,
    description="Further train an encoder on a dataset's own images, without labels; goes on from what the folder "
    "holds.",
    examples=("samunet_pretrain -d 027 --objective mae",),
    see="[How a pretraining goes](how_commands_work.md#how-a-pretraining-goes)",
)
def pretrain(dataset: str | None, **given: Any) -> None:
    if not dataset:
        raise UsageError(
            "samunet_pretrain needs a dataset, on whose images an encoder is further trained",
            "name it: -d ID. What made the weights in the package is tools/bundled_weights in samunet's source",
        )
    from samunet import api

    given = {name: value for name, value in given.items() if value is not None}
    weights = api.pretrain(dataset, **given)
    print(f"weights: {weights}")
    encoder, _, kind = weights.stem.rpartition("_")
    if kind == "latest":
        print("going on replaces them, and a model that was begun with them needs them as they are: copy them before")
    training = ["samunet_train", dataset, given.get("configuration", "2d"), "0"]
    training += ["-p", given["plans_name"]] if "plans_name" in given else []
    print("next:", shlex.join([*training, "-encoder", encoder, "--checkpoint", str(weights)]))
