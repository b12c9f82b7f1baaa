"""Index every caption or list it as a problem, and write and read tables and indexes of any text."""

import json

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from beit3lib.data.caption_files import write_caption_files
from beit3lib.data.index import build_index, index_images, read_index
from beit3lib.data.motion_blur import image_name
from beit3lib.data.schema import read_table, write_table
from beit3lib.files import FileError


class WordTokenizer:
    """One id per word; words that are not ASCII are unknown."""

    def __init__(self):
        self.words = ["<s>", "<pad>", "</s>", "<unk>"]

    def encode(self, text, add_special_tokens):
        assert not add_special_tokens
        self.words += [w for w in dict.fromkeys(text.split()) if w not in self.words and w.isascii()]
        return [self.words.index(word) if word in self.words else 3 for word in text.split()]

    def decode(self, ids):
        return " ".join(self.words[i] for i in ids)


@pytest.fixture
def tokenizer():
    return WordTokenizer()


CAPTIONS = {
    "caption_vehicle": "It turns left. A man in a coat. He is near. The road is wet. It is dark.",
    "caption_pedestrian": "He walks. A man in his 30s. He is behind the car. The road is dry. It is bright.",
}
ABOUT = {"split": "train", "source": "wts", "view": "overhead_view"}


@pytest.fixture
def phases():
    videos = (("2023_a", "a_1.mp4"), ("2023_a", "a_192.168.0.14_2.mp4"), ("video7", "video7.mp4"))
    rows = [(*names, image_name(names[1], n), str(n), n) for names in videos for n in (0, 1)]
    table = pd.DataFrame(rows, columns=["scenario", "video", "image", "label", "phase"])
    return table.assign(**ABOUT, **CAPTIONS)


@pytest.fixture
def run(tmp_path, phases):
    write_caption_files(phases, tmp_path / "captions")
    (tmp_path / "images").mkdir()
    for image in phases["image"]:
        Image.new("RGB", (8, 8)).save(tmp_path / "images" / image)
    return tmp_path


def build(run, tokenizer, phases, **options):
    out = run / "coco_captioning.train.jsonl"
    return build_index(run / "captions", run / "images", tokenizer, out, phases, **options)


def test_every_caption_is_paired_with_every_video(run, tokenizer, phases):
    report = build(run, tokenizer, phases)
    assert report.problems == [] and report.skipped == report.cut == 0
    assert report.lines == report.captions == len(phases) * 10 and report.images == len(phases)
    lines = read_index(report.path)
    for line in lines.itertuples():
        assert tokenizer.decode(line.text_segment) == line.caption
        assert line.image_path == f"images/{image_name(line.video, line.phase)}"
        assert (run / line.image_path).is_file()
    assert (lines.groupby("image_path")["image_id"].nunique() == 1).all()
    assert lines["image_id"].nunique() == len(phases)
    assert set(lines["view"]) == {"overhead_view"}
    counts = "60 captions, 60 lines, 6 images; longest caption 5 tokens"
    assert str(report) == f"coco_captioning.train.jsonl: {counts}"


@pytest.mark.parametrize("size", [0, 300])
def test_captions_without_an_image_are_counted_and_listed(run, tokenizer, phases, size):
    broken = run / "images" / "avga_1phase1.jpg"
    whole = broken.read_bytes()
    broken.unlink()
    if size:
        broken.write_bytes(whole[:size])
    report = build(run, tokenizer, phases)
    assert report.skipped == 10 and report.lines + report.skipped == report.captions
    (problem,) = report.problems
    assert problem.where == "2023_a/a_1.mp4 phase 1" and "10 lines skipped: " in problem.what
    report = index_images(phases, run / "images", run / "coco_captioning.test.jsonl")
    assert report.skipped == len(report.problems) == 1 == len(phases) - report.lines
    lines = read_index(report.path)
    assert set(lines["text_segment"]) == set(lines["caption"]) == set(lines["subject"]) == {None}


def test_changed_words_and_cut_captions_are_listed_and_kept(run, tokenizer, phases):
    phases.loc[0, "caption_vehicle"] = "The road is wet 晴れ."
    phases.loc[phases["video"] == "video7.mp4", "caption_vehicle"] = "It turns " + "left " * 62 + "."
    write_caption_files(phases, run / "captions")
    report = build(run, tokenizer, phases)
    assert report.cut == 2 and report.skipped == 0 and report.longest == 65 and ", 2 cut" in str(report)
    lossy, cut = sorted(report.problems, reverse=True)
    assert lossy.where == "vehicle road" and "1 captions with characters that the tokenizer" in lossy.what
    assert cut.where == "vehicle moving" and "2 captions of more than 62 tokens" in cut.what
    assert build(run, tokenizer, phases, max_tokens=67).cut == 0


GOOD = {"image_path": "a.jpg", "text_segment": [5, 6], "image_id": 0}


def test_indexes_of_the_reference_or_from_windows_are_read(tmp_path):
    path = tmp_path / "coco_captioning.train.jsonl"
    path.write_text(json.dumps(GOOD) + "\n" + json.dumps(GOOD | {"image_path": "images\\b.jpg"}) + "\n")
    index = read_index(path)
    assert index["image_path"].tolist() == ["a.jpg", "images/b.jpg"]
    assert index.loc[0, ["text_segment", "subject", "phase"]].tolist() == [[5, 6], None, None]


@pytest.mark.parametrize(
    "line, message",
    [
        ('{"image_path": "b.j', "Invalid JSON"),
        (json.dumps(GOOD | {"text_segment": [1.5]}), "text_segment 0: expected a valid integer, found 1.5"),
    ],
)
def test_a_broken_line_is_an_error_with_its_file_and_number(tmp_path, line, message):
    path = tmp_path / "coco_captioning.train.jsonl"
    path.write_text(json.dumps(GOOD) + "\n" + line + "\n")
    with pytest.raises(FileError, match=f"coco_captioning.train.jsonl, line 2: .*{message}"):
        read_index(path)
    path.write_text("")
    with pytest.raises(FileError, match="expected a line"):
        read_index(path)


# Older pandas cuts a field at NUL, which `printable` replaces.
TEXT = st.characters(codec="utf-8", exclude_characters="\0")
LIKE_NUMBERS = ["N/A", "None", "null", "nan", "04", "1e5", " ", "=cmd|' /C calc'!A0"]
CELL = st.none() | st.text(TEXT, min_size=1) | st.sampled_from(LIKE_NUMBERS)
ROW = st.tuples(CELL, st.integers(0, 4), st.floats(-1e6, 1e6))


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(ROW, min_size=1))
def test_any_text_and_number_survives_a_table(tmp_path, rows):
    table = pd.DataFrame(rows, columns=["caption", "phase", "start_s"])
    back = read_table(write_table(tmp_path / "table.csv", table))
    assert list(back.itertuples(index=False, name=None)) == rows


@pytest.mark.parametrize("content", [b"", b'"a","phase"\n"x",1\n"y",2'])
def test_a_broken_table_is_an_error_with_its_name(tmp_path, content):
    path = tmp_path / "phases.csv"
    path.write_bytes(content)
    with pytest.raises(FileError, match="phases.csv: expected"):
        read_table(path)
