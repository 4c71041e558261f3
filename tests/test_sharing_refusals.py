"""Zips that nobody should install: each is refused with a sentence, and leaves everything as it was."""

import json
import os
import pickle
import stat
import struct
import zipfile

import pytest
import torch
from handed import NAME, Forged, make_model, small_encoder
from safetensors.torch import save

from samunet import api
from samunet.commands import run_command
from samunet.errors import SamunetError
from samunet.files import file_hash

FOLDER = f"{NAME}/samunetTrainer__samunetPlans__2d"
CHECKPOINT = f"{FOLDER}/fold_0/checkpoint_final.safetensors"
RUN = f"{FOLDER}/fold_0/run.json"
PLANS = f"{FOLDER}/plans.json"


class Bomb:
    """Makes a file where it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("it_ran",)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A model's zip, and the environment it was made in."""
    from conftest import samunet_folders, tiny_dataset

    root = tmp_path_factory.mktemp("exported")
    with pytest.MonkeyPatch.context() as patch:
        samunet_folders.__wrapped__(root, patch)
        small_encoder(patch)
        tiny_dataset.__wrapped__(root)()
        make_model(root, folds=(0,))
        api.export_model(998, root / "model.zip")
    return root / "model.zip"


@pytest.fixture
def forged(exported, monkeypatch):
    small_encoder(monkeypatch)
    return Forged(exported)


def listing(folder):
    return {str(path.relative_to(folder)): path.is_file() and file_hash(path) for path in folder.rglob("*")}


def refuse(archive, tmp_path, monkeypatch, capsys, *flags, status=1, model_is_whole=False):
    """Install; check that it failed readably and changed nothing; return the message."""
    results, work = tmp_path / "results", tmp_path / "work"
    results.mkdir(exist_ok=True)
    work.mkdir(exist_ok=True)
    monkeypatch.setenv("samunet_results", str(results))
    monkeypatch.chdir(work)
    before = listing(tmp_path)
    assert run_command("samunet_install_pretrained_model_from_zip", [str(archive), *flags]) == status
    assert listing(tmp_path) == before
    message = capsys.readouterr().err
    assert "Traceback" not in message
    assert "run again with --verbose" not in message
    assert archive.name in message
    if not model_is_whole:
        with pytest.raises(SamunetError):
            api.Predictor.from_zip(archive)
        assert listing(tmp_path) == before
    return message


NAMES = {
    "/etc/cron.d/x.json": "absolute path",
    "\\\\server\\x.json": "absolute path",
    "C:/Windows/x.json": "absolute path",
    "../../x.json": "leads out",
    f"{FOLDER}/../../../x.json": "leads out",
    f"{FOLDER}\\..\\x.json": "leads out",
    f"{FOLDER}/a\\b.json": "every system",
    f"{FOLDER}//x.json": "every system",
    f"{FOLDER}/./x.json": "every system",
    f"{FOLDER}/nul.json": "every system",
    f"{FOLDER}/a\nb.json": "every system",
    f"{FOLDER}/.hidden.json": "hidden",
    f"{FOLDER}/x.pth": "pickled",
    f"{FOLDER}/x.pkl": "pickled",
    f"{FOLDER}/x.npz": "pickled",
    f"{FOLDER}/x.py": "no model has",
    f"{FOLDER}/report.html": "no model has",
    f"{FOLDER}/x.so": "no model has",
    "x.json": "outside the folders",
    "Dataset001_Other/x.json": "outside the folders",
    f"{NAME}/samunetTrainer__other__2d/plans.json": "outside the folders",
    f"{NAME}/ensembles/a/b/c.json": "outside the folders",
    "base_weights/x.safetensors": "outside the folders",
}


@pytest.mark.parametrize("name", NAMES, ids=[name.encode("unicode_escape").decode() for name in NAMES])
def test_names(forged, tmp_path, monkeypatch, capsys, name):
    forged.put(name, b"{}")
    assert NAMES[name] in refuse(forged.write(tmp_path / "bad.zip"), tmp_path, monkeypatch, capsys)


@pytest.mark.parametrize(("kind", "message"), [(stat.S_IFLNK, "is a link"), (stat.S_IFIFO, "neither a file")])
def test_links_and_devices(forged, tmp_path, monkeypatch, capsys, kind, message):
    forged.put(f"{FOLDER}/calibration.json", b"/etc/passwd")
    forged.attributes[f"{FOLDER}/calibration.json"] = kind | 0o777
    assert message in refuse(forged.write(tmp_path / "bad.zip"), tmp_path, monkeypatch, capsys)


