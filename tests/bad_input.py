"""Tools of the bad-input tables: a good tiny project, ways to damage it, and what every failure must look like."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import resource
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from samunet.commands import run_command

PLAN = "plan_and_preprocess -d 998 -image_size 32"
STORE = "preprocess -d 998"
TRAIN = "train 998 2d 1 --iterations 1 --batch_size 2"
PREDICT = "predict -d 998 -i raw/Dataset998_Tiny/imagesTs -o preds --disable_tta"
PLANS = "preprocessed/*/samunetPlans.json"
MODEL = "results/*/*/"
FOLD = MODEL + "fold_0/"

_hashed: dict[tuple[int, int, int], str] = {}

# What to do, or what is allowed.
REMEDIES = ("\n  -> ", "\n  samunet_", " must ", " takes ", "give one of")

Damage = Callable[["Project"], object]


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: What is wrong.
        damage: Makes it so.
        command: What a user then types, without ``samunet_``; the project is the working folder.
        says: What the message must name: the offending file, key or case, and the remedy.
        status: Exit status.
        writes: Files that the command may make or change before it fails, as globs.
        repaired: Whether the same command must succeed once the damage is undone.
    """

    name: str
    damage: Damage
    command: str
    says: tuple[str, ...]
    status: int = 1
    writes: tuple[str, ...] = ()
    repaired: bool = True


class Project:
    """A raw dataset, preprocessed, with one trained fold, in ``root``; the environment points there."""

    def __init__(self, root: Path, good: Path, patch: pytest.MonkeyPatch) -> None:
        self.root, self.good, self.patch = root, good, patch

    def file(self, pattern: str) -> Path:
        """The first file that fits a glob."""
        return min(self.root.glob(pattern))

    def run(self, command: str) -> int:
        """Run a command in this process; returns its exit status."""
        name, *arguments = command.split()
        return run_command(f"samunet_{name}", arguments)

    def repair(self, damaged: dict[str, str]) -> None:
        """Undo what the damage changed, and leave what the command has written since."""
        original = hashes(self.good)
        for name in original.keys() | damaged.keys():
            if original.get(name) == damaged.get(name):
                continue
            target = self.root / name
            if name in original:
                for parent in target.parents:
                    if parent.is_file():  # damage put a file where a folder was
                        parent.unlink()
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(self.good / name, target)
            elif target.is_file():
                target.unlink()


def hashes(folder: Path) -> dict[str, str]:
    """SHA-1 of every file below a folder, by relative path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): _hash(path) for path in files}


def _hash(path: Path) -> str:
    """By inode and time, so that linked models are read once."""
    known = path.stat()
    key = known.st_ino, known.st_mtime_ns, known.st_size
    if key not in _hashed:
        _hashed[key] = hashlib.sha1(path.read_bytes()).hexdigest()
    return _hashed[key]


def make_project(samunet_folders, tiny_dataset, tmp_path_factory, monkeypatch, capsys):
    """Fixture: a good project of its own for every test; made once, by the real commands, then copied."""
    root, good = samunet_folders, tmp_path_factory.getbasetemp() / "good_project"
    monkeypatch.chdir(root)
    made = Project(root, good, monkeypatch)
    if good.is_dir():
        shutil.copytree(good, root, dirs_exist_ok=True, copy_function=link_models)
    else:
        tiny_dataset()
        assert made.run(PLAN) == 0
        assert made.run(TRAIN.replace("2d 1", "2d 0")) == 0
        shutil.copytree(root, good)
    capsys.readouterr()
    return made


def check(row: Row, project: Project, capsys: pytest.CaptureFixture) -> None:
    """Damage, run, compare with what the row says and with what holds for every failure; repair, run again."""
    hashes(project.root)  # known from now on, so that what may not be read later need not be
    undo = row.damage(project)
    before = hashes(project.root)
    try:
        status = project.run(row.command)
    finally:
        if callable(undo):
            undo()
    printed = capsys.readouterr().err
    after = hashes(project.root)
    assert status == row.status, printed
    for text in row.says:
        assert text.format(root=project.root) in printed, f"no {text!r} in: {printed}"
    assert_readable(printed)
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    unexpected = {name for name in changed if not any(Path(name).match(pattern) for pattern in row.writes)}
    assert not unexpected, unexpected
    assert not [name for name in after if ".tmp-" in name]
    if row.repaired:
        project.repair(before)
        for name in ("raw", "preprocessed", "results"):
            project.patch.setenv(f"samunet_{name}", str(project.root / name))
        assert project.run(row.command) == 0, capsys.readouterr().err


def assert_readable(printed: str) -> None:
    """One short message with a remedy, and no traceback."""
    assert "Traceback" not in printed
    assert "run again with --verbose" not in printed, "an error that nobody has put into words: " + printed
    if printed.startswith("usage:"):
        assert "error: " in printed
        return
    message = printed[printed.index("error: ") :]
    assert message.count("error: ") == 1, message
    assert any(remedy in message for remedy in REMEDIES), "no remedy: " + message
    assert len(message.splitlines()) <= 15, message


def replace(path: Path, content: bytes) -> None:
    """Write a file anew: the old one may be a link to the good project's."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def link_models(source: str, target: str) -> None:
    """Copy, but link what is large: model files."""
    (os.link if source.endswith(".safetensors") else shutil.copy2)(source, target)


