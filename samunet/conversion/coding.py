"""Values of masks and the classes that they become.

Values are numbers, colours, what is above a threshold, or sets of named structures, which may overlap: of a file for
each class, or of 3D Slicer's segments.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from samunet.conversion.case import Inspection, Options, RawMask, RawValue
from samunet.dataset.problems import Problem, shortened
from samunet.errors import SamunetError, UsageError, argument

# A person names few classes; a mask with more grey levels than this, up to white, has been smoothed or compressed.
_MANY = 64
IGNORE = "ignore"
_WHITE = 255
_LABELS = "`labels=['liver', 'tumour']`"
_SMOOTHED = (
    "export the masks again without smoothing, scaling or JPEG; for one structure drawn in white on black, add "
    "`threshold=127`"
)


@dataclass(frozen=True)
class Coding:
    """The classes that raw values become.

    Attributes:
        names: Of the classes in the order of their values, background first.
        classes: Raw value to class.
        coloured: Whether raw values are colours.
        threshold: Values above it are class 1 instead; None for the values themselves.
    """

    names: tuple[str, ...]
    classes: dict[RawValue, int]
    coloured: bool = False
    threshold: float | None = None

    def apply(self, mask: RawMask, where: str) -> np.ndarray:
        """Classes of a mask, ``(z, y, x)``; worked out slice by slice to save memory.

        Raises:
            SamunetError: If a value has no class; ``where`` names the mask.
        """
        known = self.classes
        if mask.segments is not None:
            raws = {number: mask.raw(number) for number in range(len(mask.segments))}
            known = {number: self.classes[raw] for number, raw in raws.items() if raw in self.classes}
        raw = np.array(sorted(known), np.int64)
        classes = np.array([known[value] for value in raw.tolist()], np.int32)
        labels = np.empty(mask.values.shape, np.int32)
        for slice_, label in zip(mask.values, labels):
            places = np.minimum(np.searchsorted(raw, slice_), len(raw) - 1)
            wrong = slice_[raw[places] != slice_]
            if wrong.size:
                raise SamunetError(
                    f"{where} has the value {self.show(mask.raw(int(wrong[0])))}, which has no class: the file has "
                    "changed",
                    "run the same command again",
                )
            label[...] = classes[places]
        return labels

    @property
    def changed(self) -> bool:
        """Whether labels have other values than the masks."""
        other = (
            self.show(raw) != (self.names[new] if new else "nothing") if isinstance(raw, tuple) else raw != new
            for raw, new in self.classes.items()
        )
        return self.coloured or any(other) or (self.threshold is not None and () not in self.classes)

    def show(self, value: RawValue) -> str:
        """A raw value as a person writes it."""
        if isinstance(value, tuple):
            of_name = {name: self.classes.get((name,), 0) for name in value}
            return " over ".join(sorted(value, key=lambda name: -of_name[name])) or "nothing"
        if self.threshold is not None:
            return f"> {self.threshold:g}" if value else f"<= {self.threshold:g}"
        return shown(value, self.coloured)


def shown(value: int, coloured: bool) -> str:
    """A raw value: ``4``, or ``#ff0000``."""
    return f"#{value:06x}" if coloured else str(value)


def parse_remap(words: Sequence[str] | None) -> tuple[tuple[str, int], ...] | None:
    """The ``OLD=NEW`` words of ``remap``.

    Raises:
        UsageError: If a word has another form, or an old value occurs twice.
    """
    if words is None:
        return None
    pairs = []
    for word in words:
        old, equals, new = word.rpartition("=")
        if not equals or not old or not new.isdecimal():
            raise UsageError(
                f"`remap` takes OLD=NEW, got {word!r}",
                "for example `remap=['4=3']`, or for colours `remap=['#ff0000=1', '#00ff00=2']`; `remap=[]` numbers "
                "the values in ascending order",
            )
        pairs.append((old.strip(), int(new)))
    if len({old for old, _ in pairs}) < len(pairs):
        raise UsageError(f"`remap` gives a value two classes: {' '.join(words)}", "give every value once")
    return tuple(pairs)


