"""Which images or slices to label next, and files to edit that train as they are."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from samunet.dataset.cases import Case, visible
from samunet.dataset.layout import Dataset, find_dataset, list_cases, load_dataset
from samunet.dataset.outputs import RECORD, begin, check_folder, claim_folder, condition, finish, read_record
from samunet.dataset.prediction_input import as_paths, flat
from samunet.dataset.problems import shortened
from samunet.errors import SamunetError, UsageError, argument, check_number, raise_failures
from samunet.evaluation.quality import Calibration, read_calibration
from samunet.evaluation.summary import class_key
from samunet.files import csv_text, write_json, write_text
from samunet.imageio.registry import ending_of
from samunet.inference.logits import probabilities
from samunet.inference.options import PredictionOptions
from samunet.inference.predictor import Predictor
from samunet.inference.uncertainty import CaseUncertainty
from samunet.models.choose import choose_model, parse_folds
from samunet.models.folder import ModelFolder
from samunet.planning.agreement import recipe_obstacle
from samunet.preprocessing.case import OUTSIDE, CaseRecord, PreparedCase, prepare_case, read_case, restore_mask
from samunet.preprocessing.orientation import orientation_of, reorient_axes
from samunet.selection.ranking import (
    Choice,
    Pool,
    choose_uncertain,
    entropy_and_class_scores,
    gumbel_noise,
    k_centre,
    random_foreground,
    standardised,
)
from samunet.workers import collecting_failures

UNITS = ("case", "slice")
STRATEGIES = ("auto", "uncertainty", "variety", "random_foreground")
TABLE = "next.csv"
FEW = 5  # labelled cases, below which a model's doubt says little
_CHANCE = {"class": "chance, shows", "none": "chance"}
_OF_CASE = 3  # a case's score is the mean of so many of its slices, those with the highest
_COLUMNS = (
    "rank", "case", "axis", "slice", "chosen_for", "entropy", "class_score", "distance", "predicted_Dice",
    "random_foreground", "file", "images", "copy_images_to",
)  # fmt: skip

log = logging.getLogger(__name__)


@dataclass
class _Candidate:
    """A case of the pool, and what the model says of its slices.

    Attributes:
        case: Name and files.
        labelled: The training case with the same image, if it is labelled in part.
        entropy: ``(z,)``, class_scores ``(z, classes)``, shown ``(z, classes)``, embeddings ``(z, d)``.
        free: ``(z,)``: slices without any label.
        axis: Of the image's array, along which the slices lie; positions are those of the slices along it.
        predicted_dice: NaN where nothing is calibrated.
    """

    case: Case
    labelled: Case | None
    entropy: np.ndarray
    class_scores: np.ndarray
    shown: np.ndarray
    embeddings: np.ndarray
    free: np.ndarray
    axis: int
    positions: np.ndarray
    predicted_dice: float

    @property
    def name(self) -> str:
        """What its file to edit is called: a case that is in the dataset keeps its name there."""
        return self.labelled.name if self.labelled else self.case.name


@dataclass(frozen=True)
class _Item:
    """What can be chosen: all slices of a case that have no label (``z`` is None), or one of them."""

    case: _Candidate
    z: int | None

    def mean(self, values: np.ndarray) -> np.ndarray:
        """Of ``(z, ...)``."""
        return values[self.case.free].mean(axis=0) if self.z is None else values[self.z]

    def highest(self, values: np.ndarray) -> np.ndarray:
        """Mean of the three highest of ``(z, ...)``, class by class."""
        return np.sort(values[self.case.free], axis=0)[-_OF_CASE:].mean(axis=0) if self.z is None else values[self.z]

    @property
    def shown(self) -> np.ndarray:
        """Which classes are predicted in it."""
        return self.case.shown[self.case.free].any(axis=0) if self.z is None else self.case.shown[self.z]


def label_next(
    dataset: str | int,
    source: str | Path | Sequence[str | Path],
    output: str | Path = "next",
    *,
    number: int = 10,
    unit: str = "case",
    strategy: str = "auto",
    configuration: str | None = None,
    plans_name: str | None = None,
    folds: Sequence[int | str] | None = None,
    checkpoint: str = "final",
    round: int = 1,
    rounds: int = 1,
    seed: int = 12345,
    options: PredictionOptions | None = None,
    progress: bool = True,
    **settings: Any,
) -> dict[str, Any]:
    """Choose what to label next from a pool of images, and write a ranked table and files to edit.

    A file to edit is the prediction on what was chosen; everything else has the ignore label, which does not train.
    Labels that an image has already are kept. The method is that of :func:`samunet.selection.ranking.choose_uncertain`.

    Args:
        dataset: Its id or name: where the labels will go, and whose trained model is asked.
        source: The pool, as for :func:`samunet.api.predict`. Images that are labelled in the dataset are left out.
        output: Folder for ``next.csv`` and the files to edit. What an earlier call wrote there is replaced.
        number: How many to choose.
        unit: ``case`` or ``slice`` (along the planned slicing axis).
        strategy: ``uncertainty`` (doubt by class, and variety among the most doubtful), ``variety`` (farthest from all
            that is labelled, by the encoder's embeddings), ``random_foreground`` (by chance, every third showing a
            class), or ``auto``: uncertainty, and variety with fewer than five labelled cases.
        configuration, plans_name, folds, checkpoint: Which model, as for :func:`samunet.api.predict`.
        round, rounds: Of several planned rounds of labelling, which this is: in the first ones chance has more say.
        seed: All chance depends on it.
        options, settings: How to predict; ``settings`` are fields of
            :class:`samunet.inference.options.PredictionOptions`.
        progress: Whether to show a progress bar.

    Returns:
        ``strategy`` and ``why``, ``chosen`` and ``random_foreground`` (lists of rows), ``left_out`` (case to reason),
        ``ignore`` (the value of voxels without annotation in the files, None where there are none), ``ignore_is_new``
        (whether the raw ``dataset.json`` lacks it), ``labels_folder`` and ``images_folder``, where files go.

    Raises:
        UsageError: If an argument is wrong, no model is trained, the pool has fewer than ``number`` to choose from, or
            a name in it is that of another training case.
        SamunetError: If no image can be read, or the folder holds files that were edited.
    """
    _check_arguments(number, unit, strategy, round, rounds)
    sources, output = as_paths(source), Path(output)
    first = next(flat([sources]), None)
    if first is None or not first.exists():
        raise UsageError(
            "the pool is empty: no image was given" if first is None else f"{first} does not exist",
            "give a folder of images without labels: `source='imagesTs'`",
        )
    check_folder(output, flat([sources]))
    found = load_dataset(find_dataset(dataset))
    _refuse_edited(output)
    model, why = choose_model(first, found.name, configuration, plans_name, checkpoint, function="label_next")
    if unit == "slice":
        _check_recipe(model)
    left_out: dict[str, str] = {}
    failures: dict[str, SamunetError] = {}
    pool = list_cases(sources, model.description, failures)
    options = replace(options or PredictionOptions(), **settings)
    known = _Known(found, options.tolerate_geometry)
    wanted = known.without_labelled(pool, left_out, failures)
    _check_enough(number if unit == "case" else 1, len(wanted), unit, left_out, failures)
    which = parse_folds(model, folds, checkpoint)
    log.info("model: %s (%s), folds: %s", model.path, why, ", ".join(map(str, which)))
    predictor = Predictor.from_folder(model.path, which, checkpoint, options)
    calibrated = [model.fold(fold) for fold in which] if checkpoint == "final" else []
    calibration, about = read_calibration(calibrated, predictor.averages_views)
    log.info("predicted Dice: %s", about)
    items = _items(_look_at(predictor, wanted, known, calibration, failures, progress), unit)
    _check_enough(number, len(items), unit, left_out, failures)
    strategy, because = _strategy(strategy, known.count)
    log.info("%s", because)
    choices = _pool(items, known.embeddings(predictor, unit, progress))
    rng = np.random.default_rng(seed)
    by_chance = random_foreground(choices.shown, number, rng)
    if strategy == "uncertainty":
        noise = gumbel_noise((len(choices), choices.class_scores.shape[1] + 1), round, rounds, rng)
        chosen, words = choose_uncertain(choices, number, noise), {"class": "doubt about", "none": "doubt"}
    elif strategy == "variety":
        chosen, words = k_centre(choices.embeddings, choices.known, number), {"none": "variety"}
    else:
        chosen, words = by_chance, _CHANCE
    rows = _rows(items, chosen, choices, predictor, words)
    chance = _rows(items, by_chance, choices, predictor, _CHANCE)
    ignore = _write_files(output, [items[choice.index] for choice in chosen], predictor, known, rows)
    description = found.description.raw
    if ignore is not None:
        description = {**description, "labels": {**description["labels"], "ignore": ignore}}
    write_json(output / "dataset.json", description)
    write_text(output / TABLE, _table(rows, chance))
    predictor.intensities.sum_up()
    return {
        "strategy": strategy,
        "why": because,
        "chosen": rows,
        "random_foreground": chance,
        "left_out": left_out | {name: error.message for name, error in failures.items()},
        "ignore": ignore,
        "ignore_is_new": ignore is not None and known.ignore is None,
        "labels_folder": str(found.folder / "labelsTr"),
        "images_folder": str(found.folder / "imagesTr"),
    }


def _check_arguments(number: int, unit: str, strategy: str, round_: int, rounds: int) -> None:
    check_number("number", number, least=1)
    check_number("rounds", rounds, least=1)
    check_number("round", round_, least=1, most=rounds)
    for name, value, allowed in (("unit", unit, UNITS), ("strategy", strategy, STRATEGIES)):
        if value not in allowed:
            raise UsageError(f"{argument(name)} must be one of {', '.join(allowed)}, got {value!s:.40}")


def _check_recipe(model: ModelFolder) -> None:
    """Slices alone need the ignore label, which published recipes cannot train with."""
    labels = replace(model.description.labels, ignore=1 + max(model.description.labels.values))
    for network in model.configuration.networks.values():
        if recipe_obstacle(network.recipe, labels) == "an ignore label":
            raise UsageError(
                f"single slices need an ignore label for the others, and the recipe {network.recipe!r} of "
                f"{model.path.name} cannot train with one",
                "choose whole cases: `unit='case'`",
            )


def _refuse_edited(output: Path) -> None:
    """Files of an earlier call are replaced, but not what a person made of them."""
    masks = [file for file in visible(output) if file.is_file() and ending_of(file)] if output.is_dir() else []
    edited = [file.name for file in masks if not (record := read_record(file)) or condition(file, record) == "edited"]
    if edited:
        raise SamunetError(
            f"{output} holds {len(edited)} files that were edited since they were written ({shortened(edited)})",
            "copy them into labelsTr of the dataset and remove them here; or give another folder: `output='next_2'`",
        )


def _check_enough(
    number: int, there: int, unit: str, left_out: Mapping[str, str], failures: dict[str, SamunetError]
) -> None:
    if there >= number:
        return
    if not there and failures:
        raise_failures(failures, len(failures), "mend or remove what is named")
    gone = f" ({len(left_out)} are left out: {shortened(list(left_out))})" if left_out else ""
    if not there:
        raise UsageError(
            f"the pool has no {unit} left to label{gone}", "give a folder with other images: `source=FOLDER`"
        )
    have = f"{there} {unit}{'s' * (there != 1)}"
    raise UsageError(
        f"{argument('number', number)} is more than the pool has: {have} without labels{gone}",
        f"ask for fewer: {argument('number', there)}",
    )


def _strategy(strategy: str, labelled: int) -> tuple[str, str]:
    """What ``auto`` stands for, and why in words."""
    if strategy != "auto":
        return strategy, f"strategy {strategy}, as asked"
    have = f"{labelled} labelled case{'s' * (labelled != 1)}"
    if labelled < FEW:
        return "variety", (
            f"strategy variety: with {have}, fewer than {FEW}, what the model doubts says little yet; chosen is what "
            "is most unlike everything labelled, by the encoder's embeddings"
        )
    return "uncertainty", f"strategy uncertainty: {have}"


class _Known:
    """The labelled cases of a dataset: by the content of their images, and as embeddings."""

    def __init__(self, dataset: Dataset, tolerate_geometry: bool) -> None:
        self.dataset = dataset
        self.tolerate_geometry = tolerate_geometry
        self._by_content: dict[str, Case] = {}
        self._partial: set[str] = set()
        self.count = 0  # cases with anything annotated
        self.ignore = ignore = dataset.description.labels.ignore
        for case in dataset.cases.values():
            image, label = read_case(
                case if ignore is not None else replace(case, label=None),
                dataset.description,
                tolerate_geometry=tolerate_geometry,
            )
            self._by_content[_content(image.array)] = case
            if label is not None and (label == ignore).any():
                self._partial.add(case.name)
            self.count += label is None or bool((label != ignore).any())

    def without_labelled(
        self, pool: Mapping[str, Case], left_out: dict[str, str], failures: dict[str, SamunetError]
    ) -> list[tuple[Case, Case | None]]:
        """Cases of the pool that can be chosen, each with the training case that it is, if that has labels in part.

        Args:
            pool: Cases by name.
            left_out: Those that cannot are put here, with the reason; cases that fail already are.
            failures: Cases that cannot be read are put here.

        Raises:
            UsageError: If a name is that of a training case with another image: its file would replace that label.
        """
        seen: dict[str, str] = {}
        wanted, same_name = [], []
        for name, case in pool.items():
            with collecting_failures(failures, name):
                image, _ = read_case(case, self.dataset.description, tolerate_geometry=self.tolerate_geometry)
                content = _content(image.array)
                labelled = self._by_content.get(content)
                if content in seen:
                    left_out[name] = f"the same image as {seen[content]}"
                elif labelled is not None and labelled.name not in self._partial:
                    left_out[name] = f"labelled already, as {labelled.name}"
                else:
                    wanted.append((case, labelled))
                    same_name += [name] if labelled is None and name in self.dataset.cases else []
                seen.setdefault(content, name)
        if left_out:
            listed = shortened([f"{name}: {reason}" for name, reason in left_out.items()])
            log.warning("%d images of the pool are left out (%s)", len(left_out), listed)
        if same_name:
            raise UsageError(
                f"{len(same_name)} images of the pool are called like training cases of {self.dataset.name} that are "
                f"other images ({shortened(same_name)}): their files would replace those labels",
                "rename them in the pool",
            )
        return wanted

    def embeddings(self, predictor: Predictor, unit: str, progress: bool) -> np.ndarray:
        """Embeddings of what is labelled: of every such case its mean, or every labelled slice; ``(m, d)``."""
        from tqdm import tqdm

        found = []
        cases = self.dataset.cases.values()
        for case in tqdm(cases, desc="Labelled", unit="case", disable=None if progress else True, leave=False):
            prepared = self.prepared(predictor, case, case if case.name in self._partial else None)
            free = _free(prepared, self.ignore)
            if free.all():
                continue
            embedded = self._embedded(predictor, prepared)[~free]
            found.append(embedded.mean(axis=0, keepdims=True) if unit == "case" else embedded)
        return np.concatenate(found) if found else np.zeros((0, 0), np.float32)

    @staticmethod
    def _embedded(predictor: Predictor, prepared: PreparedCase) -> np.ndarray:
        grid = predictor.grid(prepared)
        return predictor.in_memory(lambda: predictor.slices.embeddings(prepared.image, grid))

    def prepared(self, predictor: Predictor, case: Case, labelled: Case | None) -> PreparedCase:
        """A case as the model sees it, with the label of a training case that is the same image."""
        image, _ = predictor.read(case.images)
        label = None
        if labelled is not None:
            _, label = read_case(labelled, self.dataset.description, tolerate_geometry=self.tolerate_geometry)
        return prepare_case(image, label, predictor.plans, predictor.configuration, self.ignore)


def _content(array: np.ndarray) -> str:
    """The same for images with the same voxels, whatever their files are called and however they are compressed."""
    voxels = np.ascontiguousarray(array, np.float32)
    return hashlib.sha256(repr(voxels.shape).encode() + voxels.tobytes()).hexdigest()


def _free(prepared: PreparedCase, ignore: int | None) -> np.ndarray:
    """Which slices have nothing annotated; without a label there is none, as whole cases are labelled then."""
    if prepared.label is None:
        return np.zeros(prepared.image.shape[1], bool)
    return ~((prepared.label != ignore) & (prepared.label != OUTSIDE)).any(axis=(1, 2))


def _look_at(
    predictor: Predictor,
    wanted: Sequence[tuple[Case, Case | None]],
    known: _Known,
    calibration: Calibration | None,
    failures: dict[str, SamunetError],
    progress: bool,
) -> list[_Candidate]:
    """What the model says of every case; those that fail are put into ``failures``."""
    from tqdm import tqdm

    found = []
    for case, labelled in tqdm(wanted, desc="Looking", unit="case", disable=None if progress else True, leave=False):
        with collecting_failures(failures, case.name):
            prepared = known.prepared(predictor, case, labelled)
            look = partial(_candidate, predictor, case, labelled, prepared, known, calibration)
            found.append(predictor.in_memory(look))
    return found


def _candidate(
    predictor: Predictor,
    case: Case,
    labelled: Case | None,
    prepared: PreparedCase,
    known: _Known,
    calibration: Calibration | None,
) -> _Candidate:
    labels, record = predictor.description.labels, prepared.record
    shape = record.cropped_shape
    classes = [index for index, region in enumerate(labels.regions) if region != (0,)]
    entropies, scores = np.zeros(shape[0]), np.zeros((shape[0], len(classes)))
    shown = np.zeros((shape[0], len(classes)), bool)
    observer = CaseUncertainty(labels, shape, len(predictor.slices.models)) if calibration else None
    for z, _, logits, _ in predictor.bands(prepared, observer):
        decided = (logits > 0) if labels.has_regions else (logits == logits.amax(0, keepdim=True))
        shown[z] |= decided[classes].flatten(1).any(1).cpu().numpy()
        entropy, score = entropy_and_class_scores(
            probabilities(logits, labels).double().cpu().numpy(), regions=labels.has_regions
        )
        entropies[z] += entropy.sum()
        scores[z] += score[classes].sum(axis=(1, 2))
    pixels = math.prod(shape[1:])
    axis, positions = _slices_in_image(record)
    return _Candidate(
        case, labelled, entropies / pixels, scores / pixels, shown,
        predictor.slices.embeddings(prepared.image, predictor.grid(prepared)),
        _free(prepared, known.ignore) if labelled else np.ones(shape[0], bool),
        axis, positions, _predicted_dice(observer, calibration, predictor),
    )  # fmt: skip


def _predicted_dice(observer: CaseUncertainty | None, calibration: Calibration | None, predictor: Predictor) -> float:
    if observer is None or calibration is None:
        return math.nan
    regions = dict(predictor.description.labels.foreground)
    return calibration.score({class_key(regions[name]): asdict(doubt) for name, doubt in observer.classes().items()})


def _slices_in_image(record: CaseRecord) -> tuple[int, np.ndarray]:
    """Along which axis of the image's array its slices lie, and where on it each lies."""
    axes = reorient_axes([0, 1, 2], orientation_of(record.geometry), record.orientation)
    axis = int(axes[record.transpose[0]])
    depth = record.cropped_shape[0]
    numbers = np.arange(1, depth + 1, dtype=np.int32)[:, None, None]
    placed = restore_mask(np.broadcast_to(numbers, record.cropped_shape), record)
    along = placed.max(axis=tuple(other for other in range(3) if other != axis))
    return axis, np.array([int(np.flatnonzero(along == number)[0]) for number in range(1, depth + 1)])


