"""Notebooks in JupyterLab, as a reader runs them: a real server, kernel and browser."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from ddlib.paper import build

QUIET = {  # no news over the network; every cell in the page, also those out of sight
    "apputils-extension/notification": {
        "fetchNews": "false",
        "checkForUpdates": False,
        "doNotDisturbMode": True,
    },
    "notebook-extension/tracker": {"windowingMode": "none"},
}
# some cells ran, and none waits or runs: all are done, or one failed
OVER = """() => {
    const all = [...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')];
    const prompts = all.map(e => e.textContent);
    return prompts.some(t => /\\d/.test(t)) && !prompts.some(t => t.includes('*'));
}"""
DRAWN = "all => all.every(i => i.complete && i.naturalWidth > 0)"
OWN = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")
OWN = (*OWN, "JUPYTERLAB_WORKSPACES_DIR", "STORE", "RESULTS")


@pytest.fixture
def lab(request, chromium, tmp_path):
    """The address of a JupyterLab over a copy of a notebook, and that copy.

    The tour starts from nothing, any other notebook from what the paper made.
    """
    name = getattr(request, "param", "00_tour")
    if name != "00_tour":
        shutil.copytree(request.getfixturevalue("printed") / "store", tmp_path / "store")
    notebook = tmp_path / f"notebooks/{name}.ipynb"
    notebook.parent.mkdir()
    source = (build.NOTEBOOKS / notebook.name).read_text()
    notebook.write_text(source.replace('profile = \\"laptop\\"', 'profile = \\"smoke\\"'))
    for setting, values in QUIET.items():
        file = tmp_path / f"settings/@jupyterlab/{setting}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values))
    places = {variable: str(tmp_path / variable.lower()) for variable in OWN}
    env = os.environ | places | {"JUPYTERLAB_SETTINGS_DIR": str(tmp_path / "settings")}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--no-browser", "--allow-root", f"--port={port}", "--ServerApp.port_retries=0"]
    options += ["--IdentityProvider.token=", f"--ServerApp.root_dir={notebook.parent}"]
    command = [sys.executable, "-m", "jupyterlab", *options]
    with open(tmp_path / "log", "wb") as log:
        server = subprocess.Popen(command, env=env, stdout=log, stderr=log)
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


IMAGES = {"image/png", "image/svg+xml"}


def wait_for(done, server=None, seconds=60):
    """Until it is done; fails when the server ends or the time is over."""
    until = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < until and (server is None or server.poll() is None)
        time.sleep(0.2)


def run_all(chromium, address, notebook):
    """A page in which all cells of the notebook at that address have run without error."""
    page = chromium.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(120_000)
    page.goto(address)
    page.locator(".jp-Notebook .jp-CodeCell").first.wait_for()
    # in the status bar: the kernel is there; asked to run before, JupyterLab asks which
    page.get_by_text("| Idle").wait_for()
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.locator('.lm-Menu-item[data-command="runmenu:run-all"]').click()
    page.wait_for_function(OVER, timeout=180_000)
    page.keyboard.press("Control+s")
    wait_for(lambda: errors(notebook) or all(c["execution_count"] for c in code_cells(notebook)))
    assert not errors(notebook)
    return page


def test_the_tour_runs_in_jupyterlab(lab, chromium):
    address, tour = lab
    page = run_all(chromium, address, tour)
    pictures = page.locator(".jp-OutputArea-output img")
    drawn = {  # of each cell that draws
        number: [output for output in cell["outputs"] if {*output.get("data", {})} & IMAGES]
        for number, cell in enumerate(code_cells(tour))
        if re.search(r"plt\.|SVG\(", "".join(cell["source"]))
    }
    assert all(drawn.values()), "a cell that draws a figure shows none"
    assert sum(map(len, drawn.values())) == pictures.count() > 0
    assert pictures.evaluate_all(DRAWN)
    page.close()


@pytest.mark.parametrize("lab", ["05_student"], indirect=True)
def test_what_a_control_shows_is_drawn_anew_in_jupyterlab(lab, chromium):
    page = run_all(chromium, *lab)
    pictures = page.locator(".jp-OutputArea-output .widget-interact img")
    pictures.last.wait_for()
    before = sources(pictures)
    assert len(before) == 1 and all(before)
    # by the keyboard, as one who has no mouse does
    page.locator(".jp-OutputArea-output .widget-slider .noUi-handle").first.press("ArrowRight")
    wait_for(lambda: not set(sources(pictures)) & set(before))
    wait_for(lambda: pictures.evaluate_all(DRAWN))
    page.close()


def sources(pictures):
    """Where what they show lies."""
    return pictures.evaluate_all("all => all.map(i => i.src)")


def code_cells(notebook):
    """As they were saved last."""
    cells = json.loads(notebook.read_text())["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def errors(notebook):
    """What its cells raised."""
    outputs = (output for cell in code_cells(notebook) for output in cell["outputs"])
    return [output["traceback"] for output in outputs if output["output_type"] == "error"]
