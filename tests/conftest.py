"""Fixtures that several test files use: the three folders, and a tiny dataset in the raw one."""

import json
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

sys.path.append(str(Path(__file__).parents[1] / "tools"))  # the factory of the bundled weights


@pytest.fixture(autouse=True)
def no_downloads(monkeypatch):
    """No test reaches the internet: published checkpoints have https addresses, and nothing listens at this proxy."""
    for name in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")


_reduced: list[pytest.MonkeyPatch] = []


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """The bundled encoder is small in every test but those marked ``full_network``, which need its size or weights.

    Before fixtures are set up, those of modules as well: what one of them trains, its tests read.
    """
    full = item.get_closest_marker("full_network") is not None
    if full and _reduced:
        _reduced.pop().undo()
    elif not full and not _reduced:
        from reduced import reduce_bundled_encoder

        _reduced.append(pytest.MonkeyPatch())
        reduce_bundled_encoder(_reduced[0], width=48, depth=2, heads=3, global_blocks=(1,))


@pytest.fixture
def samunet_folders(tmp_path, monkeypatch):
    """Sets samunet_raw, samunet_preprocessed and samunet_results to ``raw`` and so on in the folder it returns."""
    for name in ("raw", "preprocessed", "results"):
        (tmp_path / name).mkdir(exist_ok=True)
        monkeypatch.setenv(f"samunet_{name}", str(tmp_path / name))
    return tmp_path


@pytest.fixture
def tiny_dataset(tmp_path):
    """A function that writes a dataset of NIfTI volumes with two classes to ``raw`` and returns its folder."""
    return partial(write_tiny_dataset, tmp_path)


def write_tiny_dataset(
    root, name="Dataset998_Tiny", ids=tuple(f"case_{i}" for i in range(6)), spacing=(3.0, 1.0, 1.0), seed=0, **keys
):
    """Write a dataset to ``raw`` in ``root``; ``keys`` join its dataset.json."""
    folder, rng = root / "raw" / name, np.random.default_rng(seed)
    for part, cases in (("Tr", ids), ("Ts", ("test_0", "test_1"))):
        for case in cases:
            label = _ellipses(rng, shape=(4, 24 + rng.integers(-2, 3), 20 + rng.integers(-2, 3)))
            image = 100 * label + rng.normal(200, 20, label.shape)
            _write(image.astype(np.float32), folder / f"images{part}" / f"{case}_0000.nii.gz", spacing)
            _write(label, folder / f"labels{part}" / f"{case}.nii.gz", spacing)
    description = {
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, "organ": 1, "core": 2},
        "numTraining": len(ids),
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(description | keys))
    return folder


def _ellipses(rng, shape):
    """A large ellipse of class 1 with a smaller one of class 2 inside, in all slices but the last."""
    y, x = np.mgrid[: shape[1], : shape[2]]
    centre_y, centre_x = shape[1] / 2 + rng.uniform(-2, 2), shape[2] / 2 + rng.uniform(-2, 2)
    distance = np.hypot((y - centre_y) / rng.uniform(7, 9), (x - centre_x) / rng.uniform(6, 7))
    label = np.zeros(shape, dtype=np.uint8)
    label[:-1] = (distance < 1).astype(np.uint8) + (distance < 0.5)
    return label


def _write(array, path, spacing):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing([float(side) for side in spacing[::-1]])
    image.SetOrigin((-12.5, 7.0, 31.25))
    sitk.WriteImage(image, str(path))
