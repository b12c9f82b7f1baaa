"""Make the sample's tokenizer and tiny checkpoint; both are committed in beit3lib/sample/pretrained/.

    PYTHONPATH=tests python -m benchmarks.pretrain FOLDER       15 minutes on two cores

The model is pretrained on short captions of random scenes and never on the sentences of the sample.
Fine-tuning then has to learn full sentences, two subjects, prompts, and facts that a caption leaves out.
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import sentencepiece
import torch
import torch.nn.functional as F
from torch import nn

from beit3lib.data.schema import ASPECTS, SUBJECTS
from beit3lib.dataset import Batch, Item, collate, pack
from beit3lib.files import atomic_path, exit_on_error
from beit3lib.model import CaptionModel, model_config
from beit3lib.sample import CHECKPOINT_PATH, MODEL, SPM_PATH
from beit3lib.sample.draw import (
    GAPS,
    LOWER,
    UNITS,
    UPPER,
    VALUES,
    WAIST_UNITS,
    Camera,
    Scene,
    boxes_at,
    draw_blur,
    draw_camera,
    draw_values,
    full_caption,
)
from beit3lib.tokenizer import UNUSED_ROWS, load_tokenizer
from beit3lib.transforms import to_tensor

LEARNING_RATE, WEIGHT_DECAY, BETAS = 1e-3, 0.02, (0.9, 0.98)
SMOOTHING = 0.05
SPEEDS = {"stopped": ("stopped", 0), "slow": ("going slowly", 10), "fast": ("going fast", 30)}
WALKS = {"standing": "standing still", "walking": "walking slowly", "rushing": "rushing out"}
PAVING = {"both": "sidewalks on both sides", "no": "no sidewalk"}


def short_captions(scene: Scene, rng: np.random.Generator) -> list[str]:
    """Return short captions of a scene in random order, in one of two wordings that the sample lacks."""
    side, gap = scene.side, GAPS[scene.distance]
    speed, km_h = SPEEDS[scene.vehicle_motion]
    walk, paving = WALKS[scene.pedestrian_motion], PAVING[scene.sidewalk]
    upper, lower, lanes, surface = scene.upper, scene.lower, scene.lanes, scene.surface
    forms = [
        (f"weather {scene.weather}, brightness {scene.light}", f"{scene.light}, {scene.weather}"),
        (f"{upper} jacket and {lower} slacks", f"pedestrian in {lower} slacks, {upper} jacket"),
        (f"vehicle on the {side} side, {gap}", f"{gap} the vehicle on the {side} side"),
        (f"vehicle {speed} at {km_h} km/h", f"{km_h} km/h, {speed}"),
        (f"pedestrian {walk}", f"{walk}"),
        (f"{lanes} road, {surface} surface, {paving}", f"{paving}, {surface}, {lanes}"),
    ]
    return [forms[i][rng.integers(2)] for i in rng.permutation(len(forms))]


def train_spm(path: str | Path, vocab_size: int, scenes: int = 3000, seed: int = 0) -> Path:
    """Train the sample's sentencepiece model (unigram, as `beit3.spm`) on captions of random scenes."""
    rng = np.random.default_rng(seed)
    drawn = [Scene(**draw_values(rng)) for _ in range(scenes)]
    lines = [line for scene in drawn for line in short_captions(scene, rng)]
    lines += [full_caption(scene, subject) for scene in drawn for subject in SUBJECTS]
    lines += [f"{subject} {aspect.replace('_', ' ')}:" for subject in SUBJECTS for aspect in ASPECTS]
    words = sorted({word.strip(".,:") for line in lines for word in line.split()})
    # The trainer considers only pieces that occur in two different words, so every word gets a second form.
    lines += [f"{word}{mark} {word}" for word in words for mark in ",.:;" for _ in range(50)]
    with atomic_path(path) as temporary, open(temporary, "wb") as writer:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=writer,
            vocab_size=vocab_size,
            model_type="unigram",
            required_chars="".join(map(chr, range(33, 127))),
            minloglevel=2,
        )
    return Path(path)


