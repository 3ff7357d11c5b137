"""Each strategy against a plain loop over images, rows and columns that is given the same draws."""

import math

import numpy as np
import pytest
import torch

from ddlib import settings as config
from ddlib.data import datasets as data
from ddlib.method import augment, evaluate
from ddlib.method.augment import STRATEGIES, Draws
from ddlib.settings import Data, generator

DATA = Data(name="digits")


def some(n, c, h, w):
    """Images, and draws that hold both ends of U(0, 1) beside chance."""
    x = torch.randn(n, c, h, w, generator=generator("x"), dtype=torch.float64)
    u = torch.rand(3, n, generator=generator("u"), dtype=torch.float64)
    u[:, 0], u[:, 1] = 0.0, 1 - 1e-7
    return x, u


def color(x, u):
    x = x + (u[0] - 0.5)
    grey = x.mean(axis=0)
    x = 2 * u[1] * x + (1 - 2 * u[1]) * grey
    return (u[2] + 0.5) * x + (0.5 - u[2]) * x.mean()


def crop(x, u):
    _, h, w = x.shape
    reach_h, reach_w = math.floor(h / 8 + 0.5), math.floor(w / 8 + 0.5)
    down, right = int(u[0] * (2 * reach_h + 1)) - reach_h, int(u[1] * (2 * reach_w + 1)) - reach_w
    out = np.zeros_like(x)
    for i in range(h):
        for j in range(w):
            if 0 <= i + down < h and 0 <= j + right < w:
                out[:, i, j] = x[:, i + down, j + right]
    return out


