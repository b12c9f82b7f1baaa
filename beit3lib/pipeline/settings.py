"""Check the parameters of a notebook with pydantic before anything runs.

papermill only warns about an unknown parameter, and `-y "{lr: 1e-4}"` passes the string '1e-4' (YAML 1.1). Here an
unknown name is an error that suggests the closest known name, and '1e-4' becomes a float.
"""

import ast
import builtins
import difflib
import html
import traceback
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, Strict, ValidationError, create_model

PAPERMILL_PREFIX = "PAPERMILL_"  # of names that papermill injects itself, such as PAPERMILL_INPUT_PATH


class ParameterError(ValueError):
    """A parameter that is unknown, missing or of the wrong type; the message names it."""


class Parameters(BaseModel):
    """The checked parameters of a notebook, which Jupyter shows as a table."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())

    def _repr_html_(self) -> str:
        cells = ((html.escape(name), html.escape(repr(value))) for name, value in self)
        rows = "".join(f"<tr><td>{name}</td><td>{value}</td></tr>" for name, value in cells)
        return f"<table><tr><th>parameter</th><th>value</th></tr>{rows}</table>"


def _not_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("Input should be a number")
    return value


# pydantic would also accept True and "3" as an int. A float may be text such as '1e-4', see the top of this file.
STRICT = {int: Annotated[int, Strict()], str: Annotated[str, Strict()], bool: Annotated[bool, Strict()]}
STRICT[float] = Annotated[float, BeforeValidator(_not_bool)]


def choice(*values: str) -> Any:
    """Return the type of a parameter that is one of `values`."""
    return Literal[values]


def between(low: float, high: float, kind: type = int) -> Any:
    """Return the type of a number of type `kind` from `low` to `high`, both included."""
    return Annotated[STRICT[kind], Field(ge=low, le=high)]


def optional(kind: Any) -> Any:
    """Return the type of a value of `kind` or None."""
    return STRICT.get(kind, kind) | None


def read_parameters(namespace: Mapping[str, Any], **kinds: Any) -> Parameters:
    """Return the checked parameters of a notebook.

    `namespace` is `globals()`. `kinds` gives each parameter of the parameters cell a type, or `choice(…)`, `between(…)`,
    `optional(…)`. Raises a `ParameterError` that names every wrong parameter. Only the parameters cell and the cell that
    papermill injects are searched for unknown names, because other variables of the kernel are no parameters.
    """
    shorten_errors()
    problems = list(_unknown_names(namespace.get("In", ()), list(kinds)))
    if missing := [name for name in kinds if name not in namespace]:
        problems.append(
            f"{', '.join(missing)}: expected in the parameters cell, found nothing. Run that cell first."
        )
    model = create_model(
        "Parameters", __base__=Parameters, **{name: (STRICT.get(k, k), ...) for name, k in kinds.items()}
    )
    try:
        if not problems:
            return model(**{name: namespace[name] for name in kinds})
    except ValidationError as error:
        problems = [explain(error)]
    raise ParameterError("\n".join(problems)) from None


def shorten_errors() -> None:
    """In IPython, show errors that this package raises itself as one line, without 40 lines of traceback.

    Their messages name the wrong input and how to correct it. Errors of other packages keep their traceback.
    """
    if "get_ipython" not in vars(builtins):
        return

    def show(shell, kind, error, trace, tb_offset=None):
        last = traceback.extract_tb(trace)[-1]
        expected = Path(__file__).parents[1] in Path(last.filename).parents and (last.line or "").startswith(
            "raise"
        )
        shell.showtraceback(
            (kind, error.with_traceback(None), None) if expected else (kind, error, trace), tb_offset
        )

    builtins.get_ipython().set_custom_exc((ValueError, OSError, RuntimeError), show)


def _unknown_names(cells: list[str], known: list[str]) -> Iterator[str]:
    """Yield an error for each name that a cell of parameters assigns and that is no parameter of the notebook."""
    for source in cells:
        names = _assigned(source)
        if not (source.startswith("# Parameters") or set(names) & set(known)):
            continue
        for name in names:
            if name not in known and not name.startswith(PAPERMILL_PREFIX):
                hint = closest(name, known) or f" It has {', '.join(known)}."
                yield f"{name}: expected a parameter of this notebook, got an unknown name.{hint}"


def _assigned(source: str) -> list[str]:
    """Return the names that a cell assigns if it only assigns literals, as cells of parameters do; else []."""
    try:
        body = ast.parse(source).body
    except SyntaxError:  # a cell with a magic
        return []
    targets = [
        part.targets[0] if isinstance(part, ast.Assign) else getattr(part, "target", None) for part in body
    ]
    values = [part.value if isinstance(part, (ast.Assign, ast.AnnAssign)) else None for part in body]
    # A literal contains no name, except `float`, which papermill writes for infinity and NaN.
    used = [node.id for value in values if value for node in ast.walk(value) if isinstance(node, ast.Name)]
    only_literals = all(values) and set(used) <= {"float"}
    return [target.id for target in targets if isinstance(target, ast.Name)] if only_literals else []


def closest(name: str, known: Iterable[str]) -> str:
    """Return " Did you mean X?" for the known name X most similar to `name`, or "" if none is similar."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {close[0]}?" if close else ""


def explain(error: ValidationError) -> str:
    """Return one line per wrong value that pydantic found."""
    lines = []
    for problem in error.errors():
        name, value = problem["loc"][0], problem["input"]
        expected = problem["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
        # papermill's -p turns the run name 2026 into a number.
        todo = f"With papermill, write `-r {name} {value}` instead of `-p {name} {value}`."
        todo = todo if problem["type"] == "string_type" else f"Change {name}."
        lines.append(f"{name}: expected {expected}, got {value!r} ({type(value).__name__}). {todo}")
    return "\n".join(lines)
