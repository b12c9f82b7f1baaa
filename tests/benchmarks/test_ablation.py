"""Studies: which fine-tunings belong to one, how their figures are put together, and a short one run whole."""

import json
import math

import pandas as pd
import pytest
from conftest import draw_run

from beit3lib.files import write_json
from beit3lib.pipeline import steps
from beit3lib.sample import draw as sample
from benchmarks import ablation


def test_ten_models_stand_beside_one_and_each_flip_beside_the_others():
    joint = list(ablation.runs_of("joint"))
    assert [way for way, _ in joint] == ["one model", *["ten models"] * 10]
    assert len({tuple(options.values()) for _, options in joint[1:]}) == 10
    assert [way for way, _ in ablation.runs_of("flip")] == ["swap", "recipe", "none"]


def test_seconds_add_up_within_a_seed_and_scores_are_means_over_seeds():
    rows = [("one", 0, 9.0, 90.0, 0.9, 0.5), ("one", 1, 11.0, 94.0, 1.0, 1.0)]
    rows += [("ten", 0, 5.0, 80.0, 0.5, 0.4), ("ten", 0, 6.0, 100.0, 1.0, math.nan), ("ten", 1, 4.0, 90.0, 0.8, math.nan)]
    table = ablation.summarise(pd.DataFrame(rows, columns=["way", "seed", "seconds", "score", "right", "side"]))
    means = {"seconds": 10.0, "score": 92.0, "right": 0.95, "side": 0.75}
    assert table.loc["one"].to_dict() == {**means, "score_spread": 4.0, "seeds": 2}
    assert table.loc["ten", "side"] == 0.4  # of what states a side
    assert table.loc["ten", "seconds"] == 7.5 and table.loc["ten", "score"] == 90.0
    assert table.loc["ten", "right"] == pytest.approx(0.775)


def test_a_study_of_flips_on_a_few_drawings(tmp_path, capsys):
    run = tmp_path / "run"
    draw_run(run, train=4, val=2)
    (run / steps.PHASES_NAME).touch()
    (run / steps.SPM_NAME).write_bytes(sample.SPM_PATH.read_bytes())
    write_json(run / steps.SUMMARY_NAME, {"prepare": {"dataset": "sample"}})
    ablation.main(["flip", "--seeds", "1", "--epochs", "1", "--run", str(run), "--out", str(tmp_path / "a.json")])
    told = json.loads((tmp_path / "a.json").read_text())
    assert [way["way"] for way in told["ways"]] == ["swap", "recipe", "none"] and len(told["rows"]) == 3
    assert all(0 <= row["right"] <= 1 and row["score"] >= 0 and row["seconds"] > 0 for row in told["rows"])
    said = capsys.readouterr().out
    assert "recipe, seed 0 recipe position:" in said and "disagree" in said and (tmp_path / "a.png").stat().st_size > 10_000
