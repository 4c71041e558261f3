"""Models as zips: reading one that someone else made, without believing a word of it.

Nothing is taken out of an archive before every name in it has been checked, and nothing that was taken out counts
before its size and hash are the manifest's and its content is what its ending says. No kind of file among those allowed
can run code.
"""

from __future__ import annotations

import hashlib
import re
import stat
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from samunet import paths
from samunet.errors import SamunetError, UsageError
from samunet.files import JSON_BYTES, make_folder, read_json
from samunet.imageio.registry import MASK_ENDINGS
from samunet.models.folder import ModelFolder
from samunet.models.manifest import FILE_NAME, FileEntry, Manifest, ModelEntry, parse_manifest
from samunet.models.pretrained import BASE_FOLDER
from samunet.preprocessing.run import check_channels

_BLOCK = 1 << 20
_MOST_FILES = 5000
_LONGEST_ENTRY = 1100  # bytes in the directory
_MOST_FOLDERS = 8  # in each other
_MOST_UNPACKED = 20  # times the archive's size; models hardly pack
_ALWAYS = 1 << 26  # bytes that may be unpacked whatever the archive's size
_FOLDER = re.compile(r"samunetTrainer__[\w.-]+__[\w.-]+")
_NAME = re.compile(r"[^\x00-\x1f<>:\"\\|?*/]{1,255}")  # what no system forbids
_DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
KINDS = (".json", ".safetensors", ".txt", ".csv", *MASK_ENDINGS)  # masks keep the ending of their images
_PICKLES = (".pth", ".pt", ".pkl", ".pickle", ".ckpt", ".bin", ".joblib", ".npy", ".npz", ".model")
_AGAIN = "get the archive again from where it came from"
_REFUSED = "do not use this archive; ask whoever made it to export the model again"


@dataclass(frozen=True)
class ModelArchive:
    """An archive whose names and manifest have been checked; see :func:`open_archive`.

    Attributes:
        path: The file.
        manifest: What it holds.
    """

    path: Path
    manifest: Manifest
    _zip: zipfile.ZipFile

    @cached_property
    def _entries(self) -> dict[str, FileEntry]:
        return {entry.path: entry for entry in self.manifest.files}

    def files_of(self, model: ModelEntry) -> dict[str, str]:
        """Of a model's folder: paths within it, and the files of the archive that belong there."""
        prefix = f"{self.manifest.dataset}/{model.folder}/"
        files = {name.removeprefix(prefix): name for name in self._entries if name.startswith(prefix)}
        if model.base and model.base.copy:
            files[f"{BASE_FOLDER}/{model.base.copy}"] = f"{BASE_FOLDER}/{model.base.copy}"
        return files

    def files_of_dataset(self) -> dict[str, str]:
        """Of the dataset's folder, beside its models: paths within it, and the archive's files that belong there."""
        prefix, models = f"{self.manifest.dataset}/", [model.folder for model in self.manifest.models]
        of_dataset = {name.removeprefix(prefix): name for name in self._entries if name.startswith(prefix)}
        return {path: name for path, name in of_dataset.items() if path.split("/")[0] not in models}

    def hash_of(self, name: str) -> str:
        """SHA-256 that the manifest states of a file of the archive."""
        return self._entries[name].sha256.lower()

    def extract(self, model: ModelEntry, folder: Path) -> None:
        """Put a model's files, with the manifest, into an existing folder, and check them.

        Raises:
            SamunetError: If a file is damaged, is not the manifest's, or is not what its ending says. What has been
                written by then stays: the caller removes the folder.
        """
        for target, name in self.files_of(model).items():
            self.extract_file(name, folder / target)
        with _reading(self.path):
            manifest = self._zip.read(FILE_NAME)
        (folder / FILE_NAME).write_bytes(manifest)
        try:
            _check_opens(folder, model)
        except SamunetError as error:
            message = error.message.replace(str(folder), model.folder)
            raise SamunetError(f"{self.path}: {message}", _REFUSED) from error

    def extract_file(self, name: str, target: Path) -> None:
        """Write one file, and check it; errors as in :meth:`extract`."""
        make_folder(target.parent)
        with open(target, "wb") as stream:
            for block in self._blocks(name):
                stream.write(block)
        try:
            _check_content(target)
        except SamunetError as error:
            raise SamunetError(f"{self._where(name)} {error.message}", _REFUSED) from error

    def verify(self) -> None:
        """Compare all files with the manifest's hashes, without writing anything."""
        for name in self._entries:
            for _ in self._blocks(name):
                pass

    def _where(self, name: str) -> str:
        return f"{name} in {self.path}"

    def _blocks(self, name: str) -> Iterator[bytes]:
        """A file's content; ends in an error where it differs from the manifest."""
        entry, digest, size = self._entries[name], hashlib.sha256(), 0
        with _reading(self.path), self._zip.open(name) as stream:
            while block := stream.read(_BLOCK):
                size += len(block)
                if size > entry.bytes:
                    break
                digest.update(block)
                yield block
        if size != entry.bytes or digest.hexdigest() != entry.sha256.lower():
            raise SamunetError(
                f"{self._where(name)} is not the file that the manifest describes: its hash differs", _AGAIN
            )