def parse_labels(words: Sequence[str] | None) -> tuple[str, ...] | None:
    """Names of the classes; a leading ``background`` may be given.

    Raises:
        UsageError: If there is none, or one occurs twice.
    """
    if words is None:
        return None
    names = tuple(words[1:] if words[0].casefold() == "background" else words)
    if not names or len({"background", *(name.casefold() for name in names)}) <= len(names):
        raise UsageError(
            f"`labels` must name every class from 1 on once, got {' '.join(words)}",
            f"for example {_LABELS}",
        )
    return names


def annotated_labels(labels: Sequence[str]) -> tuple[list[str], int | None]:
    """``labels`` of masks that say what is not annotated, without ``ignore`` at the end and without the background.

    Returns:
        The others, and which of the values 1, 2, ... the background would be; it may stand anywhere.
    """
    labels = labels[:-1] if labels and labels[-1].casefold() == IGNORE else labels
    places = [place for place, name in enumerate(labels, 1) if _is_background(name)]
    return [name for name in labels if not _is_background(name)], places[0] if places else None


def colours_of(labels: Sequence[str], colours: Mapping[str, str]) -> tuple[tuple[str, int], ...]:
    """Colours of classes as ``Options.remap``.

    Args:
        labels: Names of the classes 1, 2, ...
        colours: Name to colour; ``background`` may be among them.

    Raises:
        UsageError: If a class has none, or what is given is no colour.
    """
    missing = [name for name in labels if name not in colours]
    if missing:
        raise UsageError(
            f"`labels` gives colours, but none for {', '.join(missing)}",
            f"give every class one, for example {missing[0]}=red or {missing[0]}=#ff0000",
        )
    for name, colour in colours.items():
        if _rgb(colour) is None:
            raise UsageError(
                f"{argument('labels', [f'{name}={colour}'])}: {colour!r} is no colour",
                f"write {name}=#ff0000, {name}=255,0,0 or a CSS name, {name}=red; it may also be what stands for "
                "{class} in the pattern of masks, which has none here; for numbers in masks: `remap=['4=1']`",
            )
    places = {name: place for place, name in enumerate(labels, 1)}
    return tuple((colour, places.get(name, 0)) for name, colour in colours.items())


def decide_coding(found: Sequence[Inspection], options: Options) -> Coding:
    """Give every value that occurs in the masks a class.

    Taken as they are: 0, 1, 2, ... without gaps (with ``labels``, also with classes that occur nowhere). Made into
    classes: 255 and 0, which is how black and white is stored, and colours and black, in ascending order unless
    they are several that have names: nothing says which is whose. All else must be asked for, because a gap may as well
    be a mistake. A named structure gets its class by its name; by its value if ``labels`` names none of them, or with
    ``remap``.

    Args:
        found: All cases.
        options: What the user says.

    Raises:
        SamunetError: If values are not understood (the hint says what to type for what they may mean), some masks have
            no names, names and values do not agree among the cases, all are empty, or one class covers another wherever
            that is.
        UsageError: If the options do not fit the values.
    """
    if options.class_files or (any(one.segments for one in found) and options.known is options.threshold is None):
        return _of_structures(found, options)
    return _of_values(voxels_of(found), any(one.coloured for one in found), options)


def voxels_of(found: Iterable[Inspection]) -> Counter[RawValue]:
    """Voxels of every value in the masks of all cases."""
    voxels = Counter()
    for one in found:
        voxels.update(one.values)
    return voxels