def nothing(project: Project) -> None:
    """The project is good; the command is not."""


def remove(pattern: str) -> Damage:
    """Remove every file or folder that fits."""

    def damage(project: Project) -> None:
        found = sorted(project.root.glob(pattern))
        assert found
        for path in found:
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return damage


def write(pattern: str, content: str | bytes) -> Damage:
    """Replace a file's content, or make the file."""

    def damage(project: Project) -> None:
        path = project.file(pattern) if "*" in pattern else project.root / pattern
        replace(path, content if isinstance(content, bytes) else content.encode())

    return damage


def truncate(pattern: str, share: float = 0.5) -> Damage:
    """Cut a file."""

    def damage(project: Project) -> None:
        path = project.file(pattern)
        content = path.read_bytes()
        replace(path, content[: int(len(content) * share)])

    return damage


def move(pattern: str, name: str) -> Damage:
    """Rename a file."""
    return lambda project: project.file(pattern).rename(project.file(pattern).with_name(name))


def copy(pattern: str, name: str) -> Damage:
    """Copy a file, or a folder, within its folder."""

    def damage(project: Project) -> None:
        path = project.file(pattern)
        (shutil.copytree if path.is_dir() else shutil.copy2)(path, path.with_name(name))

    return damage


def make_folder(name: str) -> Damage:
    """Make an empty folder."""
    return lambda project: (project.root / name).mkdir(parents=True)


def change(pattern: str, key: str, value: object = None) -> Damage:
    """Set a dotted key of a JSON file."""

    def damage(project: Project) -> None:
        path = project.file(pattern)
        data = json.loads(path.read_text())
        *parents, last = key.split(".")
        inner = data
        for part in parents:
            inner = inner[int(part) if isinstance(inner, list) else part]
        inner[last] = value
        path.write_text(json.dumps(data))

    return damage


def drop(pattern: str, key: str) -> Damage:
    """Remove a key of a JSON file."""

    def damage(project: Project) -> None:
        data = json.loads(project.file(pattern).read_text())
        del data[key]
        project.file(pattern).write_text(json.dumps(data))

    return damage


def raw(key: str, value: object) -> Damage:
    """Set a key of the raw dataset.json."""
    return change("raw/*/dataset.json", key, value)


def plan(key: str, value: object) -> Damage:
    """Set a key of the plans' configuration 2d."""
    return change(PLANS, f"configurations.2d.{key}", value)


