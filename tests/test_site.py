"""The site is whole, shows what it should, and asks no other host for anything."""

import functools
import http.server
import inspect
import json
import re
import shutil
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import nbformat
import pytest

import neural_ode
from reproduction.claims import load_claims
from reproduction.pipeline.contents import captions, load_contents
from reproduction.pipeline.readme import pictures
from reproduction.pipeline.site import build, modules, notebook_page, scoreboard, sections

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "figures" / "paper"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PHONE, DESK = (390, 844), (1280, 900)
pytestmark = pytest.mark.site


class Page(HTMLParser):
    """What a page holds: its anchors, what it loads, where it leads, and its pictures."""

    def __init__(self, file: Path):
        super().__init__()
        self.anchors: set[str] = set()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.pictures: list[dict[str, str]] = []
        self.text = file.read_text(encoding="utf-8")
        self.feed(self.text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attributes}
        self.anchors.update(found[key] for key in ("id", "name") if key in found)
        self.loads += [found[key] for key in ("src", "poster", "data") if key in found and tag != "a"]
        self.loads += re.findall(r"url\([\"']?([^)\"']+)", found.get("style", ""))
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        elif tag == "link" and "rel" in found:
            (self.loads if found["rel"] in {"stylesheet", "icon", "preload"} else self.links).append(found["href"])
        if tag == "img":
            self.pictures.append(found)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for package in ("sphinx", "myst_nb", "furo", "sphinx-mathjax-offline"):
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed: pip install --editable '.[site]'")
    target = tmp_path_factory.mktemp("site") / "html"
    assert build(ROOT, target) == 0  # Sphinx's warnings are errors
    return target


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {file: Page(file) for file in site.rglob("*.html")}


def test_links_and_pictures_lead_somewhere(site: Path, pages: dict[Path, Page]) -> None:
    broken = []
    for file, page in pages.items():
        for link in {*page.links, *page.loads}:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            if not target.is_file():
                broken.append(f"{file.relative_to(site)} → {link}")
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors:
                broken.append(f"{file.relative_to(site)} → {link}: no such anchor")
    assert not broken


def test_nothing_is_loaded_from_another_host(site: Path, pages: dict[Path, Page]) -> None:
    loaded = [(file, url) for file, page in pages.items() for url in page.loads]
    for file in site.rglob("*.css"):
        text = file.read_text(encoding="utf-8")
        loaded += [(file, url) for url in re.findall(r"(?:url\(|@import)\s*[\"']?([^)\"';]+)", text)]
    assert not [(file.name, url) for file, url in loaded if url.startswith(("http:", "https:", "//"))]


def test_every_notebook_has_its_page(pages: dict[Path, Page], site: Path) -> None:
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        page = pages[site / "notebooks" / f"{notebook.stem}.html"]
        full = (RESULTS / notebook.stem / notebook.name).exists()
        assert ("Quick profile" in page.text) != full
        figures = [picture for picture in page.pictures if "_images/" in picture["src"]]
        assert figures
        assert all(len(picture["alt"]) > 10 and "_images" not in picture["alt"] for picture in figures)
        if "$" in "".join(cell.source for cell in nbformat.read(notebook, 4).cells if cell.cell_type == "markdown"):
            assert 'class="math notranslate' in page.text


def test_the_reference_is_complete(pages: dict[Path, Page], site: Path) -> None:
    anchors = {anchor for file, page in pages.items() if file.parent.name == "api" for anchor in page.anchors}
    parts = modules(ROOT / "lib" / "neural_ode")
    listed = {f"neural_ode.{name}" for name in neural_ode.__all__ if not name.isupper()}
    assert not listed - anchors
    shown = {anchor.removeprefix("module-") for anchor in anchors}
    assert not {module for part in parts.values() for module in part} - shown - {"neural_ode.solve"}


def test_every_page_says_which_code_made_it(pages: dict[Path, Page], site: Path) -> None:
    number = re.escape(neural_ode.__version__)
    for file, page in pages.items():
        if file.relative_to(site).parts[0] != "_modules":
            assert re.search(
                rf"Last updated on (a day unknown|[\d-]+, by commit \w+).*version {number}", page.text
            ), file


def test_the_methods_stand_in_a_table(pages: dict[Path, Page], site: Path) -> None:
    text = pages[site / "api" / "methods.html"].text
    assert re.search(r"<code[^>]*><span class=\"pre\">kvaerno5</span></code></p></td>\s*<td><p>5</p></td>", text)


def test_arguments_in_groups(pages: dict[Path, Page], site: Path) -> None:
    """Every argument of `solve` stands in one of them with its type, and the type of the result below the last."""
    text = pages[site / "api" / "index.html"].text.partition('id="neural_ode.solve"')[2]
    text = text.partition('id="neural_ode.odeint"')[0]
    for name in inspect.signature(neural_ode.solve).parameters:
        assert text.count(f"<strong>{name}</strong> (") == 1, name
    assert text.count("Return type") == 1
    assert text.count("Parameters<") == 4


def test_the_first_page_shows_every_claim(pages: dict[Path, Page], site: Path) -> None:
    board = json.loads((RESULTS / "11_scoreboard" / "claims.json").read_text())
    page = pages[site / "index.html"]
    table = page.text.partition('<section id="scoreboard">')[2].partition('<section id="licence-and-citation">')[0]
    assert table.count("<tr") == len(board) + len({row["whose"] for row in board.values()})  # and their headings
    assert "Every figure and table of" in page.text
    assert "hollow circles" not in page.text, "the caption of a figure that the page has elsewhere"
    texts = captions(load_contents())
    figures = [name for name in full_scale() if not name.startswith("11_scoreboard/")]
    assert [picture["alt"] for picture in page.pictures if picture["alt"]] == [texts[name] for name in figures]
    for name in figures:
        assert f"notebooks/{name.partition('/')[0]}.html" in page.links


