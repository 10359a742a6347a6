"""Notebooks in a real JupyterLab, in a real browser: they are opened, run, changed by hand and run again.

The other tests run notebooks without a front end. Here Chromium does what a reader does. Everything happens in a
temporary copy with a home of its own, so neither the project nor the settings of whoever runs the tests matter.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import nbformat
import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright for Python is not installed")

ROOT = Path(__file__).parents[1]
TOKEN = "only-for-this-test"
PATIENCE = 120
"""Seconds for everything but the running of cells: a machine may be busy."""

CHROMIUM = [
    "--no-sandbox",  # containers and root have none
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SETTINGS = {
    # A question about news would cover the notebook.
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    # By default, cells that are not in sight are not in the page: then they could not be looked at.
    "notebook-extension/tracker": {"windowingMode": "none"},
}

PLAY = """
import matplotlib.pyplot as plt
from reproduction.figures.interactive import interactive_figure


def draw(height=2.0):
    figure, panel = plt.subplots(figsize=(4, 3))
    panel.plot([0, height])
    panel.set_ylim(0, 3)
    return figure


interactive_figure(draw, height=[1.0, 2.0, 3.0])
"""

pytestmark = [pytest.mark.browser, pytest.mark.slow]


def chromium() -> str:
    """Debian's Chromium or another one that is installed; skips the test if there is none."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip("no Chromium on this machine: install it, as by `apt-get install chromium`")
    return found


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone as far as a notebook sees it, with notebooks that have no outputs: what is seen was made here."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(ROOT / name, folder / name)
    (folder / "notebooks").mkdir()
    depth = nbformat.read(ROOT / "notebooks" / "01_depth.ipynb", as_version=4)
    for cell in depth.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    nbformat.write(depth, folder / "notebooks" / "01_depth.ipynb")
    play = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(PLAY.strip())], metadata=depth.metadata)
    nbformat.write(play, folder / "notebooks" / "play.ipynb")
    return folder


