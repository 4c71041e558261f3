"""New training slices of a few exemplars: lesions pasted, textures of organs exchanged, exemplars carved together.

After *Cheap Lunch* (arXiv:2308.14133), and CarveMix (arXiv:2108.06883) for the last. Slices are as they are stored;
augmentation comes afterwards, so what is pasted is changed together with its image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.random import Generator
from scipy import ndimage

from samunet.plans import SynthesisPlan
from samunet.preprocessing.case import OUTSIDE

SMALL = 0.05  # of a slice: classes with components below are lesions
FULL_SHARE, FEW_SLICES, MANY_SLICES = 0.5, 500, 5000
_BORDER = 3.0  # pixels over which a pasted border is blended
_RIM = 4  # pixels around a lesion that come along
_RING = 5  # pixels around an organ whose intensities are matched
_MOST_SLICES = 500  # that exemplars are taken from
_TRIES = 10  # places for a lesion
_NEAR = 0.1  # of the body's box: deviation of a lesion's place; what deviates less from case to case is an organ


@dataclass(frozen=True)
class Exemplar:
    """A stored slice.

    Attributes:
        image: ``(channels, h, w)`` float32.
        label: ``(h, w)`` integer; :data:`OUTSIDE` beyond the nonzero mask.
        spacing: Millimetres of a pixel, ``[y, x]``; None without physical spacing.
    """

    image: np.ndarray
    label: np.ndarray
    spacing: Sequence[float] | None = None


@dataclass(frozen=True)
class Pasted:
    """A slice with something in it, and how much of every pixel is new: ``alpha`` ``(h, w)``, 0 to 1."""

    image: np.ndarray
    label: np.ndarray
    alpha: np.ndarray


@dataclass(frozen=True)
class Lesion:
    """A component of a small class.

    Attributes:
        place: Of its slice, as given to :class:`Bank`.
        value: Its class.
        box: Where it lies in its slice.
        centre: Of it, relative to the body's box: 0 to 1 along both axes.
        inside: Its pixels within ``box``.
    """

    place: tuple[int, int]
    value: int
    box: tuple[slice, slice]
    centre: tuple[float, float]
    inside: np.ndarray = field(repr=False)


def planned_share(share: float | None, num_slices: int) -> float:
    """The share of items with something new in them; None is the rule: half up to 500 slices, none from 5000 on."""
    if share is not None:
        return share
    return FULL_SHARE * float(np.clip((MANY_SLICES - num_slices) / (MANY_SLICES - FEW_SLICES), 0, 1))


class Bank:
    """What slices with labels offer: lesions, with where they lie and what surrounds them.

    Args:
        places: Slices with foreground, by number of the case and of the slice, in order.
        read: Gives one.
        ignore: Label value of pixels without annotation.
    """

    def __init__(
        self,
        places: Sequence[tuple[int, int]],
        read: Callable[[tuple[int, int]], Exemplar],
        ignore: int | None = None,
    ) -> None:
        step = max(1, math.ceil(len(places) / _MOST_SLICES))
        self.places, self.read, self.ignore = list(places)[::step], read, ignore

    @cached_property
    def _found(self) -> tuple[list[Lesion], dict[int, set[int]]]:
        lesions: dict[int, list[Lesion]] = {}
        everything: dict[int, list[Lesion]] = {}
        shares: dict[int, list[float]] = {}
        contacts: dict[int, set[int]] = {}
        for place in self.places:
            exemplar = self.read(place)
            for lesion, around, share in _components(place, exemplar, self.ignore):
                shares.setdefault(lesion.value, []).append(share)
                everything.setdefault(lesion.value, []).append(lesion)
                if around is not None:
                    lesions.setdefault(lesion.value, []).append(lesion)
                    contacts.setdefault(lesion.value, set()).update(around)
        small = [
            value for value in sorted(lesions) if np.median(shares[value]) < SMALL and not _is_organ(everything[value])
        ]
        return [lesion for value in small for lesion in lesions[value]], {value: contacts[value] for value in small}

    @property
    def lesions(self) -> list[Lesion]:
        """Components of classes whose median component covers less than a twentieth of its slice, but not of organs."""
        return self._found[0]

    @property
    def contacts(self) -> Mapping[int, set[int]]:
        """Of each of these classes what surrounds it in the exemplars, 0 for background."""
        return self._found[1]


class Synthesis:
    """Makes new slices of exemplars.

    Args:
        plan: Which kinds, and how often.
        bank: The exemplars.
        share: Of the items.
    """

    def __init__(self, plan: SynthesisPlan, bank: Bank, share: float) -> None:
        self.kinds, self.bank, self.share = list(plan.kinds), bank, share

    def describe(self, names: Mapping[int, str]) -> str:
        """In words; ``names``: of values, where they have any."""
        text = f"something new in {self.share:.0%} of the images ({', '.join(self.kinds)})"
        if "paste" in self.kinds:
            small = [names.get(value, f"value {value}") for value in self.bank.contacts]
            text += f"; pasted are {', '.join(small) or 'no classes: none is small and found at various places'}"
        return text

    def __call__(self, own: Exemplar, place: tuple[int, int], rng: Generator) -> Pasted | None:
        """Something new in a slice; None where chance or the slice does not want it.

        Args:
            own: The slice.
            place: Where it comes from: no other is taken from there.
            rng: Of the item, from which alone all chance comes.
        """
        if rng.random() >= self.share:
            return None
        make = {"paste": self._paste, "exchange": self._exchange, "carve": self._carve}
        for kind in rng.permutation(self.kinds).tolist():
            made = make[kind](own, place, rng)
            if made is not None:
                return made
        return None

    def _paste(self, own: Exemplar, place: tuple[int, int], rng: Generator) -> Pasted | None:
        lesions = [lesion for lesion in self.bank.lesions if lesion.place != place]
        if not lesions:
            return None
        lesion = lesions[rng.integers(len(lesions))]
        donor = _resampled(self.bank.read(lesion.place), own.spacing, only=lesion)
        return paste_lesion(own, donor, lesion, self.bank.contacts[lesion.value], self.bank.ignore, rng)

    def _donor(self, own: Exemplar, place: tuple[int, int], rng: Generator) -> Exemplar | None:
        others = [other for other in self.bank.places if other[0] != place[0]]
        others = others or [other for other in self.bank.places if other != place]
        return _resampled(self.bank.read(others[rng.integers(len(others))]), own.spacing) if others else None

    def _exchange(self, own: Exemplar, place: tuple[int, int], rng: Generator) -> Pasted | None:
        donor = self._donor(own, place, rng)
        return None if donor is None else exchange_organ(own, donor, self.bank.ignore, rng)

    def _carve(self, own: Exemplar, place: tuple[int, int], rng: Generator) -> Pasted | None:
        donor = self._donor(own, place, rng)
        return None if donor is None else carve_mix(own, donor, self.bank.ignore, rng)


def paste_lesion(
    own: Exemplar, donor: Exemplar, lesion: Lesion, contacts: set[int], ignore: int | None, rng: Generator
) -> Pasted | None:
    """A component of another slice, turned, scaled, mirrored, warped and brightened, where it may lie.

    Args:
        own: The slice that gets it.
        donor: Just its surroundings: ``label`` is 1 on the component and 0 elsewhere, with the pixel size of ``own``.
        lesion: Says its class, and where it lies in its body.
        contacts: Values that it may be put on.
        ignore: Label value of pixels without annotation.
        rng: Draws.

    Returns:
        None if none of ten places will do.
    """
    patch, inside = _deformed(donor, rng)
    if not inside.any():
        return None
    spread = float(own.image.std())
    patch = rng.uniform(0.9, 1.1) * patch + rng.uniform(-0.1, 0.1) * spread
    body = _body(own)
    top, left, bottom, right = _box(body)
    box_size = np.array([bottom - top, right - left])
    middle = np.array(ndimage.center_of_mass(inside))
    allowed = body & np.isin(own.label, sorted(contacts - {OUTSIDE, ignore}))
    for _ in range(_TRIES):
        centre = (top, left) + box_size * (np.array(lesion.centre) + rng.normal(0, _NEAR, 2))
        start = np.round(centre - middle).astype(int)
        placed = _placed(inside, start, own.label.shape)
        if placed.sum() != inside.sum() or not allowed[placed].all():
            continue
        region = ndimage.binary_dilation(placed, iterations=_RIM) & body
        region &= _placed(np.ones_like(inside), start, own.label.shape)
        alpha = _alpha(region)
        full = np.stack([_placed(channel, start, own.label.shape) for channel in patch])
        label = np.where(placed & (alpha >= 0.5), lesion.value, own.label)
        return Pasted(_mixed(own.image, full, alpha), label.astype(own.label.dtype), alpha)
    return None


def exchange_organ(own: Exemplar, donor: Exemplar, ignore: int | None, rng: Generator) -> Pasted | None:
    """An organ with the texture of another slice's, matched in what surrounds it; labels stay.

    Returns:
        None if the two have no class in common.
    """
    both = sorted((set(np.unique(own.label)) & set(np.unique(donor.label))) - {0, OUTSIDE, ignore})
    if not both:
        return None
    value = both[rng.integers(len(both))]
    mine, theirs = own.label == value, donor.label == value
    (top, left, bottom, right), (y0, x0, y1, x1) = _box(mine), _box(theirs)
    rows, columns = np.nonzero(mine)
    at = np.stack([
        y0 + (rows - top + 0.5) / (bottom - top) * (y1 - y0) - 0.5,
        x0 + (columns - left + 0.5) / (right - left) * (x1 - x0) - 0.5,
    ])  # fmt: skip
    # Only texture of the organ itself: beyond its border that of the nearest pixel inside.
    nearest = ndimage.distance_transform_edt(~theirs, return_distances=False, return_indices=True)
    ring, their_ring = _ring(mine, own), _ring(theirs, donor)
    if not (ring.any() and their_ring.any()):
        return None
    image = own.image.copy()
    for channel, target in enumerate(image):
        texture = donor.image[channel][tuple(nearest)]
        values = ndimage.map_coordinates(texture, at, order=1, mode="nearest")
        around, wanted = donor.image[channel][their_ring], own.image[channel][ring]
        scale = wanted.std() / around.std() if around.std() > 1e-6 else 1.0
        target[mine] = (values - around.mean()) * float(np.clip(scale, 0.5, 2)) + wanted.mean()
    alpha = _alpha(mine)
    return Pasted(_mixed(own.image, image, alpha), own.label.copy(), alpha)


def carve_mix(own: Exemplar, donor: Exemplar, ignore: int | None, rng: Generator) -> Pasted | None:
    """The donor's foreground, with less or more around its border, at its own place with its labels.

    Slices of other shapes meet at the middles of their foreground, or of the slice that has none.

    Returns:
        None if the donor has no foreground, or nothing of it would be seen.
    """
    unknown = (donor.label == OUTSIDE) | (donor.label == (OUTSIDE if ignore is None else ignore))
    foreground = (donor.label > 0) & ~unknown
    if not foreground.any():
        return None
    distance = ndimage.distance_transform_edt(~foreground) - ndimage.distance_transform_edt(foreground)
    deepest = float(-distance.min())
    threshold = rng.uniform(-deepest / 2, 0) if rng.random() < 0.5 else rng.uniform(0, deepest)
    region, image, label = (distance <= threshold) & ~unknown, donor.image, donor.label
    if donor.label.shape != own.label.shape:
        mine = own.label > 0 if ignore is None else (own.label > 0) & (own.label != ignore)
        goal = ndimage.center_of_mass(mine) if mine.any() else np.array(own.label.shape) / 2
        start = np.round(np.array(goal) - ndimage.center_of_mass(foreground)).astype(int)
        region, label = _placed(region, start, own.label.shape), _placed(label, start, own.label.shape)
        image = np.stack([_placed(channel, start, own.label.shape) for channel in image])
    alpha = _alpha(region & (own.label != OUTSIDE))
    if not alpha.any():
        return None
    label = np.where(alpha >= 0.5, label, own.label).astype(own.label.dtype)
    return Pasted(_mixed(own.image, image, alpha), label, alpha)


def _components(
    place: tuple[int, int], exemplar: Exemplar, ignore: int | None
) -> Iterator[tuple[Lesion, set[int] | None, float]]:
    """Components of every class, what surrounds each (None of one with another class in it), and its share."""
    body = _body(exemplar)
    top, left, bottom, right = _box(body)
    size = np.array([bottom - top, right - left])
    for value in sorted(set(np.unique(exemplar.label).tolist()) - {0, OUTSIDE, ignore}):
        numbered, _ = ndimage.label(exemplar.label == value)
        for number, box in enumerate(ndimage.find_objects(numbered), 1):
            inside = numbered[box] == number
            whole = ndimage.binary_fill_holes(inside)
            centre = np.array(ndimage.center_of_mass(inside)) + [side.start for side in box]
            relative = tuple(((centre - (top, left)) / size).tolist())
            wide = tuple(slice(max(side.start - 1, 0), side.stop + 1) for side in box)
            around = numbered[wide] == number
            ring = ndimage.binary_dilation(around, iterations=1) & ~around
            seen = set(exemplar.label[wide][ring].tolist()) - {OUTSIDE, ignore}
            holed = bool((exemplar.label[box][whole & ~inside] != 0).any())
            lesion = Lesion(place, int(value), box, relative, inside)
            yield lesion, None if holed or not seen else seen, inside.sum() / exemplar.label.size


def _is_organ(components: Sequence[Lesion]) -> bool:
    """Whether a class is one piece at the same place in all of at least three cases: a second one would be wrong."""
    in_slice: dict[tuple[int, int], int] = {}
    by_case: dict[int, list[tuple[float, float]]] = {}
    for one in components:
        in_slice[one.place] = in_slice.get(one.place, 0) + 1
        by_case.setdefault(one.place[0], []).append(one.centre)
    middles = np.array([np.mean(centres, axis=0) for centres in by_case.values()])
    return len(middles) >= 3 and np.median(list(in_slice.values())) == 1 and bool((middles.std(axis=0) <= _NEAR).all())


def _body(exemplar: Exemplar) -> np.ndarray:
    """Pixels of what is shown: all but the darkest hundredth of the range, and nothing beyond the nonzero mask."""
    lowest = exemplar.image.min(axis=(1, 2), keepdims=True)
    span = exemplar.image.max(axis=(1, 2), keepdims=True) - lowest
    body = (exemplar.image > lowest + 0.01 * span).any(axis=0) & (exemplar.label != OUTSIDE)
    return body if body.any() else np.ones(body.shape, bool)


def _box(inside: np.ndarray) -> tuple[int, int, int, int]:
    """Top, left, bottom, right; the last two are beyond it."""
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


def _ring(inside: np.ndarray, exemplar: Exemplar) -> np.ndarray:
    return ndimage.binary_dilation(inside, iterations=_RING) & ~inside & (exemplar.label != OUTSIDE)


def _alpha(region: np.ndarray) -> np.ndarray:
    """Smoothstep of the distance to the border, over :data:`_BORDER` pixels; 0 outside."""
    padded = np.pad(region, 1, mode="edge")  # the slice's own edge is no border
    depth = ndimage.distance_transform_edt(padded)[1:-1, 1:-1] if not region.all() else np.full(region.shape, np.inf)
    t = np.clip(depth / _BORDER, 0, 1)
    return (t * t * (3 - 2 * t)).astype(np.float32)


def _mixed(own: np.ndarray, new: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    # Where nothing is new, the very same numbers.
    return np.where(alpha > 0, (1 - alpha) * own + alpha * new, own).astype(np.float32)


def _placed(array: np.ndarray, start: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """An array in zeros of another shape, from ``start`` on; what lies beyond is cut off."""
    whole = np.zeros(shape, array.dtype)
    low, high = np.maximum(start, 0), np.minimum(start + array.shape, shape)
    if (low < high).all():
        to = tuple(slice(a, b) for a, b in zip(low, high))
        whole[to] = array[tuple(slice(a - s, b - s) for a, b, s in zip(low, high, start))]
    return whole


def _resampled(donor: Exemplar, spacing: Sequence[float] | None, only: Lesion | None = None) -> Exemplar:
    """A donor with the recipient's pixel size; ``only``: a component's surroundings, ``label`` 1 on it."""
    if only is not None:
        margin = 4 * _RIM
        box = tuple(slice(max(side.start - margin, 0), side.stop + margin) for side in only.box)
        inside = np.zeros(donor.label.shape, np.int16)
        inside[only.box][only.inside] = 1
        donor = replace(donor, image=donor.image[(slice(None), *box)], label=inside[box])
    if spacing is None or donor.spacing is None or np.allclose(donor.spacing, spacing, rtol=0.01):
        return donor
    zoom = [own / wanted for own, wanted in zip(donor.spacing, spacing)]
    image = np.stack([ndimage.zoom(channel, zoom, order=1) for channel in donor.image])
    return Exemplar(image, ndimage.zoom(donor.label, zoom, order=0), spacing)


def _deformed(donor: Exemplar, rng: Generator) -> tuple[np.ndarray, np.ndarray]:
    """A component's surroundings and the component itself, turned, scaled, mirrored and warped."""
    angle, scale, mirror = rng.uniform(-math.pi, math.pi), rng.uniform(0.7, 1.4), rng.random() < 0.5
    height, width = donor.label.shape
    side = math.ceil(1.4 * math.hypot(height, width))
    offset = np.indices((side, side), float) - (side - 1) / 2
    warp = np.stack([ndimage.gaussian_filter(rng.normal(size=(side, side)), 8) for _ in range(2)])
    offset += warp / max(float(np.abs(warp).max()), 1e-9) * rng.uniform(0, 3)
    cosine, sine = math.cos(angle) / scale, math.sin(angle) / scale
    rows, columns = cosine * offset[0] - sine * offset[1], sine * offset[0] + cosine * offset[1]
    at = np.stack([rows + (height - 1) / 2, (-columns if mirror else columns) + (width - 1) / 2])
    image = np.stack([ndimage.map_coordinates(channel, at, order=1, mode="nearest") for channel in donor.image])
    inside = ndimage.map_coordinates((donor.label == 1).astype(np.float32), at, order=1) >= 0.5
    return image, inside
