"""Training: steps equal the recipe's; a run that is stopped, killed or damaged resumes to the weights of one that was not."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.optimizer import AcceleratedOptimizer
from conftest import draw_run
from safetensors.torch import load_file
from test_config import ORIGINAL_COMMAND
from test_model import TINY, make_large_model, make_model

from beit3lib import loss, sample, train
from beit3lib.checkpoint import load_captioner, save_public
from beit3lib.config import OptionError, TrainConfig
from beit3lib.data.index import INDEX_NAME, read_index
from beit3lib.dataset import CaptionDataset
from beit3lib.files import FileError, FolderInUse, lock_folder, previous_folder, read_json
from beit3lib.model import CaptionModel, model_config
from beit3lib.run import log
from beit3lib.run import state as run_state
from beit3lib.tokenizer import load_tokenizer


def quick(drawn, out, **options):
    """A config that takes a second: the sample's tiny model, one caption type, 8 images in 2 steps per epoch."""
    values = {
        "model": sample.MODEL,
        "sentencepiece_model": str(sample.SPM_PATH),
        "data_path": str(drawn),
        "output_dir": str(out),
        "subject": "vehicle",
        "aspect": "road",
        "batch_size": 4,
        "epochs": 2,
        "warmup_epochs": 1,
        "num_workers": 0,
        "drop_path": 0.0,
        "device": "cpu",
        "precision": "fp32",
        "val_images": 2,
        "num_beams": 1,
        "num_max_bpe_tokens": 12,
    }
    return TrainConfig(**{**values, **options})