def other_hash(forged):
    forged.put(PLANS, forged.members[PLANS].replace(b"2d", b"3d"), listed=False)


def other_size(forged):
    forged.put(PLANS, forged.members[PLANS] + b" ", listed=False)


def unlisted(forged):
    forged.put(f"{FOLDER}/more.json", b"{}", listed=False)


def missing(forged):
    del forged.members[CHECKPOINT]


def missing_in_both(forged):
    del forged.members[CHECKPOINT]
    forged.manifest["files"] = [entry for entry in forged.manifest["files"] if entry["path"] != CHECKPOINT]


def twice_in_the_zip(forged):
    forged.twice = [(PLANS, forged.members[PLANS])]


def twice_but_for_capitals(forged):
    forged.put(PLANS.replace("plans", "Plans"), b"{}")


def no_manifest(forged):
    forged.manifest = None


def manifest_is_no_json(forged):
    forged.manifest = b"{"


def manifest_is_a_list(forged):
    forged.manifest = []


def deep_manifest(forged):
    forged.manifest = b"[" * 200_000


def manifest_without_hash(forged):
    del forged.manifest["files"][0]["sha256"]


def later_format(forged):
    forged.manifest["samunet_model"] = 2


def foreign_dataset_name(forged):
    forged.manifest["dataset"] = "../../x"


def foreign_folder(forged):
    forged.manifest["models"][0]["folder"] = "fold_0"


def model_twice(forged):
    forged.manifest["models"] *= 2


def pickle_as_tensors(forged):
    forged.put(CHECKPOINT, pickle.dumps(Bomb()))


def torch_file_as_tensors(forged):
    import io

    import torch

    stream = io.BytesIO()
    torch.save({"bomb": Bomb()}, stream)
    forged.put(CHECKPOINT, stream.getvalue())


def tensors_beyond_the_file(forged):
    header = json.dumps({"x": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}).encode()
    forged.put(CHECKPOINT, struct.pack("<Q", len(header)) + header)


def pickle_as_json(forged):
    forged.put(RUN, pickle.dumps(Bomb()))


def deep_json(forged):
    forged.put(RUN, b"[" * 200_000)


def wrong_plans(forged):
    forged.put(PLANS, forged.members[PLANS].replace(b'"batch_size"', b'"bach_size"'))


def run_of_another_network(forged):
    forged.put(RUN, b'{"encoder": "other"}')


def run_with_odd_base(forged):
    run = json.loads(forged.members[RUN]) | {"base": {"file": ["/dev/zero"], "sha256": 3}}
    forged.put(RUN, json.dumps(run).encode())


def many_files(forged):
    for index in range(5000):
        forged.put(f"{FOLDER}/x{index}.json", b"{}")


def deep_folders(forged):
    forged.put(f"{FOLDER}/" + "a/" * 7 + "x.json", b"{}")


def weights_that_are_no_numbers(forged):
    forged.put(CHECKPOINT, save({"x": torch.tensor([0.0, float("nan")])}))


def weights_of_an_odd_type(forged):
    forged.put(CHECKPOINT, save({"x": torch.tensor([True])}))


def huge_number(forged):
    forged.put(RUN, forged.members[RUN].replace(b'"fold": 0', b'"fold": 1' + b"0" * 400))


def huge_input(forged):
    plans = json.loads(forged.members[PLANS])
    plans["configurations"]["2d"]["networks"]["small"]["input_shape"] = [1_000_000, 1_000_000]
    forged.put(PLANS, json.dumps(plans).encode())


def many_classes(forged):
    description = json.loads(forged.members[f"{FOLDER}/dataset.json"])
    description["labels"] = {"background": 0, **{f"class {value}": value for value in range(1, 60_000)}}
    forged.put(f"{FOLDER}/dataset.json", json.dumps(description).encode())


WRONG = {
    many_files: "and a model has at most 5000",
    deep_folders: "lies in more than 7 folders in each other",
    weights_that_are_no_numbers: "no numbers (NaN or infinite), for example in x",
    weights_of_an_odd_type: "x has the type torch.bool",
    huge_number: "a number has 401 digits",
    huge_input: "input_shape.0: Input should be less than or equal to 4096",
    many_classes: "60000 classes, and a network can have 1000",
    other_hash: "its hash differs",
    other_size: "another size",
    unlisted: "not in its manifest",
    missing: "but not in the zip",
    missing_in_both: "is missing",
    twice_in_the_zip: "more than once",
    twice_but_for_capitals: "more than once",
    no_manifest: "no model that samunet exported",
    manifest_is_no_json: "not valid JSON",
    manifest_is_a_list: "samunet_model.json",
    deep_manifest: "not valid JSON",
    manifest_without_hash: "sha256",
    later_format: "newer samunet",
    foreign_dataset_name: "outside the folders",
    foreign_folder: "outside the folders",
    model_twice: "more than once",
    pickle_as_tensors: "not in safetensors",
    torch_file_as_tensors: "not in safetensors",
    tensors_beyond_the_file: "not in safetensors",
    pickle_as_json: "not a text file",
    deep_json: "nested too deeply",
    wrong_plans: "batch_size: Field required",
    run_of_another_network: "encoder",
    run_with_odd_base: "base.file: Input should be a valid string",
}