def _items(candidates: Sequence[_Candidate], unit: str) -> list[_Item]:
    """Everything there is to choose from."""
    if unit == "case":
        return [_Item(case, None) for case in candidates if case.free.any()]
    return [_Item(case, int(z)) for case in candidates for z in np.flatnonzero(case.free)]


def _pool(items: Sequence[_Item], known: np.ndarray) -> Pool:
    embeddings = np.stack([item.mean(item.case.embeddings) for item in items])
    embeddings, known = standardised(embeddings, known.reshape(-1, embeddings.shape[1]))
    # Of all dimensions alike: distances are then comparable between encoders.
    scale = 1 / math.sqrt(embeddings.shape[1])
    return Pool(
        np.array([item.highest(item.case.entropy) for item in items]),
        np.stack([item.highest(item.case.class_scores) for item in items]),
        np.stack([item.shown for item in items]),
        embeddings * scale,
        known * scale,
    )


def _rows(
    items: Sequence[_Item], choices: Sequence[Choice], pool: Pool, predictor: Predictor, words: Mapping[str, str]
) -> list[dict[str, Any]]:
    """One row of the table for each choice; ``words``: what a choice that is for no class is for."""
    names = [name for name, _ in predictor.description.labels.foreground]
    rows = []
    for rank, choice in enumerate(choices, 1):
        item = items[choice.index]
        of_class = choice.stratum is not None
        rows.append(
            {
                "rank": rank,
                "case": item.case.case.name,
                "axis": None if item.z is None else "zyx"[item.case.axis],
                "slice": None if item.z is None else int(item.case.positions[item.z]),
                "chosen_for": f"{words['class']} {names[choice.stratum]}" if of_class else words["none"],
                "entropy": float(pool.entropy[choice.index]),
                "class_score": float(pool.class_scores[choice.index, choice.stratum]) if of_class else math.nan,
                "distance": choice.distance,
                "predicted_Dice": item.case.predicted_dice,
            }
        )
    return rows


