"""Notebooks in JupyterLab, as a reader runs them: a real server, a real kernel, all cells by the
menu of a real browser; figures appear and no cell fails."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from ddlib.paper import build as press

QUIET = {  # no news over the network; every cell in the page, also those out of sight
    "apputils-extension/notification": {
        "fetchNews": "false",
        "checkForUpdates": False,
        "doNotDisturbMode": True,
    },
    "notebook-extension/tracker": {"windowingMode": "none"},
}
OVER = """() => {  // some cells ran, and none waits or runs: all are done, or one failed
    const prompts = [...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].map(e =>
    e.textContent) return prompts.some(text => /\\d/.test(text)) && !prompts.some(text =>
    text.includes('*'))
}"""


@pytest.fixture
def lab(request, printed, chromium, tmp_path):
    """The address of a JupyterLab of its own over a copy of the tour, from nothing, or of the
    notebook that a test names, with what it reads; and that copy."""
    name = getattr(request, "param", "00_tour")
    if name != "00_tour":
        shutil.copytree(printed / "store", tmp_path / "store")
    notebook = tmp_path / f"notebooks/{name}.ipynb"
    notebook.parent.mkdir()
    notebook.write_text(
        (press.NOTEBOOKS / notebook.name)
        .read_text()
        .replace('profile = \\"laptop\\"', 'profile = \\"smoke\\"')
    )
    for name, settings in QUIET.items():
        file = tmp_path / f"settings/@jupyterlab/{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(settings))
    own = (
        "JUPYTER_CONFIG_DIR",
        "JUPYTER_DATA_DIR",
        "JUPYTER_RUNTIME_DIR",
        "IPYTHONDIR",
        "JUPYTERLAB_WORKSPACES_DIR",
        "STORE",
        "RESULTS",
    )
    env = (
        os.environ
        | {name: str(tmp_path / name.lower()) for name in own}
        | {"JUPYTERLAB_SETTINGS_DIR": str(tmp_path / "settings")}
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        "--no-browser",
        "--allow-root",
        f"--port={port}",
        "--ServerApp.port_retries=0",
        "--IdentityProvider.token=",
    ]
    with open(tmp_path / "log", "wb") as log:
        server = subprocess.Popen(
            [*command, f"--ServerApp.root_dir={notebook.parent}"], env=env, stdout=log, stderr=log
        )
    try:
        wait_for(lambda: answers(f"http://127.0.0.1:{port}/api"), server)
        yield f"http://127.0.0.1:{port}/lab/tree/{notebook.name}?reset", notebook
    finally:
        server.terminate()
        server.wait(30)


def answers(address):
    """Whether a server is there."""
    try:
        return urllib.request.urlopen(address, timeout=5).status == 200
    except OSError:
        return False


def wait_for(done, server=None, seconds=60):
    """Until it is done; fails when the server ends or the time is over."""
    until = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < until and (server is None or server.poll() is None)
        time.sleep(0.2)


def run_all(chromium, address):
    """A page in which all cells of the notebook at that address have run."""
    page = chromium.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(60_000)
    page.goto(address)
    page.locator(".jp-Notebook .jp-CodeCell").first.wait_for()
    page.get_by_text(
        "| Idle"
        # in the status bar: the kernel is there; asked to run before, JupyterLab asks which
    ).wait_for()
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.locator('.lm-Menu-item[data-command="runmenu:run-all"]').click()
    page.wait_for_function(OVER, timeout=180_000)
    return page


def test_the_tour_runs_in_jupyterlab(lab, chromium):
    address, tour = lab
    page = run_all(chromium, address)
    pictures = page.locator(".jp-OutputArea-output img")
    page.keyboard.press("Control+s")
    wait_for(
        lambda: errors(tour) or all(cell["execution_count"] for cell in code_cells(tour))
    )  # it is saved
    assert not errors(tour)
    drawn = [
        [output for output in cell["outputs"] if "image/png" in output.get("data", {})]
        for cell in code_cells(tour)
        if "figure" in "".join(cell["source"])
    ]
    assert all(drawn), "a cell that draws a figure shows none"
    assert sum(map(len, drawn)) == pictures.count() > 0
    assert pictures.evaluate_all("all => all.every(i => i.complete && i.naturalWidth > 0)")
    page.close()


def choose_recipes(page):
    page.locator(".jp-OutputArea-output select[multiple]").select_option(label=["sgd", "ast"])


def move_a_slider(page):
    """By the keyboard, as one who has no mouse does."""
    page.locator(".jp-OutputArea-output .widget-slider .noUi-handle").first.press("ArrowRight")


@pytest.mark.parametrize(
    "lab, shown, play",
    [("03_smoothness", 2, choose_recipes), ("05_student", 1, move_a_slider)],
    indirect=["lab"],
)
def test_what_a_control_shows_is_drawn_anew_in_jupyterlab(lab, shown, play, chromium):
    address, notebook = lab
    page = run_all(chromium, address)
    page.keyboard.press("Control+s")
    wait_for(
        lambda: errors(notebook) or all(cell["execution_count"] for cell in code_cells(notebook))
    )  # it is saved
    assert not errors(notebook)
    pictures = page.locator(".jp-OutputArea-output .widget-image")
    pictures.last.wait_for()
    before = sources(pictures)
    assert len(before) == shown and all(before)
    play(page)
    wait_for(lambda: not set(sources(pictures)) & set(before))
    wait_for(
        lambda: pictures.evaluate_all("all => all.every(i => i.complete && i.naturalWidth > 0)")
    )
    page.close()


def sources(pictures):
    """Where what they show lies."""
    return pictures.evaluate_all("all => all.map(i => i.src)")


def code_cells(notebook):
    """As they were saved last."""
    return [
        cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"
    ]


def errors(notebook):
    """What its cells raised."""
    return [
        output["traceback"]
        for cell in code_cells(notebook)
        for output in cell["outputs"]
        if output["output_type"] == "error"
    ]
