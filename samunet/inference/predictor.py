"""Prediction of masks for files or arrays with a trained model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

from samunet.dataset.cases import Case
from samunet.dataset.description import Description
from samunet.dataset.outputs import begin, finish
from samunet.devices import fast_dtype, resolve_device
from samunet.encoders import encoder_facts
from samunet.errors import FatalError, SamunetError, UsageError, raise_failures
from samunet.evaluation.metrics import confusion_counts
from samunet.evaluation.quality import KINDS, case_file, delete_stale, map_file
from samunet.evaluation.summary import class_key, millilitres
from samunet.files import atomic_path, make_folder, write_json
from samunet.imageio.base import Geometry, Image, Reader
from samunet.imageio.registry import image_reader_for, mask_ending
from samunet.inference.decoding import DICE, decode_for_dice, mask_type
from samunet.inference.intensities import IntensityWatch
from samunet.inference.logits import Band, Observer, SlicePredictor, decode, probabilities
from samunet.inference.options import PredictionOptions
from samunet.inference.planes import PlanePredictor
from samunet.inference.postprocessing import FILE_NAME as POSTPROCESSING_FILE
from samunet.inference.postprocessing import Postprocessing, read_postprocessing
from samunet.inference.records import GO_ON, cases_to_do, images_now, made_by, predict_into
from samunet.inference.uncertainty import CaseUncertainty
from samunet.models.folder import Fold, ModelFolder, open_model_folder
from samunet.models.shared_folds import SharedFolds
from samunet.plans import ConfigurationPlan, NetworkPlan, Plans
from samunet.preprocessing.case import PreparedCase, prepare_case, restore_mask
from samunet.preprocessing.grid import SliceGrid
from samunet.preprocessing.orientation import orientation_of
from samunet.preprocessing.planes import SlicingPlane
from samunet.recipes import recipe_facts
from samunet.workers import naming_the_case

_AS_PLANNED = PredictionOptions()
_Made = TypeVar("_Made")

log = logging.getLogger(__name__)


class Prediction(NamedTuple):
    """Of one case: its mask ``(z, y, x)``, and what was asked for besides."""

    mask: np.ndarray
    probability: np.ndarray | None
    uncertainty: CaseUncertainty | None


class Predictor:
    """A trained model, loaded once, for any number of files or arrays.

    Args:
        models: The networks of the folds to average, on any device.
        plans, configuration, network, description: What they were trained with.
        options: How to predict.
        folds: Names of the models' folds, for the record.
        postprocessing: Applied to every mask.
    """

    def __init__(
        self,
        models: Sequence,
        plans: Plans,
        configuration: ConfigurationPlan,
        network: NetworkPlan,
        description: Description,
        options: PredictionOptions = _AS_PLANNED,
        folds: Sequence[Fold] = (),
        postprocessing: Postprocessing | None = None,
    ) -> None:
        self.folds = list(folds)
        self.source: tuple[ModelFolder, list[Fold], str] | None = None
        self.plans = plans
        self.configuration = configuration
        self.network = network
        self.description = description
        self.options = options
        self.reader = description.reader
        self.postprocessing = postprocessing or Postprocessing()
        self.intensities = IntensityWatch()
        device = resolve_device(options.device)
        shared = isinstance(models, SharedFolds)
        self.slices = SlicePredictor(
            models.to(device) if shared else [model.to(device).eval() for model in models],
            neighbours=network.input_channels == "neighbours",
            slab=network.adaptation.slab,
            device=device,
            dtype=fast_dtype(device, network.input_shape),
            mirror_axes=configuration.mirror_axes if self._averages else (),
            window_shift=encoder_facts(network.encoder).patch_size // 4 if self._averages else 0,  # of a token
            step_size=options.step_size,
            batch_size=network.batch_size,
        )
        planes = [SlicingPlane(tuple(axes)) for axes in configuration.planes]
        self.planes = None
        if len(planes) > 1 and self._averages:
            self.planes = PlanePredictor(self.slices, planes, network, description.labels)

    @property
    def _averages(self) -> bool:
        """Whether over mirrored or shifted inputs, or planes."""
        return self.options.tta and recipe_facts(self.network.recipe).averages

    @property
    def averages_views(self) -> bool:
        """Whether a prediction is a mean over mirrored or shifted inputs, or over planes."""
        return self.planes is not None or self.slices.averages_views

    @classmethod
    def from_folder(
        cls,
        folder: str | Path,
        folds: Sequence[Fold] | None = None,
        checkpoint: str = "final",
        options: PredictionOptions = _AS_PLANNED,
    ) -> Predictor:
        """Load a trained model.

        Args:
            folder: The model's folder (``.../samunetTrainer__samunetPlans__2d``), anywhere.
            folds: Folds to average; None for all that are finished.
            checkpoint: ``final`` or ``best``.
            options: How to predict.

        Raises:
            UsageError: If there is no model.
            SamunetError: If there is no finished fold, or a file is damaged.
        """
        model = open_model_folder(folder)
        folds = list(folds) if folds is not None else model.finished_folds(checkpoint)
        if not folds:
            raise SamunetError(f"{folder} has no finished fold", "finish a training first: `api.train`")
        network = model.network(folds[0])
        postprocessing = None
        if options.postprocessing and (model.path / POSTPROCESSING_FILE).is_file():
            postprocessing = read_postprocessing(model.path / POSTPROCESSING_FILE)
            log.info("postprocessing: %s", postprocessing.describe())
        dtype = fast_dtype(resolve_device(options.device), network.input_shape)
        models = model.load(folds, checkpoint, dtype)
        predictor = cls(
            models, model.plans, model.configuration, network, model.description, options, folds, postprocessing
        )
        predictor.source = model, folds, checkpoint
        predictor.intensities = IntensityWatch.of(model)
        return predictor

    @classmethod
    def from_zip(
        cls,
        archive: str | Path,
        folds: Sequence[Fold] | None = None,
        checkpoint: str = "final",
        options: PredictionOptions = _AS_PLANNED,
        configuration: str | None = None,
    ) -> Predictor:
        """Load a model from the zip it was exported to, without installing it; checked as an installation is.

        Args:
            archive: What ``samunet_export_model_to_zip`` wrote.
            folds, checkpoint, options: As for :meth:`from_folder`.
            configuration: Which model, where the archive has several.

        Raises:
            UsageError: If there is no such file, or the archive has several models and none is named.
            SamunetError: If the archive is damaged or holds what no model has, or the base weights that it refers to
                are missing.
        """
        from tempfile import TemporaryDirectory

        from samunet.models.archive import open_archive

        with open_archive(Path(archive)) as opened, TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
            model = opened.manifest.model(configuration)
            folder = make_folder(Path(temporary) / model.folder)
            opened.extract(model, folder)
            predictor = cls.from_folder(folder, folds, checkpoint, options)
            _ = predictor.made  # as long as the files are there
            return predictor

    def predict_array(self, array: np.ndarray, spacing: Sequence[float] | None = None) -> np.ndarray:
        """Predict one image given as an array.

        Args:
            array: ``(channels, z, y, x)``, raw intensities and axes as in the training images' files.
            spacing: Millimetres ``(z, y, x)``; None for pictures without physical spacing.

        Returns:
            Labels ``(z, y, x)``, uint8 or uint16.

        Raises:
            UsageError: If the array or the spacing is not what the model was trained on.
        """
        array = np.asarray(array, dtype=np.float32)
        channels, physical = len(self.description.channel_names), spacing is not None
        if array.ndim != 4 or not array.size:
            raise UsageError(f"the array must be (channels, z, y, x), got the shape {array.shape}")
        if array.shape[0] != channels:
            names = ", ".join(self.description.channel_names)
            raise UsageError(f"the model was trained on {channels} channels ({names}), the array has {array.shape[0]}")
        if not np.isfinite(array).all():
            raise UsageError("the array has values that are not finite", "replace them: numpy.nan_to_num(array)")
        if self.plans.physical_spacing and not physical:
            raise UsageError("the model was trained on images with spacing", "give it in mm: spacing=(z, y, x)")
        if physical and (len(spacing) != 3 or not all(np.isfinite(side) and side > 0 for side in spacing)):
            raise UsageError(f"spacing must be three positive numbers in mm, (z, y, x), got {tuple(spacing)}")
        geometry = Geometry(
            spacing=tuple(map(float, spacing)) if physical else (1.0, 1.0, 1.0),
            physical=physical,
            origin=(0.0, 0.0, 0.0),
            direction=(1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0),
            dimension=3,
            placed=False,
        )
        return self._predict(Image(array, geometry)).mask

    def predict_files(self, files: Sequence[str | Path]) -> tuple[np.ndarray, Geometry]:
        """Predict one image given as its files, one per channel: labels ``(z, y, x)`` and the image's geometry."""
        image, _ = self.read(tuple(Path(file) for file in files))
        return np.ascontiguousarray(self._predict(image).mask), image.geometry  # a turned one is a view

    def predict_cases(
        self, cases: dict[str, Case], output: Path, *, progress: bool = True, own: bool = False
    ) -> list[str]:
        """Predict cases into a folder, one mask per case (see :meth:`mask_file`) in the input's geometry.

        Args:
            cases: From :func:`samunet.dataset.layout.list_cases`.
            own: The folder is this program's own, such as a fold's validation: it is not checked, and masks of another
                model are made again.

        Returns:
            Names of the cases predicted now (all but those whose mask was kept).

        Raises:
            SamunetError: If the folder may not be written to; or, after all others were predicted, if cases failed:
                of several a :class:`samunet.errors.CasesFailed` that lists them. A full disk or lack of memory ends the
                work at once.
        """
        todo, failures = cases_to_do(self, cases, Path(output), own=own), {}
        done = predict_into(self, todo, Path(output), failures, progress=progress)
        raise_failures(failures, len(cases), GO_ON)
        return done

    def predict_case(self, case: Case, file: Path) -> None:
        """Predict one case into a file, whose ending chooses the format; what else is asked for goes beside it.

        Raises:
            SamunetError: Naming the case, if it cannot be read, predicted or written.
        """
        with naming_the_case(case.name):
            images = images_now(case)
            image, reader = self.read(case.images)
            writer = image_reader_for(file, reader)
            writer.check_mask(file, image.geometry)
            prediction = self._predict(image)
            begin(file)
            delete_stale(file, case.name)
            saved = file.parent / f"{case.name}.npz"
            if prediction.probability is None and file.is_file() and file == self.mask_file(case, file.parent):
                saved.unlink(missing_ok=True)  # of the mask that is replaced
            elif prediction.probability is not None:
                with atomic_path(saved) as temporary:
                    np.savez_compressed(temporary, probabilities=prediction.probability)
            writer.write_label(prediction.mask, file, image.geometry)
            finish(file, made=self.made, images=images)
            if prediction.uncertainty is not None:
                self._write_uncertainty(prediction, case.name, file, image.geometry, writer)

    def mask_file(self, case: Case, output: Path) -> Path:
        """Where a case's mask goes: its name with its images' ending (``.png`` for JPEG, ``.nii.gz`` for DICOM)."""
        return output / f"{case.name}{mask_ending(case.images[0])}"

    @cached_property
    def made(self) -> dict[str, Any] | None:
        """What its masks depend on, for their records; None where it was not read from a model's folder."""
        return None if self.source is None else made_by(*self.source, self.options, self.postprocessing)

    def files_beside(self, case: Case, output: Path) -> list[Path]:
        """What is written for a case besides its mask."""
        files = [output / f"{case.name}.npz"] if self.options.save_probabilities else []
        if self._observes:
            files.append(case_file(output, case.name))
        if self.options.save_uncertainty:
            files += [map_file(self.mask_file(case, output), case.name, kind) for kind in self._maps]
        return files

    @property
    def _observes(self) -> bool:
        return self.options.measure_uncertainty or self.options.save_uncertainty

    @property
    def _maps(self) -> Sequence[str]:
        return KINDS if len(self.slices.models) > 1 else KINDS[:1]

    def _write_uncertainty(
        self, prediction: Prediction, name: str, mask_file: Path, geometry: Geometry, writer: Reader
    ) -> None:
        seen = prediction.uncertainty
        if self.options.save_uncertainty:
            for kind in self._maps:
                values = seen.entropy if kind == "entropy" else seen.disagreement
                writer.write_label(values, map_file(mask_file, name, kind), geometry)
        labels, classes = self.description.labels, seen.classes()
        voxels = confusion_counts(prediction.mask, prediction.mask, [region for _, region in labels.foreground])
        record = {
            class_key(region): {
                "name": label,
                "voxels": count.n_pred,
                "millilitres": count.n_pred * millilitres(geometry),
                **asdict(classes[label]),
            }
            for (label, region), count in zip(labels.foreground, voxels, strict=True)
        }
        # Last: what has this file has the others.
        write_json(
            case_file(mask_file.parent, name), {"tta": self.averages_views, "folds": self.folds, "classes": record}
        )

    def read(self, files: tuple[Path, ...]) -> tuple[Image, Reader]:
        """An image as the model expects it, given as its files, and what read it.

        Raises:
            SamunetError: If a file cannot be read, or is not what the model was trained on.
        """
        reader = image_reader_for(files[0], self.reader)
        channels = len(self.description.channel_names)
        image = reader.read_image(files, channels=channels, tolerate_geometry=self.options.tolerate_geometry)
        if self.plans.physical_spacing and not image.geometry.physical:
            raise SamunetError(
                f"{files[0]} has no spacing in millimetres, but the model was trained on images that have",
                "save it in a medical format, such as .nii.gz, with its true spacing",
            )
        if self.plans.orientation and not orientation_of(image.geometry):
            log.warning(
                "%s lies obliquely or says nothing of it: its axes are taken to run as the training images' do (%s)",
                files[0],
                self.plans.orientation,
            )
        self.intensities.look(image.array, files[0])
        return image, reader

    def _predict(self, image: Image) -> Prediction:
        case = prepare_case(image, None, self.plans, self.configuration)
        prediction = self.in_memory(lambda: self.predict_prepared(case))
        return prediction._replace(mask=self.postprocessing.apply(prediction.mask))

    def in_memory(self, work: Callable[[], _Made]) -> _Made:
        """Do something with the slices; with fewer at a time, and from its start, where a GPU's memory runs out.

        Raises:
            FatalError: If a single slice does not fit.
        """
        while True:
            # Memory is freed after the block: until the exception is gone, its traceback holds what failed.
            with suppress(torch.cuda.OutOfMemoryError):
                return work()
            torch.cuda.empty_cache()
            if self.slices.batch_size == 1:
                raise FatalError("a single slice does not fit into the GPU's memory", "predict with `device='cpu'`")
            self.slices.batch_size //= 2
            log.warning("out of GPU memory: %d slices at a time from now on", self.slices.batch_size)

    def grid(self, case: PreparedCase) -> SliceGrid:
        """How the network's input lies over the slices of a preprocessed case."""
        network = self.network
        return SliceGrid.of(
            case.image.shape[2:], case.record.stored_spacing, network.spacing, network.input_shape, network.stretch
        )

    def bands(self, case: PreparedCase, observer: Observer | None = None, *, whole: bool = False) -> Iterator[Band]:
        """Logits of a preprocessed case on its cropped grid, averaged over everything that is averaged.

        Args:
            case: As preprocessing makes it.
            observer: Sees what every fold predicts.
            whole: Every slice at once, however large.
        """
        shape = case.record.cropped_shape[1:]
        if self.planes:
            return self.planes.bands(case.image, case.record, shape, observer)
        return self.slices.bands(case.image, self.grid(case), shape, observer, whole=whole)

    def predict_prepared(self, case: PreparedCase) -> Prediction:
        """Predict a preprocessed case; its mask is turned back to the image's grid, and not postprocessed."""
        record, labels = case.record, self.description.labels
        shape = tuple(record.cropped_shape)
        observer = CaseUncertainty(labels, shape, len(self.slices.models)) if self._observes else None
        for_dice = self.postprocessing.decoding == DICE
        wanted = self.options.save_probabilities or for_dice
        probability = np.empty((labels.num_outputs, *shape), dtype=np.float16) if wanted else None
        mask = np.empty(shape, dtype=mask_type(labels))
        for z, rows, logits, _ in self.bands(case, observer, whole=wanted):
            mask[z, rows] = decode(logits, labels).cpu().numpy()
            if wanted:
                probability[:, z, rows] = probabilities(logits, labels).cpu().numpy()
        if for_dice:
            mask = decode_for_dice(probability, labels)
        if observer is not None:
            observer.restore(record)
        mask = restore_mask(mask, record)
        if not self.options.save_probabilities:
            return Prediction(mask, None, observer)
        probability = restore_mask(probability, record)
        if not labels.has_regions:
            probability[0][probability.sum(axis=0) == 0] = 1  # what cropping left out is background
        return Prediction(mask, probability, observer)