def _write_files(
    output: Path, chosen: Sequence[_Item], predictor: Predictor, known: _Known, rows: Sequence[dict[str, Any]]
) -> int | None:
    """Write the files to edit, and complete the rows with what belongs to each.

    Returns:
        The ignore label, if any voxel has it.
    """
    dataset = known.dataset
    labels, reader, ending = dataset.description.labels, dataset.description.reader, dataset.description.file_ending
    ignore = known.ignore if known.ignore is not None else 1 + max(labels.values)
    used = False
    by_case: dict[str, list[_Item]] = {}
    for item in chosen:
        by_case.setdefault(item.case.name, []).append(item)
    _remove_earlier(output)
    claim_folder(output)
    for name, items in by_case.items():
        case = items[0].case
        mask, geometry = predictor.predict_files(case.case.images)
        label = mask.astype(np.int32)
        if items[0].z is not None:
            label = np.full(mask.shape, ignore, np.int32)
            places = np.moveaxis(label, case.axis, 0)
            for item in items:
                places[case.positions[item.z]] = np.moveaxis(mask, case.axis, 0)[case.positions[item.z]]
        if case.labelled is not None:
            _, before = read_case(case.labelled, dataset.description, tolerate_geometry=known.tolerate_geometry)
            label = np.where(before == ignore, label, before)
        used |= bool((label == ignore).any())
        file = output / f"{name}{ending}"
        reader.check_mask(file, geometry)
        begin(file)
        reader.write_label(label, file, geometry)
        finish(file)
    for row, item in zip(rows, chosen, strict=True):
        images = item.case.case.images
        row["file"] = f"{item.case.name}{ending}"
        row["images"] = [str(image.absolute()) for image in images]
        row["copy_images_to"] = [] if item.case.labelled else [
            f"{item.case.name}_{channel:04d}{ending_of(image) or ''}" for channel, image in enumerate(images)
        ]  # fmt: skip
    return ignore if used else None


def _remove_earlier(output: Path) -> None:
    """Remove the unedited files of an earlier call: of another choice, they would be taken for labels of this one."""
    for file in visible(output) if output.is_dir() else []:
        if file.is_file() and ending_of(file) and read_record(file):
            file.unlink()
            (output / RECORD / f"{file.name}.json").unlink(missing_ok=True)


def _table(rows: Sequence[dict[str, Any]], chance: Sequence[dict[str, Any]]) -> str:
    lines: list[list[object]] = [[*_COLUMNS]]
    for row, other in zip(rows, chance, strict=True):
        cells = {**row, "images": "; ".join(row["images"]), "copy_images_to": "; ".join(row["copy_images_to"])}
        cells["random_foreground"] = place_of(other)
        lines.append([_cell(cells[column]) for column in _COLUMNS])
    return csv_text(lines)


def place_of(row: Mapping[str, Any]) -> str:
    """A row's case, and its slice if it is one: ``p1 z=12``."""
    return row["case"] if row["slice"] is None else f"{row['case']} {row['axis']}={row['slice']}"


def _cell(value: object) -> object:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return f"{value:.5f}" if isinstance(value, float) else value