def pretrain(folder: str | Path, steps: int = 2400, batch_size: int = 32, seed: int = 0) -> dict[str, float]:
    """Write the tokenizer and, in the public format with half-precision weights, the checkpoint to `folder`.

    From captions alone a model of this size needs hours to locate objects. During pretraining, a linear probe
    on the values of the last layer therefore also predicts the content of every patch (`patch_labels`); it is
    not saved. Returns the mean caption loss of the last 50 steps and the seconds of training.
    """
    started = time.monotonic()
    torch.manual_seed(seed)
    config = model_config(MODEL)
    tokenizer = load_tokenizer(train_spm(Path(folder) / SPM_PATH.name, config.vocab_size - UNUSED_ROWS - 2))
    model = CaptionModel(config)
    # With BEiT-3's standard deviation of 0.02, which is for width 768, attention would stay uniform for
    # thousands of steps at width 128.
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and ".layers." in name:
                parameter.mul_(3)
    probe = nn.Linear(config.width, sum(PROBE_CLASSES))
    parameters = [*model.parameters(), *probe.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, betas=BETAS)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.1)
    losses: list[float] = []
    batches = _batches(tokenizer, config.image_size, batch_size, steps, seed)
    for step, (batch, labels) in enumerate(batches, start=1):
        memory, masked = model.encode_image(batch.images), batch.mask_positions
        states = model.encode_text(memory, batch.input_ids, batch.positions, batch.doc_ids).flatten(0, 1)
        logits, targets = model.mlm_head(states[masked]), batch.labels.flatten()[masked]
        caption_loss = F.cross_entropy(logits, targets, label_smoothing=SMOOTHING)
        values = memory.values[-1].transpose(1, 2).flatten(2)[:, 1:]  # (B, H, N, d) -> (B, N - 1, D)
        probed = probe(values)
        parts = zip(probed.split(PROBE_CLASSES, -1), labels.unbind(-1), strict=True)
        probe_loss = sum(F.cross_entropy(part.flatten(0, 1), label.flatten()) for part, label in parts)
        (caption_loss + probe_loss).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        losses.append(caption_loss.item())
        if step % 50 == 0:
            found = f"caption loss {np.mean(losses[-50:]):.3f}, probe loss {probe_loss:.3f}"
            print(f"step {step}/{steps}: {found}, {time.monotonic() - started:.0f} s", flush=True)
    with atomic_path(Path(folder) / CHECKPOINT_PATH.name) as temporary:
        torch.save({"model": {name: value.half() for name, value in model.state_dict().items()}}, temporary)
    return {"loss": float(np.mean(losses[-50:])), "seconds": round(time.monotonic() - started)}


def _batches(
    tokenizer, image_size: int, batch_size: int, steps: int, seed: int
) -> Iterator[tuple[Batch, torch.Tensor]]:
    """Yield batches of random scenes and their patch labels (B, N - 1, 3)."""
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        items, labels = [], []
        for _ in range(batch_size):
            scene, camera = Scene(**draw_values(rng)), draw_camera(rng, bool(rng.integers(2)))
            image = to_tensor(draw_blur(scene, camera, size=image_size), image_size)
            labels.append(patch_labels(scene, camera))
            # Short captions are joined at random, so that a word follows from those before it and not from
            # its position. Mask rates are 0.2 to 0.9, because in generation almost all tokens are visible.
            parts, cuts = short_captions(scene, rng), np.sort(rng.choice(np.arange(1, 6), 2, replace=False))
            texts = [". ".join(group) for group in np.split(parts, cuts)]
            tokens = [(tokenizer.encode(text), 0) for text in texts]  # with <s> and </s>
            sequence = pack(tokens, rng.uniform(0.2, 0.9), tokenizer.mask_token_id, rng)
            items.append(Item(image, sequence, [], ""))
        yield collate(items), torch.from_numpy(np.stack(labels))


PROBE_CLASSES = [2 + len(UPPER) + len(LOWER), 7, 5]


def patch_labels(scene: Scene, camera: Camera, grid: int = UNITS) -> np.ndarray:
    """Return three classes per patch at the end of the phase, (grid², 3), see `PROBE_CLASSES`.

    Class 0 is the background. The others are the object (vehicle, jacket by color, slacks by color), its
    motion (1 to 3 of the vehicle, 4 to 6 of the pedestrian), and the position of the vehicle (left or right
    of the pedestrian, near or far).
    """
    labels = np.zeros((grid, grid, 3), np.int64)
    vehicle, (left, top, right, bottom) = boxes_at(scene, 1.0)
    waist = top + WAIST_UNITS
    vehicle_motion = 1 + VALUES["vehicle_motion"].index(scene.vehicle_motion)
    pedestrian_motion = 4 + VALUES["pedestrian_motion"].index(scene.pedestrian_motion)
    position = 1 + 2 * VALUES["side"].index(scene.side) + VALUES["distance"].index(scene.distance)
    jacket, slacks = 2 + UPPER.index(scene.upper), 2 + len(UPPER) + LOWER.index(scene.lower)
    objects = [
        (vehicle, (1, vehicle_motion, position)),
        ((left, top, right, waist), (jacket, pedestrian_motion, position)),
        ((left, waist, right, bottom), (slacks, pedestrian_motion, position)),
    ]
    centers = (np.arange(grid) + 0.5) * UNITS / grid
    for (x0, y0, x1, y1), label in objects:
        inside_x = (centers - camera.shift_x > x0) & (centers - camera.shift_x < x1)
        inside_y = (centers - camera.shift_y > y0) & (centers - camera.shift_y < y1)
        labels[np.ix_(inside_y, inside_x)] = label
    return labels.reshape(-1, 3)


@exit_on_error()
def main() -> None:
    """`python -m benchmarks.pretrain`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where to write the tokenizer and the checkpoint")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    print(pretrain(options.folder))


if __name__ == "__main__":
    main()
