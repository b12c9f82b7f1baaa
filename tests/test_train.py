"""Steps equal the reference implementation's; a stopped or killed run resumes to the same weights."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy

import numpy as np
import pytest
import torch
from conftest import draw_run
from safetensors.torch import load_file
from test_config import ORIGINAL_COMMAND
from test_model import TINY, make_large_model, make_model
from test_tokenizer import write_spm

from beit3lib import loss, sample, train
from beit3lib.checkpoint import load_captioner, save_public
from beit3lib.config import OptionError, TrainConfig
from beit3lib.data.index import INDEX_NAME
from beit3lib.files import FolderInUse, lock_folder, read_json
from beit3lib.model import model_config
from beit3lib.run import log
from beit3lib.run.state import (
    LAST_NAME,
    ResumeError,
    TrainingStopped,
    index_hashes,
    open_captioner,
    read_last,
)


def quick(drawn, out, **options):
    """A config that takes a second: the sample's model, one caption type, 8 images in 2 steps per epoch."""
    values = {
        **{"model": sample.MODEL, "sentencepiece_model": str(sample.SPM_PATH), "data_path": str(drawn)},
        **{"output_dir": str(out), "subject": "vehicle", "aspect": "road", "batch_size": 4, "epochs": 2},
        **{"warmup_epochs": 1, "num_workers": 0, "drop_path": 0.0, "device": "cpu", "precision": "fp32"},
        **{"val_images": 2, "num_beams": 1, "num_max_bpe_tokens": 12},
    }
    return TrainConfig(**{**values, **options})


def changed(config, **options):
    return TrainConfig(**{**vars(config), **options})


def start(words, code=None, prefix=()):
    """Start the command, or `code` with its arguments, in a process group of its own."""
    command = [*prefix, sys.executable, *(["-c", code] if code else ["-m", "beit3lib.train"]), *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
    return subprocess.Popen(command, env=environment, **pipes)


def run_command(*arguments):
    """Run the command; return its exit status and output."""
    child = start(*arguments)
    output = child.communicate(timeout=300)[0]
    return child.returncode, output


def last(folder):
    return read_last(folder / LAST_NAME)


def best(folder):
    return load_file(folder / "best" / "model.safetensors")


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def close(a, b, atol=1e-5):
    return a.keys() == b.keys() and all(torch.allclose(a[name], b[name], atol=atol) for name in a)


def events(folder, kind=None):
    """The events of the log, or those of one kind, without their timing."""
    found = [event for event in log.read_log(folder / "log.jsonl") if kind in (None, event["event"])]
    return [{k: v for k, v in event.items() if k != "timing"} for event in found]


def losses(folder):
    return [event["loss"] for event in events(folder, "step")]


WHOLE = {"drop_path": 0.1, "randaug": True, "model_ema": True, "model_ema_decay": 0.9}


@pytest.fixture(scope="module")
def whole(drawn, tmp_path_factory):
    """An uninterrupted run of two epochs with a moving average and stochastic depth, to read only."""
    folder = tmp_path_factory.mktemp("whole")
    train.finetune(quick(drawn, folder, **WHOLE))
    return folder


def equals(folder, whole):
    """Whether a resumed run ended as the uninterrupted one: weights, moving average and log."""
    ours, theirs = last(folder) | {"best": best(folder)}, last(whole) | {"best": best(whole)}
    equal = all(same(ours[name], theirs[name]) for name in ("model", "ema", "best"))
    return equal and events(folder) == events(whole)


# The reference implementation as the oracle


@pytest.mark.parametrize("layer_decay", [1.0, 0.5])
def test_parameter_groups_equal_the_reference_implementation(reference, layer_decay):
    optim, model, top = reference.recipe("optim_factory"), make_model(TINY), TINY.layers + 2
    values = optim.LayerDecayValueAssigner([layer_decay ** (top - 1 - i) for i in range(top)])
    skipped = reference.captioning_model(deepcopy(model)).no_weight_decay()
    theirs = optim.get_parameter_groups(model, 0.05, skipped, values.get_layer_id, values.get_scale)
    ours = train.parameter_groups(model, TrainConfig(weight_decay=0.05, layer_decay=layer_decay))
    expected, found = (
        {id(p): (group["weight_decay"], group["lr_scale"]) for group in groups for p in group["params"]}
        for groups in (theirs, ours)
    )
    assert found == expected and len(found) > 50


@pytest.mark.parametrize("warmup_epochs, warmup_steps", [(1, -1), (1, 0), (2, 4), (1, 1), (0, -1)])
def test_the_schedule_equals_the_reference_implementation(reference, warmup_epochs, warmup_steps):
    schedule = reference.recipe("utils").cosine_scheduler
    theirs = schedule(1.0, 0.1, 3, 10, warmup_epochs, warmup_steps=warmup_steps)
    config = TrainConfig(lr=1.0, min_lr=0.1, warmup_lr=0.5)
    warmup = warmup_steps if warmup_steps > 0 else 10 * warmup_epochs
    ours = [train.learning_rate(step, 30, warmup, config) for step in range(30)]
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)


