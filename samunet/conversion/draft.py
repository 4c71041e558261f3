"""A dataset that has been read and understood but not written: all decisions, as a table, and as dataset.json."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samunet.conversion.case import Case, Inspection, Options, inspect_all
from samunet.conversion.coding import Coding, decide_coding, overlaps, voxels_of
from samunet.dataset.cases import duplicate
from samunet.dataset.description import description_from_json
from samunet.dataset.names import unusable_names
from samunet.dataset.problems import Problem, raise_problems, shortened
from samunet.errors import SamunetError, UsageError
from samunet.imageio.registry import READERS, ending_of, may_have_segments

log = logging.getLogger(__name__)

_COLOURS = ("R", "G", "B")
_NAMES_HINT = (
    "CT selects clipping and normalisation in Hounsfield units; any other name, such as MRI, T2 or FLAIR, means a mean "
    "of 0 and a deviation of 1 per image: `channel_names=['CT']`"
)


@dataclass(frozen=True)
class Draft:
    """All that is decided about a dataset.

    Attributes:
        name: Such as ``Dataset012_Vessels``.
        coding: Of the masks.
        file_ending: Of the labels.
        keys: More keys of dataset.json.
        splits: Of splits_final.json; None where samunet makes them.
    """

    name: str
    training: list[Inspection]
    test: list[Inspection]
    channel_names: tuple[str, ...]
    coding: Coding
    file_ending: str
    keys: Mapping[str, Any]
    splits: list[dict[str, list[str]]] | None
    options: Options

    @property
    def groups(self) -> dict[str, str] | None:
        """Training case to patient; None unless every case has one."""
        groups = {found.case.name: found.case.group for found in self.training}
        return None if None in groups.values() else groups

    def description(self, command: str) -> dict[str, Any]:
        """The content of dataset.json."""
        content: dict[str, Any] = {
            "name": self.name.split("_", 1)[1],
            "channel_names": {str(index): name for index, name in enumerate(self.channel_names)},
            "labels": {name: value for value, name in enumerate(self.coding.names)},
            "numTraining": len(self.training),
            "file_ending": self.file_ending,
        }
        if self.coding.changed:
            content["raw_values"] = {self.coding.show(raw): new for raw, new in self.coding.classes.items()}
        content |= {"converted_by": command} | dict(self.keys)
        return content | {"groups": self.groups} if self.groups else content

    def to_text(self) -> str:
        """The decisions as a table."""
        lines = [self.name]
        lines += [f"  {what:<14}{text}" for what, text in self._facts() if text]
        width = max(14, *(len(self.coding.show(raw)) for raw in self.coding.classes))
        lines += ["", f"  {'in the masks':>{width}}  {'class':>5}  {'cases':>6}  {'voxels':>14}  {'share':>8}  name"]
        voxels = voxels_of(self.training)
        cases = Counter(value for found in self.training for value in found.values)
        total = max(sum(voxels.values()), 1)
        for raw, new in sorted(self.coding.classes.items(), key=lambda pair: pair[1]):
            lines.append(
                f"  {self.coding.show(raw):>{width}}  {new:>5}  {cases[raw]:>6}  {voxels[raw]:>14}  "
                f"{voxels[raw] / total:>8.3%}  {self.coding.names[new]}"
            )
        return "\n".join(lines)

    def _facts(self) -> list[tuple[str, str]]:
        names = [found.case.name for found in self.training]
        facts = [("training", f"{len(names)} cases: {shortened(names)}")]
        if self.test:
            with_mask = sum(found.case.mask_name is not None for found in self.test)
            listed = shortened([found.case.name for found in self.test])
            facts.append(("test", f"{len(self.test)} cases, {with_mask} with masks: {listed}"))
        facts.append(("channels", ", ".join(self.channel_names)))
        facts.append(("shape", _range([found.shape for found in self.training], "{:.0f}")))
        spacings = [found.geometry.spacing for found in self.training if found.geometry.physical]
        facts.append(("spacing", f"{_range(spacings, '{:.3g}')} mm" if spacings else "none"))
        files = Counter(_form(file) for one in self.training for file in one.case.files[:1])
        facts.append(("images", ", ".join(f"{number} {ending}" for ending, number in files.most_common(4))))
        if self.options.class_files:
            facts.append(("class files", self._class_files()))
        facts.append(("labels", f"written as {self.file_ending}"))
        if self.groups:
            sizes = Counter(self.groups.values())
            facts.append(
                ("patients", f"{len(sizes)} with {_span(list(sizes.values()), '{}')} cases: {shortened(sorted(sizes))}")
            )
        if self.splits:
            facts.append(("folds", f"{len(self.splits)}, as the source has it"))
        return facts

    def _class_files(self) -> str:
        """How many files each class has, and which cases have none."""
        lines = []
        for name in self.coding.names[1:]:
            files = {one.case.name: sum(own == name for own, _ in one.case.class_files) for one in self.training}
            without = [case for case, number in files.items() if not number]
            missing = f" (no file, so no {name}: {shortened(without)})" if without else ""
            lines.append(f"{name} {sum(files.values())}{missing}")
        return "; ".join(lines)


def make_draft(
    name: str,
    training: Sequence[Case],
    test: Sequence[Case],
    options: Options,
    *,
    problems: Sequence[Problem] = (),
    keys: Mapping[str, Any] | None = None,
    splits: list[dict[str, list[str]]] | None = None,
    where: str = "",
) -> Draft:
    """Read all cases and decide everything. Nothing is written.

    Args:
        name: Such as ``Dataset012_Vessels``.
        training: Cases with masks.
        test: Cases of imagesTs, with masks or without.
        options: What the user says.
        problems: What is known to be wrong already; reported together with what reading finds.
        keys: More keys of dataset.json.
        splits: Folds that came with the data.
        where: The source, for messages.

    Raises:
        SamunetError: If there are no cases, any case is wrong (all are listed, at most five of each kind), or values of
            the masks are not understood.
        UsageError: If the options do not fit the data.
    """
    training, test = (sorted(cases, key=lambda case: case.name) for cases in (training, test))
    problems = list(dict.fromkeys([*problems, *_names_that_clash(training), *_names_that_clash(test)]))
    if not training:
        raise_problems(problems, where)
        raise SamunetError(f"{where}: there are no cases to train on", "correct the path")
    named = options.class_files or any(may_have_segments(case.mask_name or "") for case in training)
    if options.paint_in_order and not named:
        raise UsageError(
            "`paint_in_order` says which of several files covers the others, but masks are one file per case",
            "leave it out, or write {class} where the pattern of masks names the class: 'masks/{case}_{class}.nii.gz'",
        )
    found, found_test = inspect_all(
        # Cases without mask are reported already; their images need not be read for it.
        [case for case in training if case.mask_name is not None],
        test,
        options,
    )
    everything = found + found_test
    problems += [problem for one in everything for problem in one.problems]
    if not options.paint_in_order:
        problems += overlaps(everything, options)
    raise_problems(problems, where)
    for problem in problems:
        log.warning("%s: %s (%s)", problem.where, problem.text, problem.fix)
    sound = [one for one in everything if one.geometry is not None]
    channel_names = _decide_channels(sound, options.channel_names)
    raise_problems(_wrong_channels(sound, channel_names), where)
    decided, file_ending = decide_coding(everything, options), _decide_file_ending(sound)
    if options.not_annotated is not None:
        _warn_of_no_background(found, decided)
    draft = Draft(name, found, found_test, channel_names, decided, file_ending, keys or {}, splits, options)
    description_from_json(draft.description(""), where)
    return draft


def _warn_of_no_background(training: Sequence[Inspection], coding: Coding) -> None:
    """Warn of masks in which nothing is marked as background: nothing then says where a structure ends."""
    background = {raw for raw, new in coding.classes.items() if new == 0}
    without = [one.case.name for one in training if not any(one.values.get(raw) for raw in background)]
    if not without:
        return
    every = len(without) == len(training)
    log.warning(
        "nothing is marked as background in %s: %s; mark some beside and far from every structure, with a colour or "
        "value of its own (background=COLOUR among `labels`, or background among them with `zero_is_not_annotated`)",
        "any mask" if every else f"{len(without)} of {len(training)} masks ({shortened(without)})",
        "a model that never sees background marks it as a structure" if every else "there a model may spill",
    )


def _decide_channels(findings: Sequence[Inspection], given: Sequence[str] | None) -> tuple[str, ...]:
    """Names of the channels: those given, or, of pictures, by their colours.

    Pictures are ``grayscale``, or ``R``, ``G``, ``B`` if one of them has colours; with more than 8 bits they are called
    ``intensity``, since no range of values is known then.

    Raises:
        UsageError: If the names must be given.
    """
    if given is not None:
        return tuple(given)
    counts = Counter(found.channels for found in findings)
    if any(found.case.kind == "volume" or found.shape[0] > 1 for found in findings):
        number = counts.most_common(1)[0][0]
        several = f" of the {number} channels, in their order" if number > 1 else ""
        raise UsageError(f"volumes do not tell what they show: the name{several} is missing", _NAMES_HINT)
    if set(counts) - {1, 3}:
        raise UsageError(
            f"pictures have {' or '.join(str(count) for count in sorted(counts))} channels, whose names are missing",
            "give a name for each: `channel_names=['blue', 'green', 'red', 'infrared']`",
        )
    if any(found.channels == 3 and not found.grey for found in findings):
        return _COLOURS
    return ("grayscale",) if max(found.largest for found in findings) <= 255 else ("intensity",)


def _wrong_channels(findings: Sequence[Inspection], names: Sequence[str]) -> list[Problem]:
    """Cases whose number of channels does not fit the names.

    Pictures are fitted to it where nothing is lost: grey is repeated for colours, and equal colours are one channel.
    """
    problems = []
    for found in findings:
        picture = found.case.kind != "volume" and found.shape[0] == 1
        fits = found.channels == len(names) or (
            picture and ((len(names) == 3 and found.channels == 1) or (len(names) == 1 and found.grey))
        )
        if not fits:
            fix = f"channels are {', '.join(names)}: give other `channel_names`, or convert the image"
            detail = f"{found.case.name} has {found.channels}"
            problems.append(Problem(f"{len(names)} channels expected:", found.case.name, detail, fix))
    return problems


def _decide_file_ending(findings: Sequence[Inspection]) -> str:
    """``file_ending`` of the dataset: the format of its labels, whose reader must open all images.

    Volumes keep the ending of their masks if it is the same for all, else they get ``.nii.gz``; TIFF stays ``.tif``;
    pictures get ``.png``.

    Raises:
        SamunetError: If the images are volumes and pictures.
    """
    by_kind: dict[str, list[Inspection]] = {}
    for found in findings:
        kind = "picture" if found.case.kind == "tiff" and found.shape[0] == 1 else found.case.kind
        by_kind.setdefault(kind, []).append(found)
    if len(by_kind) > 1:
        listed = ", ".join(f"{kind}s such as {found[0].case.files[0].name}" for kind, found in by_kind.items())
        raise SamunetError(
            f"images are of different kinds: {listed}", "make a dataset of each kind, or save all in one format"
        )
    if "picture" in by_kind:
        return ".tif" if all(found.case.kind == "tiff" for found in findings) else ".png"
    if "tiff" in by_kind:
        return ".tif"
    masks = {ending_of(file) for found in findings for file in found.case.masks}
    only = masks.pop() if len(masks) == 1 else None
    return only if any(only in reader.directed_endings for reader in READERS) else ".nii.gz"


def _names_that_clash(cases: Sequence[Case]) -> list[Problem]:
    """Cases that would be written to the same files, on this system or on another."""
    files: dict[str, list[Path]] = {}
    for case in cases:
        files.setdefault(case.name, []).append(case.files[0])
    same = [duplicate(name, found) for name, found in files.items() if len(found) > 1]
    return same + unusable_names(files)


def _form(file: Path) -> str:
    return "DICOM series" if file.is_dir() else ending_of(file) or file.suffix


def _range(rows: Sequence[Sequence[float]], form: str) -> str:
    return " x ".join(_span([row[axis] for row in rows], form) for axis in range(3))


def _span(values: Sequence[float], form: str) -> str:
    low, high = form.format(min(values)), form.format(max(values))
    return low if low == high else f"{low}-{high}"
