"""Protection of existing files: results never go into a person's data, and replace only files that samunet recorded.

Beside every mask that is written lies a record, ``samunet_record/FILE.json``. It is written before the mask, so that a
kill between the two leaves nothing unknown, and completed after it. Pictures have a mark in themselves.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from samunet.dataset.cases import visible
from samunet.dataset.names import case_stem
from samunet.dataset.problems import shortened
from samunet.errors import SamunetError, UsageError, argument
from samunet.files import file_hash, make_folder, read_json, write_json
from samunet.imageio.registry import ending_of, image_reader_for, mask_ending, reader_for

RECORD = "samunet_record"
ARGUMENTS = "predict_from_raw_data_args.json"
MASK, PICTURE = "mask", "picture"
PICTURE_MARK = {"Software": "samunet"}  # of PNG files

_DATASET = re.compile(r"Dataset\d+_.*")
_RAW = ("imagesTr", "labelsTr", "imagesTs")
_ELSEWHERE = "give another place, outside of it: `output`"
_REPLACE = "give another folder: `output`; or add `overwrite=True` to replace files of these names"
_OLD_ARGUMENTS = ("folds", "checkpoint", "tta", "step_size", "postprocessing")  # of what version 0.1.0 wrote


def check_place(output: str | Path, inputs: Iterable[Path] = ()) -> Path:
    """Raise a UsageError for a file or folder of results that is, or lies in, a raw dataset or an input folder.

    Args:
        inputs: What the results are made from; only folders matter.
    """
    output = Path(output)
    real = output.resolve()
    around = [real, *real.parents]
    for folder in around:
        # Folders of masks have a dataset.json as well, and a plans.json.
        parts = _RAW[:2] if (folder / "plans.json").is_file() else _RAW
        if (folder / "dataset.json").is_file() and any((folder / name).is_dir() for name in parts):
            raise UsageError(
                f"{output} {'is' if folder == real else 'lies in'} the raw dataset {folder}, which is only read",
                _ELSEWHERE,
            )
    if any((real / name).is_dir() for name in _RAW[:2]):
        raise UsageError(f"{output} holds {' or '.join(_RAW[:2])}: it is a raw dataset, which is only read", _ELSEWHERE)
    for source in inputs:
        if source.is_dir() and any(_same(folder, source.resolve()) for folder in around):
            same = _same(real, source.resolve())
            what = "is also an input: results would be mixed with it" if same else f"lies in the input folder {source}"
            raise UsageError(f"{argument('output', output)} {what}", _ELSEWHERE)
    return output


def check_folder(
    output: str | Path,
    inputs: Iterable[Path] = (),
    targets: Iterable[str] = (),
    *,
    kind: str = MASK,
    overwrite: bool = False,
    remedy: str = _REPLACE,
) -> Path:
    """Refuse a folder for masks or pictures that holds anything that could be lost; changes nothing.

    Args:
        inputs: What the results are made from.
        targets: Names of the files that are to be written, each a ``kind``: :data:`MASK` or :data:`PICTURE`.
        overwrite: Whether masks and pictures that a person made or changed may be replaced.
        remedy: What to do where it holds such.

    Raises:
        UsageError: As :func:`check_place`; or if the folder holds a model, preprocessed data, or images that this
            program did not write.
        SamunetError: If a target was changed since this program wrote it, or is another kind of file.
    """
    output = check_place(output, inputs)
    if not output.is_dir():
        return output
    check_holdings(output)
    if overwrite:
        return output
    old = _made_by_old_version(output) is not None
    there = [file.name for file in visible(output) if file.is_file()]
    images = [name for name in there if ending_of(Path(name))]
    recorded = [file.stem for file in (output / RECORD).glob("*.json")]
    cases = {case_stem(Path(name)) for name in (*images, *recorded) if ending_of(Path(name))}
    arrays = [name for name in there if name.endswith(".npz") and name.removesuffix(".npz") not in cases]
    unknown = [] if old else [name for name in images if _known(output / name) is None] + arrays
    if unknown:
        raise UsageError(
            f"{output} holds {len(unknown)} images or masks that samunet did not write ({shortened(unknown)})",
            remedy,
        )
    facts = [name for name in ("dataset.json", "plans.json") if (output / name).is_file()]
    if facts and not (old or (output / RECORD).is_dir() or (output / ARGUMENTS).is_file()):
        raise UsageError(f"{output} holds a {facts[0]} that samunet did not write beside masks", _ELSEWHERE)
    changed = []
    for name in targets:
        record = _known(output / name) if (output / name).is_file() else None
        if record and (record.get("kind") != kind or condition(output / name, record) == "edited"):
            changed.append(name)
    if changed:
        raise SamunetError(
            f"{output}: {len(changed)} files that would be replaced were edited since samunet wrote them, or are no "
            f"{kind}s ({shortened(changed)})",
            remedy,
        )
    return output


def check_file(output: str | Path, inputs: Iterable[Path] = (), *, overwrite: bool = False) -> Path:
    """As :func:`check_folder`, for one mask's file that is named; it may lie in the folder of its image."""
    output = check_place(output, inputs)
    record = read_record(output)
    if output.is_file() and not overwrite and not (record and condition(output, record) != "edited"):
        what = "was edited since samunet wrote it" if record else "exists, and samunet did not write it"
        raise UsageError(f"{output} {what}", "give another name; or add `overwrite=True` to replace it")
    return output


