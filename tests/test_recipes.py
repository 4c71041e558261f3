"""Recipes of one's own, as documentation/guide/write_a_recipe.md shows them, and what the trainer gives them."""

import os
import re
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from reduced import reduce_bundled_encoder
from test_loader import CaseInMemory, make_loader

from samunet import recipes
from samunet.commands import run_command
from samunet.dataset.labels import Labels
from samunet.errors import UsageError
from samunet.recipes import is_recipe_name
from samunet.training import trainer
from samunet.training.recipes import RECIPES, Batch, Recipe, load_recipe
from samunet.training.state import LATEST

PAGE = Path(__file__).parents[1] / "documentation" / "guide" / "write_a_recipe.md"
SHORT = ["--iterations", "6", "--batch_size", "4", "-p", "own"]


@pytest.fixture
def examples(tmp_path, monkeypatch):
    """The page's examples as files on Python's path."""
    blocks = re.findall(r"^```python\n# (\w+)\.py\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    for name, text in blocks:
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    return [name for name, _ in blocks]


def plan(recipe):
    return run_command("samunet_plan_and_preprocess", ["-d", "998", "-recipe", recipe, "-overwrite_plans_name", "own"])


def test_examples_are_recipes(examples):
    assert examples == ["mean_teacher", "tversky"]
    assert issubclass(load_recipe("mean_teacher:MeanTeacher"), Recipe)
    labels = Labels.from_json({"background": 0, "organ": 1})
    model = torch.nn.Conv2d(1, 2, 1)
    found = load_recipe("tversky:Tversky")(model, SimpleNamespace(recipe="samunet"), labels)
    perfect = torch.tensor([[[[9.0, -9.0]], [[-9.0, 9.0]]]]) * 9
    assert float(found.loss(perfect, torch.tensor([[[0, 1]]]))) == pytest.approx(0, abs=1e-4)
    # Half of each class is found: 1 - 0.5 / (0.5 + 0.3 * 0.5 + 0.7 * 0.5).
    assert float(found.loss(0 * perfect, torch.tensor([[[0, 1]]]))) == pytest.approx(0.5, abs=1e-4)


def test_a_mean_teacher_trains_goes_on_and_predicts(examples, samunet_folders, tiny_dataset, tmp_path, monkeypatch):
    reduce_bundled_encoder(monkeypatch)
    raw = tiny_dataset()
    assert plan("mean_teacher:MeanTeacher") == 0
    assert run_command("samunet_train", ["998", "2d", "0", *SHORT]) == 0
    fold = next((samunet_folders / "results").glob("*/*__own__2d/fold_0"))
    whole = (fold / "checkpoint_final.safetensors").read_bytes()
    assert (fold / "validation" / "summary.json").is_file()
    assert list((samunet_folders / "preprocessed").glob("*/*_imagesTs/test_0.json"))

    step, seen = trainer.Trainer._step, []

    def interrupted(self, batch):
        seen.append(batch["unlabelled"].shape == batch["data"].shape)
        if len(seen) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "_step", interrupted)
        assert run_command("samunet_train", ["998", "2d", "0", *SHORT, "--overwrite"]) == 130
    assert (fold / LATEST).is_file()
    assert seen == [True] * 3
    assert run_command("samunet_train", ["998", "2d", "0", *SHORT]) == 0
    assert (fold / "checkpoint_final.safetensors").read_bytes() == whole  # the teacher went on as well

    # Whoever gets the model has no such file, and needs none to predict.
    (tmp_path / "mean_teacher.py").unlink()
    monkeypatch.delitem(sys.modules, "mean_teacher")
    output = tmp_path / "masks"
    source = ["-i", str(raw / "imagesTs"), "-o", str(output), "-p", "own"]
    assert run_command("samunet_predict", source) == 0
    assert len(list(output.glob("*.nii.gz"))) == 2
    assert "mean_teacher" not in sys.modules


def test_a_recipe_that_is_not_there(samunet_folders, tiny_dataset, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(tmp_path)
    tiny_dataset()
    assert plan("nowhere") == 2
    assert "there is no recipe 'nowhere'" in capsys.readouterr().err
    assert plan("nowhere_at_all:Class") == 0
    assert run_command("samunet_train", ["998", "2d", "0", *SHORT]) == 2
    errors = capsys.readouterr().err
    assert "nowhere_at_all:Class cannot be imported: ModuleNotFoundError" in errors
    assert "PYTHONPATH" in errors
    assert not list((samunet_folders / "results").glob("*/*/fold_0"))
    (tmp_path / "of_another_kind.py").write_text("class Class:\n    pass\n")
    with pytest.raises(UsageError, match="no subclass of samunet"):
        load_recipe("of_another_kind:Class")


@pytest.mark.parametrize(("word", "fine"), [("a.b:Class", True), ("sometimes", False), ("os.system('x'):y", False)])
def test_plans_name_a_recipe_or_a_class(word, fine):
    assert is_recipe_name(word) == fine


def test_every_recipe_of_the_package_has_its_facts():
    assert RECIPES.keys() == recipes.RECIPES.keys()


def test_slabs_hold_neighbouring_slices_under_one_window():
    case = CaseInMemory((5, 16, 16))
    case.arrays["label"][:] = np.arange(5)[:, None, None]
    loader = make_loader(cases={"one": case}, batch_size=20, foreground_share=0.0, slices=3)
    batch = loader.batch(0)
    assert batch["data"].shape == (20, 3, 1, 16, 16)
    assert batch["seg"].shape == (20, 3, 16, 16)
    found = {tuple(slab.max(axis=(1, 2))) for slab in batch["seg"]}
    assert found == {(0, 0, 1), (0, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4, 4)}


class TwoPasses(Recipe):
    """Two passes with random numbers in each: what the first one drew, the second one draws again."""

    def sums(self, batch):
        noisy = batch.images + torch.randn_like(batch.images)
        return super().sums(Batch(noisy, batch.target)) + super().sums(batch)


def test_random_numbers_are_the_same_in_every_pass():
    labels = Labels.from_json({"background": 0, "organ": 1})
    torch.manual_seed(0)

    class Network(torch.nn.Conv2d):
        def forward(self, images, upsample=True, encode=None):
            return super().forward(images)

    recipe = TwoPasses(Network(1, 2, 3, padding=1), SimpleNamespace(recipe="samunet"), labels)
    batch = Batch(torch.randn(4, 1, 8, 8), torch.randint(0, 2, (4, 8, 8)))
    drawn = []

    def counted(part):
        drawn.append(torch.get_rng_state())
        return TwoPasses.sums(recipe, part)

    recipe.sums = counted
    recipe.gradients(batch, 2)
    assert len(drawn) == 4
    assert torch.equal(drawn[0], drawn[2])
    assert torch.equal(drawn[1], drawn[3])
    assert not torch.equal(drawn[0], drawn[1])
