"""One thread, as the engine's processes have: the same bytes with the same wheels.

One store, one paper and one browser serve all tests.
"""

import os
import shutil
from pathlib import Path

import pytest
import torch
from filelock import FileLock

torch.set_num_threads(1)  # the same bytes on every machine, and no fight over cores


@pytest.fixture(scope="session")
def printed(tmp_path_factory):
    """A whole paper under `smoke`, made from nothing; to be read only.

    SMOKE_PAPER=folder names one that is there already, for work on a single test.
    """
    from ddlib.__main__ import main

    if ready := os.environ.get("SMOKE_PAPER"):
        return Path(ready)
    own = tmp_path_factory.getbasetemp()
    # the folders of side-by-side workers lie in one
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "paper"
    with FileLock(folder.with_suffix(".lock")), pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORE", str(folder / "store"))
        patch.setenv("RESULTS", str(folder / "results"))
        if not (folder / "done").exists():
            assert main(["paper", "smoke"]) == 0
            (folder / "done").touch()
    return folder


@pytest.fixture(scope="session")
def done(tmp_path_factory):
    """A store filled with `tiny.ALL` by one process, one task after the other; to be read only."""
    from ddlib.runs import run
    from ddlib.runs.store import Store
    from tiny import ALL

    store = Store(tmp_path_factory.mktemp("done"))
    for settings in ALL:
        run.get(settings, store)
    return store


@pytest.fixture
def halfway(done, tmp_path):
    """A store that has what `tiny.SET` needs, and no more."""
    from kills import with_needs
    from tiny import SET

    return with_needs(SET, done, tmp_path / "halfway")


@pytest.fixture(scope="module")
def chromium():
    """The machine's own Chromium, without a window; without it, its tests are skipped.

    It closes with the module, for it has an event loop of its own, and papermill wants one too.
    """
    api = pytest.importorskip(
        "playwright.sync_api", reason="no Playwright to drive a browser: pip install playwright"
    )
    names = ("chromium", "chromium-browser", "google-chrome")
    browser_file = next(filter(None, map(shutil.which, names)), None)
    if not browser_file:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    quiet = [
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
    ]
    with api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=browser_file, args=quiet)
        yield browser
        browser.close()
