"""Import of checkpoints of SAMed and SAMed_s (Zhang & Liu 2023).

SAMed's files hold LoRA of the image encoder and the whole prompt encoder and mask decoder. Those of SAMed_s hold LoRA
of the decoder's transformer in place of the transformer, which is the base's.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from samunet import __version__, paths
from samunet.adaptations import LoraPlan
from samunet.dataset.description import description_from_json
from samunet.encoders import EncoderFacts, encoder_facts
from samunet.errors import SamunetError, UsageError, argument
from samunet.files import atomic_folder, file_hash, write_json
from samunet.imageio.registry import reader_for
from samunet.models.checkpoint import save_model
from samunet.models.folder import build_network, model_folder_name
from samunet.models.pretrained import pretrained_weights
from samunet.network.checkpoint_kinds import compare
from samunet.network.checkpoints import load_sam_checkpoint
from samunet.network.model import SamunetModel
from samunet.planning import resources, rules
from samunet.plans import ConfigurationPlan, IntensityStatistics, NetworkPlan, Plans
from samunet.tensors import check_numbers

log = logging.getLogger(__name__)

PLANS_NAME = "samedPlans"
CONFIGURATION = "2d"
FOLD = "all"
_ENCODERS = ("vit_b", "vit_l", "vit_h")
# Attentions of a decoder layer, by what SAMed_s calls their matrices; those of the last one are fati_qa, fati_qb, ...
_DECODER_ATTENTIONS = {"sa": "self_attn", "cti": "cross_attn_token_to_image", "cit": "cross_attn_image_to_token"}
_DECODER_LORA = re.compile(r"(sa|cti|cit)_[ab]_\d{3}|fati_[qv][ab]")
_DECODER_LAYERS = 2
_TRANSFORMER = "mask_decoder.transformer."


@dataclass(frozen=True)
class SamedImport:
    """What the file does not say. The defaults are those of SAMed's published models of abdominal CT.

    Attributes:
        encoder: ``vit_b``, ``vit_l`` or ``vit_h``.
        image_size: Side of the network's input in pixels.
        num_classes: Without background.
        dataset: Name of the folder in ``samunet_results``.
        labels: Names of the classes, a leading ``background`` allowed; None for ``class_1`` and so on.
        intensity_range: Values that become 0 and 1; beyond them the image is clipped.
        file_ending: Of the images to predict.
    """

    encoder: str = "vit_b"
    image_size: int = 512
    num_classes: int = 8
    dataset: str = "Dataset900_SAMed"
    labels: list[str] | None = None
    intensity_range: tuple[float, float] = (-125.0, 275.0)
    file_ending: str = ".nii.gz"

    @property
    def class_names(self) -> list[str]:
        """Names of the classes 1, 2, ...; a leading ``background`` in ``labels`` is left out."""
        if self.labels is None:
            return [f"class_{value}" for value in range(1, self.num_classes + 1)]
        leading = bool(self.labels) and self.labels[0].casefold() == "background"
        return list(self.labels[leading:])


def import_samed(file: str | Path, **options: Any) -> Path:
    """:func:`import_checkpoint` with the fields of :class:`SamedImport` as keywords."""
    return import_checkpoint(Path(file), SamedImport(**options))


def import_checkpoint(file: Path, options: SamedImport) -> Path:
    """Write a model folder whose fold ``all`` gives SAMed's logits; returns it.

    SAM's own checkpoint of the encoder must be there, as for prediction.

    Raises:
        UsageError: If an option does not fit.
        SamunetError: If the file is no checkpoint of SAMed's for this encoder, number of classes and base, or the
            folder exists.
    """
    facts = encoder_facts(options.encoder)
    _check(options, facts)
    description = description_from_json(_dataset_json(options), "the imported model's dataset.json")
    folder = paths.results_folder() / options.dataset / model_folder_name(PLANS_NAME, CONFIGURATION)
    if folder.exists():
        raise SamunetError(f"{folder} exists", "remove it, or choose another name: `dataset='Dataset901_SAMed'`")
    given = load_sam_checkpoint(file)
    rank = _rank(given, facts, file)
    small = any(_DECODER_LORA.fullmatch(name) for name in given)
    plans = _plans(options, facts, LoraPlan(rank=rank, alpha=rank, decoder=small))
    configuration = plans.configuration(CONFIGURATION)
    network = configuration.networks[facts.name]
    base = pretrained_weights(facts.name)
    model = build_network(configuration, network, description, base)
    names, wanted = _lora_names(facts, small), model.trained_state()
    _check_tensors(given, _expected_shapes(model, wanted, names), facts, options, file)
    check_numbers(given, file, "get the file again from where it came from")
    _check_base(given, base.state, facts, file)
    state = {names.get(name, f"head.{name}"): value.detach() for name, value in given.items()}
    model.load_trained_state({name: value for name, value in state.items() if name in wanted})
    with atomic_folder(folder) as temporary:
        plans.write(temporary / "plans.json")
        write_json(temporary / "dataset.json", description.raw)
        fold = temporary / f"fold_{FOLD}"
        run = {
            "dataset": options.dataset,
            "configuration": CONFIGURATION,
            "fold": FOLD,
            "encoder": facts.name,
            "base": base.record,
            "imported_from": {"file": file.name, "sha256": file_hash(file)},
            "versions": {"samunet": __version__, "torch": torch.__version__},
        }
        save_model(fold, model, "final")
        write_json(fold / "run.json", run)
    kind = "SAMed_s" if small else "SAMed"
    log.info("%s, rank %d, %d classes without background, imported to %s", kind, rank, options.num_classes, folder)
    return folder


def _check(options: SamedImport, facts: EncoderFacts) -> None:
    if facts.name not in _ENCODERS:
        raise UsageError(f"SAMed has no models of the encoder {facts.name}", f"use one of: {', '.join(_ENCODERS)}")
    rules.parse_image_size(options.image_size, facts)
    if options.num_classes < 1:
        raise UsageError(f"`num_classes` must be 1 or more, without the background, got {options.num_classes}")
    names = options.class_names
    if len(names) != options.num_classes or len({"background", *(name.casefold() for name in names)}) <= len(names):
        raise UsageError(f"`labels` must be {options.num_classes} different names, got {', '.join(names)}")
    if "ignore" in names:
        raise UsageError("`labels`: ignore is not the name of a class", "give the class another name")
    if not paths.DATASET_NAME.match(options.dataset):
        raise UsageError(f"`dataset` must look like Dataset900_SAMed, got {options.dataset!r}")
    if options.intensity_range[0] >= options.intensity_range[1]:
        raise UsageError(f"`intensity_range` must be two numbers in order, got {options.intensity_range}")


def _rank(given: dict[str, Tensor], facts: EncoderFacts, file: Path) -> int:
    """Rank of the file's LoRA, once it is sure that the file has LoRA of this encoder."""
    matrices = [name for name in given if re.fullmatch(r"w_[ab]_\d{3}", name)]
    if not matrices:
        raise SamunetError(
            f"{file} has no tensors w_a_000, w_b_000, ...: it is no checkpoint of SAMed's",
            "a SAM checkpoint needs no import; give a file that SAMed's training wrote",
        )
    blocks = len(matrices) / 4
    width = given[min(matrices)].shape[-1]
    if blocks != facts.depth or width != facts.width:
        raise SamunetError(
            f"{file} adapts {blocks:g} blocks of width {width}, but {facts.name} has {facts.depth} of width "
            f"{facts.width}",
            "choose the encoder it was made for: `encoder`",
        )
    return len(given[min(matrices)])


