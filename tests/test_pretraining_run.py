"""Pretraining in pieces: resuming exactly, the final decay, what is written, and what is refused."""

import json
import logging
import signal

import pytest
import torch
from bundled_weights import __main__ as factory
from bundled_weights.images import SyntheticImages, SyntheticOptions
from bundled_weights.network import PretrainingModel, Synthetic
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from samunet.cores import FreeCores
from samunet.encoders import encoder_facts
from samunet.errors import SamunetError, UsageError
from samunet.training import loop
from samunet.training.pretraining import recipe, run


def pretrain(folder, given):
    return run.pretrain(folder, given, SyntheticImages())


def options(**changes):
    given = {
        "objective": "mix",
        "iterations": 4,
        "batch_size": 2,
        "image_sizes": (32, 64),
        "device": "cpu",
        "seed": 3,
    } | changes
    return SyntheticOptions(**given)


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    """A pretraining of four updates without interruption, the last on reconstruction."""
    folder = tmp_path_factory.mktemp("four")
    pretrain(folder, options())
    return folder


def recorded_factors(monkeypatch):
    """Multipliers of the learning rate that the optimizer's steps are given, as they come."""
    factors, step = [], run.Pretraining._step

    def recorded(self, batch):
        loss = step(self, batch)
        factors.extend({group["lr"] / self.options.learning_rate for group in self.optimizer.param_groups})
        return loss

    monkeypatch.setattr(run.Pretraining, "_step", recorded)
    return factors


def assert_same(first, second):
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_pieces_give_what_one_piece_gives(four, tmp_path):
    pretrain(tmp_path, options(iterations=2))
    pretrain(tmp_path, options())
    assert_same(load_file(tmp_path / run.LATEST), load_file(four / run.LATEST))
    card = json.loads((tmp_path / "small_latest.json").read_text())
    assert [piece["images"] for piece in card["pieces"]] == [16, 16]


def test_a_signal_loses_nothing(four, tmp_path, monkeypatch):
    step = run.Pretraining._step

    def step_and_signal(self, batch):
        values = step(self, batch)
        if self.state.iteration == 1:
            signal.raise_signal(signal.SIGTERM)
        return values

    monkeypatch.setattr(run.Pretraining, "_step", step_and_signal)
    command = f"--out {tmp_path} --iterations 4 --batch_size 2 --image_size 32 64 -device cpu --seed 3"
    assert factory.main([*command.split(), "--objective", "mix"]) == 130
    monkeypatch.undo()
    assert not (tmp_path / run.WEIGHTS_SO_FAR.format("small")).exists()
    pretrain(tmp_path, options())
    assert_same(load_file(tmp_path / run.LATEST), load_file(four / run.LATEST))


def test_weights_are_a_whole_sam_in_half_precision(four):
    state = load_file(four / run.WEIGHTS_SO_FAR.format("small"))
    assert all(value.dtype == torch.float16 and torch.isfinite(value).all() for value in state.values())
    assert {name.split(".")[0] for name in state} == {"image_encoder", "prompt_encoder", "mask_decoder", "detail"}
    assert state["mask_decoder.mask_tokens.weight"].shape == (4, 256)
    card = json.loads((four / "small_latest.json").read_text())
    assert card["images_seen"] == 32  # 8 of 32 px an update cost what 2 of 64 px do
    assert card["iterations"] == 4
    assert card["objectives"] == ["mix"]
    assert card["pieces"][0]["seed"] == 3
    assert card["pieces"][0]["versions"]["torch"] == torch.__version__


def test_training_moves_every_part(four):
    torch.manual_seed(3)
    before = PretrainingModel(encoder_facts("small")).state_dict()
    after = {
        name.removeprefix("model."): value
        for name, value in load_file(four / run.LATEST).items()
        if name.startswith("model.")
    }
    moved = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"image_encoder", "head", "same_region", "reconstruction"}
    still = "head.prompt_encoder.mask_downscaling.0.weight"
    assert torch.equal(before[still], after[still])


