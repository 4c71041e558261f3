"""Export of a trained fold as a plain SAM checkpoint."""

from __future__ import annotations

import logging
from pathlib import Path

from samunet import paths
from samunet.dataset.layout import find_dataset
from samunet.dataset.outputs import check_new_file
from samunet.encoders import encoder_facts
from samunet.errors import SamunetError, UsageError
from samunet.files import atomic_path
from samunet.models.choose import not_trained
from samunet.models.folder import Fold, ModelFolder, model_folder_name, model_folders
from samunet.plans import DEFAULT_PLANS_NAME
from samunet.recipes import recipe_facts

log = logging.getLogger(__name__)

_QUALITY = "mask_decoder.iou_prediction_head."


def merge_adapter(
    dataset: str | int,
    configuration: str,
    fold: Fold,
    output: str | Path,
    plans_name: str = DEFAULT_PLANS_NAME,
    *,
    checkpoint: str = "final",
) -> Path:
    """:func:`export_sam` for a fold of a trained model, named as on the command line."""
    folder = paths.results_folder() / find_dataset(dataset) / model_folder_name(plans_name, configuration)
    return export_sam(ModelFolder(folder), fold, checkpoint, Path(output))


def export_sam(model: ModelFolder, fold: Fold, checkpoint: str, output: Path) -> Path:
    """Write a fold in SAM's layout, LoRA folded in, with SAM's parameter names.

    It has one mask token per class, so in segment_anything its ``MaskDecoder`` has ``num_multimask_outputs`` equal to
    the number of classes without background. Mask quality is not trained here: its last layer is written as zeros.

    Args:
        model: The trained model.
        fold: Which fold.
        checkpoint: ``final`` or ``best``.
        output: A ``.pth`` or ``.safetensors`` file, which must not exist.

    Returns:
        ``output``.

    Raises:
        UsageError: If the file exists or has another ending, or there is no such model.
        SamunetError: If the network has parts that SAM's layout has no place for, or the fold cannot be loaded.
    """
    if output.suffix not in (".pth", ".safetensors"):
        raise UsageError(f"{output} must end in .pth or .safetensors", "the ending chooses the format")
    check_new_file(output)
    folder = model.path
    if not (folder / "plans.json").is_file():
        raise not_trained(
            f"{folder.name} in {folder.parent}", [found.path.name for found in model_folders(folder.parent)]
        )
    (loaded,) = model.load([fold], checkpoint)
    network = model.network(fold)
    foreign = [
        what
        for what, there in (
            (f"the encoder {network.encoder}, which is no SAM,", not encoder_facts(network.encoder).is_sam),
            (f"{network.adaptation.title}, which cannot be folded into weights", not network.adaptation.merges),
            (f"the head {network.head!r}", network.head != "sam"),
            ("a projection of the input channels", network.input_channels == "projection"),
        )
        if there
    ]
    if foreign:
        raise SamunetError(
            f"fold {fold} of {model.path} has {' and '.join(foreign)}: a plain SAM checkpoint has no place for that",
            "train with a pretrained SAM and `adaptation='lora'` or full, or predict with `api.predict`",
        )
    state = {f"image_encoder.{name}": value for name, value in loaded.image_encoder.state_dict().items()}
    state |= {name: value.clone() for name, value in loaded.head.state_dict().items()}
    base = model.base(fold).state
    for name in [name for name in state if name.startswith(_QUALITY)]:
        fitting = name in base and base[name].shape == state[name].shape
        state[name] = base[name].clone() if fitting else state[name].zero_()
    state = {name: value.detach().contiguous() for name, value in state.items()}
    with atomic_path(output) as temporary:
        _write(state, temporary)
    log.info("%d tensors written to %s", len(state), output)
    if recipe_facts(network.recipe).values_as_they_are:
        log.info("its input: values on 0-1, without a mean and deviation (SAMed)")
    return output


def _write(state: dict, path: Path) -> None:
    if path.suffix == ".pth":
        import torch

        torch.save(state, path)
    else:
        from safetensors.torch import save_file

        save_file(state, path)