def overlaps(found: Iterable[Inspection], options: Options) -> list[Problem]:
    """Cases in which voxels belong to several structures."""
    if options.class_files:
        what, mend = (
            "classes",
            f"`paint_in_order=True` (the order is {' '.join(options.labels)}); else correct the masks",
        )
    else:
        what = "segments"
        mend = "`labels` with all names in that order, and `paint_in_order=True`; else correct the segments in Slicer"
    fix = f"where a later name of `labels` is to cover an earlier one, as a tumour the liver it lies in: add {mend}"

    def listed(names: tuple[str, ...], order: Sequence[str]) -> str:
        if set(names) <= set(order):
            return " over ".join(sorted(names, key=order.index, reverse=True))
        return " and ".join(names)

    problems = []
    for one in found:
        both = [
            f"{listed(value, options.labels or ())} ({voxels} voxels)"
            for value, voxels in sorted(one.values.items(), key=str)
            if isinstance(value, tuple) and len(value) > 1
        ]
        if both:
            name = one.case.name
            problems.append(Problem(f"{what} overlap:", name, f"{name}: {shortened(both)}", fix))
    return problems


def _of_structures(found: Sequence[Inspection], options: Options) -> Coding:
    partly = options.not_annotated is not None
    if partly and options.not_annotated != "0":
        raise UsageError(
            f"`not_annotated={options.not_annotated!r}`: masks name segments, and what is not annotated has no colour "
            "or value there",
            "where nothing is drawn and that means not annotated: `zero_is_not_annotated=True`",
        )
    known: set[tuple[str, ...]] = set()
    for one in found:
        if any(isinstance(value, int) and value for value in one.values):
            raise SamunetError(
                f"{one.case.mask_name} names no segments, as the masks of other cases do",
                "save all masks in the same way, for example from Slicer as .seg.nrrd",
            )
        known |= {value for value in one.values if isinstance(value, tuple)}
    alone = {name for value in known for name in value if not (partly and _is_background(name))}
    if not alone:
        raise SamunetError("all masks are empty: nothing is drawn in any", "are these the files with the masks?")
    names, of_name = _classes(found, alone, options)
    classes = {value: max((of_name.get(name, 0) for name in value), default=0) for value in known | {()}}
    covered = sorted(set(of_name.values()) - set(classes.values()))
    if covered:
        lost = {name for name, place in of_name.items() if place == covered[0]}
        over = names[min(place for value, place in classes.items() if lost & set(value)) - 1]
        raise SamunetError(
            f"nothing is left of {names[covered[0] - 1]}: later classes, such as {over}, cover it in all cases",
            f"name what lies inside after what it lies in: {_LABELS}",
        )
    if options.class_files:
        classes |= {(name,): place for place, name in enumerate(names, 1)}
    if partly:
        names = [*names, IGNORE]
        classes[()] = len(names)
    ordered = sorted(classes, key=lambda value: (classes[value], len(value), value))
    return Coding(("background", *names), {value: classes[value] for value in ordered}, threshold=options.threshold)


def _classes(found: Sequence[Inspection], alone: set[str], options: Options) -> tuple[Sequence[str], dict[str, int]]:
    """Names of the classes 1, 2, ..., and the class of every structure."""
    by_fold = {label.casefold(): place for place, label in enumerate(options.labels or (), 1)}
    of_name = {name: by_fold[name.casefold()] for name in alone if name.casefold() in by_fold}
    if options.remap is None and len(of_name) == len(alone):
        return options.labels, of_name
    named = argument("labels", sorted(alone))
    if options.remap is None and of_name:
        missing = sorted(alone - set(of_name))
        raise UsageError(f"`labels` does not name the segment {missing[0]!r}", f"the segments are {named}")
    values: dict[str, set[int]] = {}
    for segment in {segment for one in found for segment in one.segments}:
        values.setdefault(segment.name, set()).add(segment.value)
    same = all(len(values[name]) == 1 for name in alone) and len({min(values[name]) for name in alone}) == len(alone)
    if options.labels is None and options.remap is None:
        ordered = sorted(alone, key=lambda name: (min(values[name]) if same else 0, name))
        return ordered, {name: place for place, name in enumerate(ordered, 1)}
    if not same:
        raise SamunetError(
            "the segments of the masks have other values in other cases, or the same in several layers; only their "
            "names tell them apart",
            f"call the classes as the segments are called: {named}",
        )
    numbers = dict.fromkeys([0, *(min(values[name]) for name in alone)], 0)
    coding = _of_values(numbers, False, replace(options, not_annotated=None))
    return coding.names[1:], {name: coding.classes[min(values[name])] for name in alone}


