"""The optimizers: what each of them trains, Muon beside PyTorch's own, and a checkpoint of it."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from samunet.dataset.labels import Labels
from samunet.devices import fast_dtype
from samunet.encoders import ENCODERS
from samunet.network.encoders import build_encoder
from samunet.network.heads import build_head
from samunet.network.model import InputLayer, SamunetModel
from samunet.network.optimizer import Muon, adamw, build_optimizer, orthogonal
from samunet.training.recipes import Recipe
from samunet.training.state import Progress, load_latest, save_latest

muon = partial(build_optimizer, "muon")


class TwoLayers(nn.Module):
    def __init__(self):
        super().__init__()
        self.wide = nn.Linear(24, 16)
        self.tall = nn.Linear(16, 40)
        self.also_wide = nn.Conv2d(8, 16, kernel_size=(1, 3), bias=False)  # as a matrix, of the shape of `wide`

    def trained_state(self):
        return self.state_dict()

    def load_trained_state(self, tensors):
        self.load_state_dict(tensors)


def give_gradients(model, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def stepped(model, optimizer, seeds):
    for seed in seeds:
        give_gradients(model, seed)
        optimizer.step()
    return [parameter.detach().clone() for parameter in model.parameters()]


def twins():
    torch.manual_seed(1)
    first, second = TwoLayers(), TwoLayers()
    second.load_state_dict(first.state_dict())
    return first, second


def polynomials_of(values):
    """Two odd polynomials by Horner's rule, as Polar Express would have them for values between 0.03 and 1."""
    for a, b, c in ((7.3625, -20.7434, 15.1606), (2.9175, -2.1824, 0.4755)):
        values = values * (a + values**2 * (b + values**2 * c))
    return values


def test_the_polynomials_bring_what_is_above_a_thirtieth_to_within_0_4_of_one():
    values = polynomials_of(torch.linspace(0.03, 1, 2000, dtype=torch.float64))
    assert 0.61 < values.min() < 0.63
    assert 1.37 < values.max() < 1.39


@pytest.mark.parametrize("shape", [(16, 48), (48, 16), (32, 32)])
def test_singular_vectors_stay_and_values_become_the_polynomials(shape):
    matrices = torch.randn(3, *shape, generator=torch.Generator().manual_seed(2))
    matrices[1] *= 1e-4
    result = orthogonal(matrices).float()
    assert result.shape == matrices.shape
    u, s, vh = torch.linalg.svd(matrices.double(), full_matrices=False)
    bound = (s**4).sum(1, keepdim=True) ** 0.25  # root of the Gram matrix's Frobenius norm
    expected = u @ torch.diag_embed(polynomials_of(s / bound)) @ vh
    assert (result - expected).abs().max() < (1e-5 if fast_dtype(torch.device("cpu")) is None else 0.05)


def test_a_gradient_of_zeros_moves_nothing():
    assert torch.equal(orthogonal(torch.zeros(2, 8, 16)).float(), torch.zeros(2, 8, 16))


@pytest.mark.parametrize("native", [True, False], ids=["bfloat16", "float32"])
def test_matrices_move_by_the_nearest_orthogonal_ones(monkeypatch, native):
    if not native:
        monkeypatch.setattr("samunet.network.optimizer.fast_dtype", lambda device: None)
    model, _ = twins()
    before = [model.wide.weight.detach().double(), model.tall.weight.detach().double()]
    momenta = [torch.zeros_like(weight) for weight in before]
    optimizer = muon(model, 0.01, 0.1)
    for seed in range(4):
        give_gradients(model, seed)
        for index, weight in enumerate((model.wide.weight, model.tall.weight)):
            gradient = weight.grad.double()
            momenta[index] = 0.95 * momenta[index] + 0.05 * gradient
            u, s, vh = torch.linalg.svd(0.05 * gradient + 0.95 * momenta[index], full_matrices=False)
            values = polynomials_of(s / (s**4).sum() ** 0.25)
            size = 0.6 * max(weight.shape) ** 0.5  # three times AdamW's (Liu et al. 2025: 0.2)
            before[index] = before[index] * (1 - 0.01 * 0.1) - 0.01 * size * (u * values) @ vh
        optimizer.step()
    for own, expected in zip((model.wide.weight, model.tall.weight), before):
        assert (own - expected).abs().max() < (1e-3 if native else 1e-5)


