"""Packed questions equal single ones, are invisible to captions, and do not depend on letters."""

import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import draw_run
from test_train import changed, close, events, last, losses, quick, same

from beit3lib import sample, train
from beit3lib.caption import caption_run
from beit3lib.captioner import Captioner
from beit3lib.checkpoint import load_captioner, load_pretrained
from beit3lib.data.index import INDEX_NAME, read_index
from beit3lib.data.questions import (
    QUESTION_INDEX_NAME,
    read_image_answers,
    read_question_index,
    write_questions,
)
from beit3lib.dataset import pack
from beit3lib.model import CaptionModel, model_config
from beit3lib.question import Question, collate_options, encode_question
from beit3lib.sample import draw
from beit3lib.sample.questions import OPTIONS, QUESTIONS, answer_of
from beit3lib.sample.truth import read_drawn
from beit3lib.tokenizer import load_tokenizer
from beit3lib.transforms import swap_left_right, to_tensor

ASKED = [
    ("What is the weather?", {"a": "clear", "b": "rainy", "c": "cloudy"}),
    ("On what side of the pedestrian is the vehicle?", {"a": "left", "b": "right"}),
    ("What is the color of the jacket?", {"a": "red", "b": "yellow", "c": "blue", "d": "white"}),
]


@pytest.fixture(scope="module")
def captioner():
    """A model whose answer map is random, in fp32: in bf16 rounding depends on the length of a sequence."""
    torch.manual_seed(0)
    model = CaptionModel(model_config(sample.MODEL, answers=True))
    load_pretrained(model, sample.CHECKPOINT_PATH)
    torch.nn.init.normal_(model.answer_map.weight, std=0.5)
    types = [("vehicle", "road"), ("pedestrian", "weather")]
    return Captioner(model.eval(), load_tokenizer(sample.SPM_PATH), types)


@pytest.fixture(scope="module")
def pixels():
    rng = np.random.default_rng(0)
    images = [draw.draw_blur(draw.Scene(**draw.draw_values(rng)), draw.draw_camera(rng)) for _ in range(3)]
    return torch.stack([to_tensor(image, 64) for image in images])


def log_probs(captioner, pixels, questions):
    with torch.inference_mode():
        return captioner.log_probs(captioner.model.encode_image(pixels), questions)


def test_packed_questions_have_the_answers_of_single_ones_of_one_image(captioner, pixels):
    questions = [encode_question(captioner.tokenizer, *asked) for asked in ASKED]
    packed = log_probs(captioner, pixels, [questions, [], questions[:2]])
    assert [len(of_image) for of_image in packed] == [3, 0, 2]
    for image in (0, 2):
        for question, values in zip(questions, packed[image], strict=False):
            single = log_probs(captioner, pixels[image : image + 1], [[question]])[0][0]
            assert values == pytest.approx(single, abs=1e-4)


def test_the_order_and_letters_of_options_change_nothing_and_images_do(captioner, pixels):
    text, options = ASKED[2]
    turned = {letter: options[other] for letter, other in zip("zyxw", "dcba", strict=True)}
    questions = [encode_question(captioner.tokenizer, text, one) for one in (options, turned)]
    (first, second), (other, _) = log_probs(captioner, pixels[:2], [questions, questions])
    assert first == pytest.approx(second[::-1], abs=1e-4) and first != pytest.approx(other, abs=1e-3)


def test_every_token_of_a_question_counts_and_captions_see_no_question(captioner, pixels):
    """Attention is open inside a question, and closed to other documents."""
    model, tokenizer = captioner.model, captioner.tokenizer
    caption = [0, *tokenizer.encode("The road is wet.", add_special_tokens=False), 2]
    ids = encode_question(tokenizer, *ASKED[0]).ids
    names, n, states = ("labels", "positions", "doc_ids", "bidirectional"), len(caption), []
    # Both, then another last word of the question, then another caption.
    for before, question in ((caption, ids), (caption, [*ids[:-2], ids[-3], 2]), (caption[:4], ids)):
        packed = pack([(before, 0)], 0.0, 5, np.random.default_rng(0), [Question(question, [[5]], 0)])
        tensors = (torch.from_numpy(getattr(packed, name))[None] for name in names)
        with torch.inference_mode():
            states.append(model.encode_text(model.encode_image(pixels[:1]), *tensors)[0])
    assert torch.allclose(states[0][:n], states[1][:n], atol=1e-5)
    assert not torch.allclose(states[0][n], states[1][n], atol=1e-3)  # the state at <s> of the question
    assert torch.allclose(states[0][n], states[2][4], atol=1e-5)


# Training


def ask_about(folder):
    """Write an index of questions about the drawn scenes of a run."""
    drawn, rng = read_drawn(folder), np.random.default_rng(0)
    for split in ("train", "val"):
        rows, lines = [], read_index(folder / INDEX_NAME.format(split=split)).drop_duplicates("image_path")
        for line in lines.itertuples():
            about = {"split": split, "source": "wts", "scenario": line.scenario, "scope": "phase"}
            about |= {"view": "overhead_view", "videos": [], "phase": line.phase, "images": [line.image_path]}
            for name, (question, values) in QUESTIONS.items():
                shown = rng.permutation(values.split()).tolist()
                options = {letter: OPTIONS.get(v, v) for letter, v in zip("abcd", shown, strict=False)}
                correct = answer_of(drawn[line.scenario, line.phase], question, options)
                asked = {"question": question, "options": options, "correct": correct}
                rows.append({**about, "id": f"{line.scenario}/{line.phase}/{name}", **asked})
        write_questions(folder / QUESTION_INDEX_NAME.format(split=split), pd.DataFrame(rows, dtype=object))


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """A run with questions: 8 training and 4 validation images."""
    folder = tmp_path_factory.mktemp("asked") / "run"
    draw_run(folder)
    ask_about(folder)
    return folder