def _is_background(name: str) -> bool:
    return name.casefold() == "background"


def _of_values(voxels: Mapping[int, int], coloured: bool, options: Options) -> Coding:
    if options.not_annotated is None:
        return _of_annotated(voxels, coloured, options)
    if options.threshold is not None:
        raise UsageError(
            "`threshold` makes one class of all that is brighter, and background of the rest",
            "leave it out: what is not annotated is a colour or value of its own",
        )
    asked = f"`not_annotated={options.not_annotated!r}`"
    hole = _raw_value(options.not_annotated, coloured, asked)
    if hole not in voxels:
        raise SamunetError(
            f"{asked}: no mask has it, so everything would be annotated; there are {_some(sorted(voxels), coloured)}",
            "give the colour or value of what nobody annotated; leave it out if all is annotated",
        )
    rest = {value: count for value, count in voxels.items() if value != hole}
    if not rest:
        raise SamunetError("nothing is annotated in any mask", "are these the folders with the masks?")
    if hole == 0 and options.background is not None and not coloured and options.remap is None:
        options = _with_background(options, sorted(rest))
    elif hole == 0 and not options.remap:
        rest[0] = 0  # for now: the classes are those of a mask with a background
    coding = _of_annotated(rest, coloured, options)
    classes = {value: new for value, new in coding.classes.items() if value != hole}
    return replace(coding, names=(*coding.names, IGNORE), classes=classes | {hole: len(coding.names)})


def _with_background(options: Options, values: Sequence[int]) -> Options:
    """As ``remap``: ``labels`` are the values from 1 on, among which the background has its place."""
    labels, background = options.labels or (), options.background
    most = len(labels) + 1
    if values[0] < 1 or values[-1] > most:
        raise UsageError(
            f"`labels` names the values 1 to {most}, background among them, but masks have {_some(values, False)} "
            "besides 0, which is not annotated",
            f"name every value in order, or say them: `remap=['{background}=0', ...]`",
        )
    others = [value for value in range(1, most + 1) if value != background]
    lacking = [labels[place] for place, value in enumerate(others) if value not in values]
    if lacking:
        raise UsageError(
            f"`labels` names {', '.join(lacking)}, which no mask has; there are {_some(values, False)} besides 0",
            "leave out what is marked nowhere, and say which values are which with `remap`",
        )
    pairs = [(str(value), place) for place, value in enumerate(others, 1)]
    return replace(options, remap=(*([(str(background), 0)] if background in values else []), *pairs))


