"""Starting a training from another one's model file, with its LoRA (``pretrained``)."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from torch import Tensor

from samunet.adaptations import ADAPTATIONS, LoraPlan
from samunet.adaptations.lora import adapter_folders, read_adapter
from samunet.errors import SamunetError, UsageError
from samunet.files import read_as
from samunet.network.model import SamunetModel
from samunet.plans import NetworkPlan
from samunet.tensors import read_tensors

log = logging.getLogger(__name__)

_KINDS = {kind.title: kind.marker for kind in ADAPTATIONS.values() if kind.marker}


def check_start(path: Path, network: NetworkPlan, folder: Path, *, overwrite: bool) -> None:
    """Check what a training is to start from, before anything is written or removed.

    Args:
        path: The model file.
        network: What will be trained.
        folder: Of the fold that will be trained.
        overwrite: Whether that folder will be removed first.

    Raises:
        UsageError: If the file would be removed.
        SamunetError: If it is damaged, or its LoRA has other settings than the plans'.
    """
    if overwrite and folder.resolve() in path.resolve().parents:
        raise UsageError(
            f"`overwrite=True` would remove {path}, from which `pretrained` starts", "copy its fold elsewhere first"
        )
    read_tensors(path)
    for part, adapter in adapter_folders(path).items():
        planned = network.adaptation
        if isinstance(planned, LoraPlan) and (part == "image_encoder" or planned.decoder):
            _check_lora(adapter / "adapter_config.json", planned)


def start_from(model: SamunetModel, path: Path) -> None:
    """Take over every tensor of another model that fits; the class-specific ones need not.

    Args:
        model: Changed in place.
        path: A fold's ``checkpoint_*.safetensors``. LoRA lies in folders beside it.

    Raises:
        SamunetError: If nothing fits, or LoRA or bottleneck adapters were made for another rank, width or other blocks.
    """
    given = read_tensors(path)
    for part, folder in adapter_folders(path).items():
        given |= {f"{part}.{name}": value for name, value in read_adapter(folder).items()}
    own = model.trained_state()
    fitting = {name: value for name, value in given.items() if name in own and own[name].shape == value.shape}
    if not fitting:
        raise SamunetError(f"no tensor of {path} fits this network", "use a checkpoint of the same encoder")
    parts = [_fit_of_kind(path, kind, given, own, fitting) for kind in _KINDS]
    model.load_state_dict(fitting, strict=False)
    details = "".join(f", of them {part}" for part in parts if part)
    log.info("started from %s: %d of %d tensors fit%s", path, len(fitting), len(own), details)


def _fit_of_kind(
    path: Path, kind: str, given: dict[str, Tensor], own: dict[str, Tensor], fitting: dict[str, Tensor]
) -> str:
    """How many tensors of a kind fit, in words; nothing where neither model has any."""
    theirs, ours, both = ([name for name in names if _KINDS[kind] in name] for names in (given, own, fitting))
    if theirs and not ours:
        log.warning("the %s of %s are left out: the planned network has none", kind, path)
    if not (theirs and ours):
        return ""
    wrong = [name for name in theirs if name in own and name not in fitting]
    if wrong or not both:  # half of a module that belongs together would disturb more than it helps
        name = wrong[0] if wrong else None
        example = f", for example {name}: {_shape(given[name])}, not {_shape(own[name])}" if name else ""
        raise SamunetError(
            f"the {kind} of {path} do not fit: {len(wrong or theirs)} of {len(theirs)} tensors were made for another "
            f"network{example}",
            "plan for the same encoder, blocks and size (`lora.rank`, `adapter.reduction`), or leave out `pretrained`",
        )
    return f"{len(both)} of {len(ours)} of the {kind}"


def _check_lora(file: Path, planned: LoraPlan) -> None:
    given = read_as(dict[str, Any], file, "restore peft's adapter_config.json")
    for name, key, field in (
        ("rank", "r", "rank"),
        ("alpha", "lora_alpha", "alpha"),
        ("DoRA", "use_dora", "dora"),
        ("rsLoRA", "use_rslora", "rslora"),
    ):
        got, wanted = given.get(key), getattr(planned, field)
        if got != wanted:
            how = f"with `lora={{'{field}': {got!r}}}`" if got else f"without `lora.{field}`"
            raise SamunetError(
                f"{file.parent} has LoRA of {name} {got}, but the plans say {wanted}",
                f"plan {how} under another name (`api.plan_experiment(ID, plans_name=NAME)`), or start from a "
                f"fold with {name} {wanted}",
            )


def _shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape))
