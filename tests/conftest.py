"""Runs made of drawings, without videos: what index, dataset, training and everything behind them start from."""

import numpy as np
import pandas as pd
import pytest

from beit3lib import sample
from beit3lib.aspects import SUBJECTS, write_caption_files
from beit3lib.index import build_index
from beit3lib.tokenizer import load_tokenizer


def draw_run(folder, train=8, val=4, phases=1, seed=0, spm=sample.SPM_PATH):
    """A run's folder with images, caption files and index of so many drawn scenarios; returns the table of phases."""
    rng, rows = np.random.default_rng(seed), []
    (folder / "images").mkdir(parents=True)
    for split, count in (("train", train), ("val", val)):
        for number in range(count):
            name = f"2023{seed:02d}_{split}_{number:03d}"
            for phase in range(phases):
                scene = sample.Scene(**sample.draw_values(rng))
                image = f"avg{name}phase{phase}.jpg"
                sample.draw_blur(scene, sample.draw_camera(rng)).save(folder / "images" / image, quality=95)
                captions = {f"caption_{subject}": sample.full_caption(scene, subject) for subject in SUBJECTS}
                about = {"split": split, "source": "wts", "view": "overhead_view", "label": str(phase), "phase": phase}
                rows.append({"scenario": name, "video": f"{name}.mp4", "image": image, **about, **captions})
    table = pd.DataFrame(rows)
    for split, part in table.groupby("split"):
        write_caption_files(part, folder / "captions" / split)
        out = folder / f"coco_captioning.{split}.jsonl"
        build_index(folder / "captions" / split, folder / "images", load_tokenizer(spm), out, part)
    return table


@pytest.fixture(scope="session")
def drawn(tmp_path_factory):
    """A run with 8 training and 4 validation images, to read only; a test's own outputs go elsewhere."""
    folder = tmp_path_factory.mktemp("drawn") / "run"
    draw_run(folder)
    return folder
