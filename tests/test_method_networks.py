"""A network as a function of one vector is that network; its pooling, its first draw and its
perturbation are what they say."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import vector_to_parameters

from ddlib.method import networks
from ddlib.method.functional import FunctionalNetwork, perturb
from ddlib.method.networks import NETWORKS, Pool
from ddlib.settings import InputError, Network, generator

SHAPE, CLASSES = (2, 16, 16), 5


def small(architecture, depth=2, width=4):
    return networks.build(
        Network(architecture=architecture, width=width, depth=depth), SHAPE, CLASSES
    )


def some_images(n=3, dtype=torch.float64):
    return torch.randn(n, *SHAPE, generator=generator("images"), dtype=dtype)


@pytest.mark.parametrize("architecture", NETWORKS)
def test_flat_is_its_module(architecture):
    flat = FunctionalNetwork(small(architecture))
    module = small(architecture).to_empty(device="cpu").double()
    theta = torch.randn(flat.parameters, generator=generator("theta"), dtype=torch.float64)
    vector_to_parameters(theta, module.parameters())
    x = some_images()
    logits = flat(theta, x)
    assert logits.shape == (3, CLASSES) and logits.abs().sum() > 0
    torch.testing.assert_close(logits, module(x), rtol=1e-12, atol=1e-12)
    assert sum(p.numel() for p in module.parameters()) == flat.parameters
    torch.testing.assert_close(
        logits[1:2], flat(theta, x[1:2]), rtol=1e-9, atol=1e-9
    )  # no image sees another


@pytest.mark.parametrize("architecture", NETWORKS)
def test_logits_are_the_last_linear_map_of_the_features(architecture):
    flat = FunctionalNetwork(small(architecture))
    theta, x = flat.initial(generator("theta")).double(), some_images()
    seen, last = flat.features(theta, x), flat.unpack(theta)
    torch.testing.assert_close(seen @ last["head.weight"].T + last["head.bias"], flat(theta, x))


def test_a_convnet_has_the_parameters_of_its_description():
    """depth x (3 x 3 kernels and biases, scale and shift), then a linear map on what the halvings
    leave."""
    for depth, left in ((1, 64), (2, 16), (3, 4)):
        convolutions = (2 * 4 + (depth - 1) * 4 * 4) * 9 + depth * 4
        assert (
            FunctionalNetwork(small("convnet", depth)).parameters
            == convolutions + 2 * 4 * depth + (4 * left + 1) * CLASSES
        )


ORIGINALS = {  # architecture, width, (c, h, w) -> parameters, features: DC's and MTT's code
    ("convnet", 128, (3, 32, 32)): (320010, 2048),
    ("convnet", 128, (1, 28, 28)): (317706, 2048),
    ("alexnet", 128, (3, 32, 32)): (1872202, 3072),
    ("alexnet", 128, (1, 28, 28)): (1865802, 3072),
    ("vgg11", 64, (3, 32, 32)): (9231114, 512),
    ("vgg11", 64, (1, 28, 28)): (9229962, 512),
    ("resnet18", 64, (3, 32, 32)): (11173962, 512),
    ("resnet18_ap", 64, (3, 32, 32)): (11250762, 8192),
    ("resnet18_ap", 64, (1, 28, 28)): (11213770, 4608),
}


@pytest.mark.parametrize("name", ORIGINALS)
def test_the_pool_has_the_sizes_of_the_originals(name):
    architecture, width, shape = name
    module = networks.build(Network(architecture=architecture, width=width), shape, 10)
    sizes = (sum(p.numel() for p in module.parameters()), module.head.in_features)
    assert sizes == ORIGINALS[name]


@pytest.mark.parametrize("architecture", ["convnet", "alexnet", "vgg11"])
def test_grey_images_of_28_pixels_are_seen_as_32(architecture):
    """As if zeros had been laid around them: the function on (1, 32, 32) with the same theta."""
    grey, wide = (
        FunctionalNetwork(networks.build(Network(architecture=architecture, width=4), shape, 10))
        for shape in ((1, 28, 28), (1, 32, 32))
    )
    x = torch.randn(2, 1, 28, 28, generator=generator("x"), dtype=torch.float64)
    theta = grey.initial(generator("theta")).double()
    torch.testing.assert_close(grey(theta, x), wide(theta, F.pad(x, [2] * 4)))


@pytest.mark.parametrize("kind", ["instance", "group", "batch", "none"])
@pytest.mark.parametrize("architecture", ["convnet", "vgg11", "resnet18", "resnet18_ap"])
def test_each_norm_is_what_it_says(architecture, kind):
    """After the first norm, mean 0 and variance 1 over what it normalises; a function of theta."""
    settings = Network(architecture=architecture, width=8, depth=2, norm=kind)
    flat = FunctionalNetwork(networks.build(settings, SHAPE, CLASSES))
    theta, x = flat.initial(generator("theta")).double(), some_images(5)
    assert torch.equal(flat(theta, x), flat(theta, x)) and flat(theta, x).isfinite().all()
    norm = networks.norm(kind, 8).double()
    seen = torch.randn(5, 8, 4, 4, generator=generator("n"), dtype=torch.float64) * 3 + 1
    found = norm(seen).detach()
    if kind == "none":
        assert torch.equal(found, seen)
    else:
        shape, axes = {"group": ((5, 4, 32), 2), "batch": ((5, 8, 16), (0, 2))}.get(
            kind, ((5, 8, 16), 2)
        )
        parts = found.view(shape)
        assert parts.mean(axes).abs().max() < 1e-6
        assert (parts.var(axes, correction=0) - 1).abs().max() < 1e-4
    alone = torch.allclose(flat(theta, x[:1]), flat(theta, x)[:1])
    assert alone == (kind != "batch"), "only a batch norm lets one image see another"


def test_a_norm_that_has_no_place_is_refused():
    for architecture in ("alexnet", "vit"):
        with pytest.raises(
            ValueError, match=f"norm = batch, but {architecture} has .*leave `norm`"
        ):
            Network(architecture=architecture, norm="batch")
    with pytest.raises(ValueError, match=r"norm = group with width = 6: expected .*multiple of 4"):
        Network(width=6, norm="group")


def test_a_network_with_buffers_is_refused():
    with pytest.raises(InputError, match=r"1\.running_mean.*use a norm without running statistics"):
        FunctionalNetwork(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)))


def test_a_layer_without_a_rule_is_refused():
    with pytest.raises(InputError, match="no rule to initialise PReLU"):
        FunctionalNetwork(nn.Sequential(nn.Linear(2, 2), nn.PReLU())).initial(generator("theta"))


def test_images_too_small_for_the_poolings_are_refused():
    with pytest.raises(
        InputError,
        match=r"alexnet of depth 3 does not fit images of 4 x 4 pixels.*use larger images",
    ):
        networks.build(Network(architecture="alexnet", width=4), (1, 4, 4), CLASSES)


TOO_SMALL = [
    ("convnet", 5, (1, 16, 16)),
    ("convnet", 5, (1, 16, 64)),
    ("resnet18", 3, (1, 8, 8)),
    ("vgg11", 3, (1, 1, 1)),
]


@pytest.mark.parametrize("architecture, depth, shape", TOO_SMALL)
def test_images_too_small_for_the_norms_are_refused(architecture, depth, shape):
    with pytest.raises(
        InputError,
        match=f"{architecture} of depth {depth} does not fit images of {shape[1]} x {shape[2]} pixels",  # noqa: E501
    ):
        networks.build(Network(architecture=architecture, width=4, depth=depth), shape, CLASSES)


@pytest.mark.parametrize("h, w", [(8, 8), (7, 8), (8, 7), (5, 9), (2, 2), (3, 3)])
def test_pool_is_avg_pool2d(h, w):
    x = torch.randn(
        2, 3, h, w, generator=generator("pool"), dtype=torch.float64, requires_grad=True
    )
    torch.testing.assert_close(Pool()(x), F.avg_pool2d(x, 2))
    torch.testing.assert_close(
        *(
            torch.autograd.grad(pool(x).sin().sum(), x)[0]
            for pool in (Pool(), lambda x: F.avg_pool2d(x, 2))
        )
    )
    assert torch.autograd.gradgradcheck(lambda x: Pool()(x) ** 3, x)


@pytest.mark.parametrize("architecture", NETWORKS)
def test_the_first_draw_is_torchs_own_rule(architecture):
    flat = FunctionalNetwork(small(architecture, width=16))
    theta = flat.initial(generator("theta"))
    assert theta.shape == (flat.parameters,) and theta.dtype == torch.float32
    layers = dict(flat.module.named_modules())
    for name, values in flat.unpack(theta).items():
        layer = layers[name.rpartition(".")[0]]
        if isinstance(layer, networks.Patches):
            assert float(values.std()) == pytest.approx(0.02, rel=0.1)
            continue
        if isinstance(layer, nn.GroupNorm | nn.LayerNorm):
            assert torch.equal(values, torch.full_like(values, float(name.endswith("weight"))))
            continue
        bound = 1 / math.sqrt(layer.weight[0].numel())
        assert values.abs().max() <= bound
        if values.numel() > 500:
            assert values.abs().max() > 0.97 * bound and values.mean().abs() < 0.1 * bound
            assert float(values.std()) == pytest.approx(bound / math.sqrt(3), rel=0.06)


def test_torch_itself_draws_within_those_bounds():
    layer = nn.Conv2d(8, 64, 3)
    bound = 1 / math.sqrt(8 * 9)
    for values in (layer.weight, layer.bias):
        assert 0.9 * bound < values.abs().max() <= bound * (1 + 1e-6)


def test_the_first_draw_comes_from_its_generator():
    flat = FunctionalNetwork(small("convnet"))
    one, again, other = (flat.initial(generator("theta", seed)) for seed in (0, 0, 1))
    assert torch.equal(one, again) and not torch.equal(one, other)


@pytest.mark.parametrize("architecture", ["convnet", "resnet18"])
@pytest.mark.parametrize("form", ["elementwise", "norm_matched"])
def test_perturbation_moves_kernels_alone_and_as_far_as_it_says(form, architecture):
    flat = FunctionalNetwork(small(architecture))
    theta = flat.initial(generator("theta")).double()
    before, alpha = theta.clone(), 0.3
    after = flat.unpack(perturb(flat, theta, alpha, form, generator("d")))
    once = flat.unpack(perturb(flat, theta, alpha / 3, form, generator("d")))
    assert torch.equal(theta, before)
    kernels = 0
    for name, w in flat.unpack(theta).items():
        moved = after[name] - w
        if w.dim() != 4:
            assert not moved.any(), name
            continue
        kernels += 1
        torch.testing.assert_close(
            moved, 3 * (once[name] - w), rtol=1e-9, atol=1e-15
        )  # in proportion to alpha
        d = moved / w if form == "elementwise" else moved / w.norm()
        assert float(d.norm()) == pytest.approx(alpha, rel=1e-6)
        if form == "norm_matched":
            assert float(moved.norm() / w.norm()) == pytest.approx(alpha, rel=1e-6)
        else:
            assert moved.norm() < 0.5 * alpha * w.norm()  # about alpha / sqrt(numel) of it
    assert kernels == sum(isinstance(layer, nn.Conv2d) for layer in flat.module.modules()) > 0


def test_perturbation_comes_from_its_generator_and_zero_is_none():
    flat = FunctionalNetwork(small("convnet"))
    theta = flat.initial(generator("theta"))
    one, again, other = (
        perturb(flat, theta, 1.0, "elementwise", generator("d", seed)) for seed in (0, 0, 1)
    )
    assert torch.equal(one, again) and not torch.equal(one, other)
    assert torch.equal(perturb(flat, theta, 0.0, "elementwise", generator("d")), theta)


def test_a_vit_sees_where_its_patches_are():
    """Positions count: an image whose patches change places is another image; patches of any size
    give 64 tokens."""
    for shape, patch in ((SHAPE, 2), ((3, 64, 64), 8)):
        flat = FunctionalNetwork(
            networks.build(Network(architecture="vit", width=8), shape, CLASSES)
        )
        theta, x = (
            flat.initial(generator("theta")).double(),
            torch.randn(2, *shape, generator=generator("x"), dtype=torch.float64),
        )
        moved = x.roll(patch, 3)
        assert (flat(theta, x) - flat(theta, moved)).abs().max() > 1e-6
        without = {n: p * (n != "features.0.positions") for n, p in flat.unpack(theta).items()}
        blind = (
            torch.func.functional_call(flat.module, without, (x,)),
            torch.func.functional_call(flat.module, without, (moved,)),
        )
        torch.testing.assert_close(*blind)
