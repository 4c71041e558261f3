"""ONNX export of a trained fold, compared with PyTorch on real slices."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np

from samunet import __version__, paths
from samunet.dataset.layout import find_dataset, list_cases, load_dataset
from samunet.dataset.outputs import check_new_file
from samunet.dataset.prediction_input import as_paths
from samunet.errors import SamunetError, UsageError
from samunet.files import make_folder
from samunet.inference.options import PredictionOptions
from samunet.inference.predictor import Predictor
from samunet.models.choose import parse_folds
from samunet.models.folder import Fold, ModelFolder, model_folder_name, open_model_folder
from samunet.models.manifest import FILE_NAME, parse_manifest
from samunet.plans import DEFAULT_PLANS_NAME
from samunet.preprocessing.case import prepare_case
from samunet.preprocessing.grid import SliceGrid, sample
from samunet.preprocessing.planes import slice_with_context

if TYPE_CHECKING:
    from torch import Tensor, nn

    from samunet.dataset.cases import Case

log = logging.getLogger(__name__)

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-3  # of logits
_CASES, _SLICES = 2, 3  # that both compute
_ONE_FILE_BYTES = 1_900_000_000  # beyond it a graph's weights need a file of their own


def export_onnx(
    dataset: str | int,
    configuration: str,
    fold: Fold,
    output: str | Path,
    plans_name: str = DEFAULT_PLANS_NAME,
    *,
    checkpoint: str = "final",
    images: str | Path | Sequence | None = None,
) -> float:
    """Write a trained fold as ONNX, adapters merged.

    The graph takes ``image``, ``(batch, channels, height, width)`` float32 as the preprocessing makes it, with any
    batch, and gives ``logits``, ``(batch, outputs, height, width)``. Under the key ``samunet`` of its metadata stands,
    as JSON, what is needed to prepare images and to read the logits.

    Args:
        dataset, configuration, fold, plans_name: Which fold.
        output: The file to write, ``.onnx``, which must not exist. Weights beyond 1.9 GB go into a second file
            beside it, with ``.data`` after the name.
        checkpoint: ``final`` or ``best``.
        images: A folder of images, or files, on which both are computed; None for the dataset's training cases.

    Returns:
        The largest difference of logits between PyTorch and onnxruntime.

    Raises:
        UsageError: If there is no such fold, ``output`` exists or has another ending, or there are no images to compare
            on.
        SamunetError: If packages are missing, the network cannot be written as ONNX, or the two differ by more than
            1e-3. Then nothing is written.
    """
    output = Path(output)
    if output.suffix != ".onnx" or output.is_dir():
        raise UsageError(f"{output} must be a file that ends in .onnx", "for example: `output='model.onnx'`")
    check_new_file(output)
    _require_packages()
    name = find_dataset(dataset)
    model = open_model_folder(paths.results_folder() / name / model_folder_name(plans_name, configuration))
    (fold,) = parse_folds(model, [fold], checkpoint)
    adaptation = model.network(fold).adaptation
    if adaptation.slab > 1:
        raise SamunetError(
            f"fold {fold} of {model.path} computes {adaptation.slab} neighbouring slices together "
            f"({adaptation.method}), and images of a graph stand for themselves",
            "predict with `api.predict`, or export a model with another adaptation",
        )
    (network,) = model.load([fold], checkpoint)  # in single precision, which a predictor may lower
    predictor = Predictor(
        [network], model.plans, model.configuration, model.network(fold),
        model.description, PredictionOptions(device="cpu"), [fold],
    )  # fmt: skip
    windows = _real_windows(predictor, _cases(model, name, images))
    log.info("exporting fold %s of %s", fold, model.path)
    with TemporaryDirectory(dir=make_folder(output.parent), prefix=".tmp-") as scratch:
        file = Path(scratch) / output.name
        _export(network, windows[:2], _facts(model, fold, predictor), file)
        difference = _compare(network, windows, file)
        for path in sorted(Path(scratch).iterdir(), key=lambda path: path == file):  # the graph last
            os.replace(path, output.parent / path.name)
    log.info("%d real slices: logits differ by at most %.1e from PyTorch's", len(windows), difference)
    log.info("%.1f MB written to %s", output.stat().st_size / 1e6, output)
    return difference


def _require_packages() -> None:
    missing = [package for package in PACKAGES if find_spec(package) is None]
    if missing:
        raise SamunetError(
            f"ONNX export needs {', '.join(PACKAGES)}, and this environment lacks {', '.join(missing)}",
            f"pip install {' '.join(missing)}",
        )


def _cases(model: ModelFolder, dataset: str, images: str | Path | Sequence | None) -> list[Case]:
    """Cases to compare on."""
    if images is not None:
        found = list_cases(as_paths(images), model.description)
    else:
        try:
            found = load_dataset(dataset).cases
        except SamunetError as error:
            raise UsageError(
                f"there are no images to compare the export with PyTorch on: {error.message}",
                "give some: `images='imagesTs'`",
            ) from error
    cases = list(found.values())[:_CASES]
    if not cases:
        raise UsageError("there are no images to compare the export with PyTorch on", "give some: `images='imagesTs'`")
    return cases


def _real_windows(predictor: Predictor, cases: list[Case]) -> Tensor:
    """What the network gets of some slices: ``(slices, channels, height, width)``."""
    import torch

    network, windows = predictor.network, []
    for case in cases:
        image, _ = predictor.read(case.images)
        prepared = prepare_case(image, None, predictor.plans, predictor.configuration)
        depth, plane = prepared.image.shape[1], prepared.image.shape[2:]
        grid = SliceGrid.of(
            plane, prepared.record.stored_spacing, network.spacing, network.input_shape, network.stretch
        )
        starts = grid.window_starts(predictor.options.step_size)
        for z in sorted({depth * part // (_SLICES + 1) for part in range(1, _SLICES + 1)}):
            channels = slice_with_context(
                lambda first, last, stored=prepared.image: stored[:, first:last],
                z, depth, network.input_channels == "neighbours",
            )  # fmt: skip
            stored = torch.from_numpy(channels[None].astype(np.float32))
            windows.append(sample(stored, grid.window(starts[len(starts) // 2]), grid.input_shape))
    return torch.cat(windows)


def _export(network: nn.Module, example: Tensor, facts: dict, file: Path) -> None:
    import torch

    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                _one_input(network),
                (example,),
                input_names=["image"],
                output_names=["logits"],
                dynamic_shapes={"image": {0: torch.export.Dim("batch")}},
                dynamo=True,
                verbose=False,
            )
            program.model.metadata_props["samunet"] = json.dumps(facts)
            size = sum(parameter.nbytes for parameter in network.parameters())
            program.save(str(file), external_data=size > _ONE_FILE_BYTES)
    except OSError:
        raise
    except Exception as error:  # the exporter raises whatever its many passes raise
        first_line = next(iter(str(error).splitlines()), type(error).__name__)
        raise SamunetError(
            f"this network could not be written as ONNX by torch {torch.__version__}: {first_line}",
            "pip install -U onnx onnxscript may help",
        ) from error


def _compare(network: nn.Module, windows: Tensor, file: Path) -> float:
    """Largest difference of logits, over all windows in twos and one alone.

    Raises:
        SamunetError: If it is too large.
    """
    import onnxruntime
    import torch

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    difference = 0.0
    for batch in (*windows.split(2), windows[-1:]):  # a large network's scores take a gigabyte for each image
        with torch.no_grad():
            expected = network(batch).numpy()
        (logits,) = session.run(["logits"], {"image": batch.numpy()})
        difference = max(difference, float(np.abs(logits - expected).max()))
    if not difference <= TOLERANCE:  # NaN is too large as well
        raise SamunetError(
            f"the exported graph's logits differ by {difference:.2g} from PyTorch's, more than {TOLERANCE:g}; nothing "
            "was written",
            "pip install -U onnx onnxscript onnxruntime, and export again",
        )
    return difference


def _facts(model: ModelFolder, fold: Fold, predictor: Predictor) -> dict:
    """What a program needs around the graph, and where the graph comes from."""
    run, network, configuration = model.run(fold), predictor.network, predictor.configuration
    raw, manifest = model.description.raw, model.path / FILE_NAME
    base = run.get("base") or {}
    return {
        "dataset": model.plans.dataset_name,
        "configuration": model.configuration_name,
        "fold": fold,
        "licence": parse_manifest(manifest.read_bytes(), str(manifest)).licence if manifest.is_file() else None,
        "encoder": network.encoder,
        "base": {key: base[key] for key in ("file", "sha256") if key in base} or None,
        "versions": {"samunet": __version__}
        | {f"trained with {key}": value for key, value in (run.get("versions") or {}).items()},
        "input": {
            "channel_names": raw.get("channel_names", raw.get("modality")),
            "slices": network.input_channels,
            "shape": network.input_shape,
            "spacing": network.spacing,
            "orientation": predictor.plans.orientation,
            "transpose_forward": predictor.plans.transpose_forward,
            "normalization": configuration.normalization,
            "use_mask_for_norm": configuration.use_mask_for_norm,
            "intensities": {
                channel: statistics.model_dump()
                for channel, statistics in predictor.plans.foreground_intensity_properties_per_channel.items()
            },
        },
        "output": {"labels": raw["labels"], "regions_class_order": raw.get("regions_class_order")},
        "planes": configuration.planes,
        "mirror_axes": predictor.slices.mirror_axes,
        "shift": 0 if predictor.slices.mirror_axes else predictor.slices.window_shift,
    }


def _one_input(network: nn.Module) -> nn.Module:
    """A module whose forward takes the image and nothing else, which is how the graph's input gets its name."""
    from torch import nn

    class OneInput(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, image: Tensor) -> Tensor:
            return self.network(image)

    return OneInput().eval()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's remarks on packages that play no part here from the user."""
    import warnings

    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
