"""The recipe's formulas against numbers worked out here; packed = separate; two processes = one; killed = not killed."""

import json
import math
import os
import pickle
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.optimizer import AcceleratedOptimizer
from conftest import draw_run
from safetensors.torch import load_file
from test_model import TINY, make

from beit3lib import evaluate as validation
from beit3lib import loss, processes, train
from beit3lib.checkpoint import load_captioner, save_public
from beit3lib.config import OTHER_TASKS, TrainConfig, as_flag, parse_command
from beit3lib.data.index import read_index
from beit3lib.dataset import CaptionDataset
from beit3lib.log import read_log
from beit3lib.model import Captioner, model_config
from beit3lib.pipeline.manifest import load_manifest
from beit3lib.pipeline.settings import OptionError
from beit3lib.sample import draw as sample
from beit3lib.tokenizer import load_tokenizer

SEEDS_COMMAND = (
    "--device cuda --model beit3_base_patch16_224 --input_size 224 --task coco_captioning --batch_size 32 "
    "--layer_decay 1.0 --lr 4e-5 --randaug --epochs 10 --warmup_epochs 1 --drop_path 0.1 --sentencepiece_model S "
    "--finetune C --data_path D --output_dir . --log_dir L --weight_decay 0.05 --seed 42 --save_ckpt_freq 5 "
    "--num_max_bpe_tokens 64 --captioning_mask_prob 0.7 --drop_worst_after 12000 --dist_eval --checkpoint_activations"
)


def quick(drawn, out, **options):
    """A configuration that takes a second: the sample's tiny model, one description, no crop."""
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
        "auto_resume": False,
    }
    return TrainConfig(**{**values, **options})


def flags(config):
    return [word for name, value in vars(config).items() for word in as_flag(name, value)]


def run_command(arguments, *launcher, **options):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, *(launcher or ("-m",)), "beit3lib.train", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, **options)


def weights(folder):
    return load_file(Path(folder) / "model.safetensors")


def weights_of(model):
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def without_clock(path):
    return [{k: v for k, v in event.items() if k != "timing"} for event in read_log(path)]


# --- loss ----------------------------------------------------------------------------------------------------------


