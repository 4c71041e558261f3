"""The example dataset of the demo: procedural 3D phantoms that look like coarse abdominal MRI.

Shapes live in body coordinates: (w, v, u) along (z, y, x), each about -1 .. 1 from one side of the body to the other, v
pointing to the back, and bent by a smooth random deformation.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from samunet.errors import SamunetError
from samunet.files import atomic_folder, read_as, write_json

DATASET_TITLE = "Phantoms"
LABELS = {"background": 0, "liver": 1, "kidney": 2, "vessel": 3}
_TISSUES = {  # mean intensity, its variation between cases, strength of the texture, label
    "air": (0.02, 0.00, 0.00, 0), "fat": (0.80, 0.07, 0.03, 0), "muscle": (0.30, 0.03, 0.03, 0),
    "bowel_a": (0.30, 0.18, 0.10, 0), "bowel_b": (0.55, 0.18, 0.10, 0), "bowel_c": (0.70, 0.10, 0.10, 0),
    "spleen": (0.68, 0.05, 0.03, 0), "liver": (0.51, 0.03, 0.03, 1), "liver_vein": (0.64, 0.03, 0.00, 1),
    "gallbladder": (0.92, 0.08, 0.00, 0), "cortex": (0.74, 0.06, 0.05, 2), "medulla": (0.60, 0.06, 0.05, 2),
    "vertebra": (0.70, 0.08, 0.08, 0), "disc": (0.45, 0.10, 0.03, 0), "canal": (0.92, 0.06, 0.00, 0),
    "vessel": (0.98, 0.05, 0.02, 3),
}  # fmt: skip


def make_phantoms(folder: Path, *, num_training: int = 12, num_test: int = 4, seed: int = 0) -> None:
    """Write a dataset of phantoms in nnU-Net's layout, with ``labelsTs`` for the cases in ``imagesTs``.

    The folder, such as ``$samunet_raw/Dataset999_Phantoms``, appears complete or not at all. A folder that holds
    phantoms already is replaced.

    Raises:
        SamunetError: If ``folder`` holds something other than phantoms or cannot be written.
    """
    folder = Path(folder)
    if folder.exists() and not _holds_phantoms(folder):
        raise SamunetError(f"{folder} exists and does not hold phantoms; it is left as it is", "name another folder")
    with atomic_folder(folder) as temporary:
        for index in range(num_training + num_test):
            suffix = "Tr" if index < num_training else "Ts"
            image, label, *place = draw_phantom(seed, index)
            name = f"phantom_{index:03d}"
            _write(image, *place, temporary / f"images{suffix}" / f"{name}_0000.nii.gz")
            _write(label, *place, temporary / f"labels{suffix}" / f"{name}.nii.gz")
        description = {
            "name": DATASET_TITLE, "channel_names": {"0": "MRI"}, "labels": LABELS, "numTraining": num_training,
            "file_ending": ".nii.gz",
            "description": f"Procedural phantoms drawn by samunet with seed {seed}; no real data",
        }  # fmt: skip
        write_json(temporary / "dataset.json", description)


def draw_phantom(seed: int, index: int) -> tuple[np.ndarray, np.ndarray, tuple[float, ...], tuple[float, ...]]:
    """Draw one case, the same for a seed and index however many are drawn.

    Returns:
        Image (z, y, x) int16, label map (z, y, x) uint8, spacing (z, y, x) in mm, origin (x, y, z) in mm.
    """
    random = np.random.default_rng([seed, index])
    shape = (int(random.integers(16, 25)), int(random.integers(96, 113)), int(random.integers(96, 121)))
    in_plane = round(float(random.uniform(1.0, 1.3)), 3)
    origin = tuple(round(float(value), 2) for value in random.uniform(-150, 150, size=3))
    tissues = _anatomy(random, shape)
    labels = np.array([label for *_, label in _TISSUES.values()], dtype=np.uint8)
    return _acquire(random, tissues), labels[tissues], (3.0, in_plane, in_plane), origin


def _anatomy(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """The tissue index of every voxel; later organs are painted over earlier ones."""
    draw = random.uniform
    w, v, u = np.meshgrid(*(np.linspace(-1, 1, size, dtype=np.float32) for size in shape), indexing="ij")
    v, u = (v - draw(-0.04, 0.04)) / draw(0.74, 0.84), (u - draw(-0.04, 0.04)) / draw(0.86, 0.93)
    v, u = _turned(v, u, np.deg2rad(draw(-9, 9)))
    w, v, u = (axis + 0.05 * _smooth_noise(random, shape, (4, 5, 5)) for axis in (w, v, u))
    index = {name: index for index, name in enumerate(_TISSUES)}
    tissues = np.full(shape, index["air"], dtype=np.uint8)
    radius = np.hypot(v, u)
    tissues[radius < 1] = index["fat"]
    inside = radius < draw(0.84, 0.92)

    def paint(region: np.ndarray, tissue: str) -> None:
        tissues[region & inside] = index[tissue]

    def ellipsoid(center, radii, tilt: float = 0.0) -> np.ndarray:
        dw, dv, du = (axis - middle for axis, middle in zip((w, v, u), center, strict=True))
        dv, du = _turned(dv, du, tilt)
        return (dw / radii[0]) ** 2 + (dv / radii[1]) ** 2 + (du / radii[2]) ** 2 < 1

    def around(*values: float) -> np.ndarray:
        return np.array(values) + draw(-0.06, 0.06, size=3)

    paint(inside, "muscle")
    for tissue in ("bowel_a", "bowel_b", "bowel_c") * 3:
        center = (draw(-0.9, 0.9), draw(-0.6, 0.0), draw(0.0, 0.7))
        paint(ellipsoid(center, draw(0.12, 0.28, size=3) * (2, 1, 1)), tissue)
    center = (draw(-0.7, -0.3), draw(0.05, 0.25), draw(0.62, 0.72))
    paint(ellipsoid(center, (draw(0.4, 0.7), 0.34, 0.2)), "spleen")
    # The liver: three lobes that grow together, veins inside, and a gallbladder cut out of the front.
    size = draw(0.85, 1.1)
    lobes = ellipsoid(around(-0.55, -0.10, -0.46), around(0.95, 0.50, 0.40) * size)
    lobes |= ellipsoid(around(-0.75, -0.40, 0.00), around(0.70, 0.24, 0.46) * size)
    lobes |= ellipsoid(around(0.20, 0.08, -0.62), around(0.60, 0.32, 0.20) * size)
    paint(lobes, "liver")
    for _ in range(3):
        slope, start, height = draw(-0.6, 0.6), draw(-0.35, 0.1), draw(-0.9, -0.1)
        paint(lobes & (np.hypot(v - start - slope * (u + 0.4), 0.5 * (w - height)) < 0.045), "liver_vein")
    paint(ellipsoid((draw(-0.3, 0.2), draw(-0.45, -0.3), draw(-0.4, -0.2)), (0.3, 0.15, 0.09)), "gallbladder")
    for side in (-1, 1):
        center = (draw(-0.05, 0.35), draw(0.36, 0.48), side * draw(0.44, 0.54))
        radii = np.array((draw(0.5, 0.7), draw(0.2, 0.27), draw(0.14, 0.18)))
        tilt = side * draw(0.1, 0.6)
        paint(ellipsoid(center, radii, tilt), "cortex")
        paint(ellipsoid(center, radii * 0.55, tilt), "medulla")
    # A bright column of vertebrae and discs before a bright canal: as bright as the vessel, but background.
    width, back = draw(0.16, 0.2), draw(0.44, 0.5)
    height = np.cos(np.pi * (draw(1.8, 2.6) * w + draw(0, 2)))
    column = np.hypot(v - back, 0.9 * u) < width * (1 - 0.08 * height)
    paint(column, "vertebra")
    paint(column & (height < -0.8), "disc")
    paint(np.hypot(v - back - width - 0.07, 0.7 * u) < 0.065, "canal")
    # A curved tube before the spine, along the whole volume, with one branch to the side.
    thickness, (phase_u, phase_v) = draw(0.075, 0.1), draw(0, 2 * np.pi, size=2)
    bend_u, bend_v = draw(0.06, 0.14), draw(0.03, 0.06)

    def middle(height: Any) -> tuple:
        return 0.16 + bend_v * np.sin(2.2 * height + phase_v), 0.06 + bend_u * np.sin(2.6 * height + phase_u)

    center_v, center_u = middle(w)
    paint(np.hypot(v - center_v, u - center_u) < thickness, "vessel")
    height, side = draw(-0.4, 0.6), random.choice((-1, 1))
    start_v, start_u = middle(height)
    along = side * (u - start_u)
    sag = start_v + draw(-0.25, 0.25) * along
    branch = np.hypot(v - sag, 0.6 * (w - height - 0.3 * along)) < 0.7 * thickness
    paint(branch & (along > 0) & (along < draw(0.3, 0.45)), "vessel")
    return tissues


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


def _turned(v: np.ndarray, u: np.ndarray, angle: float) -> tuple[np.ndarray, np.ndarray]:
    return np.cos(angle) * v + np.sin(angle) * u, np.cos(angle) * u - np.sin(angle) * v


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