def _of_annotated(voxels: Mapping[int, int], coloured: bool, options: Options) -> Coding:
    values, labels, remap = sorted(voxels), options.labels, options.remap
    if options.known is not None:
        return _known(values, options.known)
    if options.threshold is not None:
        if remap is not None:
            raise UsageError("`threshold` makes one class of all that is brighter", "leave out `remap`")
        if values == [0]:
            raise SamunetError(
                f"no mask has anything above {argument('threshold', options.threshold)}: all would be empty",
                "give a lower one: white is 255 in some files and 1 in others",
            )
        return _named({0: 0, 1: 1}, labels, False, options.threshold, exact=True)
    if values == [0]:
        raise SamunetError("all masks are empty: 0 everywhere", "are these the folders with the masks?")
    smoothed = len(values) > _MANY and (coloured or values[-1] == _WHITE) and remap is None
    if smoothed:
        what = "colours" if coloured else f"values from {values[0]} to 255, as smoothed or compressed ones have"
        raise SamunetError(
            f"masks have {len(values)} different {what}" + (f": {_some(values, True)}" if coloured else ""),
            _SMOOTHED if coloured else f"{_SMOOTHED}. If they really are classes, add `remap=[]`",
        )
    if remap:
        classes = _as_asked(values, remap, coloured)
    elif 0 not in values and values != [_WHITE]:
        raise _no_background(values, coloured)
    elif remap is None and coloured and labels is not None and len(set(values) - {0}) > 1:
        raise _whose_colours([value for value in values if value], labels, voxels)
    elif remap is not None or coloured or values in ([0, _WHITE], [_WHITE]):
        classes = {0: 0} | {value: place for place, value in enumerate((value for value in values if value), 1)}
    elif labels is not None and values[0] >= 0 and values[-1] <= len(labels):
        classes = {value: value for value in range(len(labels) + 1)}
    elif values == list(range(len(values))):
        classes = {value: value for value in values}
    else:
        raise SamunetError(
            f"values of masks must be 0, 1, 2, ... without gaps, but there are {_some(values, False)}",
            "to number them in this order: `remap=[]`; to choose: for example "
            f"{_remap([f'{values[-1]}={len(values) - 1}'])}; for classes that occur in no mask: name all of them with "
            "`labels` (the last may be called ignore, for voxels that nobody annotated)"
            + ("; for black and white that was smoothed: `threshold=127`" if values[-1] == _WHITE else ""),
        )
    return _named(classes, labels, coloured, None, exact=coloured or remap is not None)


def _known(values: list[int], names: Mapping[int, str]) -> Coding:
    unknown = [value for value in values if value not in names]
    if unknown:
        listed = ", ".join(f"{value} = {name}" for value, name in sorted(names.items()))
        raise SamunetError(
            f"masks have values that are not listed: {_some(unknown, False)}", f"listed are {listed}: correct the masks"
        )
    ordered = sorted(names)
    return Coding(tuple(names[value] for value in ordered), {value: place for place, value in enumerate(ordered)})


def _as_asked(values: list[int], remap: Sequence[tuple[str, int]], coloured: bool) -> dict[int, int]:
    asked = {_raw_value(old, coloured): new for old, new in remap}
    missing = [value for value in asked if value not in values]
    if missing:
        raise SamunetError(
            f"{'`labels` or `remap`' if coloured else '`remap`'} names {_some(missing, coloured)}, which no mask has",
            f"the masks have {_some(values, coloured)}",
        )
    rest = [value for value in values if value and value not in asked]
    if coloured and rest:
        raise SamunetError(
            f"`labels` or `remap` gives no class to the colours {_some(rest, True)}",
            "name every colour but black; black, or what is called background, is 0",
        )
    return {value: asked.get(value, value) for value in values}


def _raw_value(text: str, coloured: bool, asked: str = "`remap`") -> int:
    if coloured and (colour := _rgb(text)) is not None:
        return colour
    if re.fullmatch(r"-?\d+", text) and (not coloured or int(text) == 0):
        return int(text)
    wanted = "colours, so write '#ff0000=1' or 255,0,0=1" if coloured else "numbers, so write 4=3"
    if asked != "`remap`":
        wanted = "colours, so write black, '#ff0000' or 255,0,0" if coloured else "numbers, so write 0 or 255"
    raise UsageError(f"{asked}: {text!r} is no value of these masks", f"they hold {wanted}")


def _rgb(text: str) -> int | None:
    """The code of ``#ff0000``, ``255,0,0``, ``rgb(255,0,0)`` or a CSS name; None of what is no colour."""
    from PIL import ImageColor

    bare = re.fullmatch(r"\s*\d+\s*,\s*\d+\s*,\s*\d+\s*", text)
    try:
        colour = ImageColor.getrgb(f"rgb({text.strip()})" if bare else text.strip())
    except ValueError:
        return None
    red, green, blue = colour[:3]
    return (red << 16) + (green << 8) + blue if len(colour) == 3 and max(colour) <= 255 else None


