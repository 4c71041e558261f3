"""A trained fold as ONNX, computed by onnxruntime beside PyTorch."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from handed import CASES, NAME, make_model, small_encoder, small_sam

from samunet import api
from samunet.adaptations import AdapterPlan, FullPlan, LoraPlan
from samunet.commands import run_command
from samunet.encoders import ENCODERS
from samunet.errors import SamunetError
from samunet.network.encoders import build_encoder
from samunet.network.heads import SamHead
from samunet.network.model import InputLayer, SamunetModel
from samunet.sharing import onnx_export

needs_onnx = pytest.mark.skipif(
    any(onnx_export.find_spec(package) is None for package in onnx_export.PACKAGES),
    reason=f"needs {', '.join(onnx_export.PACKAGES)}: pip install -e '.[onnx]'",
)


@pytest.fixture
def model(samunet_folders, tiny_dataset, monkeypatch):
    """A small model in ``results``."""
    small_encoder(monkeypatch)
    tiny_dataset()
    return make_model(samunet_folders, folds=(0,))


def export(path, *flags):
    return run_command("samunet_export_onnx", ["998", "2d", "0", "-o", str(path), *flags])


@needs_onnx
def test_graph_computes_what_the_model_does(model, samunet_folders, tmp_path, capsys):
    import onnxruntime

    path = tmp_path / "onnx" / "model.onnx"
    assert export(path) == 0
    output = capsys.readouterr()
    assert output.out.strip() == str(path)
    assert "6 real slices" in output.err
    assert [file.name for file in path.parent.iterdir()] == ["model.onnx"]
    session = onnxruntime.InferenceSession(str(path))
    (image,), (logits,) = session.get_inputs(), session.get_outputs()
    assert (image.name, logits.name) == ("image", "logits")
    assert isinstance(image.shape[0], str), "the batch is free"
    (network,) = model.load([0])
    generator = torch.Generator().manual_seed(1)
    for batch in (1, 3, 5):
        given = torch.randn(batch, *image.shape[1:], generator=generator)
        with torch.no_grad():
            expected = network(given).numpy()
        (got,) = session.run(None, {"image": given.numpy()})
        assert np.abs(got - expected).max() < 1e-3
        assert np.ptp(expected) > 0.1, "equal logits would compare nothing"
    other = make_model(samunet_folders, folds=(7,)).load([7])[0]
    with pytest.raises(SamunetError, match="differ by"):
        onnx_export._compare(other, given, path)
    facts = json.loads(session.get_modelmeta().custom_metadata_map["samunet"])
    assert facts["output"]["labels"] == {"background": 0, "organ": 1, "core": 2}
    assert facts["input"]["shape"] == list(image.shape[2:])
    assert facts["input"]["normalization"] == ["zscore"]
    text = path.read_bytes()
    assert not any(name.encode() in text for name in [*CASES, str(tmp_path)])


def test_without_its_packages_it_says_what_to_install(model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(onnx_export, "find_spec", lambda name: None if name == "onnxruntime" else "there")
    assert export(tmp_path / "model.onnx") == 1
    assert "pip install onnxruntime" in capsys.readouterr().err
    assert not (tmp_path / "model.onnx").exists()


def test_without_images_it_asks_for_some(model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(onnx_export, "find_spec", lambda name: "there")
    monkeypatch.delenv("samunet_raw")
    monkeypatch.delenv("nnUNet_raw", raising=False)
    assert export(tmp_path / "model.onnx") == 2
    assert "-i imagesTs" in capsys.readouterr().err
    assert export(tmp_path / "model.pth") == 2
    assert run_command("samunet_export_onnx", ["998", "2d", "3", "-o", str(tmp_path / "model.onnx")]) == 2
    assert "fold 3" in capsys.readouterr().err


def test_a_graph_that_differs_is_not_written(model, samunet_folders, tmp_path, monkeypatch, capsys):
    def differ(network, windows, file):
        assert file.read_bytes() == b"a graph"
        raise SamunetError("they differ")

    monkeypatch.setattr(onnx_export, "find_spec", lambda name: "there")
    monkeypatch.setattr(onnx_export, "_export", lambda network, example, facts, file: file.write_bytes(b"a graph"))
    monkeypatch.setattr(onnx_export, "_compare", differ)
    assert export(tmp_path / "onnx" / "model.onnx", "-i", str(samunet_folders / "raw" / NAME / "imagesTs")) == 1
    assert "they differ" in capsys.readouterr().err
    assert list((tmp_path / "onnx").iterdir()) == []


@needs_onnx
@pytest.mark.long
def test_large_weights_go_into_a_file_beside_the_graph(model, tmp_path, monkeypatch):
    import onnxruntime

    monkeypatch.setattr(onnx_export, "_ONE_FILE_BYTES", 1000)
    assert export(tmp_path / "a" / "model.onnx") == 0
    assert sorted(file.name for file in (tmp_path / "a").iterdir()) == ["model.onnx", "model.onnx.data"]
    (tmp_path / "a").rename(tmp_path / "b")
    onnxruntime.InferenceSession(str(tmp_path / "b" / "model.onnx"))


@needs_onnx
@pytest.mark.slow
@pytest.mark.parametrize(
    "adaptation",
    [
        {"adaptation": LoraPlan(targets=["q", "k", "v", "proj", "mlp"], decoder=True)},
        pytest.param({"adaptation": LoraPlan(dora=True)}, marks=pytest.mark.long),
        pytest.param({"adaptation": AdapterPlan()}, marks=pytest.mark.long),
        pytest.param({"adaptation": FullPlan()}, marks=pytest.mark.long),
    ],
    ids=["lora", "dora", "adapter", "full"],
)
def test_adapted_sam(samunet_folders, tiny_dataset, tmp_path, monkeypatch, adaptation):
    small_sam(tmp_path, monkeypatch)
    tiny_dataset()
    make_model(samunet_folders, "vit_b", folds=(0,), **adaptation)
    difference = api.export_onnx(998, "2d", 0, tmp_path / "model.onnx")
    assert 0 < difference < 1e-3


@needs_onnx
@pytest.mark.long
@pytest.mark.full_network
def test_tiny_vit(tmp_path, monkeypatch):
    """MobileSAM's encoder, at a size that is not that of its windows."""
    facts = ENCODERS["vit_t"]
    torch.manual_seed(0)
    encoder, head = build_encoder(replace(facts)), SamHead(3, facts.native_size // facts.patch_size, facts.patch_size)
    network = SamunetModel(InputLayer(facts, "projection", 2, [False, False]), encoder, head, False).eval()
    windows = torch.randn(3, 2, 160, 224)
    with torch.no_grad():
        onnx_export._export(network, windows[:2], {}, tmp_path / "model.onnx")
    assert onnx_export._compare(network, windows, tmp_path / "model.onnx") < 1e-3


@needs_onnx
def test_an_export_that_fails_is_said_in_one_sentence(tmp_path):
    class Odd(torch.nn.Module):
        def forward(self, image):
            return image if float(image.sum()) > 0 else -image

    with pytest.raises(SamunetError, match="could not be written as ONNX"):
        onnx_export._export(Odd(), torch.ones(2, 1, 4, 4), {}, tmp_path / "model.onnx")