def test_questions_are_trained_beside_captions_and_validated(asked, tmp_path):
    results = train.finetune(quick(asked, tmp_path, finetune=str(sample.CHECKPOINT_PATH), epochs=4, lr=2e-3))
    question_losses = [event["question_loss"] for event in events(tmp_path, "step")]
    validation = events(tmp_path, "validation")[-1]
    assert results["stopped"] == "finished" and sum(question_losses[-4:]) < sum(question_losses[:4])
    assert validation["questions"] == 2 * 11 and 0 <= validation["accuracy"] <= 100
    assert validation["best_by"] == (validation["score"] + validation["accuracy"]) / 2
    assert load_captioner(tmp_path / "best", "cpu").model.config.answers
    plain = train.setup(quick(asked, tmp_path / "plain", questions=0))
    assert not plain.state.model.config.answers and not plain.train_set[0].questions


def test_questions_are_flipped_with_the_image(asked, tmp_path):
    every = train.setup(quick(asked, tmp_path, questions=11, flip="swap", crop_area=1.0)).train_set
    sides = {side: every.tokenizer.encode(side, add_special_tokens=False) for side in ("left", "right")}
    (row,) = [row for row in every.questions[every.examples[0].image] if "what side" in row.question]
    original, seen = row.options[row.correct], set()
    still = train.setup(quick(asked, tmp_path, flip="none", crop_area=1.0)).train_set[0].pixels
    for epoch in range(8):
        item = every.at_epoch(epoch)[0]
        flipped = torch.equal(item.pixels, still.flip(-1))
        (question,) = [q for q in item.questions if q.options[0] in sides.values()]
        expected = swap_left_right(original) if flipped else original
        assert question.options[question.correct] == sides[expected]
        seen.add(flipped)
    assert seen == {True, False}


def test_a_run_stopped_with_questions_resumes_to_the_same_weights(asked, tmp_path):
    whole, parts = quick(asked, tmp_path / "whole"), quick(asked, tmp_path / "parts")
    train.finetune(whole)
    for _ in range(3):
        train.finetune(changed(parts, max_minutes=1e-6))
    train.finetune(parts)
    weights = last(tmp_path / "whole")["model"]
    assert same(weights, last(tmp_path / "parts")["model"]) and "answer_map.weight" in weights
    train.finetune(quick(asked, tmp_path / "accumulated", batch_size=2, update_freq=2))
    assert close(weights, last(tmp_path / "accumulated")["model"])


@pytest.mark.slow
def test_two_processes_train_questions_as_one_also_where_one_has_none(asked, tmp_path):
    """With one question per image and half of the images without any, a process may have none in a step."""
    few = shutil.copytree(asked, tmp_path / "few")
    table = read_question_index(asked / "questions.train.jsonl")
    kept = table["images"].map(lambda images: images[0] < "images/avg202300_train_004")
    write_questions(few / "questions.train.jsonl", table[kept])
    train.finetune(quick(few, tmp_path / "one", questions=1, update_freq=2, batch_size=2))
    train.launch(quick(few, tmp_path / "two", questions=1, batch_size=2), 2)
    assert losses(tmp_path / "one") == pytest.approx(losses(tmp_path / "two"), rel=1e-4)
    assert close(last(tmp_path / "one")["model"], last(tmp_path / "two")["model"], atol=1e-4)


def test_answers_are_written_beside_captions_for_every_question(asked):
    train.finetune(quick(asked, asked, epochs=1, finetune=str(sample.CHECKPOINT_PATH)))
    table = caption_run(asked, splits=["val"], num_beams=1, batch_size=2, num_workers=0, device="cpu")
    found = read_image_answers(asked / "answers.json")
    questions = read_question_index(asked / "questions.val.jsonl")
    assert len(table) == 4 and sorted(found["id"]) == sorted(questions["id"])
    captioner, row = load_captioner(asked / "best", "cpu"), questions.iloc[5]
    (expected,) = captioner.answer(asked / row["images"][0], [(row["question"], row["options"])])
    (values,) = found.loc[found["id"] == row["id"], "log_probs"]
    assert values == pytest.approx(expected, abs=0.02)  # bf16 rounds


def test_an_answer_map_changes_no_caption(captioner, pixels):
    plain = CaptionModel(model_config(sample.MODEL))
    load_pretrained(plain, sample.CHECKPOINT_PATH)
    without = Captioner(plain.eval(), captioner.tokenizer, captioner.caption_types)
    assert [c.text for c in without.generate(pixels)] == [c.text for c in captioner.generate(pixels)]
    with pytest.raises(ValueError, match="expected a model that was trained with questions"):
        without.answer("photo.jpg", ASKED)


def test_options_with_the_same_words_in_another_order_have_other_vectors():
    questions = [
        Question([0, 2], [[7, 8, 9], [9, 8, 7], [7, 7]], 1),
        Question([0, 2], [[7, 8, 9], [9, 8]], 0),
    ]
    shares = [part.tolist() for part in collate_options(questions).weights.split([3, 3, 2, 3, 2])]
    assert shares[0] == shares[1] and shares[0][0] > shares[0][1] > shares[0][2]
    assert shares[2] == [0.5, 0.5] and shares[3] == pytest.approx([1 / 3] * 3)
    assert [sum(share) for share in shares] == pytest.approx([1] * 5)