def test_three_training_steps_equal_the_reference_implementation(reference, drawn, tmp_path):
    """Loss, ignored worst tokens after `drop_worst_after` steps, schedule, parameter groups, AdamW."""
    options = {
        "drop_worst_after": 1,
        "drop_worst_ratio": 0.3,
        "layer_decay": 0.8,
        "warmup_epochs": 0,
        "lr": 1e-3,
    }
    run = train.setup(quick(drawn, tmp_path, **options))
    config, model = run.config, deepcopy(run.state.model)
    theirs, criterion = reference.captioning_model(deepcopy(model)), reference.loss_function(0.1, 0.3, 1)
    groups = train.parameter_groups(model, config)  # equal to theirs, see above
    names = {id(p): name for name, p in model.named_parameters()}
    for group in groups:
        group["params"] = [theirs.get_parameter(names[id(p)]) for p in group["params"]]
    optimizer = torch.optim.AdamW(groups, lr=config.lr)
    batches = [*train.load_batches(run, 0, 0), *train.load_batches(run, 1, 0)]
    for step, window in enumerate(batches[:3]):
        for opt in (optimizer, run.state.optimizer):
            for group in opt.param_groups:
                group["lr"] = train.learning_rate(step, 4, 0, config) * group["lr_scale"]
        batch = window[0]
        masked = torch.zeros(batch.labels.numel(), dtype=torch.bool)
        masked[batch.mask_positions] = True
        masked, padding = masked.view_as(batch.labels), (batch.doc_ids < 0).long()
        logits = reference.logits(theirs, batch.images, batch.input_ids, padding, masked)
        expected = criterion(logits, batch.labels[masked], step)
        expected.backward()
        optimizer.step()
        optimizer.zero_grad()
        found = train.train_step(run.loss_model, window, run.state.optimizer, run.accelerator, config, step)
        assert found.loss == pytest.approx(expected.item(), rel=1e-5), step
    expected, before = dict(theirs.named_parameters()), dict(model.named_parameters())
    for name, found in run.state.model.named_parameters():
        moved, error = (found - before[name]).norm(), (found - expected[name]).norm()
        # The gradient of a key's bias is 0 but for rounding, which AdamW scales up to a full step.
        assert (moved > 0) == found.requires_grad and ("k_proj" in name or error <= 0.01 * moved), name


# Steps


def test_accumulated_batches_equal_one_large_batch(drawn, tmp_path, monkeypatch):
    """Also where a variable of accelerate asks for accumulation, which would divide gradients once more."""
    train.finetune(quick(drawn, tmp_path / "a", batch_size=8))
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "8")
    train.finetune(quick(drawn, tmp_path / "b", batch_size=2, update_freq=4))
    assert close(last(tmp_path / "a")["model"], last(tmp_path / "b")["model"])
    norms = [[event["grad_norm"] for event in events(tmp_path / name, "step")] for name in "ab"]
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)


NOT_FINITE = {
    "loss": lambda losses: losses * math.nan,
    "gradient": lambda losses: losses + (losses - losses.detach()).sqrt(),  # of √x at 0
}


