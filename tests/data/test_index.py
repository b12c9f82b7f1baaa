"""Index every caption or list it as a problem, and write and read tables and indexes of any text."""

import json
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import beit3lib
from beit3lib.data.caption_files import write_caption_files
from beit3lib.data.index import build_index, index_images, read_index
from beit3lib.data.motion_blur import image_name
from beit3lib.data.schema import read_table, write_table
from beit3lib.files import FileError

SPM = Path(beit3lib.__file__).parent / "sample" / "pretrained" / "sample.spm"


class WordTokenizer:
    """One id per word; words that are not ASCII are unknown."""

    unk_token_id = 3

    def __init__(self):
        self.words = ["<s>", "<pad>", "</s>", "<unk>"]

    def encode(self, text, add_special_tokens):
        assert not add_special_tokens
        self.words += [
            word for word in dict.fromkeys(text.split()) if word not in self.words and word.isascii()
        ]
        return [self.words.index(word) if word in self.words else self.unk_token_id for word in text.split()]

    def decode(self, ids):
        return " ".join(self.words[i] for i in ids)


@pytest.fixture
def tokenizer():
    return WordTokenizer()


CAPTIONS = {
    "caption_vehicle": "It turns left. A man in a coat. He is near. The road is wet. It is dark.",
    "caption_pedestrian": "He walks. A man in his 30s. He is behind the car. The road is dry. It is bright.",
}


@pytest.fixture
def phases():
    rows = []
    for scenario, videos in (("2023_a", ["a_1.mp4", "a_192.168.0.14_2.mp4"]), ("video7", ["video7.mp4"])):
        for video in videos:
            for phase in (0, 1):
                about = {
                    "split": "train",
                    "source": "wts",
                    "view": "overhead_view",
                    "label": str(phase),
                    "phase": phase,
                }
                rows.append(
                    {"scenario": scenario, "video": video, "image": image_name(video, phase)}
                    | about
                    | CAPTIONS
                )
    return pd.DataFrame(rows)


@pytest.fixture
def run(tmp_path, phases):
    write_caption_files(phases, tmp_path / "captions")
    (tmp_path / "images").mkdir()
    for image in phases["image"]:
        Image.new("RGB", (8, 8)).save(tmp_path / "images" / image)
    return tmp_path


def build(run, tokenizer, phases=None, **options):
    return build_index(
        run / "captions", run / "images", tokenizer, run / "coco_captioning.train.jsonl", phases, **options
    )


@pytest.mark.parametrize("by_name", [False, True])
def test_every_caption_is_paired_with_every_video_of_its_scenario(run, tokenizer, phases, by_name):
    report = build(run, tokenizer, None if by_name else phases)
    assert report.problems == [] and report.skipped == report.cut == 0
    assert report.lines == report.captions == len(phases) * 10 and report.images == len(phases)
    lines = read_index(report.path)
    for line in lines.itertuples():
        assert tokenizer.decode(line.text_segment) == line.caption
        assert (
            run / line.image_path
        ).is_file() and line.image_path == f"images/{image_name(line.video, line.phase)}"
    assert lines.groupby("image_path")["image_id"].nunique().max() == 1 and lines[
        "image_id"
    ].nunique() == len(phases)
    assert set(lines["view"]) == ({None} if by_name else {"overhead_view"})
    assert (
        str(report)
        == "coco_captioning.train.jsonl: 60 captions, 60 lines, 6 images; longest caption 5 tokens"
    )


def test_a_line_has_the_keys_of_the_recipe(run):
    from beit3lib.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(SPM)
    line = json.loads(build(run, tokenizer).path.read_text(encoding="utf-8").split("\n")[0])
    assert isinstance(line["image_path"], str) and isinstance(line["image_id"], int)
    assert all(isinstance(i, int) for i in line["text_segment"])
    assert (
        tokenizer.bos_token_id not in line["text_segment"]
        and tokenizer.eos_token_id not in line["text_segment"]
    )


