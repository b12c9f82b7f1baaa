"""The summary of an ablation study, and measured training runs."""

import math

import pandas as pd
import pytest
from test_train import quick

from benchmarks import ablation


def test_seconds_add_up_within_a_seed_and_scores_are_means_over_seeds():
    rows = [
        ("one", 0, 9.0, 90.0, 0.9, 0.5),
        ("one", 1, 11.0, 94.0, 1.0, 1.0),
        ("ten", 0, 5.0, 80.0, 0.5, 0.4),
    ]
    rows += [("ten", 0, 6.0, 100.0, 1.0, math.nan), ("ten", 1, 4.0, 90.0, 0.8, math.nan)]
    columns = ["variant", "seed", "seconds", "score", "right", "side"]
    table = ablation.summarize(pd.DataFrame(rows, columns=columns))
    means = {"seconds": 10.0, "score": 92.0, "right": 0.95, "side": 0.75}
    assert table.loc["one"].to_dict() == {**means, "score_range": 4.0, "seeds": 2}
    assert table.loc["ten", "side"] == 0.4  # captions without a side are ignored
    assert table.loc["ten", "seconds"] == 7.5 and table.loc["ten", "score"] == 90.0
    assert table.loc["ten", "right"] == pytest.approx(0.775)


def test_a_training_run_of_every_study_is_measured(drawn, tmp_path):
    for study in ("joint", "flip"):
        options = {"subject": "all", "aspect": "all", "epochs": 1, "num_max_bpe_tokens": 8}
        _, changes = next(ablation.variants(study))
        found = ablation.measure(quick(drawn, tmp_path / study, **{**options, **changes}))
        assert found["seconds"] > 0 and found["score"] >= 0
        assert 0 <= found["right"] <= 1 and 0 <= found["side"] <= 1