@pytest.mark.parametrize("change", WRONG, ids=lambda change: change.__name__)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_contents(forged, tmp_path, monkeypatch, capsys, change):
    change(forged)
    message = refuse(forged.write(tmp_path / "bad.zip"), tmp_path, monkeypatch, capsys)
    assert WRONG[change] in message
    assert str(tmp_path / "results" / NAME) not in message, "names of hidden folders tell the user nothing"


def test_content_that_unpacks_to_far_more(exported, tmp_path, monkeypatch, capsys):
    with zipfile.ZipFile(tmp_path / "bad.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(CHECKPOINT, bytes(100_000_000))
    message = refuse(tmp_path / "bad.zip", tmp_path, monkeypatch, capsys)
    assert "would unpack to 0.1 GB, far more than a model of its size does" in message


def test_no_zip_and_a_damaged_one(exported, tmp_path, monkeypatch, capsys):
    content = exported.read_bytes()
    middle = len(content) // 2
    for name, damaged in {
        "empty.zip": b"",
        "text.zip": b"<html>not found</html>",
        "cut.zip": content[:middle],
        "flipped.zip": content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :],
    }.items():
        (tmp_path / name).write_bytes(damaged)
        assert "damaged" in refuse(tmp_path / name, tmp_path, monkeypatch, capsys)
    (tmp_path / "folder.zip").mkdir()
    refuse(tmp_path / "folder.zip", tmp_path, monkeypatch, capsys, status=2)
    refuse(tmp_path / "none.zip", tmp_path, monkeypatch, capsys, status=2)


def test_model_of_nnunet(tmp_path, monkeypatch, capsys):
    with zipfile.ZipFile(tmp_path / "nnunet.zip", "w") as archive:
        archive.writestr("Dataset027_ACDC/nnUNetTrainer__nnUNetPlans__2d/plans.json", "{}")
        archive.writestr("Dataset027_ACDC/nnUNetTrainer__nnUNetPlans__2d/fold_0/checkpoint_final.pth", b"x")
    assert "pickled" in refuse(tmp_path / "nnunet.zip", tmp_path, monkeypatch, capsys)


def test_refused_with_force_the_old_model_stays(forged, exported, tmp_path, monkeypatch, capsys):
    (tmp_path / "results").mkdir()
    api.install_model(exported, tmp_path / "results")
    # Another model of that name, and after it a damaged file of its dataset: by then all others have been written.
    forged.put(RUN, forged.members[RUN] + b" ")
    forged.put(f"{NAME}/ensembles/a/postprocessing.json", b"{}")
    forged.put(f"{NAME}/inference_information.json", b"{}")
    name = f"{NAME}/inference_information.json"
    forged.put(name, b"[]", listed=False)
    archive = forged.write(tmp_path / "bad.zip")
    assert "hash differs" in refuse(archive, tmp_path, monkeypatch, capsys, "--force", model_is_whole=True)


def test_too_little_space(exported, tmp_path, monkeypatch, capsys):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("samunet.sharing.install.shutil.disk_usage", lambda path: usage)
    small_encoder(monkeypatch)
    monkeypatch.setenv("samunet_results", str(tmp_path))
    assert run_command("samunet_install_pretrained_model_from_zip", [str(exported)]) == 1
    assert "GB" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_interrupted_it_leaves_nothing(exported, tmp_path, monkeypatch, capsys):
    from samunet.models import archive as model_archive

    small_encoder(monkeypatch)
    monkeypatch.setattr(model_archive, "_check_content", lambda file: (_ for _ in ()).throw(KeyboardInterrupt))
    assert (
        run_command("samunet_install_pretrained_model_from_zip", [str(exported), "-o", str(tmp_path / "results")])
        == 130
    )
    assert list((tmp_path / "results").iterdir()) == []
    assert "nothing was installed" in capsys.readouterr().err