def numpy_kl(logits, targets, smoothing):
    """KL(q || p) with q and p made in full, as the recipe writes it."""
    logits = logits.astype(np.float64)
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    q = np.full(logits.shape, smoothing / (logits.shape[1] - 1))
    q[np.arange(len(targets)), targets] = 1 - smoothing
    terms = np.where(q > 0, q * (np.log(np.where(q > 0, q, 1)) - np.log(p)), 0)
    return terms.sum(1)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_loss_is_the_divergence_from_the_smoothed_target(smoothing):
    rng = np.random.default_rng(0)
    logits, targets = rng.normal(size=(7, 11)).astype(np.float32) * 4, rng.integers(0, 11, 7)
    found = loss.smoothed_losses(torch.from_numpy(logits), torch.from_numpy(targets), smoothing)
    np.testing.assert_allclose(found.numpy(), numpy_kl(logits, targets, smoothing), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_of_the_loss_is_that_of_the_divergence(smoothing, dtype):
    logits, targets = (3 * torch.randn(5, 11)).to(dtype).requires_grad_(), torch.randint(0, 11, (5,))
    weights = torch.rand(5)
    q = torch.full((5, 11), smoothing / 10).scatter_(1, targets[:, None], 1 - smoothing)
    expected = torch.nn.functional.kl_div(logits.float().log_softmax(1), q, reduction="none").sum(1)
    wanted = torch.autograd.grad((weights * expected).sum(), logits)[0]
    found = torch.autograd.grad((weights * loss.smoothed_losses(logits, targets, smoothing)).sum(), logits)[0]
    assert found.dtype == dtype and torch.allclose(found, wanted, atol=1e-6 if dtype == torch.float32 else 1e-2)


def test_loss_has_its_floor_at_zero():
    """The target distribution itself has no loss, which plain cross-entropy with smoothing does not give."""
    q = torch.full((1, 5), 0.1 / 4)
    q[0, 2] = 0.9
    assert abs(loss.smoothed_losses(q.log(), torch.tensor([2]), 0.1).item()) < 1e-6


def test_loss_in_parts_is_the_loss_at_once(monkeypatch):
    monkeypatch.setattr(loss, "HEAD_CHUNK", 3)
    head, states = torch.nn.Linear(6, 20), torch.randn(10, 6, requires_grad=True)
    targets = torch.randint(0, 20, (10,))
    whole = loss.smoothed_losses(head(states), targets, 0.1)
    wanted = torch.autograd.grad(whole.sum(), [states, head.weight])
    parts = loss.head_losses(head, states, targets, 0.1)
    assert torch.allclose(parts, whole, atol=1e-6)
    for a, b in zip(torch.autograd.grad(parts.sum(), [states, head.weight]), wanted, strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_the_worst_positions_are_left_out():
    losses = torch.tensor([5.0, 1.0, 4.0, 2.0, 3.0])
    assert sorted(loss.drop_worst(losses, 0.2).tolist()) == [1, 2, 3, 4]
    assert loss.drop_worst(torch.tensor([7.0]), 0.9).tolist() == [7.0]


def test_packed_captions_have_the_losses_of_captions_one_by_one(drawn):
    """Loss for loss: ten descriptions in one row, and the same ten as rows of their own."""
    tokenizer = load_tokenizer(sample.SPM_PATH)
    table = read_index(drawn / "coco_captioning.train.jsonl")
    rows = CaptionDataset(table, drawn, tokenizer, 64, TrainConfig(flip="none"), False)
    torch.manual_seed(0)
    model = loss.LossModel(Captioner(model_config(sample.MODEL)), 0.1).eval()
    picture, row, name = rows[0]
    packed = model(rows.collate([(picture, row, name)]))
    separate = []
    for number in range(10):
        mine = row.segments == number
        single = type(row)(*(getattr(row, field)[mine] for field in row._fields))._replace(segments=np.zeros(mine.sum(), int))
        separate.append(model(rows.collate([(picture, single, name)])))
    assert torch.allclose(packed, torch.cat(separate), atol=1e-5) and len(packed) > 50


# --- optimiser and schedule ----------------------------------------------------------------------------------------


def test_layers_as_the_recipe_numbers_them():
    model = make(TINY)
    numbers = {name: train.layer_of(name, TINY.layers) for name, _ in model.named_parameters()}
    assert numbers["beit3.text_embed.weight"] == numbers["beit3.vision_embed.proj.weight"] == 0
    assert numbers["beit3.encoder.embed_positions.A.weight"] == 0
    for layer in range(TINY.layers):
        assert numbers[f"beit3.encoder.layers.{layer}.ffn.B.fc1.weight"] == layer + 1
    assert numbers["mlm_head.weight"] == numbers["beit3.encoder.layer_norm.B.weight"] == TINY.layers + 1


def test_every_parameter_has_its_decay_and_its_scale():
    model, config = make(TINY), TrainConfig(weight_decay=0.05, layer_decay=0.5)
    groups = train.parameter_groups(model, config)
    found = {id(p): (g["weight_decay"], g["lr_scale"]) for g in groups for p in g["params"]}
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert len(found) == len(trained)
    for name, parameter in trained.items():
        depth = re.search(r"layers\.(\d+)\.", name)
        layer = 0 if "embed" in name else int(depth[1]) + 1 if depth else 4
        spared = parameter.ndim == 1 or name.endswith(("cls_token", "embed_positions.A.weight"))
        assert found[id(parameter)] == (0.0 if spared else 0.05, 0.5 ** (4 - layer)), name


def test_what_trains_is_what_captions_use():
    model = make(TINY)
    batch = torch.rand(2, 3, 16, 16), torch.randint(3, 60, (2, 5))
    model(*batch).sum().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


def test_schedule_is_a_line_then_half_a_cosine():
    config = TrainConfig(lr=1.0, min_lr=0.1, warmup_lr=0.0)
    rates = [train.learning_rate(step, 30, 10, config) for step in range(30)]
    wanted = np.concatenate([np.arange(10) / 10, 0.1 + 0.45 * (1 + np.cos(np.pi * np.arange(20) / 20))])
    np.testing.assert_allclose(rates, wanted, rtol=1e-12)


def test_a_step_is_adamw_with_each_groups_own_rate(drawn, tmp_path):
    """The first step moves a weight by lr · scale · (g / (|g| + eps) + decay · w), whatever the size of its gradient."""
    config = quick(drawn, tmp_path, warmup_epochs=0, lr=1e-3, layer_decay=0.5, weight_decay=0.1, max_steps=1)
    trainer = train.Trainer(config)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    batch = next(iter(trainer._windows(0, 0)))[0]
    torch.manual_seed(0)
    trainer.loss_model(batch).mean().backward()
    gradients = {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}
    trainer.optimizer.zero_grad()
    trainer._train_epoch(0)
    for name in (
        "beit3.encoder.layers.0.ffn.B.fc1.weight",
        "mlm_head.weight",
        "beit3.encoder.layers.1.self_attn.k_proj.A.bias",
    ):
        g, w = gradients[name].double(), before[name].double()
        layer = int(name.split("layers.")[1][0]) + 1 if "layers." in name else 5
        rate, decay = 1e-3 * 0.5 ** (5 - layer), 0.1 if w.ndim > 1 else 0.0
        wanted = w - rate * (g / (g.abs() + 1e-8) + decay * w)
        moved = dict(trainer.model.named_parameters())[name].double()
        assert torch.allclose(moved, wanted, atol=rate * 2e-2), name


@pytest.mark.parametrize("update_freq", [2, 4])
def test_accumulated_batches_are_one_large_batch(drawn, tmp_path, update_freq):
    whole = quick(drawn, tmp_path / "a", batch_size=8, epochs=1)
    parts = quick(drawn, tmp_path / "b", batch_size=8 // update_freq, update_freq=update_freq, epochs=1)
    for config in (whole, parts):
        train.finetune(config)
    a, b = weights(tmp_path / "a" / "last"), weights(tmp_path / "b" / "last")
    assert all(torch.allclose(a[name], b[name], atol=1e-5) for name in a)


def test_a_clipped_gradient_has_the_norm_asked_for(drawn, tmp_path):
    trainer = train.Trainer(quick(drawn, tmp_path, clip_grad=0.25))
    window = next(iter(trainer._windows(0, 0)))
    seen = []
    trainer.optimizer.step = lambda: seen.append(
        math.sqrt(sum(p.grad.double().pow(2).sum().item() for p in trainer.model.parameters() if p.grad is not None))
    )
    done = train.train_step(trainer.loss_model, window, trainer.optimizer, trainer.accelerator, trainer.config, 0)
    assert done.norm > 0.25 and not done.skipped and seen[0] == pytest.approx(0.25, rel=1e-3)


def test_recomputed_activations_give_the_same_weights(drawn, tmp_path):
    for name, saved in (("a", False), ("b", True)):
        train.finetune(quick(drawn, tmp_path / name, checkpoint_activations=saved, drop_path=0.2))
    a, b = weights(tmp_path / "a" / "last"), weights(tmp_path / "b" / "last")
    assert all(torch.allclose(a[name], b[name], atol=1e-6) for name in a)


def test_the_moving_average_is_what_is_validated_and_kept_as_best(drawn, tmp_path):
    frozen = quick(drawn, tmp_path, model_ema=True, model_ema_decay=0.9999999, lr=1e-2)
    trainer = train.Trainer(frozen)
    start = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.run()
    best, last = weights(tmp_path / "best"), weights(tmp_path / "last")
    assert all(torch.allclose(best[name], start[name], atol=1e-4) for name in start)
    assert not torch.allclose(last["mlm_head.weight"], start["mlm_head.weight"], atol=1e-4)


# --- precision -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("capability, wanted", [((7, 5), "fp16"), ((8, 0), "bf16"), ((9, 0), "bf16")])
def test_precision_goes_by_compute_capability(monkeypatch, capability, wanted):
    """`torch.cuda.is_bf16_supported()` says yes on a T4 (7.5), where bf16 is emulated."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "a GPU")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)
    precision, reason = train.choose_precision("auto", torch.device("cuda"))
    assert precision == wanted and f"{capability[0]}.{capability[1]}" in reason


@pytest.mark.parametrize("has, wanted", [(True, "bf16"), (False, "no")])
def test_a_cpu_uses_bf16_where_it_has_the_instructions(monkeypatch, has, wanted):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has)
    assert train.choose_precision("auto", torch.device("cpu"))[0] == wanted
    assert train.choose_precision("fp32", torch.device("cpu"))[0] == "no"


# --- flags ---------------------------------------------------------------------------------------------------------


def test_steps_that_a_scaler_skips_are_counted_and_told(drawn, tmp_path, capsys):
    """A real scaler, as fp16 has, whose factor begins too large: it is halved for every step that overflows."""
    trainer = train.Trainer(quick(drawn, tmp_path, epochs=10, warmup_epochs=0))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    trainer.accelerator.scaler = scaler
    trainer.optimizer = AcceleratedOptimizer(trainer.optimizer.optimizer, scaler=scaler)
    before = weights_of(trainer.model)
    trainer.total_steps = 1
    trainer._train_epoch(0)
    assert same(before, weights_of(trainer.model)) and int(trainer.skipped) == 1
    trainer.total_steps = 20
    found = trainer.run()
    assert 1 <= found["skipped_steps"] < 20 and scaler.get_scale() == 2.0 ** (127 - found["skipped_steps"])
    log = [event["skipped"] for event in read_log(tmp_path / "log.jsonl") if event["event"] == "step"]
    assert log[-1] == found["skipped_steps"] and not same(before, weights_of(trainer.model))
    assert f"{log[-1]} steps skipped" in capsys.readouterr().out


def test_gradients_that_are_never_finite_end_the_run(drawn, tmp_path):
    """The loss is fine and nothing is learnt: such a run must not look healthy for hours."""
    trainer = train.Trainer(quick(drawn, tmp_path, epochs=9))
    trainer.model.mlm_head.weight.register_hook(lambda gradient: gradient * torch.nan)
    before = weights_of(trainer.model)
    with pytest.raises(train.TrainingStopped, match="step 10: the last 9 steps changed no weight, their gradients"):
        trainer.run()
    assert same(before, weights(tmp_path / "last"))


def test_a_second_run_in_one_kernel_may_have_another_precision(drawn, tmp_path):
    for precision in ("bf16", "fp32"):
        found = train.finetune(quick(drawn, tmp_path / precision, epochs=1, precision=precision))
        assert found["precision"] == precision.replace("fp32", "no")


def test_the_seeds_command_is_understood():
    config = parse_command(SEEDS_COMMAND.split())
    assert (config.batch_size, config.lr, config.layer_decay, config.seed, config.epochs) == (32, 4e-5, 1.0, 42, 10)
    assert config.randaug and config.dist_eval and config.checkpoint_activations and config.captioning_mask_prob == 0.7
    assert parse_command(flags(config)) == config


@pytest.mark.parametrize("name", sorted(OTHER_TASKS))
def test_options_of_other_tasks_are_refused_by_name_with_a_reason(name):
    with pytest.raises(OptionError, match=f"--{name} is not for captioning: it belongs to "):
        parse_command([f"--{name}", "1"])


@pytest.mark.parametrize(
    "command, told",
    [
        ("--lrr 1", "--lrr is unknown; did you mean --lr?"),
        ("--lr fast", "lr: expected a number, found 'fast'"),
        ("--epochs 2.5", "epochs: expected a whole number"),
        ("--epochs", "--epochs: expected 1 value"),
        ("lr 1", "'lr': expected an option that begins with --"),
        ("--epochs 0", "epochs: expected 1 or more"),
        ("--captioning_mask_prob 1.5", "captioning_mask_prob: expected a share"),
        ("--task vqav2", "task: expected one of coco_captioning"),
        ("--opt sgd", "opt: expected one of adamw"),
        ("--lr -1", "lr: expected 0 or more"),
        ("--lr nan", "lr: expected 0 or more"),
        ("--num_max_bpe_tokens 2", "num_max_bpe_tokens: expected 3 or more"),
        ("--crop_area 0", "crop_area: expected a share above 0"),
        ("--device cuda:1", "device: expected one of auto, cuda, cpu"),
        ("--no_save_ckpt", "--no_save_ckpt is not for captioning"),
        ("--randaug False", "--randaug: expected no value, found 'False'; --randaug turns it on, --no_randaug off"),
    ],
)
def test_a_wrong_flag_is_named(command, told):
    with pytest.raises(OptionError) as error:
        parse_command(command.split())
    assert told in str(error.value)


def test_flags_take_values_in_every_spelling():
    config = parse_command("--lr=1e-3 --opt_betas 0.8 0.9 --no_dist_eval --drop-path 0.2 --clip_grad 3".split())
    assert config.lr == 1e-3 and config.opt_betas == (0.8, 0.9) and not config.dist_eval
    assert config.drop_path == 0.2 and config.clip_grad == 3.0


@pytest.mark.slow
def test_a_wrong_flag_ends_the_command_with_a_sentence_and_help_lists_all():
    wrong = run_command(["--lrr", "1"])
    assert wrong.returncode == 1 and wrong.stderr.strip().endswith("(`python -m beit3lib.train --help` lists all)")
    helped = run_command(["--help"])
    assert helped.returncode == 0 and all(f"--{name}" in helped.stdout for name in vars(TrainConfig()))


# --- the whole -----------------------------------------------------------------------------------------------------


def test_a_run_leaves_best_last_and_a_log(drawn, tmp_path):
    results = train.finetune(quick(drawn, tmp_path, save_ckpt_freq=1))
    assert results["steps"] == 4 and results["stopped"] == "finished" and results["skipped_steps"] == 0
    events = read_log(tmp_path / "log.jsonl")
    validations = [event for event in events if event["event"] == "validation"]
    assert len(validations) == 2 and {"score", "distinct", "copied", "by_description", "samples"} <= set(validations[0])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best", "checkpoint-1", "last", "log.jsonl"]
    meta = json.loads((tmp_path / "best" / "meta.json").read_text())
    assert meta["options"]["lr"] == 5e-4 and meta["precision"] == "no" and meta["precision_reason"] == "asked for"
    assert torch.__version__.startswith(meta["versions"]["torch"]) and meta["manifest"] == load_manifest().hash
    timing = [event["timing"] for event in events if event["event"] == "step"]
    assert all(0 < line["seconds_per_step"] < 5 and line["tokens_per_s"] > 1 for line in timing)
    model = load_captioner(tmp_path / "best", "cpu")
    assert isinstance(model.caption(next((drawn / "images").iterdir())), str)


def test_seconds_per_step_are_those_of_steps_whatever_lies_between_epochs(drawn, tmp_path, monkeypatch):
    step = train.train_step

    def slow(*arguments):
        time.sleep(0.05)
        return step(*arguments)

    monkeypatch.setattr(train, "train_step", slow)
    trainer = train.Trainer(quick(drawn, tmp_path, epochs=6))
    monkeypatch.setattr(trainer, "validate", lambda epoch: time.sleep(0.5))
    trainer.run()
    timing = [event["timing"]["seconds_per_step"] for event in read_log(tmp_path / "log.jsonl") if event["step"] > 1]
    assert len(timing) == 2 and all(0.05 <= seconds < 0.3 for seconds in timing), timing


def test_best_is_the_epoch_with_the_best_score_and_patience_ends_the_run(drawn, tmp_path, monkeypatch):
    scores = iter([10.0, 30.0, 20.0, 25.0, 40.0])
    trainer = train.Trainer(quick(drawn, tmp_path, epochs=5, patience=2))
    monkeypatch.setattr(trainer, "validate", lambda epoch: {"score": next(scores)})
    results = trainer.run()
    assert results["stopped"] == "no better score" and results["steps"] == 8 and results["best_score"] == 30.0
    assert json.loads((tmp_path / "best" / "meta.json").read_text())["step"] == 4


def test_eval_only_validates(drawn, tmp_path):
    train.finetune(quick(drawn, tmp_path))
    before = weights(tmp_path / "last")
    log = (tmp_path / "log.jsonl").read_text()
    found = train.finetune(quick(drawn, tmp_path, eval=True, auto_resume=True))
    assert found["validation"]["captions"] == 2 and same(before, weights(tmp_path / "last"))
    again = train.finetune(quick(drawn, tmp_path, eval=True, finetune=str(tmp_path / "last")))  # our folder, as any checkpoint
    assert again["validation"]["by_description"] == found["validation"]["by_description"]
    named = train.Trainer(quick(drawn, tmp_path, eval=True, auto_resume=True, finetune=str(sample.CHECKPOINT_PATH)))
    assert not same(weights_of(named.model), before)  # the weights that are named, whatever lies in last/
    assert (tmp_path / "log.jsonl").read_text() == log
    with pytest.raises(OptionError, match="--eval: expected weights, found none"):
        train.finetune(quick(drawn, tmp_path, eval=True))
    with pytest.raises(FileNotFoundError, match="leave --resume out, and give --finetune the weights to validate"):
        train.finetune(quick(drawn, tmp_path, eval=True, resume=str(tmp_path / "best")))


def test_the_command_for_validation_leaves_the_results_of_training_alone(drawn, tmp_path, capsys):
    """With another batch size, as on another number of GPUs."""
    train.main(flags(quick(drawn, tmp_path, epochs=1)))
    results = (tmp_path / "results.json").read_text()
    train.main(flags(quick(drawn, tmp_path, eval=True, auto_resume=True, batch_size=2)))
    assert (tmp_path / "results.json").read_text() == results
    assert json.loads((tmp_path / "validation.json").read_text())["validation"]["captions"] == 2


def test_the_same_command_again_goes_on_and_only_no_auto_resume_begins_anew(drawn, tmp_path, capsys):
    """As in the recipe, so that after a crash the command need not be known to have crashed."""
    assert TrainConfig().auto_resume and not parse_command(["--no_auto_resume"]).auto_resume
    words = flags(quick(drawn, tmp_path, epochs=1, auto_resume=True))
    train.main(words)
    kept, log = weights(tmp_path / "last"), without_clock(tmp_path / "log.jsonl")
    train.main(words)
    assert same(kept, weights(tmp_path / "last")) and without_clock(tmp_path / "log.jsonl") == log
    assert "goes on from" in capsys.readouterr().out
    trainer = train.Trainer(quick(drawn, tmp_path, epochs=1, lr=1e-3))
    assert without_clock(tmp_path / "log.jsonl") == log  # to look at what would be trained changes nothing
    trainer.run()
    assert "begins anew; what an earlier run left in last and best is replaced" in capsys.readouterr().out
    assert not same(kept, weights(tmp_path / "last"))


def test_a_run_that_dies_in_validation_begins_again_with_it(drawn, tmp_path, monkeypatch):
    """Its epoch is not lost, and the log has each event once."""
    train.finetune(quick(drawn, tmp_path / "whole"))
    config = quick(drawn, tmp_path / "died", auto_resume=True)
    with monkeypatch.context() as patch:
        patch.setattr(validation, "generate", lambda *_, **__: (_ for _ in ()).throw(torch.OutOfMemoryError("no room")))
        with pytest.raises(torch.OutOfMemoryError):
            train.finetune(config)
    trainer = train.Trainer(config)
    assert trainer.step == 2 and trainer.due
    trainer.run()
    assert same(weights(tmp_path / "whole" / "best"), weights(tmp_path / "died" / "best"))
    assert without_clock(tmp_path / "whole" / "log.jsonl") == without_clock(tmp_path / "died" / "log.jsonl")


def test_a_run_goes_on_in_another_folder_with_what_lies_beside_its_last(drawn, tmp_path, monkeypatch):
    """As on Kaggle, where the first part of a run lies on a read-only mount: best and the log are not lost."""
    train.finetune(quick(drawn, tmp_path / "whole"))
    train.finetune(quick(drawn, tmp_path / "first", epochs=2, max_steps=2))
    for path in (tmp_path / "first", *(tmp_path / "first").rglob("*")):
        path.chmod(path.stat().st_mode & ~0o222)
    again = train.Trainer(quick(drawn, tmp_path / "second", resume=str(tmp_path / "first" / "last")))
    again.total_steps = 4
    monkeypatch.setattr(again, "validate", lambda epoch: {"score": -1.0})
    again.run()
    assert same(weights(tmp_path / "first" / "best"), weights(tmp_path / "second" / "best"))
    same_command = quick(drawn, tmp_path / "second", resume=str(tmp_path / "first" / "last"), auto_resume=True)
    assert train.Trainer(same_command).step == 4  # what was done here since is not done again
    steps = [event["step"] for event in read_log(tmp_path / "second" / "log.jsonl") if event["event"] == "step"]
    assert steps == [1, 2, 4] and json.loads((tmp_path / "second" / "last" / "state.json").read_text())["step"] == 4


def test_options_changed_on_resuming_hold_and_are_told(drawn, tmp_path, capsys):
    train.finetune(quick(drawn, tmp_path, epochs=1))
    changed = quick(drawn, tmp_path, epochs=2, auto_resume=True, weight_decay=0.3, layer_decay=0.8, model_ema=True)
    trainer = train.Trainer(changed)
    assert {group["weight_decay"] for group in trainer.optimizer.param_groups} == {0.0, 0.3}
    assert min(group["lr_scale"] for group in trainer.optimizer.param_groups) == pytest.approx(0.8**5)
    assert same(trainer.ema, weights(tmp_path / "last"))  # an average that is new begins with the weights that were learnt
    said = capsys.readouterr().out
    assert "weight_decay is now 0.3, not 0.05; lr" not in said and "epochs is now 2, not 1" in said
    with pytest.raises(ValueError, match="was trained with another layer_decay"):
        train.Trainer(quick(drawn, tmp_path, auto_resume=True, layer_decay=1.0))


def test_a_last_of_another_model_is_refused_in_one_sentence(drawn, tmp_path):
    train.finetune(quick(drawn, tmp_path, epochs=1))
    with pytest.raises(ValueError, match=r"last: holds another model \(image_size 64\); give another output_dir"):
        train.Trainer(quick(drawn, tmp_path, input_size=32, auto_resume=True))


def test_an_index_of_another_tokenizer_is_refused(drawn, tmp_path):
    """Its ids mean other words, and training would not notice."""
    from sentencepiece import sentencepiece_model_pb2 as proto

    model = proto.ModelProto()
    model.ParseFromString(sample.SPM_PATH.read_bytes())
    for number in range(3, len(model.pieces) - 1, 2):  # each piece in the place of its neighbour
        model.pieces[number].piece, model.pieces[number + 1].piece = model.pieces[number + 1].piece, model.pieces[number].piece
    (tmp_path / "other.spm").write_bytes(model.SerializeToString())
    with pytest.raises(ValueError, match="the index was made with another tokenizer, which has other ids for 'The road"):
        train.Trainer(quick(drawn, tmp_path, sentencepiece_model=str(tmp_path / "other.spm")))


def test_a_place_that_cannot_be_written_to_is_known_before_training(drawn, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        train.Trainer(quick(drawn, tmp_path / "file"))


def test_fewer_pictures_than_a_step_needs_are_refused(drawn, tmp_path):
    with pytest.raises(OptionError, match="expected 9 pictures or more for processes x update_freq, found 8"):
        train.Trainer(quick(drawn, tmp_path, update_freq=9))


def test_ways_to_spread_a_model_that_training_does_not_know_are_refused(monkeypatch):
    from types import SimpleNamespace

    for kind, told in (("DEEPSPEED", "DEEPSPEED"), ("MEGATRON_LM", "MEGATRON_LM"), ("FSDP", "FSDP")):
        unknown = SimpleNamespace(distributed_type=processes.DistributedType[kind], is_fsdp2=False)
        with pytest.raises(OptionError, match=f"accelerate is set to {told}; expected none, several GPUs, or FSDP"):
            processes.refuse_strategies(unknown)
    processes.refuse_strategies(SimpleNamespace(distributed_type=processes.DistributedType.FSDP, is_fsdp2=True))


def test_indexes_of_two_kinds_are_refused(drawn, tmp_path):
    (tmp_path / "coco_captioning.train.jsonl").write_text((drawn / "coco_captioning.train.jsonl").read_text())
    line = {"image_path": "a.jpg", "text_segment": [5, 6], "image_id": 0}
    (tmp_path / "coco_captioning.val.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(ValueError, match="one of the two indexes names its descriptions, the other does not"):
        train.Trainer(quick(tmp_path, tmp_path, subject="all", aspect="all"))


def test_a_run_without_time_saves_and_goes_on_later_as_if_it_had_not_stopped(drawn, tmp_path):
    train.finetune(quick(drawn, tmp_path / "whole", save_ckpt_freq=9))
    late = quick(drawn, tmp_path / "parts", max_minutes=1e-6, auto_resume=True, save_ckpt_freq=9)
    stops = [train.finetune(late)["stopped"] for _ in range(4)]
    assert stops[0] == "out of time"
    train.finetune(quick(drawn, tmp_path / "parts", auto_resume=True, save_ckpt_freq=9))
    assert same(weights(tmp_path / "whole" / "last"), weights(tmp_path / "parts" / "last"))
    assert without_clock(tmp_path / "whole" / "log.jsonl")[-1] == without_clock(tmp_path / "parts" / "log.jsonl")[-1]


def test_resuming_with_other_data_is_refused(drawn, tmp_path):
    train.finetune(quick(drawn, tmp_path, epochs=1))
    with pytest.raises(ValueError, match="2 steps per epoch, here there are 4"):
        train.Trainer(quick(drawn, tmp_path, batch_size=2, auto_resume=True))
    with pytest.raises(FileNotFoundError, match="expected a folder last/ to go on from"):
        train.Trainer(quick(drawn, tmp_path, resume=str(tmp_path / "nothing")))


def test_a_loss_that_is_not_finite_stops_with_the_names_of_the_images(drawn, tmp_path):
    config = quick(drawn, tmp_path, epochs=3, log_dir=str(tmp_path))
    trainer = train.Trainer(config)
    trainer._train_epoch(0)
    trainer._end_epoch(0)
    good = weights(tmp_path / "last")
    trainer.model.mlm_head.weight.data.fill_(torch.nan)
    with pytest.raises(train.TrainingStopped, match=r"the loss is nan; images of the batch: images/avg.*last"):
        trainer.run()
    assert same(good, weights(tmp_path / "last")) and not any(torch.isnan(v).any() for v in good.values())


def test_a_step_that_is_not_finite_changes_nothing_and_the_state_before_it_is_saved(drawn, tmp_path, monkeypatch):
    trainer = train.Trainer(quick(drawn, tmp_path, epochs=3))
    trainer._train_epoch(0)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    smoothed, calls = loss.smoothed_losses, []

    def spoilt(*arguments):
        calls.append(1)
        return smoothed(*arguments) * (torch.nan if len(calls) == 1 else 1.0)

    monkeypatch.setattr(loss, "smoothed_losses", spoilt)
    trainer.total_steps = 3  # the bad step is the last: what is saved is what was there before it
    with pytest.raises(train.TrainingStopped, match="step 3: the loss is nan; .*changed no weight: the last good"):
        trainer.run()
    assert same(before, weights(tmp_path / "last"))
    found = train.finetune(quick(drawn, tmp_path, epochs=3, auto_resume=True))
    assert found["steps"] == 6 and math.isfinite(found["last_loss"])


def test_a_run_that_lost_patience_does_not_train_on_when_resumed(drawn, tmp_path, monkeypatch):
    trainer = train.Trainer(quick(drawn, tmp_path, epochs=5, patience=1))
    monkeypatch.setattr(trainer, "validate", lambda epoch: {"score": 10.0 - epoch})
    assert trainer.run()["steps"] == 4
    again = train.finetune(quick(drawn, tmp_path, epochs=5, patience=1, auto_resume=True))
    assert again["steps"] == 4 and again["stopped"] == "no better score"


def test_a_run_out_of_time_in_its_first_epoch_can_be_captioned_with(drawn, tmp_path):
    train.finetune(quick(drawn, tmp_path, max_minutes=1e-6))
    assert isinstance(load_captioner(tmp_path / "best", "cpu").caption(next((drawn / "images").iterdir())), str)


@pytest.mark.parametrize("subject, aspect", [("all", "all"), ("vehicle", "road")])
def test_an_index_with_the_recipes_three_keys_alone_is_learnt_as_one_description(drawn, tmp_path, subject, aspect):
    for split in ("train", "val"):
        lines = map(json.loads, (drawn / f"coco_captioning.{split}.jsonl").read_text().splitlines())
        kept = [{k: line[k] for k in ("image_path", "text_segment", "image_id")} for line in lines if line["aspect"] == "road"]
        text = "".join(json.dumps({**line, "image_path": str(drawn / line["image_path"])}) + "\n" for line in kept)
        (tmp_path / f"coco_captioning.{split}.jsonl").write_text(text)
    found = train.finetune(quick(tmp_path, tmp_path, subject=subject, aspect=aspect))
    assert 0 <= found["best_score"] <= 100
    model = load_captioner(tmp_path / "best", "cpu")
    assert not model.prefixed and model.max_tokens == 12
    assert isinstance(model.caption(next((drawn / "images").iterdir())), str)


def test_a_text_of_flags_that_a_child_process_gets_is_the_same_configuration(drawn, tmp_path):
    config = quick(drawn, tmp_path, clip_grad=None, opt_betas=(0.8, 0.99), pin_mem=False)
    assert parse_command(flags(config)) == config


def test_both_signs_of_collapse_are_reported(drawn, tmp_path):
    """A model that says one thing: one distinct caption of two, and whether it stands in training."""
    trainer = train.Trainer(quick(drawn, tmp_path))
    found = trainer.validate(0)
    assert 0 <= found["copied"] <= 1 and 0 < found["distinct"] <= 1 and len(found["samples"]) == 2
    assert set(found["of_references"]) == {"distinct", "copied"} and found["of_references"]["distinct"] > 0
    told = [("a", "one"), ("a", "one"), ("b", "one"), ("b", "")]
    assert validation._variety(told, {("a", "one")}) == {"distinct": 2 / 3, "copied": 2 / 3}


@pytest.mark.slow
def test_eight_drawings_are_learnt_by_heart_and_captioned_word_for_word(tmp_path):
    run = tmp_path / "run"
    draw_run(run, train=8, val=1)
    rows = (run / "coco_captioning.train.jsonl").read_text()
    (run / "coco_captioning.val.jsonl").write_text(rows)
    config = quick(
        run, run, subject="all", aspect="all", epochs=200, batch_size=8, lr=2e-3, warmup_epochs=5, flip="none", crop_area=1.0,
        num_max_bpe_tokens=64, val_images=8, num_beams=3, finetune=str(sample.CHECKPOINT_PATH), captioning_mask_prob=0.7,
        label_smoothing=0.1, layer_decay=1.0,
    )  # fmt: skip
    trainer = train.Trainer(config)
    while trainer.step < trainer.total_steps:
        trainer._train_epoch(trainer._epoch())
    found = trainer.validate(200)
    assert found["score"] > 95 and found["copied"] > 0.95, found


# --- several processes ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_are_one_with_the_doubled_batch(drawn, tmp_path):
    """Losses, weights and validation; captions of validation are shared out without doubles or losses."""
    plain = {"subject": "all", "aspect": "all", "val_images": 3, "num_max_bpe_tokens": 8}
    alone = train.finetune(quick(drawn, tmp_path / "one", batch_size=4, **plain))
    config = quick(drawn, tmp_path / "two", batch_size=2, **plain)
    together = processes.launch(config, 2)
    assert together["steps"] == alone["steps"] == 4
    one, two = (without_clock(tmp_path / name / "log.jsonl") for name in ("one", "two"))
    assert [e["event"] for e in one] == [e["event"] for e in two]
    for a, b in zip(one, two, strict=True):
        if a["event"] == "step":
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
        else:
            assert a["captions"] == b["captions"] == 30 and a["samples"] == b["samples"]
    a, b = weights(tmp_path / "one" / "last"), weights(tmp_path / "two" / "last")
    assert all(torch.allclose(a[name], b[name], atol=1e-4) for name in a)


@pytest.mark.slow
def test_a_child_that_fails_fails_the_caller_with_its_last_lines(drawn, tmp_path):
    with pytest.raises(RuntimeError, match="(?s)exit status.*no_such.pth: expected a checkpoint here"):
        processes.launch(quick(drawn, tmp_path, finetune=str(tmp_path / "no_such.pth")), 2)


SHARDED = """
import sys
from accelerate import Accelerator
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from beit3lib import train
plain = Accelerator.prepare

def prepare(self, model, optimizer):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    fully_shard(model, mesh=init_device_mesh("cpu", (self.num_processes,)))
    spread = dict(model.named_parameters())
    for group in optimizer.param_groups:
        group["params"] = [spread[names[id(parameter)]] for parameter in group["params"]]
    return model, plain(self, optimizer)

Accelerator.prepare = prepare
train.main(sys.argv[1:])
"""


@pytest.mark.slow
def test_weights_spread_by_fsdp_train_are_saved_and_resumed_as_whole_ones(drawn, tmp_path):
    """FSDP2 as accelerate applies it, which does so on GPUs only: here on two CPU processes, without it."""
    (tmp_path / "sharded.py").write_text(SHARDED)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    options = {"subject": "all", "aspect": "all", "val_images": 3, "num_max_bpe_tokens": 8, "auto_resume": True}
    options |= {"model_ema": True, "model_ema_decay": 0.5}
    for epochs in (1, 2):
        train.finetune(quick(drawn, tmp_path / "one", batch_size=4, epochs=epochs, **options))
        config = quick(drawn, tmp_path / "two", batch_size=2, epochs=epochs, **options)
        command = [*launcher, tmp_path / "sharded.py", *flags(config)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200)
        assert done.returncode == 0, done.stderr[-3000:]
    assert "goes on from" in done.stdout
    one, two = (without_clock(tmp_path / name / "log.jsonl") for name in ("one", "two"))
    losses = [[event["loss"] for event in events if event["event"] == "step"] for events in (one, two)]
    assert len(losses[0]) >= 2 and losses[0] == pytest.approx(losses[1], rel=1e-4)
    for name in ("best", "last"):
        a, b = weights(tmp_path / "one" / name), weights(tmp_path / "two" / name)
        assert a.keys() == b.keys() and all(torch.allclose(a[key], b[key], atol=1e-4) for key in a), name
    load_captioner(tmp_path / "two" / "best", "cpu")


# --- killed --------------------------------------------------------------------------------------------------------

KILLED = """
import os, random, signal, sys
import safetensors.torch, torch
from beit3lib import files as artefacts, checkpoint, loss, train, evaluate as validation
torch.set_num_threads(1)
at, arguments = int(sys.argv[1]), sys.argv[2:]
count = 0

def watch(module, name, half=False):
    inner = getattr(module, name)
    def watched(*args, **kwargs):
        global count
        count += 1
        if count == at:
            if half:
                path = args[1]
                inner(*args, **kwargs)
                with open(path, "r+b") as file:
                    file.truncate(os.path.getsize(path) // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        return inner(*args, **kwargs)
    setattr(module, name, watched)

watch(train, "train_step"); watch(loss, "smoothed_losses")
watch(checkpoint, "save_file", half=True); watch(torch, "save", half=True)
watch(artefacts.os, "replace"); watch(artefacts.shutil, "rmtree")
watch(validation, "generate"); watch(validation, "_scores")
train.main(arguments)
print("EVENTS", count)
"""


def run_watched(at, config):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", KILLED, str(at), *flags(config)]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


@pytest.mark.slow
def test_killed_at_ten_random_points_and_started_again_a_run_ends_as_one_that_was_not(drawn, tmp_path):
    """SIGKILL in a step, in a save with half a file written, between the steps of a replacement, in validation.

    Two runs side by side, each on a core, are killed five times.
    """
    options = {"epochs": 3, "batch_size": 4, "drop_path": 0.1, "randaug": True, "model_ema": True, "model_ema_decay": 0.9}
    whole = run_watched(0, quick(drawn, tmp_path / "whole", **options))
    assert whole.returncode == 0, whole.stderr
    events = int(whole.stdout.split("EVENTS")[1])

    def kill_five_times(name, seed):
        rng, kills, config = np.random.default_rng(seed), 0, quick(drawn, tmp_path / name, auto_resume=True, **options)
        while True:
            done = run_watched(int(rng.integers(1, events // 2)) if kills < 5 else 0, config)
            kills += done.returncode != 0
            if done.returncode == 0:  # through: it must be as the whole one, and further kills hit a new run
                same_as_whole(tmp_path / "whole", Path(config.output_dir))
                if kills == 5:
                    return kills
                config = quick(drawn, tmp_path / f"{name}{kills}", auto_resume=True, **options)
            else:
                assert done.returncode == -9, done.stderr

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(kill_five_times, "ab", (5, 6))) == [5, 5]


def same_as_whole(whole, killed):
    assert without_clock(whole / "log.jsonl") == without_clock(killed / "log.jsonl")
    for name in ("best", "last"):
        assert same(weights(whole / name), weights(killed / name)), name
    kept = {"best", "last", "log.jsonl", "results.json"}
    assert {p.name for p in killed.iterdir()} == kept


@pytest.mark.slow
def test_a_disk_that_is_full_leaves_the_last_checkpoint_and_says_so(drawn, tmp_path):
    """A file may not grow past 1 MB, less than the weights take: what writing meets on a full disk."""
    train.finetune(quick(drawn, tmp_path, epochs=1))
    before = weights(tmp_path / "last")
    limit = "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    limit += "resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000)); "
    code = limit + "from beit3lib import train; train.main(sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", code, *flags(quick(drawn, tmp_path, epochs=2, auto_resume=True))], capture_output=True, text=True
    )
    assert done.returncode == 1, done.stderr
    assert "saving failed" in done.stderr and "that was there before is whole" in done.stderr, done.stderr
    assert same(before, weights(tmp_path / "last"))
    assert {p.name for p in tmp_path.iterdir()} == {"best", "last", "log.jsonl"}
    load_captioner(tmp_path / "best", "cpu")


# --- the command ---------------------------------------------------------------------------------------------------


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.slow
def test_a_malicious_checkpoint_is_refused_and_does_nothing(drawn, tmp_path):
    (tmp_path / "evil.pth").write_bytes(pickle.dumps({"model": Malicious(tmp_path / "done")}))
    torch.save({"model": Malicious(tmp_path / "done")}, tmp_path / "evil2.pth")
    for name in ("evil.pth", "evil2.pth"):
        done = run_command(flags(quick(drawn, tmp_path / "out", finetune=str(tmp_path / name))))
        assert done.returncode == 1 and "CheckpointError" in done.stderr and "refused" in done.stderr, done.stderr
    assert not (tmp_path / "done").exists()


def write_large_vocabulary(path):
    """A sentencepiece model of 64,000 pieces as beit3.spm has: the sample's, filled up with words nobody says."""
    from sentencepiece import sentencepiece_model_pb2 as proto

    model = proto.ModelProto()
    model.ParseFromString(sample.SPM_PATH.read_bytes())
    for number in range(64_000 - len(model.pieces)):
        model.pieces.add(piece=f"\u2581filler{number}", score=-100.0)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.slow
def test_the_seeds_command_runs_two_steps_and_leaves_a_checkpoint_that_captions(tmp_path):
    """Every flag as in the seed, on a randomly initialised base model in the public format; only --max_steps is added."""
    spm = write_large_vocabulary(tmp_path / "beit3.spm")
    draw_run(tmp_path / "run", train=2, val=0, spm=spm)
    torch.manual_seed(0)
    base = Captioner.unset(model_config("beit3_base_patch16_224"))
    for name, parameter in base.named_parameters():
        parameter.data.normal_(std=0.02).add_(float("norm" in name and name.endswith("weight")))
    save_public(base.half(), tmp_path / "base.pth")
    del base
    places = {"S": spm, "C": tmp_path / "base.pth", "D": tmp_path / "run", "L": tmp_path / "log", ".": tmp_path / "out"}
    words = [str(places.get(word, word)) for word in SEEDS_COMMAND.split()]
    done = run_command([*words, "--max_steps", "2"])
    assert done.returncode == 0, done.stderr
    assert "no CUDA GPU here" in done.stdout and "2 images, 2 steps of 2" in done.stdout
    assert [e["event"] for e in read_log(tmp_path / "log" / "log.jsonl")] == ["step", "step"]
    model = load_captioner(tmp_path / "out" / "best", "cpu")
    said = model.caption(next((tmp_path / "run" / "images").iterdir()), "vehicle", "road", num_beams=1, max_tokens=4)
    assert isinstance(said, str) and len(model.descriptions) == 10