def _lora_names(facts: EncoderFacts, small: bool) -> dict[str, str]:
    """Our name of every LoRA matrix, by the file's: numbered as q of layer 0, v of layer 0, q of layer 1, ..."""
    layers = {
        f"w_{{}}_{index:03d}": f"image_encoder.base_model.model.blocks.{index // 2}.attn.qkv.{'qv'[index % 2]}"
        for index in range(2 * facts.depth)
    }
    if small:
        decoder = f"head.{_TRANSFORMER}base_model.model"
        for short, attention in _DECODER_ATTENTIONS.items():
            for index in range(2 * _DECODER_LAYERS):
                layers[f"{short}_{{}}_{index:03d}"] = (
                    f"{decoder}.layers.{index // 2}.{attention}.{'qv'[index % 2]}_proj"
                )
        layers |= {f"fati_{part}{{}}": f"{decoder}.final_attn_token_to_image.{part}_proj" for part in "qv"}
    return {
        pattern.format(matrix): f"{layer}.lora_{matrix.upper()}.default.weight"
        for pattern, layer in layers.items()
        for matrix in "ab"
    }


def _expected_shapes(
    model: SamunetModel, wanted: dict[str, Tensor], names: dict[str, str]
) -> dict[str, tuple[int, ...]]:
    """What a file must hold: LoRA, and of prompt encoder and mask decoder all that is not frozen with LoRA."""
    small = any(_DECODER_LORA.fullmatch(name) for name in names)
    head = {n: v for n, v in model.head.state_dict().items() if not (small and n.startswith(_TRANSFORMER))}
    expected = head | {name: wanted[ours] for name, ours in names.items()}
    return {name: tuple(value.shape) for name, value in expected.items()}