@pytest.fixture(scope="module")
def lab(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a JupyterLab that serves the project."""
    chromium()
    home = tmp_path_factory.mktemp("home")
    for name, content in SETTINGS.items():
        file = home / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content), encoding="utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ours = {
        "HOME": str(home),
        "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
        "PYTHONPATH": str(ROOT / "lib"),
        "JUPYTER_CONFIG_PATH": str(ROOT / "lib" / "reproduction" / "pipeline" / "jupyter"),
    }
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("JUPYTER", "IPYTHON", "XDG_"))
    }
    options = [f"--ServerApp.port={port}", "--ServerApp.port_retries=0", f"--IdentityProvider.token={TOKEN}"]
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", *options]
    log = home / "jupyterlab.log"
    with log.open("w") as output:
        server = subprocess.Popen(
            command, cwd=project, env=kept | ours, stdout=output, stderr=output, start_new_session=True
        )
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for(lambda: server.poll() is not None or answers(address), PATIENCE, "JupyterLab to start")
        assert server.poll() is None, log.read_text(encoding="utf-8")
        yield address
    finally:
        server.send_signal(signal.SIGTERM)  # it shuts its kernels down
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def answers(address: str) -> bool:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(f"{address}/api?token={TOKEN}", timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def wait_for(condition: Callable[[], object], seconds: float, what: str) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds:g} s for {what}"
        time.sleep(0.2)


@contextmanager
def opened(lab: str, notebook: str, folder: Path) -> Iterator["playwright.Page"]:
    """A page that shows `notebook`, when its kernel is there. If the test fails, a screenshot stays in `folder`."""
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium(), args=CHROMIUM)
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.set_default_timeout(1000 * PATIENCE)  # in milliseconds
        try:
            # A workspace of its own: another one's would bring back the notebook of the test before.
            workspace = f"{lab}/lab/workspaces/{Path(notebook).stem}"
            page.goto(f"{workspace}/tree/notebooks/{notebook}?token={TOKEN}")
            page.locator(".jp-Notebook .jp-CodeCell").first.wait_for()
            # It says idle before there is a kernel, too. To run cells then opens a dialog that asks for one.
            page.locator(".jp-StatusBar-Widget").get_by_text("Idle").wait_for()
            wait_for(lambda: connected(page, notebook), PATIENCE, f"the kernel of {notebook}")
            yield page
        except BaseException as error:
            page.screenshot(path=folder / "failed.png")
            error.add_note(f"What the browser showed: {folder / 'failed.png'}")
            raise
        finally:
            browser.close()


def connected(page: "playwright.Page", notebook: str) -> bool:
    """Whether the server knows an idle kernel of the notebook that the page is connected to."""
    sessions = page.evaluate("fetch('/api/sessions').then(answer => answer.json())")
    kernels = [one["kernel"] for one in sessions if one["path"].endswith(notebook)]
    return any(one["execution_state"] == "idle" and one["connections"] > 0 for one in kernels)


def prompts(page: "playwright.Page") -> list[int | None]:
    """The execution counts of all code cells; `None` for one that has not run, or is not done."""
    shown = page.locator(".jp-CodeCell .jp-InputArea-prompt").all_inner_texts()
    inside = [text.strip("[]: \n") for text in shown]
    return [int(text) if text.isdigit() else None for text in inside]


def run_all(page: "playwright.Page", seconds: float = 600) -> None:
    """Run → Run All Cells, and wait until every cell is done, once more than before."""
    before = max(count or 0 for count in prompts(page))
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    wait_for(lambda: all((count or 0) > before for count in prompts(page)), seconds, "every cell to be done")
    assert page.locator(".jp-Dialog").count() == 0


def errors(page: "playwright.Page") -> list[str]:
    kind = "application/vnd.jupyter.error"
    return page.locator(f'.jp-OutputArea-output[data-mime-type="{kind}"]').all_inner_texts()


def pictures(page: "playwright.Page") -> list[int]:
    """The widths, in pixels, of the pictures in outputs; 0 for one that the browser cannot show."""
    found = page.locator(".jp-OutputArea-output img").all()
    return [
        one.evaluate("async picture => { await picture.decode(); return picture.naturalWidth }") for one in found
    ]


def test_a_notebook_runs_and_answers_to_a_changed_parameter(lab: str, project: Path, tmp_path: Path) -> None:
    with opened(lab, "01_depth.ipynb", tmp_path) as page:
        assert pictures(page) == []
        assert page.locator(".jp-mod-dirty").count() == 0, "opening a notebook has changed it"
        run_all(page)
        assert errors(page) == []
        drawn = pictures(page)
        assert len(drawn) == 2
        assert min(drawn) > 300
        said = page.locator(".jp-OutputArea-output").get_by_text("distance falls with each of")
        assert said.inner_text().strip() == "distance falls with each of 6 step counts"
        assert (project / "scratch" / "figures" / "quick" / "01_depth" / "fig1.svg").exists()
        results = project / "scratch" / "results" / "quick" / "01_depth"
        trained = {file: file.stat().st_mtime_ns for file in results.rglob("*.safetensors")}
        assert trained, "the pipeline has computed nothing here"
        assert not (project / "results").exists()
        save(page, "01_depth")

        page.locator(".cm-line").filter(has_text="steps: list[int]").click()
        page.keyboard.press("End")
        page.keyboard.press("Shift+Home")
        page.keyboard.type("steps: list[int] = [5, 10, 20]")
        run_all(page)
        assert errors(page) == []
        assert said.inner_text().strip() == "distance falls with each of 3 step counts"
        assert len(pictures(page)) == 2
        assert {file: file.stat().st_mtime_ns for file in trained} == trained, (
            "trained again for another measurement"
        )


def test_a_slider_changes_a_figure(lab: str, tmp_path: Path) -> None:
    with opened(lab, "play.ipynb", tmp_path) as page:
        run_all(page)
        assert errors(page) == []
        assert len(pictures(page)) == 1
        picture, slider = page.locator(".jp-OutputArea-output img"), page.get_by_role("slider")
        before = picture.get_attribute("src")
        save(page, "play")
        slider.focus()
        page.keyboard.press("ArrowRight")
        wait_for(lambda: picture.get_attribute("src") != before, PATIENCE, "another picture")
        assert page.locator(".widget-readout").inner_text().strip() == "3"
        page.keyboard.press("ArrowLeft")
        wait_for(lambda: picture.get_attribute("src") == before, PATIENCE, "the first picture")


def save(page: "playwright.Page", name: str) -> None:
    """Keep a screenshot of a success, too, where somebody wants to look: NEURAL_ODE_SCREENSHOTS names a folder."""
    folder = os.environ.get("NEURAL_ODE_SCREENSHOTS")
    if folder:
        page.locator(".jp-OutputArea-output img").first.scroll_into_view_if_needed()
        page.screenshot(path=Path(folder) / f"{name}.png")
