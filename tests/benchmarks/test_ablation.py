"""The training runs of an ablation study, the summary of their figures, and one measured training run."""

import math

import pandas as pd
import pytest
from test_train import quick

from benchmarks import ablation


def test_a_study_has_one_training_run_per_variant_and_caption_type():
    joint = list(ablation.variants("joint"))
    assert [variant for variant, _ in joint] == ["one model", *["ten models"] * 10]
    assert len({tuple(options.values()) for _, options in joint[1:]}) == 10
    assert [variant for variant, _ in ablation.variants("flip")] == ["swap", "recipe", "none"]


def test_seconds_add_up_within_a_seed_and_scores_are_means_over_seeds():
    rows = [("one", 0, 9.0, 90.0, 0.9, 0.5), ("one", 1, 11.0, 94.0, 1.0, 1.0)]
    rows += [
        ("ten", 0, 5.0, 80.0, 0.5, 0.4),
        ("ten", 0, 6.0, 100.0, 1.0, math.nan),
        ("ten", 1, 4.0, 90.0, 0.8, math.nan),
    ]
    table = ablation.summarize(
        pd.DataFrame(rows, columns=["variant", "seed", "seconds", "score", "right", "side"])
    )
    means = {"seconds": 10.0, "score": 92.0, "right": 0.95, "side": 0.75}
    assert table.loc["one"].to_dict() == {**means, "score_range": 4.0, "seeds": 2}
    assert table.loc["ten", "side"] == 0.4  # captions without a side are ignored
    assert table.loc["ten", "seconds"] == 7.5 and table.loc["ten", "score"] == 90.0
    assert table.loc["ten", "right"] == pytest.approx(0.775)


@pytest.mark.parametrize(
    "options", [{"aspect": "position", "flip": "swap"}, {"subject": "all", "aspect": "all"}]
)
def test_a_training_run_is_measured(drawn, tmp_path, options):
    found = ablation.measure(quick(drawn, tmp_path, epochs=1, num_max_bpe_tokens=8, **options))
    assert (
        found["seconds"] > 0 and found["score"] >= 0 and 0 <= found["right"] <= 1 and 0 <= found["side"] <= 1
    )