@pytest.mark.parametrize("spoil", NOT_FINITE.values(), ids=NOT_FINITE)
def test_what_is_not_finite_stops_the_run_before_it_reaches_the_weights(drawn, tmp_path, monkeypatch, spoil):
    config, original, calls = quick(drawn, tmp_path, epochs=3), loss.label_smoothed_loss, []

    def spoiled(*arguments):
        calls.append(1)
        return spoil(original(*arguments)) if len(calls) == 4 else original(*arguments)

    monkeypatch.setattr(loss, "label_smoothed_loss", spoiled)
    message = r"step 4: expected a finite loss and gradient.*: images/avg.*jpg, images/avg"
    with pytest.raises(TrainingStopped, match=message):
        train.finetune(config)
    assert last(tmp_path)["step"] == 2
    results = train.finetune(config)  # from the good state
    assert results["steps"] == 6 and all(map(math.isfinite, losses(tmp_path)))


def test_best_contains_the_moving_average(drawn, tmp_path):
    config = quick(drawn, tmp_path, model_ema=True, model_ema_decay=0.9999999, lr=1e-2, epochs=1)
    before = deepcopy(train.setup(config).state.model.state_dict())
    train.finetune(config)
    assert close(best(tmp_path), before, atol=1e-4) and not close(last(tmp_path)["model"], before, atol=1e-4)
    assert same(open_captioner(tmp_path / LAST_NAME, "cpu").model.state_dict(), best(tmp_path))


def test_a_batch_that_does_not_fit_is_halved_and_the_global_batch_stays(drawn, tmp_path, monkeypatch, capsys):
    run, limit, forward = train.setup(quick(drawn, tmp_path, batch_size=8)), [2], loss.LossModel.forward

    def limited(self, batch):
        if len(batch.images) > limit[0]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, batch)

    monkeypatch.setattr(loss.LossModel, "forward", limited)
    train.fit_batch(run)
    assert (run.micro_batch, run.update_freq, run.global_batch) == (2, 4, 8)
    assert "out of memory with batch_size 8: using 2, with update_freq 4" in capsys.readouterr().out
    train.start_log(run)
    assert train.fit(run, []) == "finished"
    train.finetune(quick(drawn, tmp_path / "b", batch_size=2, update_freq=4))
    assert close(last(tmp_path)["model"], last(tmp_path / "b")["model"])
    limit[0] = 0
    with pytest.raises(torch.OutOfMemoryError, match="one image does not fit"):
        train.fit_batch(run)


# Validation, best/ and options


def test_best_is_the_epoch_with_the_best_score_and_patience_ends_the_run(drawn, tmp_path, monkeypatch):
    scores = iter([10.0, 30.0, 20.0, 25.0, 40.0])
    result = {"captions": 1, "distinct": 1.0, "memorized": 0.0, "references": {"distinct": 1.0}}
    result |= {"facts": None, "accuracy": None, "score": None, "seconds": 0.0}
    monkeypatch.setattr(train, "validate", lambda *_: {**result, "best_by": next(scores)})
    config = quick(drawn, tmp_path, epochs=5, patience=2, save_ckpt_freq=3)
    results = train.finetune(config)
    assert results["stopped"] == "no better score" and results["steps"] == 8 and results["best_score"] == 30.0
    meta = read_json(tmp_path / "best" / "meta.json")
    assert meta["step"] == 4 and meta["best_score"] == 30.0 and meta["index"] == index_hashes(drawn)
    assert read_json(tmp_path / "checkpoint-3" / "meta.json")["step"] == 6
    again = train.finetune(config)  # a resumed run knows the scores before
    assert again["steps"] == 8 and again["stopped"] == "no better score" and again["best_score"] == 30.0


