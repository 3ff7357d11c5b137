"""What a task took is noted beside its artefact, over all its runs, and no artefact holds it."""

import mmap
import os
import signal
import time

import pytest
from ddlib.runs.meter import Meter
from test_keeper import dies_at, in_a_child
from test_pipeline import SET, START
from test_pipeline import done as done  # a store filled by one process
from test_pipeline import halfway as halfway

from ddlib import settings as config
from ddlib.paper import paper
from ddlib.runs import stages as pipeline
from ddlib.runs import status as upkeep
from ddlib.runs import studies
from ddlib.settings import key


def test_scores_add_only_evaluations_without_augmentation():
    profile = config.profile("smoke")
    paid = {run.settings for run in studies.main(profile)}
    runs = list(studies.scores(profile))
    assert all(run.settings in paid for run, how in runs if how["augmented"])
    assert all(
        run.settings.strategies == () and run.settings not in paid
        for run, how in runs
        if not how["augmented"]
    )
    assert {run.method for run, how in runs if not how["augmented"]} == set(
        next(iter(profile.cells.values())).methods
    )
    assert {run.settings for run, _ in runs} <= set(studies.asked(profile))
    assert {how["labels"] for _, how in runs} == {"own"}  # no set of these has soft ones


def test_costs_are_noted_beside_the_artefact_over_all_its_runs(done, halfway, monkeypatch):
    """Killed after its third checkpoint: the note has the slept seconds of both runs."""
    monkeypatch.setenv("CHECKPOINT", "0")

    def slowly(*arguments):
        for step in distil(*arguments):
            time.sleep(0.1)
            yield step

    distil = pipeline.distil
    monkeypatch.setattr(pipeline, "distil", slowly)

    def life():
        dies_at(3, half=False)
        pipeline.get(SET, halfway)

    assert in_a_child(life) == -signal.SIGKILL and halfway.note(SET) is None
    kept = halfway.resume(SET).record["spent"]
    assert kept["runs"] == 1 and kept["seconds"] > 0.1
    pipeline.get(SET, halfway)
    note = halfway.note(SET)
    assert (
        note["runs"] == 2
        and note["seconds"] >= 0.6
        and note["seconds"] > note["processor_seconds"] > kept["processor_seconds"]
    )
    assert halfway.file(SET).read_bytes() == done.file(SET).read_bytes()


def test_a_row_of_costs_and_what_it_lacks_without_notes(done):
    (line,) = paper.cost(done.load(SET).record | {"spent": pipeline.spent(SET, done)})
    assert (
        line["iterations"] == SET.iterations
        and line["lr"] == done.load(SET).record["lr"]
        and line["runs"] == 1
    )
    assert (
        0 < line["seconds"] < 600
        and 0 < line["processor_seconds"] < 600
        and 50 < line["megabytes"] < 1e5
        and line["experts_seconds"] > 0
    )
    note = done.note_file(SET)
    content = note.read_bytes()
    for broken in (b"", b"[]", b"{}"):
        note.write_bytes(broken)
        (older,) = paper.cost(done.load(SET).record | {"spent": pipeline.spent(SET, done)})
        assert (
            older["seconds"] is None
            and older["megabytes"] is None
            and older["experts_seconds"] == line["experts_seconds"]
        )
    note.write_bytes(content)


def test_notes_that_nobody_needs_are_leftovers(done):
    needed = {key(SET), key(START)}
    found = {
        file
        for file, why in upkeep.leftovers(done, needed, set())
        if file.parent.name == "notes" and why == "no profile needs it"
    }
    assert found and done.note_file(SET) not in found and done.note_file(START) not in found
    assert "files there: making them took" in upkeep.time_spent(done, [SET, START])


@pytest.mark.skipif(
    not os.path.exists("/proc/self/clear_refs"),
    reason="only Linux counts anew what a process held at most",
)
def test_a_meter_counts_the_memory_of_its_own_time():
    meter = Meter()
    block = mmap.mmap(-1, 100 << 20)  # not of the heap, which may keep what is freed
    for page in range(0, len(block), 4096):
        block[page] = 1
    grown = meter.read()
    block.close()
    later = Meter().read()
    assert grown["megabytes"] > later["megabytes"] + 80
    after = Meter(grown).read()  # of another run of the same task
    assert (
        after["megabytes"] == grown["megabytes"]
        and after["runs"] == 2
        and after["seconds"] > grown["seconds"]
    )
