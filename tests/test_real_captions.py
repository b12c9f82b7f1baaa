"""Real WTS captions and images: the base model overfits eight of them and generates them word by word."""

import json
from pathlib import Path

import pytest
import sentencepiece

from beit3lib import train
from beit3lib.config import TrainConfig
from beit3lib.pipeline import stages
from beit3lib.run import log

SHARED = Path(__file__).parents[2] / "shared" / "data"
SCENARIO = SHARED / "wts_real"
CAPTIONS = SHARED / "vehicle_captions.json"
ASPECTS = ("moving", "position", "road", "weather")


def train_spm(path):
    """A tokenizer for these captions, in place of beit3.spm."""
    texts = [row["caption_vehicle"] for row in json.loads(CAPTIONS.read_text())]
    options = {"sentence_iterator": iter(texts), "vocab_size": 600, "model_type": "unigram", "minloglevel": 2}
    with open(path, "wb") as writer:
        sentencepiece.SentencePieceTrainer.train(model_writer=writer, **options)
    return path


def keep_eight(index):
    """Reduce the index to the first and last phase of one video, with four aspects of the vehicle."""
    lines = [json.loads(line) for line in index.read_text().splitlines()]
    video = sorted(line["video"] for line in lines)[0]
    own = [line for line in lines if (line["video"], line["subject"]) == (video, "vehicle")]
    ends = {pick(line["phase"] for line in own) for pick in (min, max)}
    kept = [line for line in own if line["phase"] in ends and line["aspect"] in ASPECTS]
    index.write_text("".join(json.dumps(line) + "\n" for line in kept))
    index.with_name("coco_captioning.val.jsonl").write_text(index.read_text())
    return kept


@pytest.mark.long
@pytest.mark.skipif(not SCENARIO.is_dir(), reason=f"no real WTS scenario at {SCENARIO}")
def test_the_base_model_overfits_eight_real_captions(tmp_path):
    spm = train_spm(tmp_path / "captions.spm")
    stages.prepare(tmp_path, "wts", str(SCENARIO))
    stages.index(tmp_path, str(spm))
    kept = keep_eight(tmp_path / "coco_captioning.train.jsonl")
    assert len(kept) == 8 and len({line["caption"] for line in kept}) >= 5
    config = TrainConfig(
        data_path=str(tmp_path),
        output_dir=str(tmp_path),
        sentencepiece_model=str(spm),
        subject="vehicle",
        batch_size=2,
        epochs=200,
        warmup_steps=20,
        lr=5e-4,
        layer_decay=1.0,
        clip_grad=1.0,
        drop_path=0.0,
        flip="none",
        crop_area=1.0,
        num_max_bpe_tokens=128,
        num_workers=0,
        val_images=2,
        samples=2,
        save_every_minutes=0,
        save_ckpt_freq=1000,
    )
    train.finetune(config)
    events = log.read_log(tmp_path / log.LOG_NAME)
    losses = [event["loss"] for event in events if event["event"] == "step"]
    assert losses[-1] < 0.05 < 4 < losses[0]  # the loss is 0 for a perfect prediction
    validation = [event for event in events if event["event"] == "validation"][-1]
    assert validation["score"] == pytest.approx(100)
