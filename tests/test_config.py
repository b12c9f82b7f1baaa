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


@pytest.mark.parametrize(
    "words, message",
    [
        ("--lrr 1", "--lrr: expected an option, .* Did you mean --lr?"),
        ("--lr nan", "--lr: .* finite number, found nan"),
        ("--batch_size 0", "--batch_size: .* greater than 0, found 0"),
    ],
)
def test_a_wrong_option_ends_with_one_line_that_names_it(words, message):
    with pytest.raises(OptionError, match=message) as error:
        parse_arguments(words.split())
    assert "\n" not in str(error.value)