def test_every_claim_has_an_entry_in_the_results(pages: dict[Path, Page], site: Path) -> None:
    board = json.loads((RESULTS / "11_scoreboard" / "claims.json").read_text())
    page = pages[site / "RESULTS.html"]
    changed = sum(len(claim.amended) for claim in load_claims().values())
    assert page.text.count("<strong>Rule:</strong>") == len(board)
    assert page.text.count("<strong>Rule before:</strong>") == changed
    for name in {row["notebook"] for row in board.values()}:
        assert f"notebooks/{name}.html" in page.links
    assert "RESULTS.html" in pages[site / "index.html"].links


def test_what_is_no_site_stays(tmp_path: Path) -> None:
    (tmp_path / "precious").touch()
    with pytest.raises(FileExistsError, match="is no site"):
        build(ROOT, tmp_path)
    assert (tmp_path / "precious").exists()


def test_sections_of_a_text() -> None:
    assert sections("# Title\n\nintro\n## One\na\n### Deeper\n## Two\nb\n") == {
        "": "\nintro\n",
        "One": "a\n### Deeper\n",
        "Two": "b\n",
    }


def full_scale() -> list[str]:
    """The figures of full scale, in reading order."""
    return [f"{path.parent.name}/{path.stem}" for path in pictures(ROOT, load_contents())]


def test_claims_are_text_and_not_markdown() -> None:
    row = {
        "verdict": "holds",
        "claim": "*a* | [b]",
        "source": "$c$",
        "rule": "_r_",
        "published": "–",
        "here": "x: 1; y: 2",
        "notebook": "–",
    }
    made = scoreboard([row])
    assert r"\*a\* \| \[b\] (\$c\$)" in made
    assert r"*Rule:* \_r\_" in made
    assert "  - x: 1\\\n    y: 2\n" in made


def test_a_notebook_says_how_it_ran() -> None:
    cells = [
        nbformat.v4.new_markdown_cell("# Title\n\ntext"),
        nbformat.v4.new_code_cell('save_figure(figure, work.figure("a"))'),
        nbformat.v4.new_markdown_cell("## Motion"),
        nbformat.v4.new_code_cell("animation"),
    ]
    page = notebook_page(nbformat.v4.new_notebook(cells=cells), "01_name", "quick", {"01_name/a": "what a shows"})
    assert page.cells[0].source.startswith("# Title\n\n:::{warning}")
    assert "dvc repro notebook@paper-01_name" in page.cells[0].source
    assert [cell.metadata["mystnb"]["image"]["alt"] for cell in page.cells if cell.cell_type == "code"] == [
        "what a shows",
        "Figure of the section 'Motion'",
    ]
    full = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# Title\n\ntext")])
    shown = notebook_page(full, "01_name", "paper", {}).cells[0].source
    assert shown.startswith("# Title\n\n:::{note}\nFull scale. `dvc repro notebook@paper-01_name`")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    with playwright.sync_playwright() as driver:
        flags = ["--headless", "--no-sandbox", "--disable-gpu"]
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        browser.close()


@pytest.mark.parametrize("size", [PHONE, DESK], ids=["phone", "desk"])
def test_pages_in_a_browser(browser: Any, site: Path, size: tuple[int, int]) -> None:
    """No page is wider than the screen, formulas are set, no request leaves the machine, no script fails."""
    context = browser.new_context(viewport={"width": size[0], "height": size[1]})
    outside: list[str] = []
    failures: list[str] = []

    def only_files(route: Any) -> None:
        if route.request.url.startswith(("file:", "data:", "blob:")):
            route.continue_()
        else:
            outside.append(route.request.url)
            route.abort()

    context.route("**/*", only_files)
    try:
        for name in sorted(str(f.relative_to(site)) for f in site.rglob("*.html") if "_modules" not in f.parts):
            page = context.new_page()
            page.on("pageerror", lambda error, name=name: failures.append(f"{name}: {error}"))
            page.goto((site / name).as_uri())
            if formulas := page.locator("span.math, div.math").count():
                page.wait_for_function("document.querySelectorAll('mjx-container').length > 0", timeout=60_000)
                page.evaluate("MathJax.startup.promise")
                assert page.locator("mjx-container").count() >= formulas, name
                assert page.locator("mjx-merror").count() == 0, name
            assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), name
            page.close()
    finally:
        context.close()
    assert outside == []
    assert failures == []


def test_search_finds_the_library_first(browser: Any, site: Path) -> None:
    """Over HTTP: a page that is a file may not read the index."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=site)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{server.server_port}/search.html?q=gradient")
        page.wait_for_selector("#search-results a[href^='notebooks/']")  # results come one by one
        found = [link.get_attribute("href") for link in page.query_selector_all("#search-results li > a")]
        page.close()
        server.shutdown()
    assert all(link.startswith("api/") for link in found[:5]), found[:5]


def test_figures_are_dark_in_the_dark(browser: Any, site: Path) -> None:
    seen = {}
    for scheme in ("light", "dark"):
        page = browser.new_page(color_scheme=scheme)
        page.goto(f"file://{site}/index.html")
        seen[scheme] = page.eval_on_selector(".gallery img", "image => getComputedStyle(image).filter")
        page.close()
    assert seen["light"] == "none"
    assert "invert" in seen["dark"]
