"""Check the parameters of notebooks: their values by the annotations of the stages, and their names.

papermill only warns of an unknown parameter, and `-y "{lr: 1e-4}"` passes the text '1e-4', because 1e-4 is no
number in YAML 1.1. Here an unknown name is an error that suggests the closest known one, and '1e-4' becomes a
float.
"""

import inspect
import re
import traceback
from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from typing import Annotated, Any

from IPython import get_ipython
from pydantic import Field, Strict, ValidationError, validate_call

from beit3lib.config import TrainConfig, closest

# Without Strict, pydantic accepts True and "3" as whole numbers.
Whole, Count = Annotated[int, Strict(), Field(ge=0)], Annotated[int, Strict(), Field(ge=1)]


class ParameterError(ValueError):
    """A parameter that is unknown or has a wrong value; the message names it."""


def checked(stage: Callable) -> Callable:
    """Check the arguments of a stage by its annotations; a `ParameterError` has a line for each wrong one."""
    validated, names = validate_call(stage), list(inspect.signature(stage).parameters)

    def explain(problem: Mapping[str, Any]) -> str:
        name, value = problem["loc"][0], problem["input"]
        name = names[name] if isinstance(name, int) else name  # pydantic numbers positional arguments
        if problem["type"] == "unexpected_keyword_argument":
            hint = closest(name, [*names, *TrainConfig.__dataclass_fields__])
            return f"{name}: expected a parameter of '{stage.__name__}', got an unknown name.{hint}"
        text = f"{name}: expected {problem['msg'].removeprefix('Input should be ')}, got {value!r}."
        if problem["type"] == "string_type":  # papermill's -p turns the run name 2026 into a number
            text += f" With papermill, write `-r {name} {value}` instead of `-p {name} {value}`."
        return text

    @wraps(stage)
    def call(*args, **kwargs):
        try:
            return validated(*args, **kwargs)
        except ValidationError as error:  # also that of the TrainConfig which a stage makes
            raise ParameterError("\n".join(map(explain, error.errors()))) from None

    return call


def check_parameters(namespace: Mapping[str, Any], *known: Callable | Iterable[str]) -> None:
    """Raise `ParameterError` for an unknown name in the parameters of the notebook that is running.

    `namespace` is `globals()`; `known` are the functions that get the parameters, or collections of names.
    Only the latest parameters cell and papermill's cell after it count. A corrected name therefore is no
    error any more, and several notebooks may share a kernel.
    """
    if shell := get_ipython():
        shell.set_custom_exc((ValueError, OSError, RuntimeError), _show_own_errors_in_one_line)
    names, cells = [], []
    for part in known:
        names += inspect.signature(part).parameters if callable(part) else part
    for source in namespace.get("In", ()):  # IPython's list of executed cells
        if re.search("^run: str = ", source, re.MULTILINE):
            cells = [source]
        elif source.startswith("# Parameters\n"):
            cells = [*cells[:1], source]
    for name in re.findall(r"^(\w+)(?:: \w+)? = ", "\n".join(cells), re.MULTILINE):
        if name not in names and not name.startswith("PAPERMILL_"):  # papermill --inject-paths
            hint = closest(name, names) or f" It has {', '.join(names)}."
            raise ParameterError(f"{name}: expected a parameter of this notebook, got an unknown name.{hint}")


def _show_own_errors_in_one_line(shell, kind, error, trace, tb_offset=None) -> None:
    """Show errors that this package raises itself without their 40 lines of traceback."""
    last = traceback.extract_tb(trace)[-1]
    own = "/beit3lib/" in last.filename and last.line.startswith("raise")
    shell.showtraceback((kind, error, None if own else trace), tb_offset)