def run_command(config, *more, code=None):
    """Run the command in a process of its own, or `code` with the command's arguments."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    start = ["-c", code] if code else ["-m", "beit3lib.train"]
    words = config if isinstance(config, list) else config.arguments()
    return subprocess.run(
        [sys.executable, *start, *more, *words], capture_output=True, text=True, env=environment
    )


def weights(folder):
    return load_file(Path(folder) / "model.safetensors")


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def close(a, b, atol=1e-5):
    return a.keys() == b.keys() and all(torch.allclose(a[name], b[name], atol=atol) for name in a)


def events(folder):
    """The log without its timing."""
    return [
        {k: v for k, v in event.items() if k != "timing"}
        for event in log.read_log(Path(folder) / "log.jsonl")
    ]


def losses(folder):
    return [event["loss"] for event in events(folder) if event["event"] == "step"]


@pytest.fixture(scope="module")
def whole(drawn, tmp_path_factory):
    """An uninterrupted run of two epochs with a moving average and stochastic depth, to read only."""
    folder = tmp_path_factory.mktemp("whole")
    train.finetune(quick(drawn, folder, **WHOLE))
    return folder


WHOLE = {"drop_path": 0.1, "randaug": True, "model_ema": True, "model_ema_decay": 0.9}


def equals(folder, whole):
    """Whether a resumed run ended as the uninterrupted one: weights, moving average and log."""
    names = ("best", "last")
    return all(same(weights(folder / n), weights(whole / n)) for n in names) and events(folder) == events(
        whole
    )


@pytest.mark.parametrize("layer_decay", [1.0, 0.5])
def test_parameter_groups_equal_the_recipe(layer_decay):
    import reference

    optim, model = reference.recipe("optim_factory"), make_model(TINY)
    top = TINY.layers + 2
    values = optim.LayerDecayValueAssigner([layer_decay ** (top - 1 - i) for i in range(top)])
    skipped = reference.captioning_model(deepcopy(model)).no_weight_decay()
    theirs = optim.get_parameter_groups(model, 0.05, skipped, values.get_layer_id, values.get_scale)
    ours = train.parameter_groups(model, TrainConfig(weight_decay=0.05, layer_decay=layer_decay))
    options = [
        {id(p): (group["weight_decay"], group["lr_scale"]) for group in groups for p in group["params"]}
        for groups in (theirs, ours)
    ]
    assert options[0] == options[1] and len(options[0]) > 50


@pytest.mark.parametrize(
    "epochs, warmup_epochs, warmup_steps", [(3, 1, -1), (3, 1, 0), (3, 2, 4), (3, 1, 1), (3, 0, -1)]
)
def test_the_schedule_equals_the_recipe(epochs, warmup_epochs, warmup_steps):
    import reference

    theirs = reference.recipe("utils").cosine_scheduler(
        1.0, 0.1, epochs, 10, warmup_epochs, warmup_steps=warmup_steps
    )
    config = TrainConfig(lr=1.0, min_lr=0.1, warmup_lr=0.5)
    warmup = warmup_steps if warmup_steps > 0 else 10 * warmup_epochs
    ours = [train.learning_rate(step, 10 * epochs, warmup, config) for step in range(10 * epochs)]
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)


def test_three_training_steps_equal_the_recipe(drawn, tmp_path):
    """Loss, ignored worst tokens from the step after `drop_worst_after` on, schedule, parameter groups, AdamW."""
    import reference

    options = {
        "drop_worst_after": 1,
        "drop_worst_ratio": 0.3,
        "layer_decay": 0.8,
        "warmup_epochs": 0,
        "lr": 1e-3,
    }
    trainer = train.Trainer(quick(drawn, tmp_path, **options))
    config, model = trainer.config, deepcopy(trainer.model)
    theirs = reference.captioning_model(deepcopy(model))
    criterion = reference.loss_function(
        config.label_smoothing, config.drop_worst_ratio, config.drop_worst_after
    )
    groups = train.parameter_groups(model, config)  # equal to the recipe's, see above
    names = {id(p): name for name, p in model.named_parameters()}
    for group in groups:
        group["params"] = [theirs.get_parameter(names[id(p)]) for p in group["params"]]
    optimizer = torch.optim.AdamW(groups, lr=config.lr)
    schedule = [train.learning_rate(step, 4, 0, config) for step in range(4)]
    batches = [*trainer.batches(0, 0), *trainer.batches(1, 0)]
    for step, window in enumerate(batches[:3]):
        for opt in (optimizer, trainer.optimizer):
            for group in opt.param_groups:
                group["lr"] = schedule[step] * group["lr_scale"]
        batch = window[0]
        masked = torch.zeros(batch.labels.numel(), dtype=torch.bool)
        masked[batch.mask_positions] = True
        masked, padding = masked.view_as(batch.labels), (batch.doc_ids < 0).long()
        logits = reference.logits(theirs, batch.images, batch.input_ids, padding, masked)
        expected = criterion(logits, batch.labels[masked], step)
        expected.backward()
        optimizer.step()
        optimizer.zero_grad()
        found = train.train_step(
            trainer.loss_model, window, trainer.optimizer, trainer.accelerator, config, step
        )
        assert found.loss == pytest.approx(expected.item(), rel=1e-5), step
    expected, before = dict(theirs.named_parameters()), dict(model.named_parameters())
    for name, found in trainer.model.named_parameters():
        moved, error = (found - before[name]).norm(), (found - expected[name]).norm()
        # The gradient of a key's bias is 0 but for rounding, which AdamW scales up to a full step.
        assert (moved > 0) == found.requires_grad and ("k_proj" in name or error <= 0.01 * moved), name


def test_packed_captions_have_the_losses_of_separate_captions(drawn):
    tokenizer = load_tokenizer(sample.SPM_PATH)
    table = read_index(drawn / INDEX_NAME.format(split="train"))
    data = CaptionDataset(table, drawn, tokenizer, 64, TrainConfig(), train=False)
    torch.manual_seed(0)
    model = loss.LossModel(CaptionModel(model_config(sample.MODEL)), 0.1).eval()
    pixels, sequence, name = data[0]
    packed = model(data.collate([(pixels, sequence, name)]))
    separate = []
    for number in range(10):
        mine = sequence.doc_ids == number
        single = type(sequence)(*(column[mine] for column in sequence))._replace(
            doc_ids=np.zeros(mine.sum(), int)
        )
        separate.append(model(data.collate([(pixels, single, name)])))
    assert torch.allclose(packed, torch.cat(separate), atol=1e-5) and len(packed) > 50


@pytest.mark.parametrize("update_freq", [2, 4])
def test_accumulated_batches_equal_one_large_batch(drawn, tmp_path, update_freq):
    train.finetune(quick(drawn, tmp_path / "a", batch_size=8))
    train.finetune(quick(drawn, tmp_path / "b", batch_size=8 // update_freq, update_freq=update_freq))
    assert close(weights(tmp_path / "a" / "last"), weights(tmp_path / "b" / "last"))


def test_clipping_limits_the_gradient_norm(drawn, tmp_path):
    trainer = train.Trainer(quick(drawn, tmp_path, clip_grad=0.25))
    window, norms = next(iter(trainer.batches(0, 0))), []
    parameters = list(trainer.model.parameters())
    trainer.optimizer.step = lambda: norms.append(
        math.sqrt(sum(p.grad.double().pow(2).sum().item() for p in parameters if p.grad is not None))
    )
    done = train.train_step(
        trainer.loss_model, window, trainer.optimizer, trainer.accelerator, trainer.config, 0
    )
    assert done.grad_norm > 0.25 and norms[0] == pytest.approx(0.25, rel=1e-3)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_before_it_reaches_the_weights(drawn, tmp_path, monkeypatch, bad):
    config, original, calls = quick(drawn, tmp_path, epochs=3), loss.label_smoothed_loss, []

    def spoiled(*arguments):
        calls.append(1)
        return original(*arguments) * (bad if len(calls) == 4 else 1.0)

    monkeypatch.setattr(loss, "label_smoothed_loss", spoiled)
    with pytest.raises(
        run_state.TrainingStopped, match=r"step 4: expected a finite loss.*: images/avg.*jpg, images/avg"
    ):
        train.finetune(config)
    assert run_state.read_run_state(tmp_path / "last").step == 2
    results = train.finetune(config)  # the good state is still there
    assert results["steps"] == 6 and math.isfinite(results["last_loss"])


def test_a_gradient_that_is_not_finite_stops_before_it_reaches_the_weights(drawn, tmp_path):
    trainer = train.Trainer(quick(drawn, tmp_path))
    before = deepcopy(trainer.model.state_dict())
    trainer.model.mlm_head.bias.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(run_state.TrainingStopped, match="gradient norm (inf|nan)"):
        trainer.run()
    assert same(before, trainer.model.state_dict())


def test_steps_that_the_fp16_scaler_skips_are_counted(drawn, tmp_path, capsys):
    trainer = train.Trainer(quick(drawn, tmp_path, epochs=10, val_images=1))
    scaler = torch.amp.GradScaler(
        "cpu", init_scale=2.0**127
    )  # overflows, and is halved at each step that does
    trainer.accelerator.scaler = scaler
    trainer.optimizer = AcceleratedOptimizer(trainer.optimizer.optimizer, scaler=scaler)
    results = trainer.run()
    assert 1 <= results["skipped_steps"] < 20 and scaler.get_scale() == 2.0 ** (
        127 - results["skipped_steps"]
    )
    assert events(tmp_path)[-2]["skipped"] == results["skipped_steps"]
    assert f"{results['skipped_steps']} steps skipped" in capsys.readouterr().out


def test_the_moving_average_is_what_best_holds(drawn, tmp_path):
    trainer = train.Trainer(quick(drawn, tmp_path, model_ema=True, model_ema_decay=0.9999999, lr=1e-2))
    start = deepcopy(trainer.model.state_dict())
    trainer.run()
    assert close(weights(tmp_path / "best"), start, atol=1e-4)
    assert not torch.allclose(
        weights(tmp_path / "last")["mlm_head.weight"], start["mlm_head.weight"], atol=1e-4
    )


def test_a_batch_that_does_not_fit_is_halved_and_the_global_batch_stays(drawn, tmp_path, monkeypatch, capsys):
    trainer, forward = train.Trainer(quick(drawn, tmp_path, batch_size=8)), loss.LossModel.forward

    def limited(self, batch):
        if len(batch.images) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, batch)

    monkeypatch.setattr(loss.LossModel, "forward", limited)
    trainer.fit_batch()
    assert (trainer.micro_batch, trainer.update_freq, trainer.global_batch) == (2, 4, 8)
    assert capsys.readouterr().out.count("out of memory with batch_size 8: using 2, with update_freq 4") == 1
    trainer.run()
    whole = train.finetune(quick(drawn, tmp_path / "b", batch_size=2, update_freq=4))
    assert whole["steps"] == 2 and close(weights(tmp_path / "last"), weights(tmp_path / "b" / "last"))


def test_one_image_that_does_not_fit_is_an_error(drawn, tmp_path, monkeypatch):
    def never(self, batch):
        raise torch.OutOfMemoryError("CUDA out of memory")

    trainer = train.Trainer(quick(drawn, tmp_path))
    monkeypatch.setattr(loss.LossModel, "forward", never)
    with pytest.raises(torch.OutOfMemoryError, match="one image does not fit"):
        trainer.fit_batch()


def test_best_is_the_epoch_with_the_best_score_and_patience_ends_the_run(drawn, tmp_path, monkeypatch):
    scores = iter([10.0, 30.0, 20.0, 25.0, 40.0])
    result = {
        "captions": 1,
        "distinct": 1.0,
        "copied": 0.0,
        "references": {"distinct": 1.0},
        "by_caption_type": {},
    }
    monkeypatch.setattr(
        train, "validate", lambda *_: {**result, "score": next(scores), "samples": [], "seconds": 0.0}
    )
    config = quick(drawn, tmp_path, epochs=5, patience=2, save_ckpt_freq=3)
    results = train.finetune(config)
    assert results["stopped"] == "no better score" and results["steps"] == 8 and results["best_score"] == 30.0
    meta = read_json(tmp_path / "best" / "meta.json")
    assert meta["step"] == 4 and meta["best_score"] == 30.0 and meta["index"] == run_state.index_hashes(drawn)
    assert read_json(tmp_path / "checkpoint-3" / "meta.json")["step"] == 6
    again = train.finetune(config)  # patience is also lost when the run is resumed
    assert again["steps"] == 8 and again["stopped"] == "no better score"


def copy_index(drawn, folder, change=lambda split, line: line, splits=("train", "val")):
    """The index of `drawn` in another folder with absolute image paths, lines changed or (None) left out."""
    folder.mkdir(exist_ok=True)
    for split in splits:
        lines = map(json.loads, (drawn / INDEX_NAME.format(split=split)).read_text().splitlines())
        lines = [change(split, {**line, "image_path": str(drawn / line["image_path"])}) for line in lines]
        text = "".join(json.dumps(line) + "\n" for line in lines if line)
        (folder / INDEX_NAME.format(split=split)).write_text(text)
    return folder


def test_without_a_validation_split_best_is_the_latest_state_without_a_score(drawn, tmp_path, capsys):
    data = copy_index(drawn, tmp_path / "data", splits=["train"])
    results = train.finetune(quick(data, tmp_path))
    assert results["best_score"] is None and read_json(tmp_path / "best" / "meta.json")["best_score"] is None
    assert same(weights(tmp_path / "best"), weights(tmp_path / "last"))
    assert capsys.readouterr().out.count("no validation split: best/ is the latest state") == 1


def test_a_validation_split_without_captions_as_the_recipe_writes_it_is_captioned_and_not_scored(
    drawn, tmp_path, capsys
):
    data = copy_index(
        drawn,
        tmp_path / "data",
        lambda split, line: line | ({} if split == "train" else {"text_segment": None}),
    )
    results = train.finetune(quick(data, tmp_path))
    assert results["best_score"] is None and "no score on 2 captions" in capsys.readouterr().out
    assert [event["score"] for event in events(tmp_path) if event["event"] == "validation"] == [None, None]


@pytest.mark.parametrize("subject, aspect", [("all", "all"), ("vehicle", "road")])
def test_the_recipes_own_index_is_one_caption_type_without_a_prompt(drawn, tmp_path, subject, aspect):
    keys = ("image_path", "text_segment", "image_id")
    data = copy_index(
        drawn,
        tmp_path / "data",
        lambda _, line: line["aspect"] == "road" and {key: line[key] for key in keys},
    )
    results = train.finetune(quick(data, tmp_path, subject=subject, aspect=aspect))
    assert 0 <= results["best_score"] <= 100
    captioner = load_captioner(tmp_path / "best", "cpu")
    assert captioner.prompts == [[]] and captioner.max_tokens == 12
    assert isinstance(captioner.caption(next((drawn / "images").iterdir())), str)


def test_index_files_of_two_kinds_are_refused(drawn, tmp_path):
    keys = ("image_path", "text_segment", "image_id")
    data = copy_index(
        drawn, tmp_path / "data", lambda s, line: line if s == "train" else {key: line[key] for key in keys}
    )
    with pytest.raises(ValueError, match="expected subject and aspect in both index files or in neither"):
        train.Trainer(quick(data, tmp_path, subject="all", aspect="all"))


def test_too_few_images_for_one_step_are_refused(drawn, tmp_path):
    with pytest.raises(OptionError, match="--update_freq: expected at least 9 training images, found 8"):
        train.Trainer(quick(drawn, tmp_path, update_freq=9))


@pytest.mark.parametrize("name", ["sentencepiece_model", "data_path", "output_dir"])
def test_a_missing_option_is_named(drawn, tmp_path, name):
    with pytest.raises(OptionError, match=f"--{name}: expected"):
        train.Trainer(quick(drawn, tmp_path, **{name: ""}))


def test_building_a_trainer_writes_nothing(drawn, tmp_path):
    train.Trainer(quick(drawn, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_two_trainings_in_one_folder_are_refused(drawn, tmp_path):
    with lock_folder(tmp_path, "training"), pytest.raises(FolderInUse, match="in use by training"):
        train.finetune(quick(drawn, tmp_path))


def test_eval_validates_the_named_weights_or_last(drawn, whole, tmp_path):
    out = shutil.copytree(whole, tmp_path / "run")
    log = (out / "log.jsonl").read_text()
    config = quick(drawn, out, eval=True, batch_size=2, **WHOLE)
    last = train.finetune(config)["validation"]
    named = train.finetune(quick(drawn, out, eval=True, finetune=str(whole / "last")))["validation"]
    assert last["captions"] == 2 and last["by_caption_type"] == named["by_caption_type"]
    other = train.finetune(quick(drawn, out, eval=True, finetune=str(sample.CHECKPOINT_PATH)))["validation"]
    assert other["samples"] != last["samples"]
    assert (out / "log.jsonl").read_text() == log and read_json(out / "validation.json")[
        "validation"
    ] == other
    assert equals(out, whole)


def test_eval_needs_a_validation_index_alone(drawn, whole, tmp_path):
    data = copy_index(drawn, tmp_path / "data", splits=["val"])
    result = train.finetune(quick(data, tmp_path, eval=True, finetune=str(whole / "best")))["validation"]
    assert result["captions"] == 2 and result["copied"] == 0


def test_the_tracker_gets_curves_captions_and_images(drawn, tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    train.finetune(quick(drawn, tmp_path / "run", log_dir=str(tmp_path / "log")))
    found = event_accumulator.EventAccumulator(str(tmp_path / "log" / "beit3lib"))
    found.Reload()
    tags = found.Tags()
    expected = {"step/loss", "step/lr", "step/grad_norm", "step/tokens_per_s", "validation/score"}
    assert expected | {"validation/score vehicle road"} <= set(tags["scalars"])
    assert "validation/images" in tags["images"] and "validation/captions/text_summary" in tags["tensors"]
    assert [scalar.value for scalar in found.Scalars("step/loss")] == pytest.approx(losses(tmp_path / "run"))


def train_without_validation(trainer):
    """All steps of a run without saving, validating and logging; returns the losses."""
    losses = []
    for epoch in range(trainer.config.epochs):
        for window in trainer.batches(epoch, 0):
            lr = train.learning_rate(len(losses), trainer.total_steps, trainer.warmup, trainer.config)
            for group in trainer.optimizer.param_groups:
                group["lr"] = lr * group["lr_scale"]
            model, optimizer, accelerator = trainer.loss_model.train(), trainer.optimizer, trainer.accelerator
            losses.append(
                train.train_step(model, window, optimizer, accelerator, trainer.config, len(losses)).loss
            )
    return losses


@pytest.mark.long
def test_eight_images_are_memorized_and_captioned_word_for_word(tmp_path):
    draw_run(tmp_path, train=8, val=1)
    shutil.copyfile(tmp_path / INDEX_NAME.format(split="train"), tmp_path / INDEX_NAME.format(split="val"))
    config = quick(
        tmp_path, tmp_path, subject="all", aspect="all", epochs=200, batch_size=8, lr=2e-3, warmup_epochs=5, flip="none",
        crop_area=1.0, num_max_bpe_tokens=64, val_images=8, num_beams=3, finetune=str(sample.CHECKPOINT_PATH),
        captioning_mask_prob=0.7, layer_decay=1.0, save_every_minutes=0,
    )  # fmt: skip
    trainer = train.Trainer(config)
    train_without_validation(trainer)
    found = train.validate(
        trainer.captioner(), trainer.val_set, trainer.train_set, config, trainer.accelerator
    )
    assert found["score"] > 95 and found["copied"] > 0.95, found


def test_a_finished_run_is_not_trained_again_unless_asked(drawn, whole, tmp_path, capsys):
    out = shutil.copytree(whole, tmp_path / "run")
    assert train.finetune(quick(drawn, out, **WHOLE))["stopped"] == "finished" and equals(out, whole)
    assert "resumed from" in capsys.readouterr().out
    train.finetune(quick(drawn, out, auto_resume=False, lr=1e-3))
    assert (
        "starting from scratch; last/ and best/ of an earlier run will be replaced" in capsys.readouterr().out
    )
    assert not same(weights(out / "last"), weights(whole / "last")) and len(events(out)) == len(events(whole))


def test_a_run_out_of_time_after_every_step_ends_as_an_uninterrupted_one(drawn, whole, tmp_path, capsys):
    late = quick(drawn, tmp_path, max_minutes=1e-6, **WHOLE)
    assert [train.finetune(late)["stopped"] for _ in range(4)] == ["out of time"] * 4
    assert "Rerun the same command to resume." in capsys.readouterr().out
    results = train.finetune(quick(drawn, tmp_path, **WHOLE))
    assert results["stopped"] == "finished" and equals(tmp_path, whole)


def test_a_run_out_of_time_in_its_first_epoch_can_be_captioned_with(drawn, tmp_path):
    train.finetune(quick(drawn, tmp_path, max_minutes=1e-6))
    assert isinstance(
        load_captioner(tmp_path / "best", "cpu").caption(next((drawn / "images").iterdir())), str
    )


def test_last_is_saved_within_an_epoch_every_few_minutes(drawn, tmp_path, monkeypatch):
    steps, save = [], train.Trainer.save
    monkeypatch.setattr(train.Trainer, "save", lambda self: (steps.append(self.step), save(self)))
    train.finetune(quick(drawn, tmp_path, save_every_minutes=1e-9))
    assert steps == [1, 2, 3, 4]


def interrupt(monkeypatch, where, number, at):
    """Send a signal to this process in call `at` of a function of `train`, or in a save before the folder is swapped."""
    target, name = {
        "step": (train, "train_step"),
        "validation": (train, "validate"),
        "save": (torch, "save"),
    }[where]
    original, calls = getattr(target, name), []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == at:
            os.kill(os.getpid(), number)
        return original(*arguments)

    monkeypatch.setattr(target, name, interrupted)


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize(
    "where, at, step", [("step", 3, 3), ("save", 1, 2), ("validation", 1, 2), ("validation", 2, 4)]
)
def test_an_interrupted_run_saves_exits_and_ends_as_an_uninterrupted_one(
    drawn, whole, tmp_path, monkeypatch, capsys, number, status, where, at, step
):
    config = quick(drawn, tmp_path, **WHOLE)
    with monkeypatch.context() as patch:
        interrupt(patch, where, number, at)
        with pytest.raises(SystemExit) as exit:
            train.finetune(config)
    assert exit.value.code == status
    message = f"{number.name}: stopped after step {step}, saved in {tmp_path / 'last'}. Rerun the same command to resume.\n"
    assert capsys.readouterr().out.endswith(message)
    train.finetune(config)
    assert equals(tmp_path, whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    "where, number, status",
    [("training", signal.SIGTERM, 143), ("training", signal.SIGINT, 130), ("validation", signal.SIGINT, 130)],
)
def test_the_command_exits_with_the_status_of_the_signal(drawn, tmp_path, where, number, status):
    """The signal goes to the whole process group, loader workers included, as from a terminal."""
    config = quick(drawn, tmp_path, epochs=10_000, num_workers=2, val_images=1)
    if where == "validation":  # it takes seconds, and begins when last/ is saved
        options = {"val_images": 0, "eval_batch_size": 1, "num_beams": 3, "num_max_bpe_tokens": 64}
        config = TrainConfig(**{**vars(config), **options})
    child = subprocess.Popen(
        [sys.executable, "-m", "beit3lib.train", *config.arguments()],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    if where == "validation":
        while not (tmp_path / "last").exists() and child.poll() is None:
            time.sleep(0.1)
        time.sleep(0.5)
    else:
        next(line for line in child.stdout if line.startswith("epoch 1"))
    os.killpg(child.pid, number)
    started = time.monotonic()
    rest = child.stdout.read()
    assert child.wait(60) == status and time.monotonic() - started < 30, rest
    assert "Traceback" not in rest and "Rerun the same command to resume" in rest
    assert run_state.read_run_state(tmp_path / "last").step == len(losses(tmp_path))


@pytest.fixture
def stopped(drawn, whole, tmp_path, monkeypatch):
    """The folder of a run stopped after step 3 of 4, which holds last/ and the state after step 2 before it, and its config."""
    config = quick(drawn, tmp_path / "run", **WHOLE)
    with monkeypatch.context() as patch:
        interrupt(patch, "step", signal.SIGTERM, 3)
        with pytest.raises(SystemExit):
            train.finetune(config)
    return tmp_path / "run", config


FILES = ["model.safetensors", "optimizer.pt", "state.json", "meta.json", "sentencepiece.bpe.model"]


@pytest.mark.parametrize(
    "some",
    [
        pytest.param(slice(1, None, 4), marks=pytest.mark.slow),
        pytest.param(slice(None), marks=pytest.mark.long),
    ],
)
def test_a_truncated_or_incomplete_last_falls_back_to_the_state_before_it(
    stopped, whole, tmp_path, capsys, some
):
    """Each file of last/ removed, and truncated at two random lengths; the default suite tries 4 of these 15 cases."""
    folder, config = stopped
    rng = np.random.default_rng(0)
    damages = [(name, None) for name in FILES] + [
        (name, float(rng.random())) for name in FILES for _ in range(2)
    ]
    for number, (name, share) in enumerate(damages[some]):
        out = shutil.copytree(folder, tmp_path / str(number))
        path = out / "last" / name
        if share is None:
            path.unlink()
        else:
            os.truncate(path, int(share * path.stat().st_size))
        train.finetune(quick_like(config, out))
        text = capsys.readouterr().out
        assert (
            str(path) in text
            and "resumed from" in text
            and "after step 2, the state before the broken one" in text
        ), text
        assert equals(out, whole), (name, share)
        shutil.rmtree(out)


def quick_like(config, out):
    return TrainConfig(**{**vars(config), "output_dir": str(out)})


@pytest.mark.parametrize("name", FILES)
def test_a_broken_last_without_an_older_state_ends_in_one_line(stopped, name):
    folder, config = stopped
    shutil.rmtree(previous_folder(folder / "last"))
    os.truncate(folder / "last" / name, 10)
    with pytest.raises(
        run_state.ResumeError,
        match="no complete state to resume from. Start from scratch with --no_auto_resume.",
    ):
        train.finetune(config)


def test_a_run_killed_between_the_two_renames_of_a_save_resumes_from_the_older_state(stopped, whole, capsys):
    folder, config = stopped
    shutil.rmtree(folder / "last")
    train.finetune(config)
    assert "after step 2" in capsys.readouterr().out and equals(folder, whole)


def test_a_temporary_file_of_a_killed_write_in_last_does_no_harm(stopped, whole):
    folder, config = stopped
    (folder / "last" / ".state.tmp.json").write_text("{")
    train.finetune(config)
    assert run_state.read_run_state(folder / "last").validated == 4 and equals(folder, whole)


STATES = [
    [],
    {},
    None,
    {"step": "three"},
    {"step": -1},
    {"step": 10**6},
    {"files": 5},
    {"options": []},
    {"best_score": "a"},
]


@pytest.mark.parametrize("change", STATES, ids=str)
def test_a_state_with_other_content_is_named(stopped, change):
    folder, config = stopped
    shutil.rmtree(previous_folder(folder / "last"))
    path = folder / "last" / "state.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change} if change else change))
    with pytest.raises((run_state.ResumeError, FileError), match="last"):
        train.finetune(config)


def test_tensors_of_another_run_in_last_fall_back(stopped, whole, tmp_path, capsys):
    """Files of the right size with other content: random bytes, and an optimizer without its moments."""
    folder, config = stopped
    last = folder / "last"
    (last / "optimizer.pt").write_bytes(
        np.random.default_rng(0).bytes((last / "optimizer.pt").stat().st_size)
    )
    train.finetune(config)
    assert f"{last}: expected the weights and optimizer of this run" in capsys.readouterr().out and equals(
        folder, whole
    )


@pytest.mark.parametrize(
    "options, message",
    [
        ({"lr": 1e-3}, r"found lr 0.0005 \(now 0.001\)"),
        (
            {"epochs": 3, "seed": 1},
            r"found seed 0 \(now 1\), epochs 2 \(now 3\)|found epochs 2 \(now 3\), seed 0 \(now 1\)",
        ),
        ({"batch_size": 2}, r"found a global batch of 4 \(now 2\)"),
        ({"layer_decay": 1.0}, "layer_decay"),
    ],
)
def test_resuming_with_other_options_is_refused_by_name(drawn, stopped, options, message):
    folder, config = stopped
    with pytest.raises(run_state.ResumeError, match=message + ".*--no_auto_resume"):
        train.finetune(TrainConfig(**{**vars(config), **options}))
    assert run_state.read_run_state(folder / "last").step == 3


@pytest.mark.parametrize("split", ["train", "val"])
def test_resuming_with_another_index_of_equal_length_is_refused(drawn, stopped, tmp_path, split):
    other = copy_index(
        drawn, tmp_path / "data", lambda s, line: {**line, "image_id": 99} if s == split else line
    )
    same_paths = copy_index(drawn, tmp_path / "same")
    folder, config = stopped
    state = json.loads((folder / "last" / "state.json").read_text())
    (folder / "last" / "state.json").write_text(
        json.dumps({**state, "index": run_state.index_hashes(same_paths)})
    )
    with pytest.raises(run_state.ResumeError, match=f"found another {split} index. Use the same"):
        train.finetune(TrainConfig(**{**vars(config), "data_path": str(other)}))


def test_options_of_a_session_may_change(stopped, whole):
    folder, config = stopped
    train.finetune(
        TrainConfig(
            **{**vars(config), "num_workers": 1, "max_minutes": 60, "patience": 9, "save_every_minutes": 0}
        )
    )
    assert equals(folder, whole)


def test_a_run_is_resumed_in_another_folder_from_a_read_only_one(stopped, whole, tmp_path):
    folder, config = stopped
    for path in (folder, *folder.rglob("*")):
        path.chmod(path.stat().st_mode & ~0o222)
    elsewhere = {**vars(config), "output_dir": str(tmp_path / "second"), "resume": str(folder / "last")}
    for _ in range(2):  # the same command again uses what was done since
        assert train.finetune(TrainConfig(**elsewhere))["steps"] == 4
        assert equals(tmp_path / "second", whole)
    with pytest.raises(FileNotFoundError, match="nothing/last: expected the folder last/ of a run"):
        train.finetune(
            TrainConfig(
                **{**elsewhere, "output_dir": str(tmp_path / "c"), "resume": str(tmp_path / "nothing/last")}
            )
        )


def test_a_log_keeps_unicode_line_ends_and_reports_damaged_lines(tmp_path, capsys):
    events = [{"event": "step", "step": step, "name": "a\u2028b\x85c"} for step in (1, 2, 3)]
    lines = [json.dumps(event, ensure_ascii=False).encode() for event in events]
    bad = [b"garbage", b"null", b"[]", b'{"step": 1}', b'{"event": "step", "step": "x"}', b"\xff\xfe"]
    (tmp_path / "log.jsonl").write_bytes(b"\n".join([lines[0], *bad, *lines[1:], b'{"event": "st']))
    assert log.read_log(tmp_path / "log.jsonl") == events
    assert (
        "log.jsonl: expected an event per line, skipped damaged line 2, 3, 4, 5, 6, 7"
        in capsys.readouterr().out
    )
    assert log.read_log(tmp_path / "none.jsonl") == []


@pytest.mark.skipif(
    not Path("/dev/full").exists(), reason="needs /dev/full, where every write finds a full disk"
)
def test_a_full_disk_names_the_log():
    with pytest.raises(OSError, match="No space left on device: '/dev/full'"):
        log.append_event(Path("/dev/full"), {"event": "step"})


def test_a_damaged_log_does_not_stop_a_resumed_run(stopped, whole, capsys):
    folder, config = stopped
    with (folder / "log.jsonl").open("ab") as file:
        file.write(b'\xff garbage\n{"event": "step", "step": 4, "loss": 1.0}\n{"event": "st')
    train.finetune(config)
    assert "skipped damaged line" in capsys.readouterr().out and equals(folder, whole)


KILLED = """
import os, signal, sys
import torch
from beit3lib import checkpoint, files, loss, train
torch.set_num_threads(1)
at, arguments = int(sys.argv[1]), sys.argv[2:]
count = 0