def image(pattern: str, **changes: object) -> Damage:
    """Change an image file: ``spacing``, ``origin``, ``direction``, or ``voxels``, a function of the array."""

    def damage(project: Project) -> None:
        path = project.file(pattern)
        old = sitk.ReadImage(str(path))
        voxels = changes.get("voxels", lambda array: array)(sitk.GetArrayFromImage(old))
        new = sitk.GetImageFromArray(voxels)
        new.SetSpacing(changes.get("spacing", old.GetSpacing()))
        new.SetOrigin(changes.get("origin", old.GetOrigin()))
        new.SetDirection(changes.get("direction", old.GetDirection()))
        sitk.WriteImage(new, str(path))

    return damage


def voxel(value: float) -> Callable[[np.ndarray], np.ndarray]:
    """A function that sets one voxel in the middle."""

    def put(array: np.ndarray) -> np.ndarray:
        array[tuple(side // 2 for side in array.shape)] = value
        return array

    return put


def tensors(pattern: str, edit: Callable[[dict], object]) -> Damage:
    """Change the tensors of a safetensors file in place."""

    def damage(project: Project) -> None:
        from safetensors.torch import load_file, save_file

        path = project.file(pattern)
        content = {name: value.clone() for name, value in load_file(path).items()}
        edit(content)
        path.unlink()
        save_file(content, path)

    return damage


def pictures(mode: str = "RGB", label_mode: str = "L", label_ending: str = ".png", high: object = 1) -> Damage:
    """A second raw dataset, Dataset997_Pictures, of six pictures."""

    def damage(project: Project) -> None:
        from PIL import Image

        folder = project.root / "raw" / "Dataset997_Pictures"
        (folder / "imagesTr").mkdir(parents=True)
        (folder / "labelsTr").mkdir()
        channels = ("R", "G", "B") if mode.startswith("RGB") else ("grayscale",)
        description = {
            "channel_names": {str(index): name for index, name in enumerate(channels)},
            "labels": {"background": 0, "polyp": 1},
            "numTraining": 6,
            "file_ending": ".png",
        }
        (folder / "dataset.json").write_text(json.dumps(description))
        rng = np.random.default_rng(0)
        for index in range(6):
            array = rng.integers(0, 255, (24, 20, 4)).astype(np.uint8)
            Image.fromarray(array).convert(mode).save(folder / "imagesTr" / f"p{index}_0000.png")
            label = Image.new(label_mode, (20, 24))
            label.paste(high, (5, 6, 15, 18))
            label.save(folder / "labelsTr" / f"p{index}{label_ending}")

    return damage


def variable(**values: str | None) -> Damage:
    """Set environment variables, with ``{root}`` in them, or remove them."""

    def damage(project: Project) -> None:
        for name, value in values.items():
            if value is None:
                project.patch.delenv(name, raising=False)
            else:
                project.patch.setenv(name, value.format(root=project.root))

    return damage


def both(*damages: Damage) -> Damage:
    """One damage after the other."""

    def damage(project: Project) -> Callable[[], None]:
        undo = [back for back in (one(project) for one in damages) if callable(back)]
        return lambda: [back() for back in undo] and None

    return damage


def full_disk(limit: int) -> Damage:
    """No file may grow beyond ``limit`` bytes, which makes writes fail in every library as on a full disk."""

    def damage(project: Project) -> Callable[[], None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return damage


def locked(pattern: str, mode: int = 0o555) -> Damage:
    """Take away the right to write to a folder (or, with mode 0, to read a file), for root too."""

    def damage(project: Project) -> Callable[[], None]:
        path, before = project.file(pattern), project.file(pattern).stat().st_mode
        path.chmod(mode)
        capabilities = set_capabilities(lambda held: held & ~0b110)  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH

        def undo() -> None:
            set_capabilities(lambda held: capabilities)
            path.chmod(before)

        return undo

    return damage


def set_capabilities(change: Callable[[int], int]) -> int:
    """Change the first 32 effective capabilities of this thread (Linux); returns what they were."""
    if not sys.platform.startswith("linux"):
        return 0
    libc = ctypes.CDLL(None)
    header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert libc.capget(header, sets) == 0
    before = sets[0]
    sets[0] = change(before)
    assert libc.capset(header, sets) == 0
    return before
