"""The original repository's command parses unchanged, and a wrong option is named with the closest one."""

import pytest

from beit3lib.config import OptionError, TrainConfig, parse_arguments

ORIGINAL_COMMAND = (
    "--device cuda --model beit3_base_patch16_224 --input_size 224 --task coco_captioning --batch_size 32 "
    "--layer_decay 1.0 --lr 4e-5 --randaug --epochs 10 --warmup_epochs 1 --drop_path 0.1 "
    "--sentencepiece_model S --finetune C --data_path D --output_dir . --log_dir L --weight_decay 0.05 "
    "--seed 42 --save_ckpt_freq 5 --num_max_bpe_tokens 64 --captioning_mask_prob 0.7 "
    "--drop_worst_after 12000 --dist_eval --checkpoint_activations"
)


def test_the_command_of_the_original_repository_parses_unchanged():
    options = {
        "input_size": 224,
        "batch_size": 32,
        "layer_decay": 1.0,
        "lr": 4e-5,
        "randaug": True,
        "epochs": 10,
    }
    options |= {"warmup_epochs": 1, "seed": 42, "captioning_mask_prob": 0.7, "checkpoint_activations": True}
    paths = {"sentencepiece_model": "S", "finetune": "C", "data_path": "D", "output_dir": ".", "log_dir": "L"}
    assert parse_arguments(ORIGINAL_COMMAND.split()) == TrainConfig(device="cuda", **options, **paths)


def test_defaults_are_those_of_the_reference_implementation(reference, monkeypatch):
    required = "--task coco_captioning --sentencepiece_model S --model M".split()
    monkeypatch.setattr("sys.argv", ["run_beit3_finetuning.py", *required])
    theirs, ours = reference.recipe("run_beit3_finetuning").get_args(), vars(TrainConfig())
    theirs = vars(theirs[0] if isinstance(theirs, tuple) else theirs)
    changed = {  # defaults by model or device; dist_eval as in the original repository's command
        *("input_size", "vocab_size", "eval_batch_size", "device", "opt_betas", "dist_eval", "model", "task"),
        *("sentencepiece_model", "data_path", "output_dir", "log_dir"),
    }
    shared = (ours.keys() & theirs.keys()) - changed
    assert len(shared) > 30
    assert {name: ours[name] or None for name in shared} == {name: theirs[name] or None for name in shared}


def test_values_are_read_with_their_types():
    config = parse_arguments("--lr=1e-4 --batch-size 8 --no_auto_resume --opt_betas 0.8 0.99".split())
    assert config == TrainConfig(lr=1e-4, batch_size=8, auto_resume=False, opt_betas=[0.8, 0.99])


@pytest.mark.parametrize(
    "words, message",
    [
        ("--lrr 1", "--lrr: expected an option, .* Did you mean --lr?"),
        ("runs/mine", "runs/mine: expected an option"),
        ("--lr", "--lr: expected one argument"),
        ("--lr fast", "--lr: invalid float value: 'fast'"),
        ("--lr nan", "--lr: .* finite number, found nan"),
        ("--batch_size 0", "--batch_size: .* greater than 0, found 0"),
        ("--aspect rode", "--aspect: invalid choice: 'rode'"),
    ],
)
def test_a_wrong_option_ends_with_one_line_that_names_it(words, message):
    with pytest.raises(OptionError, match=message) as error:
        parse_arguments(words.split())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("options", [{"lrr": 1.0}, {"flip": "mirror"}, {"epochs": 1.5}])
def test_the_class_refuses_what_the_command_refuses(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        TrainConfig(**options)


def test_arguments_are_the_same_config_for_a_child_process():
    options = {
        "clip_grad": 0.5,
        "opt_betas": [0.8, 0.99],
        "pin_mem": False,
        "randaug": True,
        "finetune": "a b.pth",
    }
    config = TrainConfig(**options)
    assert parse_arguments(config.arguments()) == config
    assert TrainConfig().arguments() == []
