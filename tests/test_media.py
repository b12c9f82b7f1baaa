"""Photos and videos outside of a run are captioned as those of a run, one by one."""

import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from clips import write_gray
from PIL import Image

from beit3lib.captioner import Captioner
from beit3lib.checkpoint import load_captioner, load_pretrained, save_captioner
from beit3lib.data.motion_blur import motion_blur
from beit3lib.data.predictions import read_meta, read_predictions
from beit3lib.data.schema import ASPECTS, SUBJECTS
from beit3lib.media import caption_media, webvtt
from beit3lib.model import CaptionModel, model_config
from beit3lib.sample import CHECKPOINT_PATH, MODEL, SPM_PATH
from beit3lib.tokenizer import load_tokenizer

QUESTIONS = [
    {"question": "Weather?", "a": "clear", "b": "rainy", "correct": "A"},
    {"question": "Color?", "a": "red", "b": "blue"},
]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A checkpoint folder of a tiny model with ten caption types that answers questions."""
    tokenizer = load_tokenizer(SPM_PATH)
    torch.manual_seed(0)
    model = CaptionModel(model_config(MODEL, vocab_size=len(tokenizer) + 8, answers=True))
    load_pretrained(model, CHECKPOINT_PATH)
    types = [(subject, aspect) for subject in SUBJECTS for aspect in ASPECTS]
    captioner = Captioner(model.eval(), tokenizer, types, max_tokens=8)
    return save_captioner(captioner, tmp_path_factory.mktemp("checkpoint") / "best", SPM_PATH)


@pytest.fixture
def captioned(monkeypatch):
    """The number of images of every call of the model."""
    sizes, generate = [], Captioner.generate

    def counted(self, memory, *arguments, **options):
        sizes.append(len(memory.keys[0]))
        return generate(self, memory, *arguments, **options)

    monkeypatch.setattr(Captioner, "generate", counted)
    return sizes


@pytest.fixture
def media(tmp_path):
    """A folder with photos, a video in a folder of its own, and broken files."""
    folder = tmp_path / "media"
    (folder / "sub").mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    for name in ("a.jpg", "b.png", "c.avif"):
        Image.fromarray(noise).save(folder / name)
    write_gray(folder / "sub" / "clip.mp4", range(0, 250, 10))  # 2.5 s
    (folder / "broken.jpg").write_text("no image")
    (folder / "broken.mp4").write_text("no video")
    (folder / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic")
    (folder / "notes.txt").write_text("no image")
    return folder


def test_a_photo_is_captioned_as_by_the_captioner(checkpoint, media, tmp_path):
    found = caption_media(checkpoint, media / "c.avif", tmp_path / "out", device="cpu")
    table = read_predictions(tmp_path / "out" / "captions.json")
    captions = {(row.subject, row.aspect): row.caption for row in table.itertuples()}
    assert captions == load_captioner(checkpoint, "cpu").caption(media / "c.avif")
    assert found.problems == [] and set(found.predictions["scenario"]) == {"c.avif"}
    assert Image.open(tmp_path / "out" / table["image"][0]).format == "JPEG"  # browsers show it
    assert found.page == tmp_path / "out" / "gallery.html" and found.page.is_file()


def test_a_folder_is_captioned_file_by_file_and_finished_files_are_kept(
    checkpoint, media, tmp_path, captioned
):
    (tmp_path / "q.json").write_text(json.dumps(QUESTIONS))
    options = {"every": 1, "questions": tmp_path / "q.json", "device": "cpu"}
    found = caption_media(checkpoint, media, media / "out", **options)
    assert captioned == [1, 1, 1, 3]
    problems = {problem.where: problem.what for problem in found.problems}
    assert found.failed == sorted(problems) == ["broken.jpg", "broken.mp4", "phone.heic"]
    assert "pillow-heif" in problems["phone.heic"]
    assert found.predictions["scenario"].unique().tolist() == ["a.jpg", "b.png", "c.avif", "sub/clip.mp4"]
    assert len(read_meta(media / "out" / "captions.json")["problems"]) == 3
    cues = (media / "out" / "sub" / "clip.mp4.vtt").read_text()
    assert re.findall(r"^\d.*", cues, re.MULTILINE) == [
        "00:00:00.000 --> 00:00:01.000",
        "00:00:01.000 --> 00:00:02.000",
        "00:00:02.000 --> 00:00:02.500",
    ]
    content = json.loads((media / "out" / "answers.json").read_text())
    asked = [(one["question"], {letter: one[letter] for letter in "ab"}) for one in QUESTIONS]
    own = load_captioner(checkpoint, "cpu").answer(media / "a.jpg", asked)
    assert list(content["answers"]["photos/a.jpg"].values()) == [pytest.approx(one, abs=1e-3) for one in own]
    assert [one["correct"] for one in content["meta"]["questions"]] == ["a", None]
    before = (media / "out" / "captions.json").read_bytes()
    captioned.clear()
    caption_media(checkpoint, media, media / "out", **options)  # what it wrote is not captioned
    assert captioned == [] and (media / "out" / "captions.json").read_bytes() == before
    shutil.copy(media / "b.png", media / "a.jpg")
    shutil.copy(media / "a.jpg", media / "d.png")
    caption_media(checkpoint, media, media / "out", **options)
    assert captioned == [1, 1]  # the changed and the new one
    other = shutil.copytree(checkpoint, tmp_path / "other" / "best")
    weights = bytearray((other / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (other / "model.safetensors").write_bytes(weights)
    captioned.clear()
    caption_media(tmp_path / "other", media, media / "out", **options)
    assert captioned == [1, 1, 1, 1, 3]


@pytest.mark.parametrize("given", ["phases", "every", "annotations", "nothing"])
def test_phases_of_a_video(checkpoint, media, tmp_path, given):
    phases = {"labels": ["3"], "start_time": "1.0", "end_time": 2.0, "caption_vehicle": "It turns & left."}
    phases = [phases, {"labels": ["0"], "start_time": 0, "end_time": 0}, {"labels": "?"}]
    folder = tmp_path / "annotations"
    folder.mkdir()
    content = {"overhead_videos": ["x.mp4", "clip.mp4"], "event_phase": phases}
    (folder / "any_caption.json").write_text(json.dumps(content))
    (folder / "broken_caption.json").write_text("[")
    values = {"phases": "0-1,1-2.5", "every": 1.25, "annotations": folder}
    options = {given: values[given]} if given in values else {}
    found = caption_media(checkpoint, media / "sub" / "clip.mp4", tmp_path / "out", **options, device="cpu")
    spans = {"phases": [(0, 1), (1, 2.5)], "every": [(0, 1.25), (1.25, 2.5)], "nothing": [(0, 2.5)]}
    spans = spans.get(given, [(0, 0), (1, 2)])
    first = found.predictions.drop_duplicates("image")
    assert list(zip(first["start_s"], first["end_s"], strict=True)) == spans
    blurred = motion_blur(media / "sub" / "clip.mp4", spans).images
    for image, expected in zip(first["image"], blurred, strict=True):  # JPEG changes a pixel by few levels
        difference = np.asarray(Image.open(tmp_path / "out" / image), float) - np.asarray(expected)
        assert np.abs(difference).max() < 4
    saved = json.loads((tmp_path / "out" / "captions.json").read_text())["predictions"]
    assert (saved[0]["start_s"], saved[-1]["end_s"]) == (spans[0][0], spans[-1][1])
    assert len((tmp_path / "out" / "captions.vtt").read_text().split("-->")) == len(spans) + 1
    page = found.page.read_text()
    assert f'"../media/sub/clip.mp4#t=0.000,{spans[0][1]:.3f}"' in page
    if given == "annotations":
        assert first["phase"].tolist() == [0, 3] and len(found.problems) == 3  # no length, no label, no JSON
        known = found.predictions[found.predictions["reference"].notna()]
        assert known.loc[known["aspect"] == "moving", "reference"].tolist() == ["It turns & left."]
        assert set(known["subject"]) == {"vehicle"} and known["official_score"].notna().all()
    else:
        assert first["label"].tolist() == [f"{a:g}–{b:g} s" for a, b in spans] and not found.problems


def test_webvtt_is_escaped_and_has_one_cue_per_phase():
    rows = [(60.0, 60.0, "vehicle", "moving", "a < b --> c &\n\nd."), (3600.5, 3601.25, "", "", "e")]
    columns = ["start_s", "end_s", "subject", "aspect", "caption"]
    assert webvtt(pd.DataFrame(rows, columns=columns)) == (
        "WEBVTT\n\n00:01:00.000 --> 00:01:00.100\nvehicle: a &lt; b --&gt; c &amp; d.\n\n"
        "01:00:00.500 --> 01:00:01.250\ne\n"
    )


@pytest.mark.parametrize(
    "source, options, message",
    [
        ("media/broken.jpg", {}, "broken.jpg: expected an image"),
        ("", {}, "out: expected another folder than that of the photos"),
        ("media/sub/clip.mp4", {"phases": "0-1,2-1"}, "phases: expected start-end in seconds"),
    ],
)
def test_wrong_input_is_named(checkpoint, media, tmp_path, source, options, message):
    with pytest.raises(ValueError, match=message):
        out = tmp_path / "out" if source else tmp_path
        caption_media(checkpoint, tmp_path / source, out, device="cpu", **options)
