"""The film of a set: its frames are the states that the set was in."""

import numpy as np
import pytest
import torch

from ddlib.paper.pictures import pixels
from ddlib.runs import cost, run, studies
from ddlib.runs.profile import profile
from ddlib.runs.stages import Film
from tiny import SET, START

FILM = Film(of=SET)


@pytest.fixture(scope="module")
def film(done):
    """The artefact."""
    return run.get(FILM, done)


def test_frames_are_the_states_that_the_set_was_in(film, done, halfway):
    frames, history = film.tensors["frames"], done.load(SET).tensors["history"]
    assert frames.shape == (SET.iterations + 1, 10, 1, 16, 16)
    assert torch.equal(frames[0], done.load(START).tensors["images"])
    assert torch.equal(frames[[0, 2, 4, 6]], history), "at its checks the set was there too"
    run.get(FILM, halfway)
    assert not halfway.has(SET), "a film needs the start and the experts, and no set"
    assert halfway.file(FILM).read_bytes() == done.file(FILM).read_bytes()


def test_rows_tell_how_far_the_images_went(film):
    rows = film.record["rows"]
    x = pixels(film, film.tensors["frames"].flatten(0, 1)).reshape(7, 10, 16, 16)
    assert [row["iteration"] for row in rows] == list(range(7)) and rows[0]["moved"] == 0
    clipped = [float(np.sqrt(np.square(frame - x[0]).mean())) for frame in x]
    assert all(row["moved"] >= less - 1e-6 for row, less in zip(rows, clipped, strict=True))


def test_a_film_of_fewer_frames_and_classes_is_a_part_of_it(film, halfway):
    few = run.get(Film(of=SET, frames=3, shown=4), halfway)
    assert torch.equal(few.tensors["frames"], film.tensors["frames"][::2, :4])
    assert few.record["rows"][1]["iteration"] == 2


def test_a_paper_films_a_set_that_it_makes_anyway():
    given = profile("smoke")
    ((_, film),) = studies.STUDIES["film"].asks(given)
    assert film.of in {one.settings.of for one in studies.main(given)}
    assert 0 < cost.seconds(film) < cost.seconds(film.of), "it is not checked on the way"
