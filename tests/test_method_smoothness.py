"""Paths whose smoothness is known: a straight line, a polygon on a circle, a square."""

import math

import pytest
import torch

from ddlib.base import generator
from ddlib.method.experts import convexified
from ddlib.method.smoothness import steps, summary


def test_a_straight_line():
    direction = torch.tensor([3.0, 4.0], dtype=torch.float64)  # of length 5
    places = torch.tensor([2.0, 3.0, 5.0, 6.0], dtype=torch.float64)
    path = places[:, None] * direction
    each, whole = steps(path), summary(path)
    assert each["step"].tolist() == pytest.approx([5, 10, 5])
    assert each["squared_step"].tolist() == pytest.approx([25, 100, 25])
    assert each["relative_step"].tolist() == pytest.approx([1 / 2, 2 / 3, 1 / 5])
    assert each["turning"].tolist() == pytest.approx([1, 1])
    assert whole["detour"] == pytest.approx(1) and whole["turning"] == pytest.approx(1)
    assert whole["path_length"] == pytest.approx(20) and whole["longest_step"] == pytest.approx(10)
    assert whole["step"] == pytest.approx(20 / 3) and whole["squared_step"] == pytest.approx(50)


@pytest.mark.parametrize("n", [3, 8, 100])
def test_half_a_circle(n):
    """n chords of angle pi / n: each 2 r sin(pi / 2n) long, each turned by pi / n, over a diameter.
    n chords of angle pi / n: each 2 r sin(pi / 2n) long, each turned by pi / n, over a diameter."""
    r, angle = 2.0, torch.linspace(0, math.pi, n + 1, dtype=torch.float64)
    path = r * torch.stack([angle.cos(), angle.sin(), torch.zeros_like(angle)], 1)
    each, whole = steps(path), summary(path)
    chord = 2 * r * math.sin(math.pi / (2 * n))
    assert each["step"].tolist() == pytest.approx([chord] * n)
    assert each["relative_step"].tolist() == pytest.approx([chord / r] * n)
    assert each["turning"].tolist() == pytest.approx([math.cos(math.pi / n)] * (n - 1))
    assert whole["path_length"] == pytest.approx(n * chord)
    assert whole["detour"] == pytest.approx(n * math.sin(math.pi / (2 * n)))  # towards pi / 2


def test_a_convexified_path_is_straight_layer_by_layer():
    """By hand: a layer of two numbers that goes 1 then 3, one that turns, and one that stays."""
    path = torch.tensor([[0.0, 0, 1, 5], [0.6, 0.8, 2, 5], [3.0, 2.6, 2, 5]], dtype=torch.float64)
    path[2, :2] = path[1, :2] + torch.tensor([1.8, 2.4], dtype=torch.float64)
    found = convexified(path, [2, 1, 1])
    expected = torch.stack([path[0], path[0].lerp(path[2], 0.25), path[2]])
    expected[1, 2], expected[:, 3] = 2, 5
    torch.testing.assert_close(found, expected)
    bent = torch.randn(6, 7, generator=generator("bent"), dtype=torch.float64)
    bent[:, 5:] = bent[0, 5:]  # a bias before an instance norm never moves
    found = convexified(bent, [3, 2, 2])
    assert found.isfinite().all() and torch.equal(found[[0, -1]], bent[[0, -1]])
    for part in found.split([3, 2, 2], dim=1)[:2]:
        share = (part - part[0]).norm(dim=1) / (part[-1] - part[0]).norm()
        torch.testing.assert_close(part, part[0] + share[:, None] * (part[-1] - part[0]))
        assert share.diff().gt(0).all()


def test_right_angles_and_a_way_back():
    square = torch.tensor([[1.0, 1], [2, 1], [2, 2], [1, 2]])
    assert steps(square)["turning"].tolist() == pytest.approx([0, 0], abs=1e-7)
    assert summary(square)["detour"] == pytest.approx(3)
    back = torch.tensor([[1.0], [4.0], [2.0]])
    assert steps(back)["turning"].tolist() == pytest.approx([-1]) and summary(back)[
        "detour"
    ] == pytest.approx(5)