def copy_index(drawn, folder, change):
    """The index of `drawn` in another folder, lines changed or left out, with absolute image paths."""
    folder.mkdir()
    for split in ("train", "val"):
        lines = map(json.loads, (drawn / INDEX_NAME.format(split=split)).read_text().splitlines())
        lines = [change(split, {**line, "image_path": str(drawn / line["image_path"])}) for line in lines]
        text = "".join(json.dumps(line) + "\n" for line in lines if line)
        (folder / INDEX_NAME.format(split=split)).write_text(text)
    return folder


def test_an_index_of_the_reference_implementation_is_one_caption_type_and_not_scored(drawn, tmp_path, capsys):
    """It has no subjects and aspects, and null instead of the token ids of validation images."""

    def change(split, line):
        ids = {} if split == "train" else {"text_segment": None}
        return (
            line["aspect"] == "road"
            and {key: line[key] for key in ("image_path", "text_segment", "image_id")} | ids
        )

    data = copy_index(drawn, tmp_path / "data", change)
    results = train.finetune(quick(data, tmp_path, subject="all", aspect="all"))
    assert results["best_score"] is None and "no score on 2 captions" in capsys.readouterr().out
    assert [event["score"] for event in events(tmp_path, "validation")] == [None, None]
    captioner = load_captioner(tmp_path / "best", "cpu")
    assert captioner.prompts == [[]] and captioner.max_tokens == 12
    assert isinstance(captioner.caption(next((drawn / "images").iterdir())), str)


def test_a_wrong_option_is_named_before_anything_is_written_and_a_folder_in_use_is_refused(drawn, tmp_path):
    with pytest.raises(OptionError, match="--update_freq: expected at least 9 training images, got 8"):
        train.setup(quick(drawn, tmp_path / "out", update_freq=9))
    assert not (tmp_path / "out").exists()
    with lock_folder(tmp_path, "training"), pytest.raises(FolderInUse, match="in use by training"):
        train.finetune(quick(drawn, tmp_path))


# Stopping and resuming


def test_a_finished_run_is_not_trained_again_unless_asked(drawn, whole, tmp_path, capsys):
    out = shutil.copytree(whole, tmp_path / "run")
    assert train.finetune(quick(drawn, out, **WHOLE))["stopped"] == "finished" and equals(out, whole)
    assert "resumed from" in capsys.readouterr().out
    train.finetune(quick(drawn, out, auto_resume=False, lr=1e-3))
    message = "starts from scratch; last.pt and best of an earlier run will be replaced"
    assert message in capsys.readouterr().out
    assert not same(last(out)["model"], last(whole)["model"]) and len(events(out)) == len(events(whole))


def test_a_run_out_of_time_after_every_step_ends_as_an_uninterrupted_one(drawn, whole, tmp_path, capsys):
    late = quick(drawn, tmp_path, max_minutes=1e-6, **WHOLE)
    for _ in range(4):
        assert train.finetune(late)["stopped"] == "out of time"
        load_captioner(tmp_path / "best", "cpu")  # also before the first epoch ends
    assert "Rerun the same command to resume." in capsys.readouterr().out
    results = train.finetune(quick(drawn, tmp_path, **WHOLE))
    assert results["stopped"] == "finished" and equals(tmp_path, whole)


def test_saving_within_an_epoch_changes_nothing(drawn, tmp_path, monkeypatch):
    """A saved model still trains with stochastic depth."""
    steps, save = [], train.save
    monkeypatch.setattr(train, "save", lambda run: (steps.append(run.state.step), save(run)))
    for name, minutes in (("rare", 15), ("often", 1e-9)):
        train.finetune(quick(drawn, tmp_path / name, drop_path=0.3, save_every_minutes=minutes))
    assert steps == [2, 4, 1, 2, 3, 4]
    assert same(last(tmp_path / "rare")["model"], last(tmp_path / "often")["model"])


def interrupt(monkeypatch, where, number, at):
    """Send a signal to this process in call `at` of a step, of a validation, or of a save."""
    targets = {"step": (train, "train_step"), "validation": (train, "validate"), "save": (torch, "save")}
    target, name = targets[where]
    original, calls = getattr(target, name), []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == at:
            os.kill(os.getpid(), number)
        return original(*arguments)

    monkeypatch.setattr(target, name, interrupted)