@contextmanager
def open_archive(path: Path) -> Iterator[ModelArchive]:
    """Open a model's archive and check the names in it and its manifest.

    Raises:
        UsageError: If there is no such file.
        SamunetError: If it is no zip, not a model of samunet's, or holds anything that a model does not have: paths
            that lead elsewhere, links, files of other kinds, files that the manifest does not list.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "is no file" if path.exists() else "does not exist"
        raise UsageError(f"{path} {what}", "give the zip that `api.export_model` wrote")
    with ExitStack() as stack:
        with _reading(path):  # and not the caller's block, whose errors are its own
            _check_directory(path)
            opened = stack.enter_context(zipfile.ZipFile(path))
            _check_cost(path, opened.infolist())
            members = [member for member in opened.infolist() if not member.is_dir() or _problem(member)]
            for member in members:
                problem = _problem(member)
                if problem:
                    raise SamunetError(f"{path}: {member.filename[:200]!r} {problem}", _REFUSED)
            manifest = _manifest(path, opened, members)
            _check_list(path, manifest, members)
            for model in manifest.models:
                _check_model(path, manifest, model)
        yield ModelArchive(path, manifest, opened)


def _check_directory(path: Path) -> None:
    """Refuse too many files before the zip's directory is read, which takes memory and time for each.

    The end of a zip says how many there are and how long the directory is; the count may lie, the length may not.
    """
    with open(path, "rb") as stream:
        end = zipfile._EndRecData(stream)
    if end and (end[zipfile._ECD_ENTRIES_TOTAL] > _MOST_FILES or end[zipfile._ECD_SIZE] > _MOST_FILES * _LONGEST_ENTRY):
        raise _too_many(path, end[zipfile._ECD_ENTRIES_TOTAL])


def _check_cost(path: Path, members: list[zipfile.ZipInfo]) -> None:
    """Refuse what would cost more time or space than any model does."""
    if len(members) > _MOST_FILES:
        raise _too_many(path, len(members))
    unpacked = sum(member.file_size for member in members)
    if unpacked > _MOST_UNPACKED * path.stat().st_size + _ALWAYS:
        raise SamunetError(
            f"{path} would unpack to {unpacked / 1e9:.1f} GB, far more than a model of its size does", _REFUSED
        )


def _too_many(path: Path, number: int) -> SamunetError:
    return SamunetError(f"{path} has {number} files, and a model has at most {_MOST_FILES}", _REFUSED)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """What reading a damaged zip can raise, as one error."""
    try:
        yield
    except SamunetError:
        raise
    except Exception as error:  # the border to a stranger's file
        first_line = next(iter(str(error).splitlines()), type(error).__name__)
        raise SamunetError(f"{path} is damaged, or no zip: {first_line}", _AGAIN) from error


def _problem(member: zipfile.ZipInfo) -> str | None:
    """What is wrong with a member of a zip, to be said after its name; None if nothing."""
    # ``filename`` has been tidied by zipfile: what was written is in ``orig_filename``.
    written = member.orig_filename
    parts = written.rstrip("/").split("/")
    if written.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", written):
        return "is an absolute path: it would be written outside the folder of models"
    if ".." in re.split(r"[/\\]", written):
        return "leads out of the folder of models (..)"
    if len(parts) > _MOST_FOLDERS:
        return f"lies in more than {_MOST_FOLDERS - 1} folders in each other"
    seen = written.isprintable() and len(written) <= 1000
    if not seen or not all(_NAME.fullmatch(part) and part != "." and not _DEVICE.fullmatch(part) for part in parts):
        return "is not a name that every system can have"
    if any(part.startswith(".") or part[-1] in " ." for part in parts):
        return "is a hidden file, or ends in a dot or a space"
    kind = stat.S_IFMT(member.external_attr >> 16)
    if kind == stat.S_IFLNK:
        return "is a link, which could lead anywhere"
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is neither a file nor a folder"
    if member.flag_bits & 0x1:
        return "is encrypted"
    if written.endswith(_PICKLES):
        return "is of a kind that can hold pickled objects, which run code when they are read"
    if not member.is_dir() and not written.endswith(KINDS):
        return f"is of a kind that no model has (they have {', '.join(KINDS[:4])} and masks)"
    return None


def _manifest(path: Path, opened: zipfile.ZipFile, members: list[zipfile.ZipInfo]) -> Manifest:
    sizes = {member.filename: member.file_size for member in members}
    if FILE_NAME not in sizes:
        raise SamunetError(
            f"{path} is no model that samunet exported: it has no {FILE_NAME}",
            "give the zip that `api.export_model` wrote",
        )
    if sizes[FILE_NAME] > JSON_BYTES:
        raise SamunetError(f"{path}: {FILE_NAME} has {sizes[FILE_NAME]} bytes, far too many", _REFUSED)
    return parse_manifest(opened.read(FILE_NAME), f"{FILE_NAME} in {path}")


def _check_list(path: Path, manifest: Manifest, members: list[zipfile.ZipInfo]) -> None:
    """Every file of the zip is in the manifest once, with its size, and lies where a model's files lie."""
    sizes = {member.filename: member.file_size for member in members}
    listed = [entry.path for entry in manifest.files]
    wrong = {
        "is in the zip more than once": _repeated([member.filename for member in members]),
        "is in the manifest more than once": _repeated(listed),
        "is a model that the manifest names more than once": _repeated([model.folder for model in manifest.models]),
        "is in the zip, but not in its manifest": sorted(sizes.keys() - set(listed) - {FILE_NAME}),
        "is in the manifest, but not in the zip": sorted(set(listed) - sizes.keys()),
        "is too large for a JSON file": [
            name for name, size in sizes.items() if name.endswith(".json") and size > JSON_BYTES
        ],
        "has another size than the manifest says": [
            entry.path for entry in manifest.files if sizes.get(entry.path, entry.bytes) != entry.bytes
        ],
        "lies outside the folders of the models that the manifest names": [
            name for name in listed if not _has_a_place(name, manifest)
        ],
    }
    for problem, names in wrong.items():
        if names:
            more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            raise SamunetError(f"{path}: {names[0]!r}{more} {problem}", _REFUSED)


