"""Captions in = lines out + listed problems, and a line decodes back to its caption."""

import json

import pandas as pd
import pytest
from PIL import Image

from beit3lib.data.aspects import write_caption_files
from beit3lib.data.index import BrokenIndexError, build_index, index_images, read_index
from beit3lib.sample import draw as sample
from beit3lib.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(sample.SPM_PATH)


@pytest.fixture
def table():
    rows = []
    for scenario, cameras in (("2023_a", ["a_1.mp4", "a_192.168.0.14_2.mp4"]), ("video7", ["video7.mp4"])):
        for video in cameras:
            for phase in (0, 1):
                scene = sample.Scene(side="left" if phase else "right")
                captions = {f"caption_{s}": sample.full_caption(scene, s) for s in ("vehicle", "pedestrian")}
                about = {
                    "split": "train",
                    "source": "wts",
                    "view": "overhead_view",
                    "label": str(phase),
                    "phase": phase,
                }
                rows.append({"scenario": scenario, "video": video, **about, **captions})
    return pd.DataFrame(rows)


@pytest.fixture
def run(tmp_path, table):
    write_caption_files(table, tmp_path / "captions")
    (tmp_path / "images").mkdir()
    for row in table.itertuples():
        name = f"avg{row.video.removesuffix('.mp4')}phase{row.phase}.jpg"
        Image.new("RGB", (8, 8)).save(tmp_path / "images" / name)
    return tmp_path


def build(run, tokenizer, phases=None):
    return build_index(run / "captions", run / "images", tokenizer, run / "coco_captioning.train.jsonl", phases)


def test_every_caption_is_paired_with_every_video_of_its_scenario(run, tokenizer, table):
    report = build(run, tokenizer, table)
    assert report.problems == [] and report.left_out == 0
    assert report.lines == report.captions == len(table) * 10 and report.images == len(table)
    lines = read_index(report.path)
    for line in lines.itertuples():
        assert tokenizer.decode(line.text_segment) == line.caption
        assert (run / line.image_path).is_file()
    assert lines.groupby("image_path")["image_id"].nunique().max() == 1 and lines["image_id"].nunique() == len(table)
    assert set(lines["view"]) == {"overhead_view"}


def test_a_line_is_what_the_recipe_reads(run, tokenizer):
    line = json.loads(build(run, tokenizer).path.read_text(encoding="utf-8").splitlines()[0])
    assert isinstance(line["image_path"], str) and isinstance(line["image_id"], int)
    assert all(isinstance(i, int) for i in line["text_segment"])
    assert tokenizer.bos_token_id not in line["text_segment"] and tokenizer.eos_token_id not in line["text_segment"]


def test_captions_without_image_are_counted_and_listed(run, tokenizer):
    (run / "images" / "avga_1phase1.jpg").unlink()
    report = build(run, tokenizer)
    assert report.left_out == 10 and report.lines + report.left_out == report.captions
    assert [p.where for p in report.problems] == ["a_1.mp4 phase 1"] and "10 captions" in report.problems[0].what


def test_a_picture_that_cannot_be_opened_is_left_out_and_listed(run, tokenizer, table):
    broken = run / "images" / "avga_1phase1.jpg"
    broken.write_bytes(broken.read_bytes()[:300])
    report = build(run, tokenizer)
    assert report.left_out == 10 and report.lines + report.left_out == report.captions
    assert "10 captions, but avga_1phase1.jpg cannot be opened" in report.problems[0].what
    table["image"] = [f"avg{v.removesuffix('.mp4')}phase{p}.jpg" for v, p in zip(table["video"], table["phase"], strict=True)]
    report = index_images(table, run / "images", run / "coco_captioning.test.jsonl")
    assert report.left_out == 1 == len(table) - report.lines and "cannot be opened" in report.problems[0].what
    Image.new("RGB", (8, 8)).save(broken)
    assert build(run, tokenizer).left_out == 0


@pytest.mark.parametrize("name", ["a_1phase1.jpg", "a_1phase1.png", "avga_1phase1.png"])
def test_all_spellings_of_an_image_name_are_read(run, tokenizer, name):
    (run / "images" / "avga_1phase1.jpg").unlink()
    Image.new("RGB", (8, 8)).save(run / "images" / name)
    report = build(run, tokenizer)
    assert report.left_out == 0 and f"images/{name}" in set(read_index(report.path)["image_path"])


def test_words_the_tokenizer_cannot_write_are_reported_and_kept(run, tokenizer, table):
    table.loc[0, "caption_vehicle"] = "The weather is 晴れ."
    write_caption_files(table, run / "captions")
    report = build(run, tokenizer)
    assert any("unknown to the tokenizer" in p.what for p in report.problems)


def test_images_without_captions(run, table):
    table["image"] = [f"avg{v.removesuffix('.mp4')}phase{p}.jpg" for v, p in zip(table["video"], table["phase"], strict=True)]
    report = index_images(table, run / "images", run / "coco_captioning.test.jsonl")
    lines = read_index(report.path)
    assert len(lines) == len(table) and lines["text_segment"].isna().all() and lines["caption"].isna().all()


def test_the_seeds_three_keys_are_enough(tmp_path):
    path = tmp_path / "coco_captioning.train.jsonl"
    path.write_text('{"image_path": "a.jpg", "text_segment": [5, 6], "image_id": 0}\n')
    assert read_index(path).loc[0, "text_segment"] == [5, 6] and read_index(path)["subject"].isna().all()


def test_broken_index_files_are_named(tmp_path):
    path = tmp_path / "coco_captioning.train.jsonl"
    with pytest.raises(FileNotFoundError, match="run notebook 2 first"):
        read_index(path)
    path.write_text('{"image_path": "a.jpg", "text_segment": [5], "image_id": 0}\n{"image_path": "b.j')
    with pytest.raises(BrokenIndexError, match="line 2: expected a JSON object"):
        read_index(path)
    path.write_text('{"image_path": "a.jpg"}\n')
    with pytest.raises(BrokenIndexError, match="line 1.*missing text_segment, image_id"):
        read_index(path)
    path.write_text("")
    with pytest.raises(BrokenIndexError, match="empty index"):
        read_index(path)


def test_no_images_is_one_clear_message(run, tokenizer):
    import shutil

    shutil.rmtree(run / "images")
    with pytest.raises(FileNotFoundError, match="expected a folder of motion-blur images, found none; run notebook 1 first"):
        build(run, tokenizer)