@pytest.mark.parametrize(
    "where, at, step, number",
    [
        ("step", 3, 3, signal.SIGINT),
        ("save", 1, 2, signal.SIGHUP),
        *(("validation", 2, 4, number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)),
    ],
)
def test_an_interrupted_run_saves_exits_and_ends_as_an_uninterrupted_one(
    drawn, whole, tmp_path, monkeypatch, capsys, where, at, step, number
):
    config = quick(drawn, tmp_path, **WHOLE)
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as exit:
        interrupt(patch, where, number, at)
        train.finetune(config)
    assert exit.value.code == 128 + number
    message = f"{number.name}: stopped after step {step}, saved in {tmp_path / LAST_NAME}. Rerun the same"
    assert message in capsys.readouterr().out
    train.finetune(config)
    assert equals(tmp_path, whole)


@pytest.mark.slow
def test_the_command_exits_with_the_status_of_the_signal(drawn, tmp_path):
    """The signal goes to the whole process group, loader workers included, as from a terminal."""
    child = start(quick(drawn, tmp_path, epochs=10_000, num_workers=2, val_images=1).arguments())
    next(line for line in child.stdout if line.startswith("epoch 1"))
    os.killpg(child.pid, signal.SIGHUP)
    rest = child.communicate(timeout=30)[0]
    assert child.returncode == 128 + signal.SIGHUP, rest
    assert "Traceback" not in rest and "Rerun the same command to resume" in rest
    assert last(tmp_path)["step"] == len(losses(tmp_path))


FAILING_WORKER = """
import os, signal, sys
from beit3lib import dataset, train
inner = dataset.CaptionDataset.__getitem__
def failing(self, index):
    if self.epoch == 1:
        {failure}
    return inner(self, index)
dataset.CaptionDataset.__getitem__ = failing
train.main(sys.argv[1:])
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "failure, message",
    [("raise ValueError('damaged')", "damaged"), ("os.kill(os.getpid(), signal.SIGKILL)", "worker")],
)
def test_an_error_in_a_loader_worker_ends_the_command(drawn, tmp_path, failure, message):
    """A worker that ignored SIGTERM, by which Python ends it, would keep the failed command from ending."""
    config = quick(drawn, tmp_path, num_workers=2)
    status, output = run_command(config.arguments(), FAILING_WORKER.replace("{failure}", failure))
    assert status == 1 and message in output
    assert last(tmp_path)["step"] == 2


@pytest.fixture
def stopped(drawn, tmp_path, monkeypatch):
    """The folder of a run stopped after step 3 of 4, and its config."""
    config = quick(drawn, tmp_path / "run", **WHOLE)
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        interrupt(patch, "step", signal.SIGTERM, 3)
        train.finetune(config)
    return tmp_path / "run", config


def test_a_truncated_file_as_last_is_named(stopped):
    folder, config = stopped
    path = folder / LAST_NAME
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(SystemExit, match=f"ResumeError: {path}: expected the state of a.*--no_auto_resume"):
        train.main(config.arguments())


@pytest.mark.parametrize(
    "options, message",
    [
        ({"lr": 1e-3}, r"got lr 0.0005 \(now 0.001\)"),
        ({"epochs": 3, "seed": 1}, r"epochs 2 \(now 3\).*seed 0 \(now 1\)"),
        ({"batch_size": 2}, r"got a global batch of 4 \(now 2\)"),
        ({"data_path": "data"}, "another train index, another val index"),
    ],
)
def test_resuming_with_other_options_or_data_is_refused_by_name(drawn, stopped, tmp_path, options, message):
    folder, config = stopped
    if "data_path" in options:  # equal but for one number
        other = copy_index(drawn, tmp_path / "data", lambda _, line: {**line, "image_id": 99})
        options = {"data_path": str(other)}
    with pytest.raises(ResumeError, match=message + ".*--no_auto_resume"):
        train.finetune(changed(config, **options))
    assert last(folder)["step"] == 3


def test_options_of_a_session_and_an_incomplete_last_line_of_the_log_change_nothing(stopped, whole):
    folder, config = stopped
    with (folder / "log.jsonl").open("a") as file:
        file.write('{"event": "step", "step": 4, "loss": 1.0}\n{"event": "st')
    train.finetune(changed(config, num_workers=1, max_minutes=60, patience=9, save_every_minutes=0))
    assert equals(folder, whole)


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

watch(train, "train_step"); watch(loss, "label_smoothed_loss")
watch(train, "validate"); watch(train, "log_event")
watch(checkpoint, "save_file", path=1); watch(torch, "save", path=1)
watch(files.os, "replace"); watch(files.os, "fsync"); watch(files.shutil, "rmtree")
train.main(arguments)
print("EVENTS", count)
"""


