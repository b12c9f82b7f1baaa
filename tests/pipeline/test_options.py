"""A setting that is unknown, misspelt or mistyped ends the run with its name; what YAML mangled is mended."""

from dataclasses import dataclass
from typing import Literal

import pytest

from beit3lib.pipeline.settings import CHECKED, OptionError, between, build, check_fields, optional, read_parameters


@dataclass(frozen=True)
class Settings:
    lr: float = 1e-4
    epochs: int = 3
    precision: Literal["auto", "fp32"] = "auto"
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float | None = None
    on: bool = False

    def __post_init__(self):
        check_fields(self)


def test_a_number_that_yaml_made_a_text_is_mended():
    assert Settings(lr="1e-4").lr == 1e-4 and Settings(lr=1).lr == 1.0
    assert Settings(betas=["0.9", 1]).betas == (0.9, 1.0)
    assert Settings(clip=None).clip is None and Settings(clip="2").clip == 2.0


@pytest.mark.parametrize(
    "name, value", [("lr", "fast"), ("epochs", 2.5), ("epochs", True), ("precision", "half"), ("on", 1), ("betas", (1, 2, 3))]
)
def test_a_wrong_value_is_named_with_what_was_expected(name, value):
    with pytest.raises(OptionError, match=f"^{name}: expected .*, found "):
        Settings(**{name: value})


def test_every_unknown_name_is_told_at_once_with_the_closest_known():
    with pytest.raises(OptionError) as error:
        build(Settings, {"lrr": 1, "epoch": 2, "zzz": 3})
    assert "lrr (did you mean lr?)" in str(error.value) and "epoch (did you mean epochs?)" in str(error.value)
    assert "zzz" in str(error.value) and "precision" in str(error.value)


def test_parameters_of_a_notebook_are_checked_and_written_back():
    names = {"lr": "1e-4", "run": "demo", "__name__": "__main__", "In": [], "jobs": 0, "note": None}
    found = read_parameters(names, lr=float, run=str, jobs=between(0, 8), note=optional(str))
    assert found.lr == names["lr"] == 1e-4 and names[CHECKED]
    assert "<td>lr</td><td>0.0001</td>" in found._repr_html_()


def test_a_misspelt_parameter_ends_the_run_but_names_of_later_cells_do_not():
    names = {"lr": 1e-4, "lrr": 1}
    with pytest.raises(OptionError, match=r"lrr \(did you mean lr\?\)"):
        read_parameters(names, lr=float)
    again = {"lr": 1e-4, "made_later": 1, CHECKED: True}
    assert read_parameters(again, lr=float).lr == 1e-4


@pytest.mark.parametrize("value", [-1, 9, 1.5, "3", None, True])
def test_a_number_outside_its_range_is_refused(value):
    with pytest.raises(OptionError, match="jobs: expected a whole number from 0 to 8"):
        read_parameters({"jobs": value}, jobs=between(0, 8))


def test_a_parameters_cell_that_was_not_run_is_said():
    with pytest.raises(OptionError, match="lacks run"):
        read_parameters({}, run=str)


def test_html_in_a_value_is_shown_as_text():
    assert "&lt;b&gt;" in read_parameters({"run": "<b>"}, run=str)._repr_html_()