def test_videos_of_one_name_in_two_scenarios_keep_their_own_images(run, tokenizer, phases):
    other = phases[phases["scenario"] == "video7"].assign(
        scenario="other", image=["avgother_0.jpg", "avgother_1.jpg"]
    )
    for image in other["image"]:
        Image.new("RGB", (8, 8)).save(run / "images" / image)
    both = pd.concat([phases, other], ignore_index=True)
    write_caption_files(both, run / "captions")
    lines = read_index(build(run, tokenizer, both).path)
    assert set(lines.loc[lines["scenario"] == "other", "image_path"]) == {
        "images/avgother_0.jpg",
        "images/avgother_1.jpg",
    }
    without = build(run, tokenizer, phases)
    assert without.skipped == 20 and {p.where.split("/")[0] for p in without.problems} == {"other"}


@pytest.mark.parametrize("by_name", [False, True])
def test_captions_without_an_image_are_counted_and_listed(run, tokenizer, phases, by_name):
    (run / "images" / "avga_1phase1.jpg").unlink()
    report = build(run, tokenizer, None if by_name else phases)
    assert report.skipped == 10 and report.lines + report.skipped == report.captions
    assert [p.where for p in report.problems] == [
        "2023_a/a_1.mp4 phase 1"
    ] and "10 captions" in report.problems[0].what


def test_an_image_that_cannot_be_opened_is_skipped_and_listed(run, tokenizer, phases):
    broken = run / "images" / "avga_1phase1.jpg"
    broken.write_bytes(broken.read_bytes()[:300])
    report = build(run, tokenizer, phases)
    assert report.skipped == 10 and report.lines + report.skipped == report.captions
    assert "10 captions, but avga_1phase1.jpg cannot be opened" in report.problems[0].what
    report = index_images(phases, run / "images", run / "coco_captioning.test.jsonl")
    assert report.skipped == 1 == len(phases) - report.lines and "cannot be opened" in report.problems[0].what
    Image.new("RGB", (8, 8)).save(broken)
    assert build(run, tokenizer, phases).skipped == 0


def test_words_that_the_tokenizer_does_not_know_are_reported_and_kept(run, tokenizer, phases):
    phases.loc[0, "caption_vehicle"] = "The weather is 晴れ."
    write_caption_files(phases, run / "captions")
    report = build(run, tokenizer)
    assert any("unknown to the tokenizer" in p.what for p in report.problems) and report.skipped == 0


def test_cut_captions_are_counted_and_listed_by_caption_type(run, tokenizer, phases):
    phases.loc[phases["video"] == "video7.mp4", "caption_vehicle"] = "It turns " + "left " * 62 + "."
    write_caption_files(phases, run / "captions")
    report = build(run, tokenizer, phases)
    assert report.cut == 2 and report.skipped == 0 and report.longest == 65 and ", 2 cut" in str(report)
    (problem,) = report.problems
    assert problem.where == "vehicle moving" and "2 captions of more than 62 tokens" in problem.what
    assert build(run, tokenizer, phases, max_tokens=67).cut == 0


def test_images_without_captions_get_one_line_each(run, phases):
    report = index_images(phases, run / "images", run / "coco_captioning.test.jsonl")
    lines = read_index(report.path)
    assert len(lines) == len(phases)
    assert set(lines["text_segment"]) == set(lines["caption"]) == set(lines["subject"]) == {None}
    assert lines["scenario"].tolist() == phases["scenario"].tolist()


def test_an_index_with_only_the_keys_of_the_recipe_is_read(tmp_path):
    path = tmp_path / "coco_captioning.train.jsonl"
    path.write_text('{"image_path": "a.jpg", "text_segment": [5, 6], "image_id": 0}\n')
    index = read_index(path)
    assert (
        index.loc[0, "text_segment"] == [5, 6]
        and index.loc[0, "subject"] is None
        and index.loc[0, "phase"] is None
    )


GOOD = {"image_path": "a.jpg", "text_segment": [5], "image_id": 0}


