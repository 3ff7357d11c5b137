"""Paths whose smoothness is known: a straight line, a polygon on a circle, a square."""

import math

import pytest
import torch

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


def test_right_angles_and_a_way_back():
    square = torch.tensor([[1.0, 1], [2, 1], [2, 2], [1, 2]])
    assert steps(square)["turning"].tolist() == pytest.approx([0, 0], abs=1e-7)
    assert summary(square)["detour"] == pytest.approx(3)
    back = torch.tensor([[1.0], [4.0], [2.0]])
    assert steps(back)["turning"].tolist() == pytest.approx([-1]) and summary(back)[
        "detour"
    ] == pytest.approx(5)