@pytest.mark.parametrize(
    "seeds, each",
    [pytest.param((5,), 3, marks=pytest.mark.slow), pytest.param((5, 6), 8, marks=pytest.mark.long)],
)
def test_a_run_killed_at_random_points_ends_as_an_uninterrupted_one(drawn, tmp_path, seeds, each):
    """SIGKILL in a step, in a save with half a file written, between renames of a folder, in a validation."""
    # Also the uninterrupted run has one thread: another number of threads rounds differently.
    whole = tmp_path / "whole"
    status, output = run_command(["0", *quick(drawn, whole, **WHOLE).arguments()], KILLED)
    assert status == 0, output
    count = int(output.split("EVENTS")[1])

    def kill(seed):
        rng, kills, out = np.random.default_rng(seed), 0, tmp_path / str(seed)
        while True:
            at = int(rng.integers(1, count // 2)) if kills < each else 0
            status, output = run_command([str(at), *quick(drawn, out, **WHOLE).arguments()], KILLED)
            if status == 0:  # this run is complete; the next kill hits another one
                assert equals(out, whole)
                names = {"best", LAST_NAME, "log.jsonl", "results.json", ".lock"}
                assert {path.name for path in out.iterdir()} <= names
                if kills == each:
                    return kills
                out = tmp_path / f"{seed}-{kills}"
            else:
                assert status == -signal.SIGKILL, output
                kills += 1

    with ThreadPoolExecutor(2) as pool:
        assert set(pool.map(kill, seeds)) == {each}


@pytest.mark.slow
def test_a_full_disk_leaves_the_state_before_and_names_the_file(drawn, tmp_path):
    """A file may not grow past 1 MB, less than the weights take: what writing meets on a full disk."""
    config = quick(drawn, tmp_path)
    train.finetune(changed(config, max_steps=2))
    before = last(tmp_path)["model"]
    code = "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    code += "resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000)); "
    code += "from beit3lib import train; train.main(sys.argv[1:])"
    status, output = run_command(config.arguments(), code)
    assert status == 1 and "Traceback" not in output, output
    assert f"{tmp_path / LAST_NAME}: saving failed" in output and "The state saved before is intact" in output
    assert same(before, last(tmp_path)["model"]) and train.finetune(config)["steps"] == 4


# Several processes


@pytest.mark.slow
def test_two_processes_equal_one_with_the_doubled_batch_and_can_resume_each_other(drawn, tmp_path):
    """The same losses, weights and validation, also 1 -> 2 and 2 -> 1 processes; stochastic depth is on."""
    options = {"subject": "all", "aspect": "all", "val_images": 3, "num_max_bpe_tokens": 8, "batch_size": 2}
    options |= {"drop_path": 0.1, "model_ema": True}

    def one(name, **more):
        return train.finetune(quick(drawn, tmp_path / name, update_freq=2, **options, **more))

    def two(name, **more):
        return train.launch(quick(drawn, tmp_path / name, **options, **more), 2)

    assert one("one")["steps"] == 4
    for name, first, second in (("two-one", two, one), ("one-two", one, two)):
        assert first(name, max_minutes=1e-6)["stopped"] == "out of time"
        second(name)
        assert losses(tmp_path / name) == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
        assert close(last(tmp_path / "one")["model"], last(tmp_path / name)["model"], atol=1e-4)
        expected, found = (events(tmp_path / each, "validation") for each in ("one", name))
        assert [(e["step"], e["captions"]) for e in found] == [(e["step"], e["captions"]) for e in expected]
        assert found[0]["samples"] == expected[0]["samples"]


