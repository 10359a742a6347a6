"""A figure with controls, which is a plain figure where nothing can answer them.

Widgets need a running kernel. On GitHub, in an exported page and in a stored notebook there is none, and a widget
shows as an error or not at all. So the picture is an output of its own: drawn once with the values that `draw` has
as defaults, stored like any other figure, and replaced in place when a control moves.
"""

import inspect
import io
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from typing import Any


from neural_ode.errors import InvalidArgumentError, needs

with needs("notebooks"):
    import ipywidgets
    from IPython.display import DisplayHandle
    from matplotlib import pyplot as plt
    from matplotlib.figure import Figure

__all__ = ["control", "interactive_figure"]


def interactive_figure(draw: Callable[..., Figure], **choices: Sequence[float] | Sequence[str]) -> None:
    """Show the figure that `draw` makes with its defaults, above it a control for each of its arguments.

    Args:
        draw: makes a figure; it is called with one keyword argument for each of `choices`, and their defaults in its
            signature are what the static page shows. It should take no longer than a second.
        **choices: the values that each argument may have.

    Raises:
        InvalidArgumentError: an argument of `draw` has no default, or one that is none of its choices.
    """
    start = {name: _default(draw, name, values) for name, values in choices.items()}
    controls = {name: control(name, values, start[name]) for name, values in choices.items()}
    for one in controls.values():
        DisplayHandle().display(_view(one), raw=True)
    shown = DisplayHandle()  # knows the output by an identity that is not stored
    shown.display(_picture(draw, start), raw=True)

    def redraw(_: object) -> None:
        shown.update(_picture(draw, {name: one.value for name, one in controls.items()}), raw=True)

    for one in controls.values():
        one.observe(redraw, names="value")


def control(name: str, values: Sequence[float] | Sequence[str], start: float | str) -> ipywidgets.ValueWidget:
    """A menu for words, a slider for numbers. The slider reports when it is let go, so that no drawing queues up."""
    label = {"description": name.replace("_", " "), "style": {"description_width": "initial"}}
    if isinstance(start, str):
        return ipywidgets.Dropdown(options=list(values), value=start, **label)
    options = [(f"{value:g}", value) for value in values]
    layout = ipywidgets.Layout(width="420px")
    return ipywidgets.SelectionSlider(options=options, value=start, continuous_update=False, layout=layout, **label)


def _default(draw: Callable[..., Figure], name: str, values: Sequence[Any]) -> Any:
    parameter = inspect.signature(draw).parameters.get(name)
    if parameter is None or parameter.default is parameter.empty:
        raise InvalidArgumentError(f"draw needs an argument {name!r} with a default, which is drawn first")
    if parameter.default not in values:
        raise InvalidArgumentError(f"{name}={parameter.default!r} is none of its choices {list(values)!r}")
    return parameter.default


def _view(one: ipywidgets.ValueWidget) -> dict[str, Any]:
    """What a front end shows; the words are for those without widgets."""
    known: dict[str, Any] = one._repr_mimebundle_()
    words = f"{one.description}: {_text(one.value)} (can be changed where the notebook runs)"
    return {**known, "text/plain": words}


def _picture(draw: Callable[..., Figure], values: Mapping[str, Any]) -> dict[str, Any]:
    figure = draw(**values)
    # Also keeps the inline backend from showing it once more at the end of the cell.
    plt.close(figure)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=figure.dpi, metadata={"Software": None})
    words = ", ".join(f"{name.replace('_', ' ')} {_text(value)}" for name, value in values.items())
    return {"image/png": b64encode(file.getvalue()).decode(), "text/plain": f"Figure: {words}"}


def _text(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:g}"
