"""The example dataset of the demo: procedural 3D phantoms that look like coarse abdominal MRI.

Each case is drawn from a random generator seeded with (seed, case index), so a set is reproducible and case 3 is the
same whether 4 or 40 cases are made. Shapes live in body coordinates: (w, v, u) along (z, y, x), each about -1 .. 1 from
one side of the body to the other, v pointing to the back, and bent by a smooth random deformation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from samunet.errors import SamunetError
from samunet.files import atomic_folder, read_as, write_json

DATASET_TITLE = "Phantoms"
LABELS = {"background": 0, "liver": 1, "kidney": 2, "vessel": 3}

# Tissues: (mean intensity, variation of the mean between cases, strength of the texture, label).
_TISSUES = {
    "air": (0.02, 0.00, 0.00, 0),
    "fat": (0.80, 0.07, 0.03, 0),
    "muscle": (0.30, 0.03, 0.03, 0),
    "bowel_a": (0.30, 0.18, 0.10, 0),
    "bowel_b": (0.55, 0.18, 0.10, 0),
    "bowel_c": (0.70, 0.10, 0.10, 0),
    "spleen": (0.68, 0.05, 0.03, 0),
    "liver": (0.51, 0.03, 0.03, 1),
    "liver_vein": (0.64, 0.03, 0.00, 1),
    "gallbladder": (0.92, 0.08, 0.00, 0),
    "cortex": (0.74, 0.06, 0.05, 2),
    "medulla": (0.60, 0.06, 0.05, 2),
    "vertebra": (0.70, 0.08, 0.08, 0),
    "disc": (0.45, 0.10, 0.03, 0),
    "canal": (0.92, 0.06, 0.00, 0),
    "vessel": (0.98, 0.05, 0.02, 3),
}
_INDEX = {name: index for index, name in enumerate(_TISSUES)}

Coordinates = tuple[np.ndarray, np.ndarray, np.ndarray]
Paint = Callable[[np.ndarray, str], None]  # puts a tissue where a region is true


def make_phantoms(folder: Path, *, num_training: int = 12, num_test: int = 4, seed: int = 0) -> None:
    """Write a dataset of phantoms in nnU-Net's layout, with ``labelsTs`` for the cases in ``imagesTs``.

    The folder appears complete or not at all. A folder that holds phantoms already is replaced.

    Args:
        folder: The dataset's folder, such as ``$samunet_raw/Dataset999_Phantoms``.
        num_training: Cases in ``imagesTr``; NIfTI, one channel, int16.
        num_test: Cases in ``imagesTs``.
        seed: Other seeds give other cases.

    Raises:
        SamunetError: If ``folder`` holds something other than phantoms or cannot be written.
    """
    folder = Path(folder)
    if folder.exists() and not _holds_phantoms(folder):
        raise SamunetError(f"{folder} exists and does not hold phantoms; it is left as it is", "name another folder")
    with atomic_folder(folder) as temporary:
        for index in range(num_training + num_test):
            suffix = "Tr" if index < num_training else "Ts"
            image, label, spacing, origin = draw_phantom(seed, index)
            name = f"phantom_{index:03d}"
            _write(image, spacing, origin, temporary / f"images{suffix}" / f"{name}_0000.nii.gz")
            _write(label, spacing, origin, temporary / f"labels{suffix}" / f"{name}.nii.gz")
        description = {
            "name": DATASET_TITLE,
            "description": f"Procedural phantoms drawn by samunet with seed {seed}; no real data",
            "channel_names": {"0": "MRI"},
            "labels": LABELS,
            "numTraining": num_training,
            "file_ending": ".nii.gz",
        }
        write_json(temporary / "dataset.json", description)


def draw_phantom(seed: int, index: int) -> tuple[np.ndarray, np.ndarray, tuple[float, ...], tuple[float, ...]]:
    """Draw one case.

    Returns:
        Image (z, y, x) int16, label map (z, y, x) uint8, spacing (z, y, x) in mm, origin (x, y, z) in mm.
    """
    random = np.random.default_rng([seed, index])
    shape = (int(random.integers(16, 25)), int(random.integers(96, 113)), int(random.integers(96, 121)))
    in_plane = round(float(random.uniform(1.0, 1.3)), 3)
    origin = tuple(round(float(value), 2) for value in random.uniform(-150, 150, size=3))
    tissues = _anatomy(random, _body_coordinates(random, shape))
    labels = np.array([label for *_, label in _TISSUES.values()], dtype=np.uint8)
    return _acquire(random, tissues), labels[tissues], (3.0, in_plane, in_plane), origin


def _body_coordinates(random: np.random.Generator, shape: tuple[int, int, int]) -> Coordinates:
    """Coordinates (w, v, u) of every voxel: shifted, turned and smoothly bent, so that no two bodies are alike."""
    w, v, u = np.meshgrid(*(np.linspace(-1, 1, size, dtype=np.float32) for size in shape), indexing="ij")
    v = (v - random.uniform(-0.04, 0.04)) / random.uniform(0.74, 0.84)
    u = (u - random.uniform(-0.04, 0.04)) / random.uniform(0.86, 0.93)
    angle = np.deg2rad(random.uniform(-9, 9))
    v, u = np.cos(angle) * v + np.sin(angle) * u, np.cos(angle) * u - np.sin(angle) * v
    return tuple(axis + 0.05 * _smooth_noise(random, shape, (4, 5, 5)) for axis in (w, v, u))


def _anatomy(random: np.random.Generator, body: Coordinates) -> np.ndarray:
    """The tissue index of every voxel; later organs are painted over earlier ones."""
    w, v, u = body
    tissues = np.full(w.shape, _INDEX["air"], dtype=np.uint8)
    radius = np.hypot(v, u)
    tissues[radius < 1] = _INDEX["fat"]
    inside = radius < random.uniform(0.84, 0.92)

    def paint(region: np.ndarray, tissue: str) -> None:
        tissues[region & inside] = _INDEX[tissue]

    paint(inside, "muscle")
    for tissue in ("bowel_a", "bowel_b", "bowel_c") * 3:
        center = (random.uniform(-0.9, 0.9), random.uniform(-0.6, 0.0), random.uniform(0.0, 0.7))
        paint(_ellipsoid(body, center, random.uniform(0.12, 0.28, size=3) * (2, 1, 1)), tissue)
    spleen = (random.uniform(-0.7, -0.3), random.uniform(0.05, 0.25), random.uniform(0.62, 0.72))
    paint(_ellipsoid(body, spleen, (random.uniform(0.4, 0.7), 0.34, 0.2)), "spleen")
    _paint_liver(random, body, paint)
    _paint_kidneys(random, body, paint)
    _paint_spine(random, body, paint)
    _paint_vessel(random, body, paint)
    return tissues


def _paint_liver(random: np.random.Generator, body: Coordinates, paint: Paint) -> None:
    """Three lobes that grow together, veins inside, and a gallbladder cut out of the front."""

    def around(*values: float) -> np.ndarray:
        return np.array(values) + random.uniform(-0.06, 0.06, size=3)

    size = random.uniform(0.85, 1.1)
    lobes = (
        _ellipsoid(body, around(-0.55, -0.10, -0.46), around(0.95, 0.50, 0.40) * size),
        _ellipsoid(body, around(-0.75, -0.40, 0.00), around(0.70, 0.24, 0.46) * size),
        _ellipsoid(body, around(0.20, 0.08, -0.62), around(0.60, 0.32, 0.20) * size),
    )
    liver = lobes[0] | lobes[1] | lobes[2]
    paint(liver, "liver")
    w, v, u = body
    for _ in range(3):
        slope, start = random.uniform(-0.6, 0.6), random.uniform(-0.35, 0.1)
        height = random.uniform(-0.9, -0.1)
        vein = np.hypot(v - start - slope * (u + 0.4), 0.5 * (w - height)) < 0.045
        paint(liver & vein, "liver_vein")
    center = (random.uniform(-0.3, 0.2), random.uniform(-0.45, -0.3), random.uniform(-0.4, -0.2))
    paint(_ellipsoid(body, center, (0.3, 0.15, 0.09)), "gallbladder")


def _paint_kidneys(random: np.random.Generator, body: Coordinates, paint: Paint) -> None:
    for side in (-1, 1):
        center = (random.uniform(-0.05, 0.35), random.uniform(0.36, 0.48), side * random.uniform(0.44, 0.54))
        radii = np.array((random.uniform(0.5, 0.7), random.uniform(0.2, 0.27), random.uniform(0.14, 0.18)))
        tilt = side * random.uniform(0.1, 0.6)
        paint(_ellipsoid(body, center, radii, tilt), "cortex")
        paint(_ellipsoid(body, center, radii * 0.55, tilt), "medulla")


def _paint_spine(random: np.random.Generator, body: Coordinates, paint: Paint) -> None:
    """A bright column of vertebrae and discs before a bright canal: as bright as the vessel, but background."""
    w, v, u = body
    width, back = random.uniform(0.16, 0.2), random.uniform(0.44, 0.5)
    height = np.cos(np.pi * (random.uniform(1.8, 2.6) * w + random.uniform(0, 2)))
    column = np.hypot(v - back, 0.9 * u) < width * (1 - 0.08 * height)
    paint(column, "vertebra")
    paint(column & (height < -0.8), "disc")
    paint(np.hypot(v - back - width - 0.07, 0.7 * u) < 0.065, "canal")


def _paint_vessel(random: np.random.Generator, body: Coordinates, paint: Paint) -> None:
    """A curved tube before the spine, along the whole volume, with one branch to the side."""
    w, v, u = body
    radius = random.uniform(0.075, 0.1)
    phase_u, phase_v = random.uniform(0, 2 * np.pi, size=2)
    bend_u, bend_v = random.uniform(0.06, 0.14), random.uniform(0.03, 0.06)

    def center(height: np.ndarray | float) -> tuple:
        along_v = 0.16 + bend_v * np.sin(2.2 * height + phase_v)
        return along_v, 0.06 + bend_u * np.sin(2.6 * height + phase_u)

    center_v, center_u = center(w)
    paint(np.hypot(v - center_v, u - center_u) < radius, "vessel")
    height, side = random.uniform(-0.4, 0.6), random.choice((-1, 1))
    start_v, start_u = center(height)
    along = side * (u - start_u)
    sag = start_v + random.uniform(-0.25, 0.25) * along
    branch = np.hypot(v - sag, 0.6 * (w - height - 0.3 * along)) < 0.7 * radius
    paint(branch & (along > 0) & (along < random.uniform(0.3, 0.45)), "vessel")


def _ellipsoid(body: Coordinates, center: Sequence[float], radii: Sequence[float], tilt: float = 0.0) -> np.ndarray:
    """Boolean map of an ellipsoid with semi-axes ``radii`` (w, v, u), turned by ``tilt`` radians in the slice plane."""
    w, v, u = (axis - middle for axis, middle in zip(body, center, strict=True))
    v, u = np.cos(tilt) * v + np.sin(tilt) * u, np.cos(tilt) * u - np.sin(tilt) * v
    return (w / radii[0]) ** 2 + (v / radii[1]) ** 2 + (u / radii[2]) ** 2 < 1


def _acquire(random: np.random.Generator, tissues: np.ndarray) -> np.ndarray:
    """Turn tissues into an int16 image: contrast, texture, partial volume, coil shading, Rician noise, scaling."""
    from scipy.ndimage import gaussian_filter

    mean, spread, texture, _ = (np.array(column, dtype=np.float32) for column in zip(*_TISSUES.values()))
    contrast = np.clip(mean + spread * random.uniform(-1.5, 1.5, size=mean.size), 0.02, None)
    contrast = contrast ** random.uniform(0.8, 1.3)
    grain = gaussian_filter(random.standard_normal(tissues.shape, dtype=np.float32), (0.4, 1.2, 1.2))
    clean = contrast[tissues] + texture[tissues] * grain / grain.std()
    clean = gaussian_filter(clean, (0.35, *[random.uniform(0.6, 0.9)] * 2))
    clean *= np.exp(random.uniform(0.1, 0.3) * _smooth_noise(random, tissues.shape, (2, 3, 3)))
    noise = random.uniform(0.03, 0.06) * random.standard_normal((2, *tissues.shape), dtype=np.float32)
    measured = np.hypot(clean + noise[0], noise[1])
    return np.round(measured * random.uniform(300, 1500)).astype(np.int16)


def _smooth_noise(random: np.random.Generator, shape: tuple[int, ...], knots: tuple[int, ...]) -> np.ndarray:
    """A smooth random field of ``shape`` with values of order 1: splines, axis by axis, through ``knots`` values."""
    from scipy.interpolate import make_interp_spline

    field = random.standard_normal(knots).clip(-1.5, 1.5)
    for axis, (size, count) in enumerate(zip(shape, knots, strict=True)):
        spline = make_interp_spline(np.linspace(0, 1, count), field, k=min(3, count - 1), axis=axis)
        field = spline(np.linspace(0, 1, size))
    return field.astype(np.float32)


def _write(array: np.ndarray, spacing: tuple[float, ...], origin: tuple[float, ...], file: Path) -> None:
    from samunet.imageio.itk import itk, written

    image = itk().GetImageFromArray(array)
    image.SetSpacing(spacing[::-1])
    image.SetOrigin(origin)
    file.parent.mkdir(exist_ok=True)
    with written(image, file):
        pass


def _holds_phantoms(folder: Path) -> bool:
    file = folder / "dataset.json"
    if not folder.is_dir():
        return False
    return not any(folder.iterdir()) or (file.is_file() and read_as(dict[str, Any], file).get("name") == DATASET_TITLE)