def test_final_decay_ends_at_zero_and_leaves_the_constant_rate_to_go_on_from(four, tmp_path, monkeypatch):
    (tmp_path / run.LATEST).write_bytes((four / run.LATEST).read_bytes())
    factors = recorded_factors(monkeypatch)
    weights = pretrain(tmp_path, options(iterations=2, final_decay=True))
    assert factors == [1.0, 0.5]
    assert weights.name == "small_pretrained.safetensors"
    card = json.loads(weights.with_suffix(".json").read_text())
    assert (card["iterations"], card["final_decay"]) == (6, True)
    assert not (tmp_path / run.DECAY).exists()
    assert (tmp_path / run.LATEST).read_bytes() == (four / run.LATEST).read_bytes()


def test_an_interrupted_decay_goes_on_and_is_not_forgotten(four, tmp_path, monkeypatch):
    (tmp_path / run.LATEST).write_bytes((four / run.LATEST).read_bytes())
    step = run.Pretraining._step

    def step_and_signal(self, batch):
        signal.raise_signal(signal.SIGINT)
        return step(self, batch)

    decay = options(iterations=2, final_decay=True)
    monkeypatch.setattr(run.Pretraining, "_step", step_and_signal)
    with pytest.raises(KeyboardInterrupt):
        pretrain(tmp_path, decay)
    monkeypatch.setattr(run.Pretraining, "_step", step)
    factors = recorded_factors(monkeypatch)
    with pytest.raises(SamunetError, match="final decay that was interrupted"):
        pretrain(tmp_path, options(iterations=9))
    pretrain(tmp_path, decay)
    assert factors == [0.5]


def test_warm_up_is_linear_and_then_the_rate_is_constant(tmp_path, monkeypatch):
    monkeypatch.setattr(recipe, "_WARM_UP", 2)
    factors = recorded_factors(monkeypatch)
    pretrain(tmp_path, options())
    assert factors == [0.5, 1.0, 1.0, 1.0]


def test_time_budget_is_of_the_piece(tmp_path, monkeypatch):
    watched = []
    monkeypatch.setattr(loop, "FreeCores", lambda watch: watched.append(watch) or FreeCores(watch))
    for _ in range(2):
        pretrain(tmp_path, options(iterations=None, seconds=0.01, objective="mae"))
    with safe_open(tmp_path / run.LATEST, "pt") as stream:
        iterations = json.loads(stream.metadata()["progress"])["iteration"]
    assert iterations >= 2
    pretrain(tmp_path, options(iterations=iterations + 1, objective="mae"))
    assert watched == [True, True, False]  # the last is to come out the same every time


@pytest.mark.parametrize("objective", ["dense", "prompt", "mae"])
def test_an_objective_alone_trains_the_encoder(objective):
    from bundled_weights.draw import Draw
    from bundled_weights.synthesis import synthetic_batch

    torch.manual_seed(0)
    model = PretrainingModel(encoder_facts("small"))
    batch = synthetic_batch(0, 0, 1, 64, torch.device("cpu"))
    losses = Synthetic(model, options(objective=objective)).losses(batch, Draw(torch.device("cpu"), 0, 0, 1))
    assert list(losses) == [objective]
    losses[objective].backward()
    assert all(parameter.grad is not None for parameter in model.image_encoder.blocks.parameters())