def cutout(x, u):
    """The middle of an odd hole is a pixel, of an even one a corner between pixels: one more place.
    The middle of an odd hole is a pixel, of an even one a corner between pixels: one more place."""
    out = x.copy()
    first, last = [], []
    for size, chance in zip(x.shape[1:], u[:2], strict=True):
        hole = math.floor(size / 2 + 0.5)
        middle = int(chance * (size if hole % 2 else size + 1))
        first.append(max(0, middle - hole // 2))
        last.append(min(size, middle - hole // 2 + hole))
    out[:, first[0] : last[0], first[1] : last[1]] = 0
    return out


def flip(x, u):
    return x[:, :, ::-1] if u[0] < 0.5 else x


def warp(x, matrix):
    """Each pixel's centre, in coordinates -1 ... 1 from edge to edge, is sent by `matrix` to a
    place in x, read there bilinearly."""
    _, h, w = x.shape
    out = np.zeros_like(x)
    for i in range(h):
        for j in range(w):
            across, down = matrix @ np.array([(2 * j + 1) / w - 1, (2 * i + 1) / h - 1])
            p, q = ((down + 1) * h - 1) / 2, ((across + 1) * w - 1) / 2
            for a in (math.floor(p), math.floor(p) + 1):
                for b in (math.floor(q), math.floor(q) + 1):
                    if 0 <= a < h and 0 <= b < w:
                        out[:, i, j] += (1 - abs(p - a)) * (1 - abs(q - b)) * x[:, a, b]
    return out


def scale(x, u):
    low, high = 1 / 1.2, 1.2
    return warp(x, np.diag([low + u[0] * (high - low), low + u[1] * (high - low)]))


def rotate(x, u):
    angle = math.pi / 12 * (2 * u[0] - 1)
    return warp(
        x, np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    )


PLAIN = {
    "color": color,
    "crop": crop,
    "cutout": cutout,
    "flip": flip,
    "scale": scale,
    "rotate": rotate,
}


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 8, 8), (2, 12, 6), (1, 7, 9)])
@pytest.mark.parametrize("name", STRATEGIES)
def test_each_strategy_is_its_plain_loop(name, shape):
    x, u = some(12, *shape)
    fast = augment.apply(x, Draws(name, u)).numpy()
    plain = np.stack(
        [PLAIN[name](image, chance) for image, chance in zip(x.numpy(), u.numpy().T, strict=True)]
    )
    assert not np.allclose(plain, x.numpy())
    if name in ("crop", "cutout", "flip"):
        np.testing.assert_array_equal(fast, plain)  # they move or drop pixels, and change none
    else:
        np.testing.assert_allclose(fast, plain, atol=1e-12)


@pytest.mark.parametrize("chosen", [(), tuple(STRATEGIES)])
def test_steps_that_are_augmented_at_once_are_those_that_are_augmented_alone(chosen):
    x, _ = some(20, 3, 8, 8)
    sizes = [3, 1, 4, 2, 2, 3, 1, 4]
    steps = augment.draws(sizes, chosen, generator("draws"), "cpu")
    alone = [augment.apply(part, step) for part, step in zip(x.split(sizes), steps, strict=True)]
    for a, b in zip(augment.apply_all(x, steps), alone, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-14)


def test_nothing_asked_for_changes_nothing():
    x, u = some(3, 2, 6, 6)
    assert augment.draw(3, (), generator("d")).strategy is None
    assert augment.apply(x, Draws(None, u)) is x
    torch.testing.assert_close(
        augment.scale(x, torch.full((3, 3), (1 - 1 / 1.2) / (1.2 - 1 / 1.2), dtype=x.dtype)), x
    )  # by 1
    for name in ("color", "rotate", "crop"):  # the middle of the range
        torch.testing.assert_close(
            STRATEGIES[name](x, torch.full((3, 3), 0.5, dtype=torch.float64)), x
        )


def test_grey_images_know_no_saturation():
    x, u = some(5, 1, 6, 6)
    other = u.clone()
    other[1] = u[1].flip(0)
    torch.testing.assert_close(augment.color(x, u), augment.color(x, other), rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", STRATEGIES)
def test_gradients_pass(name):
    x, u = some(3, 2, 4, 4)
    assert torch.autograd.gradcheck(lambda x: augment.apply(x, Draws(name, u)), x.requires_grad_())
    assert torch.autograd.gradgradcheck(lambda x: augment.apply(x, Draws(name, u)).square(), x)


def test_draws_come_from_their_generator_only():
    def drawn(seed):
        return augment.draw(4, tuple(STRATEGIES), generator("draws", seed))

    torch.manual_seed(1)
    one = drawn(0)
    torch.manual_seed(2)
    again, others = drawn(0), [drawn(seed) for seed in range(1, 20)]
    assert one.strategy == again.strategy and torch.equal(one.u, again.u)
    assert all(not torch.equal(one.u, other.u) for other in others)


def test_one_strategy_a_step_each_as_often():
    chance = generator("often")
    names = [augment.draw(2, tuple(STRATEGIES), chance).strategy for _ in range(1200)]
    for name in STRATEGIES:
        assert abs(names.count(name) - 200) < 5 * math.sqrt(200 * 5 / 6)
    u = augment.draw(5000, ("crop",), chance).u
    assert (
        u.shape == (3, 5000)
        and u.min() >= 0
        and u.max() < 1
        and (u.mean(1) - 0.5).abs().max() < 0.03
    )
    assert u.corrcoef()[~torch.eye(3, dtype=bool)].abs().max() < 0.1  # three numbers of their own


@pytest.mark.parametrize("size, reach", [(16, 2), (28, 4), (32, 4), (12, 2)])
def test_crop_reaches_every_shift_of_an_eighth_and_no_other(size, reach):
    x = torch.zeros(3000, 1, size, size)
    x[:, 0, size // 2, size // 2] = 1
    where = augment.apply(x, augment.draw(3000, ("crop",), generator("reach"))).flatten(1).argmax(1)
    for shift in (where // size - size // 2, where % size - size // 2):
        assert sorted(set(shift.tolist())) == list(range(-reach, reach + 1))
        assert abs(float(shift.float().mean())) < 0.2


@pytest.mark.parametrize("size, hole", [(16, 8), (6, 3), (5, 3)])
def test_cutout_reaches_every_place(size, hole):
    x = torch.ones(4000, 1, size, size)
    hidden = augment.apply(x, augment.draw(4000, ("cutout",), generator("places")))[:, 0] == 0
    for lines in (hidden.any(1), hidden.any(2)):
        found = {tuple(line.nonzero().flatten().tolist()) for line in lines}
        middles = range(size) if hole % 2 else range(size + 1)
        assert found == {
            tuple(p for p in range(m - hole // 2, m - hole // 2 + hole) if 0 <= p < size)
            for m in middles
        }


def test_ranges_of_color_and_flip():
    n = 4000
    flat = (
        augment.apply(torch.ones(n, 1, 2, 2), augment.draw(n, ("color",), generator("range")))[
            :, 0, 0, 0
        ]
        - 1
    )  # brightness alone
    assert -0.5 <= flat.min() < -0.49 and 0.49 < flat.max() <= 0.5
    step = torch.tensor([-1.0, 1.0]).view(1, 1, 1, 2).expand(n, 1, 1, 2)
    contrast = (
        augment.apply(step, augment.draw(n, ("color",), generator("range"))).diff(dim=3).flatten()
        / 2
    )
    assert 0.5 <= contrast.min() < 0.51 and 1.49 < contrast.max() <= 1.5 + 1e-6
    mirrored = augment.apply(step, augment.draw(n, ("flip",), generator("range")))[:, 0, 0, 0] > 0
    assert abs(float(mirrored.float().mean()) - 0.5) < 0.04


def test_a_digit_is_never_mirrored():
    everything = config.Expert(data=DATA).strategies
    for name in ("digits", "mnist_5k", "mnist_m_5k"):
        usable = data.SETS[name].strategies
        judged = evaluate.recipe(
            config.Evaluation(
                of=config.Selection(data=DATA, method="real"), network=config.Network()
            ),
            0.1,
            usable,
        )
        assert "flip" in everything and set(judged.strategies) == set(usable)
        assert set(usable) == set(STRATEGIES) - {"flip"}