@pytest.mark.slow
def test_two_processes_validate_as_one(drawn, tmp_path):
    """The same captions, scores and shares; the two processes share batches of 2 and 1 images."""
    options = {"subject": "all", "aspect": "all", "eval": True, "finetune": str(sample.CHECKPOINT_PATH)}
    options |= {"num_beams": 2, "val_images": 3, "samples": 3, "eval_batch_size": 2}
    config = quick(drawn, tmp_path, **options)
    one, two = train.finetune(config)["validation"], train.launch(config, 2)["validation"]
    assert one.pop("seconds") > 0 and two.pop("seconds") > 0
    assert one == two and one["captions"] == len(one["samples"]) == 30 and one["score"] > 0


LAUNCHED = """
import sys
from beit3lib import config, train
train.launch(config.parse_arguments(sys.argv[1:]), 2)
"""


@pytest.mark.slow
def test_launch_passes_signals_on_and_the_last_lines_of_a_failure(drawn, tmp_path):
    config = quick(drawn, tmp_path, epochs=10_000, batch_size=2, val_images=1)
    child = start(config.arguments(), LAUNCHED)
    next(line for line in child.stdout if line.startswith("epoch 1"))
    child.send_signal(signal.SIGTERM)
    child.send_signal(signal.SIGTERM)  # a second one does not interrupt saving
    rest = child.communicate(timeout=60)[0]
    assert child.returncode == 143 and "SIGTERM: stopped after step" in rest and "Traceback" not in rest, rest
    assert last(tmp_path)["step"] == len(losses(tmp_path))
    with pytest.raises(RuntimeError, match="(?s)failed, status.*no_such.pth: expected a"):
        train.launch(quick(drawn, tmp_path, finetune=str(tmp_path / "no_such.pth")), 2)


@pytest.mark.slow
def test_launch_works_where_the_name_of_the_host_does_not_resolve(drawn, tmp_path):
    script = 'hostname nowhere.invalid && exec "$@"'
    prefix = ["unshare", "--uts", "sh", "-c", script, "sh"]
    if not shutil.which("unshare") or subprocess.run([*prefix, "true"], capture_output=True).returncode:
        pytest.skip("the name of the host cannot be changed here")
    config = quick(drawn, tmp_path, batch_size=2, epochs=1)
    status, output = run_command(config.arguments(), LAUNCHED, prefix)
    assert status == 0 and "no GPU is used, so 2 processes share the CPU" in output, output


# The command of the original repository


@pytest.mark.slow
def test_the_command_of_the_original_repository_runs_two_steps_and_its_checkpoint_captions(tmp_path):
    """Every option as there, on a random base model in the public format; only --max_steps is added."""
    spm, base = write_spm(tmp_path / "beit3.spm", 64_000), tmp_path / "base.pth"
    draw_run(tmp_path / "run", train=2, val=0, spm=spm)
    save_public(make_large_model(model_config("beit3_base_patch16_224")).half(), base)
    paths = {"S": spm, "C": base, "D": tmp_path / "run", "L": tmp_path / "log", ".": tmp_path / "out"}
    words = [str(paths.get(word, word)) for word in ORIGINAL_COMMAND.split()]
    status, output = run_command([*words, "--max_steps", "2"])
    assert status == 0, output
    assert "no CUDA GPU found" in output and "2 images, 10 steps of 2" in output
    assert [event["event"] for event in events(tmp_path / "out")] == ["step", "step"]
    assert any((tmp_path / "log").rglob("events.out.tfevents*"))
    captioner = load_captioner(tmp_path / "out" / "best", "cpu")
    captioner.max_tokens = 4
    caption = captioner.caption(next((tmp_path / "run" / "images").iterdir()), "vehicle", "road", num_beams=1)
    assert isinstance(caption, str) and len(captioner.caption_types) == 10