def test_log_has_losses_and_speed(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(run, "_LOG_EVERY", 2)
    with caplog.at_level(logging.INFO, "samunet"):
        pretrain(tmp_path, options(objective="dense"))
    entries = json.loads((tmp_path / "pretraining_log.json").read_text())
    assert [entry["iteration"] for entry in entries] == [2, 4]
    assert all(entry["losses"]["dense"] > 0 and entry["images_per_second"] > 0 for entry in entries)
    assert (tmp_path / "pretraining.png").stat().st_size > 1000
    assert "images/s" in caplog.text


def test_damaged_and_foreign_checkpoints_are_refused_and_kept(tmp_path, four):
    whole = (four / run.LATEST).read_bytes()
    for content in (whole[:1000], (four / run.WEIGHTS_SO_FAR.format("small")).read_bytes()):
        (tmp_path / run.LATEST).write_bytes(content)
        with pytest.raises(SamunetError, match=r"pretraining_latest") as error:
            pretrain(tmp_path, options())
        assert "`output=FOLDER`" in error.value.hint
        assert (tmp_path / run.LATEST).read_bytes() == content


def test_wrong_usage(tmp_path, capsys):
    with pytest.raises(UsageError, match="no pretraining to end"):
        pretrain(tmp_path, options(final_decay=True))
    for changes in (
        {"image_sizes": (224, 100)},
        {"seconds": 3.0},
        {"iterations": None},
        {"iterations": -1},
        {"objective": "x"},
    ):
        with pytest.raises(UsageError):
            options(**changes)
    assert factory.main(["--out", str(tmp_path), "--iterations", "1", "--objective", "x"]) == 2
    assert factory.main(["--out", str(tmp_path)]) == 2
    (tmp_path / "file").touch()
    assert factory.main(["--out", str(tmp_path / "file"), "--iterations", "1"]) == 1
    assert "--time_budget" in capsys.readouterr().err


def test_a_loss_that_is_no_number_ends_with_advice(tmp_path, monkeypatch):
    from bundled_weights import network

    monkeypatch.setattr(network.SameRegion, "forward", lambda self, e, r, d: e.sum() * float("nan"))
    with pytest.raises(SamunetError, match="the loss became") as error:
        pretrain(tmp_path, options(objective="dense"))
    assert "`learning_rate=" in error.value.hint
    assert not (tmp_path / run.LATEST).exists()


def test_cards_do_not_tell_where_folders_are():
    words = ["--out", "/home/somebody/pretraining", "--objective", "dense", "weights/base.pth"]
    kept = [run._without_place(word) for word in words]
    assert kept == ["--out", "pretraining", "--objective", "dense", "weights/base.pth"]


def test_a_pretraining_starts_from_the_weights_of_another(four, tmp_path, capsys):
    source = four / "small_latest.safetensors"
    command = f"--out {tmp_path} --checkpoint {source} --iterations 1 --batch_size 2 --image_size 32 -device cpu"
    command += " --lr 1e-9 --objective mix"
    assert factory.main(command.split()) == 0
    assert f"--checkpoint {source} --final_decay" in capsys.readouterr().out
    weights = load_file(tmp_path / "small_latest.safetensors")
    for name, value in load_file(source).items():
        assert torch.allclose(weights[name].float(), value.float(), atol=1e-5), name
    card = json.loads((tmp_path / "small_latest.json").read_text())
    assert card["images_seen"] == 2
    assert card["base"]["card"]["images_seen"] == json.loads((four / "small_latest.json").read_text())["images_seen"]
    assert factory.main(command.replace("--iterations 1", "--iterations 2").split()) == 0  # goes on
    without = command.replace(f"--checkpoint {source} ", "").replace("--iterations 1", "--iterations 3")
    assert factory.main(without.split()) == 1
    said = capsys.readouterr().err
    assert "was begun with" in said
    assert "give the same --checkpoint" in said


def test_a_pretraining_starts_from_no_trained_fold(four, tmp_path, capsys):
    """A fold's mask tokens are those of its classes."""
    state = load_file(four / "small_latest.safetensors")
    name = "mask_decoder.mask_tokens.weight"
    state[name] = state[name][:2].clone()
    save_file(state, tmp_path / "fold.safetensors")
    command = f"--out {tmp_path / 'out'} --checkpoint {tmp_path / 'fold.safetensors'} --iterations 1 -device cpu"
    assert factory.main(command.split()) == 1
    errors = capsys.readouterr().err
    assert "mask_tokens" in errors
    assert "give one that a pretraining wrote" in errors