def test_a_convolution_is_a_matrix_of_its_output_channels():
    model, other = twins()
    stepped(model, muon(model, 0.01, 0.0), [7])
    matrix = nn.Linear(24, 16, bias=False)
    matrix.weight.data = other.also_wide.weight.data.flatten(1).clone()
    alone = nn.ModuleList([matrix])
    optimizer = muon(alone, 0.01, 0.0)
    give_gradients(other, 7)
    matrix.weight.grad = other.also_wide.weight.grad.flatten(1)
    optimizer.step()
    assert torch.allclose(model.also_wide.weight.flatten(1), matrix.weight, atol=1e-6)


def test_biases_move_as_with_adamw():
    ours, theirs = twins()
    stepped(ours, muon(ours, 0.01, 0.1), range(3))
    stepped(theirs, adamw(theirs, 0.01, 0.1), range(3))
    assert torch.equal(ours.wide.bias, theirs.wide.bias)
    assert not torch.equal(ours.wide.weight, theirs.wide.weight)


def test_a_schedule_reaches_all_and_a_rate_of_zero_moves_nothing():
    model, before = twins()
    optimizer = muon(model, 0.01, 0.1)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    after = stepped(model, optimizer, range(2))
    assert all(torch.equal(one, other) for one, other in zip(after, before.parameters(), strict=True))


def test_what_has_no_gradient_stays_as_it_is():
    model, before = twins()
    optimizer = muon(model, 0.01, 0.1)
    give_gradients(model, 1)
    model.wide.weight.grad = None
    optimizer.step()
    assert torch.equal(model.wide.weight, before.wide.weight)
    assert not torch.equal(model.also_wide.weight, before.also_wide.weight)


def small_network():
    facts = ENCODERS["small"]
    encoder = build_encoder(facts)
    head = build_head("detail", 3, encoder, facts)
    return SamunetModel(InputLayer(facts, "projection", 4, [False] * 4), encoder, head, has_base=False)


def test_muon_trains_the_matrices_inside_the_small_network_and_adamw_all_else():
    model = small_network()
    optimizer = muon(model, 1e-3, 0.1)
    assert isinstance(optimizer, Muon)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = [{names[id(parameter)] for parameter in group["params"]} for group in optimizer.param_groups]
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert sum(map(len, groups)) == len(trained)
    assert set.union(*groups) == trained
    matrices, others = groups[0], groups[1] | groups[2]
    assert {"image_encoder.blocks.0.attn.qkv.weight", "image_encoder.neck.2.weight"} <= matrices
    assert {"head.mask_decoder.transformer.layers.0.mlp.lin1.weight", "head.detail.mix.0.0.weight"} <= matrices
    assert {"input_layer.projection.weight", "image_encoder.patch_embed.layers.0.0.weight"} <= others
    assert {"head.mask_decoder.mask_tokens.weight", "head.mask_decoder.output_upscaling.0.weight"} <= others
    assert all(name.endswith(".weight") for name in matrices)


def test_depthwise_convolutions_are_left_to_adamw():
    model = nn.Sequential(nn.Conv2d(8, 8, 3, groups=8, bias=False), nn.Conv2d(8, 8, 1, bias=False))
    assert [parameter.shape[1] for parameter in muon(model, 0.1, 0.1).param_groups[0]["params"]] == [8]


def test_frozen_weights_are_in_neither():
    model, _ = twins()
    model.tall.requires_grad_(False)
    assert [len(group["params"]) for group in muon(model, 0.1, 0.1).param_groups] == [2, 0, 1]


def recipe_of(model):
    labels = Labels.from_json({"background": 0, "organ": 1})
    return Recipe(model, SimpleNamespace(recipe="samunet"), labels)


def test_goes_on_exactly_from_a_checkpoint(tmp_path):
    model, other = twins()
    whole = stepped(model, muon(model, 0.01, 0.1), range(5))
    optimizer = muon(other, 0.01, 0.1)
    stepped(other, optimizer, range(3))
    save_latest(tmp_path, recipe_of(other), optimizer, Progress(iteration=3, setup={"seed": 1}))
    later, _ = twins()
    optimizer = muon(later, 0.01, 0.1)
    assert load_latest(tmp_path, recipe_of(later), optimizer, {"seed": 1}).iteration == 3
    for one, two in zip(stepped(later, optimizer, range(3, 5)), whole, strict=True):
        assert torch.equal(one, two)
