"""The film of a set: its frames are the states that the set was in."""

import numpy as np
import pytest
import torch
from test_pipeline import SET, START
from test_pipeline import done as done
from test_pipeline import halfway as halfway

from ddlib import settings as config
from ddlib.paper.paper import STUDIES
from ddlib.paper.pictures import pixels
from ddlib.runs import cost, studies
from ddlib.runs import stages as pipeline
from ddlib.settings import Film

FILM = Film(of=SET)


@pytest.fixture(scope="module")
def shot(done):
    """The artefact."""
    return pipeline.get(FILM, done)


def test_frames_are_the_states_that_the_set_was_in(shot, done, halfway):
    frames, kept = shot.tensors["frames"], done.load(SET).tensors["history"]
    assert frames.shape == (SET.iterations + 1, 10, 1, 16, 16) and shot.tensors[
        "labels"
    ].tolist() == list(range(10))
    assert torch.equal(frames[0], done.load(START).tensors["images"])
    assert torch.equal(frames[[0, 2, 4, 6]], kept), (
        "at its looks, and at its end, the set was there too"
    )
    assert len({frame.numpy().tobytes() for frame in frames}) == len(frames)
    pipeline.get(FILM, halfway)
    assert not halfway.has(SET), "a film needs the start and the experts, and no set"
    assert halfway.file(FILM).read_bytes() == done.file(FILM).read_bytes()


def test_rows_tell_how_far_the_images_went(shot):
    rows, x = (
        shot.record["rows"],
        pixels(shot, shot.tensors["frames"].flatten(0, 1)).reshape(7, 10, 16, 16),
    )
    assert [row["iteration"] for row in rows] == list(range(7)) and rows[0]["moved"] == 0
    clipped = [
        float(np.sqrt(np.square(frame - x[0]).mean())) for frame in x
    ]  # a viewer's pixels, which go less far
    assert (
        all(row["moved"] >= less - 1e-6 for row, less in zip(rows, clipped, strict=True))
        and rows[-1]["moved"] < 3 * clipped[-1]
    )


def test_a_film_of_fewer_frames_and_classes_is_a_part_of_it(shot, halfway):
    few = pipeline.get(Film(of=SET, frames=3, shown=4), halfway)
    assert torch.equal(few.tensors["frames"], shot.tensors["frames"][::2, :4]) and few.tensors[
        "labels"
    ].tolist() == [0, 1, 2, 3]
    assert few.record["rows"][1]["iteration"] == 2


def test_of_several_images_a_class_the_first_is_shown(halfway):
    start = START.model_copy(update={"ipc": 2})
    film = pipeline.get(
        Film(of=SET.model_copy(update={"start": start, "iterations": 1, "checks": 1})), halfway
    )
    assert torch.equal(
        film.tensors["frames"][0], halfway.load(start).tensors["images"][::2]
    ) and film.tensors["labels"].tolist() == list(range(10))


def test_a_paper_films_one_set_that_it_makes_anyway():
    for name in ("smoke", "laptop"):
        profile = config.profile(name)
        ((label, film),) = STUDIES["film"].asks(profile)
        made = {run.settings.of: run for run in studies.main(profile)}
        assert made[film.of].label(
            profile.cells[label["cell"]]
        ).items() >= label.items() and film in studies.asked(profile)
        assert pipeline.needs(film) == pipeline.needs(film.of)
        whole, frames = (cost.work(one, 5000, 10, 1024) for one in (film.of, film))
        assert 0 < frames < whole, "it is not looked at"