def watch(module, name, path=None):
    inner = getattr(module, name)
    def watched(*args, **kwargs):
        global count
        count += 1
        if count == at:
            if path is not None:  # half of the file is written
                inner(*args, **kwargs)
                os.truncate(args[path], os.path.getsize(args[path]) // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        return inner(*args, **kwargs)
    setattr(module, name, watched)

watch(train, "train_step"); watch(loss, "label_smoothed_loss"); watch(train, "validate")
watch(checkpoint, "save_file", path=1); watch(torch, "save", path=1)
watch(files.os, "replace"); watch(files.os, "fsync"); watch(files.shutil, "rmtree")
train.main(arguments)
print("EVENTS", count)
"""


@pytest.mark.parametrize(
    "seeds, each",
    [pytest.param((5,), 2, marks=pytest.mark.slow), pytest.param((5, 6), 5, marks=pytest.mark.long)],
)
def test_a_run_killed_at_random_points_ends_as_an_uninterrupted_one(drawn, tmp_path, seeds, each):
    """SIGKILL in a step, in a save with half a file written, between the renames of a folder, in validation."""
    # The uninterrupted run has one thread, like the killed ones: sums of another number of threads round differently.
    whole = tmp_path / "whole"
    counted = run_command(quick(drawn, whole, **WHOLE), "0", code=KILLED)
    assert counted.returncode == 0, counted.stderr
    events = int(counted.stdout.split("EVENTS")[1])

    def kill(seed):
        rng, kills, out = np.random.default_rng(seed), 0, tmp_path / str(seed)
        while True:
            at = int(rng.integers(1, events // 2)) if kills < each else 0
            done = run_command(quick(drawn, out, **WHOLE), str(at), code=KILLED)
            if done.returncode == 0:  # this run is complete; the next kill hits another one
                assert equals(out, whole)
                assert {p.name for p in out.iterdir()} <= {
                    "best",
                    "last",
                    "log.jsonl",
                    "results.json",
                    ".lock",
                }
                if kills == each:
                    return kills
                out = tmp_path / f"{seed}-{kills}"
            else:
                assert done.returncode == -signal.SIGKILL, done.stderr
                kills += 1

    with ThreadPoolExecutor(2) as pool:
        assert set(pool.map(kill, seeds)) == {each}


@pytest.mark.slow
def test_a_full_disk_leaves_the_state_before_and_names_the_folder(drawn, tmp_path):
    """A file may not grow past 1 MB, less than the weights take: what writing meets on a full disk."""
    config = quick(drawn, tmp_path)
    train.finetune(TrainConfig(**{**vars(config), "max_steps": 2}))
    before = weights(tmp_path / "last")
    limit = "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    limit += "resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000)); "
    done = run_command(config, code=limit + "from beit3lib import train; train.main(sys.argv[1:])")
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert (
        f"{tmp_path / 'last'}: saving failed" in done.stderr
        and "The state saved before is still there" in done.stderr
    )
    assert same(before, weights(tmp_path / "last")) and train.finetune(config)["steps"] == 4


@pytest.mark.slow
def test_two_processes_equal_one_with_the_doubled_batch_and_can_resume_each_other(drawn, tmp_path):
    """The same losses, weights and validation, also 1 -> 2 and 2 -> 1 processes; stochastic depth is on."""
    options = {
        "subject": "all",
        "aspect": "all",
        "val_images": 3,
        "num_max_bpe_tokens": 8,
        "batch_size": 2,
        "drop_path": 0.1,
    }
    options |= {"model_ema": True}
    one = lambda name, **more: quick(drawn, tmp_path / name, update_freq=2, **options, **more)  # noqa: E731
    two = lambda name, **more: quick(drawn, tmp_path / name, **options, **more)  # noqa: E731
    assert train.finetune(one("one"))["steps"] == train.launch(two("two"), 2)["steps"] == 4
    assert train.launch(two("two-one", max_minutes=1e-6), 2)["stopped"] == "out of time"
    train.finetune(one("two-one"))
    assert train.finetune(one("one-two", max_minutes=1e-6))["stopped"] == "out of time"
    train.launch(two("one-two"), 2)
    for name in ("two", "two-one", "one-two"):
        assert losses(tmp_path / name) == pytest.approx(losses(tmp_path / "one"), rel=1e-4), name
        assert close(weights(tmp_path / "one" / "last"), weights(tmp_path / name / "last"), atol=1e-4), name
        validations = [[e for e in events(tmp_path / n) if e["event"] == "validation"] for n in ("one", name)]
        assert [(e["step"], e["captions"]) for e in validations[0]] == [
            (e["step"], e["captions"]) for e in validations[1]
        ]
        assert validations[0][0]["samples"] == validations[1][0]["samples"]


@pytest.mark.slow
def test_two_processes_validate_as_one(drawn, tmp_path):
    """The same captions, scores and shares; the two processes share batches of 2 and 1 images."""
    config = quick(
        drawn, tmp_path, subject="all", aspect="all", eval=True, dist_eval=True, finetune=str(sample.CHECKPOINT_PATH),
        num_beams=2, val_images=3, samples=3, eval_batch_size=2,
    )  # fmt: skip
    one, two = train.finetune(config)["validation"], train.launch(config, 2)["validation"]
    assert one.pop("seconds") > 0 and two.pop("seconds") > 0
    assert one == two and one["captions"] == len(one["samples"]) == 30 and one["score"] > 0


@pytest.mark.slow
def test_a_child_that_fails_fails_the_caller_with_its_last_lines(drawn, tmp_path):
    with pytest.raises(RuntimeError, match="(?s)exit status.*no_such.pth: expected a"):
        train.launch(quick(drawn, tmp_path, finetune=str(tmp_path / "no_such.pth")), 2)


LAUNCHED = """
import sys
from beit3lib import config, train
train.launch(config.parse_arguments(sys.argv[1:]), 2)
"""


@pytest.mark.slow
def test_launch_passes_signals_on_and_the_run_is_saved(drawn, tmp_path):
    config = quick(drawn, tmp_path, epochs=10_000, batch_size=2, val_images=1)
    child = subprocess.Popen(
        [sys.executable, "-c", LAUNCHED, *config.arguments()], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    next(line for line in child.stdout if line.startswith("epoch 1"))
    child.send_signal(signal.SIGTERM)
    child.send_signal(signal.SIGTERM)  # a second one does not interrupt saving
    rest = child.stdout.read()
    assert child.wait(60) == 143 and "SIGTERM: stopped after step" in rest and "Traceback" not in rest, rest
    assert run_state.read_run_state(tmp_path / "last").step == len(losses(tmp_path))


def test_the_command_ends_with_one_line_for_a_broken_file(stopped, capsys):
    folder, config = stopped
    shutil.rmtree(previous_folder(folder / "last"))
    (folder / "last" / "state.json").write_text("[]")
    with pytest.raises(SystemExit, match="ResumeError: .*last: no complete state"):
        train.main(config.arguments())
    with pytest.raises(SystemExit, match="OptionError: --lrr: expected an option"):
        train.main(["--lrr", "1"])


def test_the_package_limits_openmp_spinning_unless_the_user_has_chosen():
    code = "import os, sys, beit3lib; print(os.environ.get('GOMP_SPINCOUNT'), {'torch', 'transformers'} & {*sys.modules})"
    free = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    for more, expected in (
        ({}, "10000"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "None"),
        ({"GOMP_SPINCOUNT": "5"}, "5"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", code], env={**free, **more}, capture_output=True, text=True
        )
        assert done.stdout.strip() == f"{expected} set()"


def write_large_vocabulary(path):
    """A sentencepiece model of 64,000 pieces as beit3.spm has: the sample's, filled up with unused words."""
    from sentencepiece import sentencepiece_model_pb2 as proto

    model = proto.ModelProto()
    model.ParseFromString(sample.SPM_PATH.read_bytes())
    for number in range(64_000 - len(model.pieces)):
        model.pieces.add(piece=f"\u2581filler{number}", score=-100.0)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.slow
def test_the_command_of_the_original_repository_runs_two_steps_and_its_checkpoint_captions(tmp_path):
    """Every option as there, on a randomly initialized base model in the public format; only --max_steps is added."""
    spm = write_large_vocabulary(tmp_path / "beit3.spm")
    draw_run(tmp_path / "run", train=2, val=0, spm=spm)
    save_public(make_large_model(model_config("beit3_base_patch16_224")).half(), tmp_path / "base.pth")
    paths = {
        "S": spm,
        "C": tmp_path / "base.pth",
        "D": tmp_path / "run",
        "L": tmp_path / "log",
        ".": tmp_path / "out",
    }
    words = [str(paths.get(word, word)) for word in ORIGINAL_COMMAND.split()]
    done = run_command([*words, "--max_steps", "2"])
    assert done.returncode == 0, done.stderr
    assert "no CUDA GPU found" in done.stdout and "2 images, 10 steps of 2" in done.stdout
    assert [event["event"] for event in events(tmp_path / "out")] == ["step", "step"]
    captioner = load_captioner(tmp_path / "out" / "best", "cpu")
    captioner.max_tokens = 4
    caption = captioner.caption(next((tmp_path / "run" / "images").iterdir()), "vehicle", "road", num_beams=1)
    assert isinstance(caption, str) and len(captioner.caption_types) == 10