def _css_name(colour: int) -> str:
    from PIL import ImageColor

    def distance(name: str) -> int:
        other = ImageColor.getrgb(name)[:3]
        return sum((part - (colour >> shift & 255)) ** 2 for part, shift in zip(other, (16, 8, 0)))

    nearest = min(ImageColor.colormap, key=distance)
    return nearest if not distance(nearest) else f"near {nearest}"


def _whose_colours(colours: Sequence[int], labels: Sequence[str], voxels: Mapping[int, int]) -> SamunetError:
    total = max(sum(voxels.values()), 1)
    often = sorted(colours, key=lambda colour: -voxels.get(colour, 0))
    found = [f"{shown(one, True)} ({_css_name(one)}, {voxels.get(one, 0) / total:.2%} of the pixels)" for one in often]
    names = [*labels, *(f"class_{place}" for place in range(len(labels) + 1, len(often) + 1))]
    example = argument("labels", [f"{name}={shown(colour, True)}" for name, colour in zip(names, often)])
    remap = _remap([f"{shown(colour, True)}={place}" for place, colour in enumerate(often, 1)])
    return SamunetError(
        f"masks have {len(often)} colours besides black, and nothing says which is {' or '.join(labels[:2])}: "
        f"{_listed(found)}",
        f"say it, each name with its own colour: {example} (CSS names will do as well: {labels[0]}=red); or "
        f"number them: {remap}",
    )


def _no_background(values: Sequence[int], coloured: bool) -> SamunetError:
    zero = "black (#000000)" if coloured else "the value 0"
    more = [...] if len(values) > 3 else []
    shift, keep = (
        _remap([f"{shown(value, coloured)}={place}" for place, value in enumerate(values[:3], first)] + more)
        for first in (0, 1)
    )
    return SamunetError(
        f"no mask has {zero}, which is the background; there are {_some(values, coloured)}",
        f"if {shown(values[0], coloured)} is the background: {shift}; if every voxel belongs to a class: {keep}",
    )


def _remap(words: Sequence[object]) -> str:
    return argument("remap", words)


def _named(
    classes: dict[int, int], labels: Sequence[str] | None, coloured: bool, threshold: float | None, *, exact: bool
) -> Coding:
    """Names for the classes, which must be 0, 1, 2, ...; ``exact``: with as many names as classes occur."""
    number = max(classes.values())
    gaps = sorted(set(range(number + 1)) - set(classes.values()) - {0})
    listed = [f"{shown(raw, coloured)}={new}" for raw, new in classes.items()]
    if gaps or number == 0:
        what = f"no value becomes {_some(gaps, False)}" if gaps else "there is nothing but background"
        raise UsageError(
            f"classes must be 0, 1, 2, ... without gaps, but {what}: {_listed(listed)}",
            "number them anew with `remap=['OLD=NEW']`",
        )
    if labels is None:
        labels = ["foreground"] if number == 1 else [f"class_{place}" for place in range(1, number + 1)]
    if len(labels) < number or (exact and len(labels) > number):
        raise UsageError(
            f"`labels` gives {len(labels)} names ({', '.join(labels)}), but there are {number} classes: "
            f"{_listed(listed)}",
            "name every class but the background, in the order of their values",
        )
    return Coding(("background", *labels), classes, coloured, threshold)


def _some(values: Sequence[int], coloured: bool) -> str:
    return _listed([shown(value, coloured) for value in values])


def _listed(texts: Sequence[str]) -> str:
    return ", ".join(texts) if len(texts) <= 12 else f"{', '.join(texts[:10])}, ... ({len(texts)} in all)"
