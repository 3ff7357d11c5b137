"""Pictures of sets show the pixels that the sets hold."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ddlib.paper import pictures
from ddlib.paper.results import Results
from ddlib.paper.style import style
from ddlib.runs.store import Artefact

LAPTOP = Results(Path(__file__).parent.parent / "results/laptop")
FRAMES, CLASSES, SIDE = 7, 10, 16


@pytest.fixture
def film():
    """Grey images that get brighter from frame to frame, each class in another row of its own."""
    frames = torch.rand(1, CLASSES, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0)) / 2
    frames = frames + torch.arange(FRAMES).view(-1, 1, 1, 1, 1) / (2 * FRAMES)
    space = {"space.mean": torch.zeros(1), "space.std": torch.ones(1)}
    rows = [{"iteration": t} for t in range(FRAMES)]
    labels = torch.arange(CLASSES)
    return Artefact({"frames": frames, "labels": labels} | space, {"rows": rows}, {})


def test_a_film_shows_its_frames_in_their_order_and_repeats(film):
    content = pictures.film(film)
    assert content == pictures.film(film)
    gif, scale = Image.open(io.BytesIO(content)), pictures.TALL // SIDE
    side, shown, durations = SIDE * scale, [], []
    for t in range(gif.n_frames):
        gif.seek(t)
        durations.append(gif.info["duration"])
        page = np.asarray(gif.convert("L"), float)
        lefts = [j * (side + 3) for j in range(CLASSES)]
        shown.append([page[18 : 18 + side : scale, x : x + side : scale] for x in lefts])
    assert durations == [100] * (FRAMES - 1) + [1000] and gif.info["loop"] == 0
    levels = 255 * film.tensors["frames"].squeeze(2).numpy()
    away = np.abs(np.array(shown)[:, None] - levels).mean((2, 3, 4))  # (shown, frame)
    assert away.argmin(1).tolist() == list(range(FRAMES)) and away.diagonal().max() < 4


def test_a_difference_of_images_is_scaled_by_all_but_the_largest_changes():
    made, first, _ = pictures.distilled(LAPTOP)
    states = made.tensors["history"][0], made.tensors["images"]
    before, after = (pictures.pixels(made, images[first]) for images in states)
    with style():
        (ax,) = pictures.images(LAPTOP).axes
    scale = float(ax.get_yticklabels()[2].get_text().split("± ")[1].rstrip(")"))
    assert scale == pytest.approx(np.quantile(np.abs(after - before), 0.99), abs=0.005)
    assert (np.abs(after - before) < scale + 0.005).mean() > 0.98
    page, (h, w) = ax.get_images()[0].get_array(), before.shape[1:3]
    top = 2 * (h + 1 + h // 32)
    about_grey = np.clip(0.5 + (after - before)[0] / (2 * scale), 0, 1)
    np.testing.assert_allclose(page[top : top + h, :w], about_grey, atol=0.02)
