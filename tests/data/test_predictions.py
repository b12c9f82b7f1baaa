"""Predictions files: written and read without loss, and one clear error for a file that anyone may have made."""

import json
import subprocess
import sys

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from beit3lib.data.predictions import (
    COLUMNS,
    is_inside,
    predictions_table,
    read_meta,
    read_predictions,
    write_predictions,
)
from beit3lib.files import FileError

RECORD = {
    "image": "images/a.jpg", "scenario": "s1", "split": "val", "source": "wts", "view": "overhead_view", "video": "a.mp4",
    "label": "0", "phase": 0, "subject": "vehicle", "aspect": "road", "caption": "The road is wide.", "log_prob": -1.25,
    "word_probs": [0.5, 0.25, 1.0, 0.9], "reference": "The road is narrow.", "official_score": 42.5,
}  # fmt: skip


def write(tmp_path, *records, text=None):
    path = tmp_path / "predictions.json"
    path.write_text(json.dumps({"meta": {}, "predictions": list(records)}) if text is None else text)
    return path


def test_predictions_are_written_and_read_without_loss(tmp_path):
    unknown = {
        **RECORD,
        "reference": None,
        "official_score": None,
        "phase": None,
        "source": None,
        "log_prob": None,
    }
    odd = {
        **RECORD,
        "caption": "N/A",
        "label": "04",
        "scenario": "null",
        "reference": "",
        "view": 'quote " \u2028 line',
    }
    table = predictions_table([RECORD, unknown, odd])
    path = write_predictions(tmp_path / "new" / "predictions.json", table, {"checkpoint": "best"})
    again = read_predictions(path)
    pd.testing.assert_frame_equal(again.drop(columns="outside"), table)
    assert read_meta(path) == {"checkpoint": "best"} and not again["outside"].any()
    assert list(again.columns) == [*COLUMNS, "outside"] and again["reference"].tolist() == [
        RECORD["reference"],
        None,
        "",
    ]
    assert path.read_text().count("\n") == 6  # one record per line, readable with less and diff


def test_missing_columns_and_values_are_null_and_surrogates_are_replaced(tmp_path):
    table = pd.DataFrame(
        {
            "image": ["a\udce9.jpg"],
            "subject": ["vehicle"],
            "aspect": ["road"],
            "caption": ["x"],
            "phase": [float("nan")],
        }
    )
    record = json.loads(write_predictions(tmp_path / "p.json", table, {}).read_text())["predictions"][0]
    assert record["phase"] is None and record["word_probs"] is None and "\udce9" not in record["image"]
    assert list(record) == list(COLUMNS)


def test_a_failed_write_keeps_the_previous_file(tmp_path):
    path = write(tmp_path, RECORD)
    before = path.read_bytes()
    with pytest.raises(TypeError):
        write_predictions(path, pd.DataFrame([{**RECORD, "caption": object()}]), {})
    assert path.read_bytes() == before and [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"caption": ["a"]}, "expected caption to be a valid string, got list"),
        ({"caption": None}, "expected caption to be a valid string, got NoneType"),
        ({"image": 5}, "expected image to be a valid string, got 5"),
        ({"split": {"a": 1}}, "expected split to be a valid string, got dict"),
        ({"subject": "dog"}, "expected subject to be 'vehicle', 'pedestrian' or '', got 'dog'"),
        ({"phase": 10**400}, "expected phase to be less than or equal to 1000, got 1000"),
        ({"phase": 1.5}, "expected phase to be a valid integer, got 1.5"),
        ({"log_prob": True}, "expected log_prob to be a valid number, got True"),
        ({"official_score": {"bleu": 1}}, "expected official_score to be a valid number, got dict"),
        ({"official_score": 10**400}, "expected official_score to be "),
        ({"word_probs": [[0.5]]}, "expected word_probs to be a valid number, got list"),
        ({"word_probs": "high"}, "expected word_probs to be a valid list, got 'high'"),
    ],
)
def test_a_wrong_value_is_named_with_file_record_and_key(tmp_path, change, message):
    path = write(tmp_path, RECORD, {**RECORD, **change})
    with pytest.raises(FileError) as error:
        read_predictions(path)
    assert str(error.value).startswith(f"{path}, record 2: {message}")


@pytest.mark.parametrize(
    "text, message",
    [
        ("[]", "expected an object"),
        ("{}", "expected the keys meta and predictions"),
        ('{"predictions": 5}', "expected a list under the key predictions, got int"),
        ('{"predictions": [5]}', "record 1: expected an object"),
        ('{"predictions": [' + "[" * 100_000, "nested too deeply"),
        ('{"predictions": [{"image": 1' + "0" * 5000 + "}]}", "expected JSON"),
        ('{"predictions": [{"log_prob": NaN}]}', "NaN is not a JSON number"),
        ('{"predictions": [{"image"', "expected JSON"),
    ],
)
def test_a_file_of_another_form_is_one_error(tmp_path, text, message):
    path = write(tmp_path, text=text)
    with pytest.raises(FileError, match=message) as error:
        read_predictions(path)
    assert str(path) in str(error.value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**400), 10**400) | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from([*COLUMNS, "x"]), inner, max_size=4)
    ),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from(COLUMNS), json_values, min_size=1, max_size=4) | json_values)
def test_whatever_a_record_is_reading_succeeds_or_names_the_file(tmp_path, record):
    changed = {**RECORD, **record} if isinstance(record, dict) else record
    path = write(
        tmp_path, text=json.dumps({"meta": {}, "predictions": [changed]}).replace("Infinity", "1e999")
    )
    try:
        table = read_predictions(path)
    except FileError as error:
        assert str(path) in str(error) and len(str(error)) < 1000
    else:
        write_predictions(tmp_path / "again.json", table, {})


@pytest.mark.parametrize(
    "image", ["../secret.png", "/etc/passwd.png", "images/../../x.png", "C:\\x.png", "\\\\host\\x.png"]
)
def test_images_outside_the_run_folder_are_marked(tmp_path, image):
    assert not is_inside(image)
    assert read_predictions(write(tmp_path, RECORD, {**RECORD, "image": image}))["outside"].tolist() == [
        False,
        True,
    ]


def test_images_below_the_run_folder_are_not_marked():
    assert is_inside("images/avg..2.jpg") and is_inside("a.png") and is_inside("./images/a b.png")
    assert not is_inside("a\0.png")


def test_reading_predictions_loads_no_torch():
    code = "import sys, beit3lib.data.predictions; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