def _repeated(names: list[str]) -> list[str]:
    """Names that some systems could not tell apart from one before."""
    seen: set[str] = set()
    return [name for name in names if name.casefold() in seen or seen.add(name.casefold())]


def _has_a_place(name: str, manifest: Manifest) -> bool:
    parts = PurePosixPath(name).parts
    if parts[0] == BASE_FOLDER:
        return any(model.base and parts[1:] == (model.base.copy,) for model in manifest.models)
    folders = [model.folder for model in manifest.models]
    of_ensemble = len(parts) == 4 and parts[1] == "ensembles"
    return parts[0] == manifest.dataset and (len(parts) == 2 or of_ensemble or parts[1] in folders)


def _check_model(path: Path, manifest: Manifest, model: ModelEntry) -> None:
    problem = None
    listed = {entry.path for entry in manifest.files}
    prefix = f"{manifest.dataset}/{model.folder}"
    needed = [f"{prefix}/plans.json", f"{prefix}/dataset.json"]
    for fold in model.folds:
        needed.append(f"{prefix}/fold_{fold}/run.json")
        needed += [f"{prefix}/fold_{fold}/checkpoint_{checkpoint}.safetensors" for checkpoint in model.checkpoints]
    if model.base and model.base.copy:
        needed.append(f"{BASE_FOLDER}/{model.base.copy}")
    missing = [name for name in needed if name not in listed]
    if not paths.DATASET_NAME.match(manifest.dataset) or not _NAME.fullmatch(manifest.dataset):
        problem = f"the dataset's name, {manifest.dataset!r}, must be of the form Dataset027_ACDC"
    elif not _FOLDER.fullmatch(model.folder):
        problem = f"{model.folder!r} is no name of a model's folder (samunetTrainer__PLANS__CONFIGURATION)"
    elif not model.folds or not model.checkpoints:
        problem = f"{model.folder} has no fold or no checkpoint"
    elif missing:
        problem = f"{missing[0]} is missing"
    if problem:
        raise SamunetError(f"{path}: {problem}", _REFUSED)


def _check_content(file: Path) -> None:
    """Whether a tensor or JSON file is what its ending says.

    Raises:
        SamunetError: If not; what is to be said after the file's name.
    """
    if file.name.endswith(".safetensors"):
        from safetensors import safe_open

        from samunet.tensors import check_numbers

        try:
            with safe_open(file, "pt") as stream:
                for name in stream.keys():  # noqa: SIM118 (it is no dict)
                    check_numbers({name: stream.get_tensor(name)}, "it")
        except SamunetError:
            raise
        except Exception as error:  # the border to a stranger's file
            raise SamunetError(f"is not in safetensors' format: {error}") from error
    elif file.name.endswith(".json"):
        try:
            read_json(file)
        except SamunetError as error:
            raise SamunetError(error.message.removeprefix(f"{file} ")) from error


def _check_opens(folder: Path, entry: ModelEntry) -> None:
    """Read everything of a model but its tensors, as prediction would.

    Raises:
        SamunetError: If a file does not hold what it should.
    """
    model = ModelFolder(folder, entry.folder)
    check_channels(model.configuration, model.description, f"{entry.folder}/dataset.json")
    for fold in entry.folds:
        model.run(fold)