def check_new_file(output: str | Path) -> Path:
    """Refuse a file for a model or graph that exists already, or lies in a raw dataset."""
    output = check_place(output)
    if output.exists():
        raise UsageError(f"{output} exists", "give another name, or remove that file first")
    return output


def check_replaced(output: str | Path, mark: str) -> Path:
    """Refuse to replace a file that has not ``mark`` in it, as all reports or scores have."""
    output = Path(output)
    if output.is_file() and mark.encode() not in output.read_bytes():
        raise UsageError(
            f"{output} exists and holds something else than what is to be written", "give another name: `output`"
        )
    return output


def check_holdings(output: Path) -> None:
    """Raise a UsageError for a folder that holds a model's or a preprocessed dataset's files."""
    real = output.resolve()
    for what, found in (
        ("a trained model", (output / "plans.json").is_file() and any(output.glob("fold_*"))),
        ("a trained fold", _is_fold(output)),
        ("trained models", any(output.glob("samunetTrainer__*"))),
        ("datasets or their models", any(_DATASET.fullmatch(folder.name) for folder in output.glob("Dataset*"))),
        ("the validation of a trained fold", real.name == "validation" and _is_fold(real.parent)),
        ("a preprocessed dataset", any(any(output.glob(pattern)) for pattern in (
            "dataset_fingerprint.json", "splits_final.json", "*Plans.json", "*.b2nd"))),
    ):  # fmt: skip
        if found:
            raise UsageError(f"{output} holds {what}, which results would be mixed with", _ELSEWHERE)


def claim_folder(output: Path) -> Path:
    """Make a folder that was checked. Masks that version 0.1.0 wrote there get records of what is known of them."""
    make_folder(output)
    made = _made_by_old_version(output)
    if made is not None:
        for file in visible(output):
            if file.is_file() and ending_of(file):
                finish(file, made=made) if _is_readable(file) else begin(file)
    return output


def begin(mask: Path) -> None:
    """Record that a mask is about to be written."""
    write_json(_record_file(mask), {"kind": MASK})


def finish(file: Path, **facts: Any) -> None:
    """Record that a mask was written, with its size, time and hash, and with ``facts`` about how."""
    status = file.stat()
    state = {"size": status.st_size, "mtime_ns": status.st_mtime_ns, "sha256": file_hash(file)}
    write_json(_record_file(file), {"kind": MASK, "file": state, **facts})


def read_record(file: Path) -> dict[str, Any] | None:
    """The record of a file; None where this program did not write it."""
    try:
        record = read_json(_record_file(file))
    except SamunetError:  # missing or damaged: then nothing is known
        return None
    return record if isinstance(record, dict) else None


def condition(file: Path, record: dict[str, Any]) -> str:
    """State of a recorded mask: ``whole`` as it was written, ``edited`` since, or ``damaged``."""
    state, status = record.get("file"), file.stat()
    if not isinstance(state, dict):
        return "damaged"  # killed before it was known to be whole
    if (status.st_size, status.st_mtime_ns) == (state.get("size"), state.get("mtime_ns")):
        return "whole"
    if status.st_size == state.get("size") and file_hash(file) == state.get("sha256"):
        return "whole"
    return "edited" if _is_readable(file) else "damaged"


def _known(file: Path) -> dict[str, Any] | None:
    """As :func:`read_record`, for pictures as well."""
    record = read_record(file)
    if record is None and file.suffix == ".png":
        from PIL import Image

        with suppress(OSError, ValueError, SyntaxError), Image.open(file) as picture:
            if PICTURE_MARK.items() <= picture.info.items():
                return {"kind": PICTURE}
    return record


def _is_readable(mask: Path) -> bool:
    try:
        image_reader_for(mask, reader_for(mask_ending(mask))).read_label(mask)
    except SamunetError:
        return False
    return True


def _record_file(file: Path) -> Path:
    return file.parent / RECORD / f"{file.name}.json"


def _same(one: Path, other: Path) -> bool:
    """Whether two paths are one folder, also where upper and lower case are taken for the same."""
    if str(one).casefold() == str(other).casefold():
        return True
    return one.exists() and other.exists() and one.samefile(other)


def _is_fold(folder: Path) -> bool:
    return (folder / "run.json").is_file() or any(folder.glob("checkpoint_*.safetensors"))


def _made_by_old_version(output: Path) -> dict[str, Any] | None:
    """What version 0.1.0 noted of the masks in a folder; None where it did not write them. nnU-Net has other keys."""
    if (output / RECORD).is_dir():
        return None
    if (output / ARGUMENTS).is_file():
        noted = read_json(output / ARGUMENTS)
        if not isinstance(noted, dict) or not set(_OLD_ARGUMENTS) <= noted.keys():
            return None
        name = f"{noted.get('dataset')}/{noted.get('model')}"
        return {"name": name, **{key: noted[key] for key in _OLD_ARGUMENTS}}
    if not (output / "plans.json").is_file() or any(output.resolve().parent.glob("fold_*")):
        return None
    plans = read_json(output / "plans.json")  # of ensembles and postprocessed masks
    return {} if isinstance(plans, dict) and "samunet_version" in plans else None