@pytest.mark.parametrize(
    "line, message",
    [
        ('{"image_path": "b.j', "expected JSON"),
        ("5", "expected an object"),
        ("null", "expected an object"),
        ('["a"]', "expected an object"),
        ("[" * 100_000, "nested too deeply"),
        ('{"image_path": "a.jpg"}', "found no text_segment, image_id"),
        (json.dumps(GOOD | {"image_path": None}), "expected image_path to be text, found None"),
        (json.dumps(GOOD | {"image_path": 5}), "expected image_path to be text, found 5"),
        (json.dumps(GOOD | {"text_segment": "words"}), "expected text_segment"),
        (json.dumps(GOOD | {"text_segment": [1.5]}), "expected text_segment"),
        (json.dumps(GOOD | {"image_id": "x"}), "expected image_id"),
        (json.dumps(GOOD | {"caption": 7}), "expected caption to be text"),
        (json.dumps(GOOD | {"aspect": ["road"]}), "expected aspect to be text"),
        (
            json.dumps(GOOD | {"subject": "dog"}),
            "expected subject to be one of vehicle, pedestrian, found 'dog'",
        ),
        (json.dumps(GOOD | {"phase": "1"}), "expected phase to be an integer"),
    ],
)
def test_a_broken_line_is_an_error_with_its_file_and_number(tmp_path, line, message):
    path = tmp_path / "coco_captioning.train.jsonl"
    path.write_text(json.dumps(GOOD) + "\n" + line + "\n")
    with pytest.raises(FileError, match="coco_captioning.train.jsonl, line 2: .*" + message):
        read_index(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
LINE = JSON | st.fixed_dictionaries(
    dict.fromkeys(GOOD, JSON), optional=dict.fromkeys(["subject", "caption", "phase"], JSON)
)


@settings(
    max_examples=100,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(LINE)
def test_any_line_is_read_or_is_an_error_with_the_file(tmp_path, line):
    path = tmp_path / "coco_captioning.train.jsonl"
    path.write_text(json.dumps(line) + "\n")
    try:
        assert len(read_index(path)) == 1
    except FileError as error:
        assert str(error).startswith(f"{path}")


def test_a_missing_or_empty_index_is_one_clear_error(tmp_path):
    path = tmp_path / "coco_captioning.train.jsonl"
    with pytest.raises(FileNotFoundError, match="Run notebook 2 first"):
        read_index(path)
    path.write_text("")
    with pytest.raises(FileError, match="expected at least one line"):
        read_index(path)


LINE_ENDS = "a\u2028b\u2029c\x85d\re\nf\x0bg"


def test_unicode_line_ends_in_captions_and_names_survive(run, tokenizer, phases):
    phases["caption_vehicle"] = f"It turns {LINE_ENDS}."
    phases["scenario"] = "s\u2028\x85"
    write_caption_files(phases, run / "captions")
    report = build(run, tokenizer, phases)
    lines = read_index(report.path)
    assert len(lines) == report.lines and set(lines["scenario"]) == {"s\u2028\x85"}
    assert len(report.path.read_text(encoding="utf-8").splitlines()) == report.lines


TEXT = st.characters(
    codec="utf-8", exclude_characters="\0"
)  # older pandas cuts a field at NUL, which `printable` replaces


@settings(
    max_examples=100,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    st.lists(
        st.tuples(st.none() | st.text(TEXT, min_size=1), st.integers(0, 4), st.floats(-1e6, 1e6)), min_size=1
    )
)
def test_any_text_and_number_survives_a_table(tmp_path, rows):
    table = pd.DataFrame(rows, columns=["caption", "phase", "start_s"])
    back = read_table(write_table(tmp_path / "table.csv", table))
    assert list(back.itertuples(index=False, name=None)) == rows


@pytest.mark.parametrize(
    "text",
    ["N/A", "NA", "None", "null", "nan", "NaN", "04", "1e5", "True", " ", "=cmd|' /C calc'!A0", LINE_ENDS],
)
def test_text_that_looks_like_a_number_or_nothing_stays_text(tmp_path, text):
    table = pd.DataFrame({"scenario": [text, "x"], "caption": [None, text]})
    back = read_table(write_table(tmp_path / "table.csv", table), ["scenario", "caption"])
    assert back["scenario"].tolist() == [text, "x"] and back["caption"].tolist() == [None, text]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"[1, 2]\n",
        b"\x89PNG\r\n\x1a\n\0\0",
        b"\xff\xfe\0",
        b'"other"\n1\n',
        b'"a","phase"\n"x",y\n',
        b'"a","phase"\n"x"\n',
    ]
    + [b'"a","phase"\n"x",1\n"y', b'"a","phase"\n"x",1\n"y",2'],
)
def test_a_broken_table_is_an_error_with_its_name(tmp_path, content):
    path = tmp_path / "phases.csv"
    path.write_bytes(content)
    with pytest.raises(FileError, match="phases.csv: expected"):
        read_table(path, ["a", "phase"])
    with pytest.raises(FileNotFoundError, match="nothing.csv"):
        read_table(tmp_path / "nothing.csv")
