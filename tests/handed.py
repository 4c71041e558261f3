"""Small models that nobody had to train, and zips of them with something wrong in them."""

import json
import zipfile
from dataclasses import replace
from hashlib import sha256

import torch
from reduced import reduce_bundled_encoder

from samunet import api
from samunet.dataset.description import read_description
from samunet.encoders import ENCODERS
from samunet.files import read_json, write_json
from samunet.models.checkpoint import save_model
from samunet.models.folder import ModelFolder, build_network, model_folder_name
from samunet.models.pretrained import pretrained_weights
from samunet.network.encoders.vit import ImageEncoder
from samunet.network.heads import SamHead
from samunet.plans import read_plans

NAME = "Dataset998_Tiny"
CASES = [f"case_{index}" for index in range(6)]


def make_model(root, encoder="small", folds=(0, 1), kinds=("final",), **planner):
    """A model folder in ``results`` as training leaves it, with random weights; the dataset must be in ``raw``."""
    name = planner.setdefault("plans_name", "samunetPlans")
    if encoder == "vit_b" and ENCODERS["vit_b"].width != 48:
        raise AssertionError("use the fixture that makes vit_b small")
    api.plan_and_preprocess(998, api.PlannerOptions(encoder=encoder, image_size=128, **planner), store=False)
    source = root / "preprocessed" / NAME
    plans, description = read_plans(source / f"{name}.json"), read_description(source)
    model = ModelFolder(root / "results" / NAME / model_folder_name(name, "2d"))
    configuration = plans.configuration("2d")
    base = pretrained_weights(encoder) if ENCODERS[encoder].is_sam else None  # folds of the small encoder are whole
    for fold in folds:
        torch.manual_seed(fold)
        network = build_network(configuration, configuration.networks[encoder], description, base)
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.data += 0.05 * torch.randn_like(parameter)
        for network_of_token in network.head.mask_decoder.output_hypernetworks_mlps:  # no class wins everywhere
            last = network_of_token.layers[-1]
            last.weight.data -= last.weight.data.mean(0)
            last.bias.data -= last.bias.data.mean()
        for kind in kinds:
            save_model(model.fold(fold), network, kind)
        run = {
            "dataset": NAME, "configuration": "2d", "fold": fold, "encoder": encoder,
            "versions": {"samunet": "0.1.0", "torch": torch.__version__},
            "training_cases": CASES[1:], "monitored": CASES[:1],
        }  # fmt: skip
        if base:
            run["base"] = base.record | {"path": str(root / "checkpoints" / base.record["file"])}
        write_json(model.fold(fold) / "run.json", run)
        case = {"reference_file": str(root / "raw" / f"{CASES[0]}.nii.gz"), "metrics": {"1": {"Dice": 0.5}}}
        mean = {"1": {"Dice": 0.5}, "2": {"Dice": 0.25}}
        write_json(model.fold(fold) / "validation" / "summary.json", {"mean": mean, "metric_per_case": [case]})
        write_json(model.fold(fold) / "training_log.json", [{"epoch": 1}])
        (model.fold(fold) / "progress.png").write_bytes(b"a picture")
    plans.write(model.path / "plans.json")
    write_json(model.path / "dataset.json", description.raw | {"groups": {case: case for case in CASES}})
    write_json(model.path / "dataset_fingerprint.json", read_json(source / "dataset_fingerprint.json"))
    return model


def small_encoder(patch):
    """Make the bundled encoder so small that nothing takes long."""
    reduce_bundled_encoder(patch, width=64, depth=2, heads=4, global_blocks=(1,))


def small_sam(root, patch):
    """Make vit_b small, with a checkpoint of its own in the checkpoints folder; returns that file."""
    facts = replace(ENCODERS["vit_b"], width=48, depth=2, heads=3, global_blocks=(1,), native_size=128)
    patch.setitem(ENCODERS, "vit_b", facts)
    patch.setenv("samunet_checkpoints", str(root / "checkpoints"))
    (root / "checkpoints").mkdir()
    torch.manual_seed(3)
    encoder, head = ImageEncoder(facts), SamHead(4, 8, 16)
    for parameter in [*encoder.parameters(), *head.parameters()]:
        parameter.data += 0.05 * torch.randn_like(parameter)
    state = {f"image_encoder.{name}": value for name, value in encoder.state_dict().items()} | head.state_dict()
    torch.save(state, root / "checkpoints" / "sam_vit_b_01ec64.pth")
    return root / "checkpoints" / "sam_vit_b_01ec64.pth"


class Forged:
    """An archive's members, to be changed and written again."""

    def __init__(self, source):
        with zipfile.ZipFile(source) as archive:
            self.members = {member.filename: archive.read(member) for member in archive.infolist()}
        self.manifest = json.loads(self.members.pop("samunet_model.json"))
        self.attributes = {}
        self.twice = []

    def name(self, ending):
        """The first member with this ending."""
        return next(name for name in self.members if name.endswith(ending))

    def put(self, name, content, listed=True):
        """Add or replace a member, in the manifest as well unless it is to differ."""
        self.members[name] = content
        if listed:
            self.list(name, content)

    def list(self, name, content):
        """Give the manifest an entry."""
        files = [entry for entry in self.manifest["files"] if entry["path"] != name]
        entry = {"path": name, "bytes": len(content), "sha256": sha256(content).hexdigest()}
        self.manifest["files"] = [*files, entry]

    def write(self, path):
        """Write the zip; names go in exactly as they are."""
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in [*self.members.items(), *self.twice]:
                archive.writestr(self._info(name), content)
            if self.manifest is not None:
                manifest = self.manifest if isinstance(self.manifest, bytes) else json.dumps(self.manifest).encode()
                archive.writestr("samunet_model.json", manifest)
        return path

    def _info(self, name):
        info = zipfile.ZipInfo("x")
        info.filename = name
        info.external_attr = self.attributes.get(name, 0o644) << 16
        return info
