"""Configuration of Sphinx. `reproduction.pipeline.site` lays out what it reads; `make site` runs both."""

import re
import shutil
import subprocess
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx

project = "Neural ODEs, reproduced"
author = "The neural-ode contributors"
html_title = project
html_show_copyright = False

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx.ext.mathjax",
]
exclude_patterns = ["download"]  # no pages

# Notebooks come executed.
nb_execution_mode = "off"
myst_enable_extensions = ["amsmath", "attrs_block", "colon_fence", "dollarmath"]
myst_heading_anchors = 3

# The reference.
default_role = "py:obj"  # docstrings write `name`, which becomes a link where there is something to link to
autodoc_inherit_docstrings = False  # what torch.nn.Module says of `forward` does not help
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "description"  # a signature with all its types does not fit on a phone
autodoc_typehints_description_target = "documented_params"
autodoc_typehints_format = "short"
autodoc_default_options = {"no-value": True}  # the values of METHODS and the like are longer than what they mean
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

# MathJax as files of the site, instead of a content delivery network. The extension that comes with it is not used:
# it copies everything, 24 MB.
MATHJAX = Path(*find_spec("sphinx-mathjax-offline").submodule_search_locations, "static", "mathjax")
mathjax_path = "mathjax/tex-chtml.js"

html_theme = "furo"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_search_scorer = str(Path(__file__).parent / "static" / "scorer.js")


def plain(app: object, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Docstrings are written to be read as they are. Here is said what reStructuredText would take for a mark."""
    if what in {"attribute", "data", "property"}:
        lines[:0] = ["..", ""]  # or napoleon takes what stands before a colon in the first line for a type
    for number, line in enumerate(lines):
        line = re.sub(r"(?<=[\s(])\*(?=[\w.]+[,)])", r"\*", line)  # a shape: (n, *state)
        lines[number] = re.sub(r"(`\w+`)(?=\w)", r"\1\ ", line)  # a plural: `Name`s


def one_return_type(app: Sphinx, domain: str, kind: str, content: nodes.Element) -> None:
    """Where arguments come in groups, Sphinx says the return type below each. It belongs to the last."""
    for fields in [node for node in content if isinstance(node, nodes.field_list)][:-1]:
        for field in [field for field in fields if field[0].astext() == "rtype"]:
            fields.remove(field)


def say_version(app: Sphinx, page: str, template: str, context: dict[str, object], doctree: object) -> None:
    """At the foot of every page: which code made it."""
    context["last_updated"] = VERSION


def _version() -> str:
    """The day and the number of the last commit, and the library's version."""
    number = metadata.version("neural-ode")
    try:
        ask = ["git", "-C", str(Path(__file__).parent), "log", "-1", "--format=%cs, by commit %h"]
        made = subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):  # sources without their history
        return f"a day unknown, by version {number}"
    return f"{made}, version {number}"


VERSION = _version()


def copy_mathjax(app: Sphinx, failure: Exception | None) -> None:
    if failure is None:
        for name in (Path("tex-chtml.js"), Path("output", "chtml", "fonts", "woff-v2")):
            target = Path(app.outdir, "_static", "mathjax", name)
            target.parent.mkdir(parents=True, exist_ok=True)
            (shutil.copytree if (MATHJAX / name).is_dir() else shutil.copy)(MATHJAX / name, target)


def mend_sources(app: Sphinx, failure: Exception | None) -> None:
    """Links back from the source are dropped: viewcode gets those wrong of modules whose names the package exports.

    It also lists a page for built-in types, which have none.
    """
    for file in Path(app.outdir, "_modules").rglob("*.html"):
        text = file.read_text(encoding="utf-8").replace('<li><a href="builtins.html">builtins</a></li>', "")
        file.write_text(re.sub(r'<a class="viewcode-back".*?</a>', "", text), encoding="utf-8")


def setup(app: Sphinx) -> None:
    app.connect("html-page-context", say_version)
    app.connect("build-finished", mend_sources)
    app.connect("build-finished", copy_mathjax)
    app.connect("autodoc-process-docstring", plain, priority=400)  # before napoleon
    app.connect("object-description-transform", one_return_type, priority=600)  # after the types