def _check_tensors(
    given: dict[str, Tensor],
    expected: dict[str, tuple[int, ...]],
    facts: EncoderFacts,
    options: SamedImport,
    file: Path,
) -> None:
    tokens = given.get("mask_decoder.mask_tokens.weight")
    if tokens is not None and len(tokens) != options.num_classes + 1:
        raise SamunetError(
            f"{file} has {len(tokens) - 1} classes besides the background, not {options.num_classes}",
            f"use {argument('num_classes', len(tokens) - 1)}",
        )
    shapes = {name: tuple(value.shape) for name, value in given.items()}
    problems = compare(shapes, expected)
    if problems:
        raise SamunetError(
            f"{file} is no checkpoint of SAMed's for {facts.name}:\n  " + "\n  ".join(problems),
            "SAMed writes w_a_000, w_b_000, ..., prompt_encoder and mask_decoder; SAMed_s has sa_, cti_, cit_ and "
            "fati_ in place of mask_decoder.transformer",
        )


def _check_base(given: dict[str, Tensor], base: dict[str, Tensor], facts: EncoderFacts, file: Path) -> None:
    """SAMed stores the whole prompt encoder, of which only ``no_mask_embed`` trains: the rest is its base's."""
    for name, value in given.items():
        frozen = name.startswith("prompt_encoder.") and "no_mask_embed" not in name
        if frozen and not torch.allclose(value.float(), base[name].float(), atol=1e-6):
            raise SamunetError(
                f"{file} was made for another base than {facts.checkpoint_file}: {name} differs",
                f"put the SAM checkpoint that it was trained on into {paths.checkpoints_folder()}",
            )


def _dataset_json(options: SamedImport) -> dict:
    names = options.class_names
    return {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0} | {name: value for value, name in enumerate(names, 1)},
        "numTraining": 0,
        "file_ending": options.file_ending,
    }


def _plans(options: SamedImport, facts: EncoderFacts, lora: LoraPlan) -> Plans:
    """Plans that prepare images as SAMed does: whole slices, scaled to the input, on 0-1, one channel three times."""
    why = {"adaptation": "imported from SAMed"}
    shape = [options.image_size, options.image_size]
    estimate = resources.estimate(facts, shape, lora)
    network = NetworkPlan(
        encoder=facts.name, input_shape=shape, spacing=None, head="sam", adaptation=lora,
        input_channels="repeat", batch_size=4, accumulation=6, learning_rate=5e-3, weight_decay=0.1,
        training_images={"cpu": 16_000, "gpu": 48_000}, memory_bytes=estimate.for_batch(4),
        training_gflops=round(estimate.training_flops / 1e9, 1), recipe="samed", why=why,
    )  # fmt: skip
    configuration = ConfigurationPlan(
        data_identifier=f"{PLANS_NAME}_2d", spacing=None, median_shape=[1, options.image_size, options.image_size],
        normalization=["ct_to_0_1"], use_mask_for_norm=[False], mirror_axes=[], foreground_share=0.33,
        networks={facts.name: network}, why=why,
    )  # fmt: skip
    low, high = (float(value) for value in options.intensity_range)
    middle = (low + high) / 2
    return Plans(
        dataset_name=options.dataset, plans_name=PLANS_NAME, samunet_version=__version__,
        image_reader=reader_for(options.file_ending, None).name, physical_spacing=False,
        original_median_spacing=[1.0, 1.0, 1.0], original_median_shape=[1, options.image_size, options.image_size],
        transpose_forward=[0, 1, 2],
        foreground_intensity_properties_per_channel={
            "0": IntensityStatistics(
                mean=middle, median=middle, std=high - low, min=low, max=high,
                percentile_00_5=low, percentile_99_5=high,
            )
        },
        gpu_memory_target_gb=8.0, encoder=facts.name, configurations={CONFIGURATION: configuration.model_dump()},
        why=why,
    )  # fmt: skip
