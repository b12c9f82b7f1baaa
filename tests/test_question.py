"""Questions as documents of a packed sequence: equal to single questions, invisible to captions, blind to letters."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import draw_run
from hypothesis import given, settings
from hypothesis import strategies as st
from test_train import changed, close, events, last, losses, quick

from beit3lib import sample, train
from beit3lib.caption import caption_run
from beit3lib.captioner import Captioner
from beit3lib.checkpoint import load_captioner, load_pretrained
from beit3lib.data.questions import (
    QUESTION_INDEX_NAME,
    read_image_answers,
    read_question_index,
    write_questions,
)
from beit3lib.dataset import pack
from beit3lib.model import CaptionModel, model_config
from beit3lib.question import Question, collate_options, encode_question, option_log_probs
from beit3lib.sample import draw
from beit3lib.sample.questions import OPTIONS, QUESTIONS
from beit3lib.sample.truth import read_drawn
from beit3lib.tokenizer import load_tokenizer
from beit3lib.transforms import swap_left_right

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
    return torch.stack(
        [torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1 for image in images]
    )


def log_probs(captioner, pixels, questions):
    with torch.inference_mode():
        return captioner.log_probs(captioner.model.encode_image(pixels), questions)


def test_packed_questions_have_the_answers_of_single_ones_of_one_image(captioner, pixels):
    questions = [encode_question(captioner.tokenizer, *asked) for asked in ASKED]
    packed = log_probs(captioner, pixels, [questions, [], questions[:2]])
    assert [len(of_image) for of_image in packed] == [3, 0, 2]
    for image in (0, 2):
        for number, values in enumerate(packed[image]):
            single = log_probs(captioner, pixels[image : image + 1], [[questions[number]]])[0][0]
            assert values == pytest.approx(single, abs=1e-4) and sum(np.exp(values)) == pytest.approx(
                1, abs=1e-5
            )


def test_the_order_and_letters_of_options_change_nothing_and_images_do(captioner, pixels):
    text, options = ASKED[2]
    turned = {letter: options[other] for letter, other in zip("zyxw", "dcba", strict=True)}
    questions = [encode_question(captioner.tokenizer, text, one) for one in (options, turned)]
    first, second = log_probs(captioner, pixels, [[questions[0]], [questions[1]], [questions[0]]])[:2]
    same = log_probs(captioner, pixels[:1], [questions])[0]
    assert same[0] == pytest.approx(same[1][::-1], abs=1e-4)
    assert first[0] != pytest.approx(second[0][::-1], abs=1e-3)


def test_every_token_of_a_question_counts_and_captions_see_no_question(captioner, pixels):
    """Attention is open inside a question, and closed to other documents."""
    model, tokenizer = captioner.model, captioner.tokenizer
    caption = [0, *tokenizer.encode("The road is wet.", add_special_tokens=False), 2]
    ids = encode_question(tokenizer, *ASKED[0]).ids
    states = []
    for question in (ids, [*ids[:-2], ids[-3], 2], ids):  # with another last word, and without the caption
        captions = [(caption, 0)] if len(states) < 2 else [(caption[:4], 0)]
        packed = pack(captions, 0.0, 5, np.random.default_rng(0), [Question(question, [[5]], 0)])
        tensors = (
            torch.from_numpy(getattr(packed, n))[None]
            for n in ("labels", "positions", "doc_ids", "bidirectional")
        )
        with torch.inference_mode():
            states.append(model.encode_text(model.encode_image(pixels[:1]), *tensors)[0])
    n = len(caption)
    assert torch.allclose(states[0][:n], states[1][:n], atol=1e-5)
    assert not torch.allclose(
        states[0][n], states[1][n], atol=1e-3
    )  # the state at <s> depends on the last word
    assert torch.allclose(states[0][n], states[2][4], atol=1e-5)  # and not on the caption


def test_an_answer_map_changes_no_caption(captioner, pixels):
    plain = CaptionModel(model_config(sample.MODEL))
    load_pretrained(plain, sample.CHECKPOINT_PATH)
    without = Captioner(plain.eval(), captioner.tokenizer, captioner.caption_types)
    assert [c.text for c in without.generate(pixels)] == [c.text for c in captioner.generate(pixels)]
    with pytest.raises(ValueError, match="expected a model that was trained with questions"):
        without.answer(draw.draw_blur(draw.Scene(), draw.draw_camera(np.random.default_rng(0))), ASKED)


def test_options_with_the_same_words_in_another_order_have_other_vectors():
    collide = Question([0, 2], [[7, 8, 9], [9, 8, 7], [7, 7]], 1)
    options = collate_options([collide, Question([0, 2], [[7, 8, 9], [9, 8]], 0)])
    shares = [part.tolist() for part in options.weights.split([3, 3, 2, 3, 2])]
    assert (
        shares[0] == shares[1] != shares[3]
        and shares[2] == [0.5, 0.5]
        and shares[3] == pytest.approx([1 / 3] * 3)
    )
    assert [sum(share) for share in shares] == pytest.approx([1] * 5)


@settings(max_examples=50)
@given(st.lists(st.lists(st.floats(-20, 20), min_size=1, max_size=5), min_size=1, max_size=4))
def test_log_probabilities_are_those_of_a_softmax_over_each_question(scores):
    questions = [Question([0, 2], [[5]] * len(row), 0) for row in scores]
    found = option_log_probs(torch.tensor([s for row in scores for s in row]), collate_options(questions))
    for row, values in zip(scores, found, strict=True):
        expected = torch.tensor(row).log_softmax(0)
        assert torch.allclose(values[: len(row)], expected, atol=1e-5) and not values[len(row) :].exp().any()


# Training


def ask_about(folder, letters="abcd"):
    """Write an index of questions about the drawn scenes of a run; the correct options follow from the scenes."""
    drawn, rng = read_drawn(folder), np.random.default_rng(0)
    for split in ("train", "val"):
        lines = [
            json.loads(line) for line in (folder / f"coco_captioning.{split}.jsonl").read_text().splitlines()
        ]
        images = {(line["scenario"], line["phase"]): line["image_path"] for line in lines}
        rows = []
        for (scenario, phase), image in sorted(images.items()):
            for name, (question, values) in QUESTIONS.items():
                shown = [str(value) for value in rng.permutation(values.split())]
                options = {
                    letter: OPTIONS.get(value, value) for letter, value in zip(letters, shown, strict=False)
                }
                correct = letters[shown.index(getattr(drawn[scenario, phase], name))]
                about = {
                    "split": split,
                    "source": "wts",
                    "scenario": scenario,
                    "scope": "phase",
                    "phase": phase,
                }
                about |= {"view": "overhead_view", "videos": [], "id": f"{scenario}/{phase}/{name}"}
                rows.append(
                    {**about, "question": question, "options": options, "correct": correct, "images": [image]}
                )
        write_questions(folder / QUESTION_INDEX_NAME.format(split=split), pd.DataFrame(rows, dtype=object))


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """A run with questions: 8 training and 4 validation images."""
    folder = tmp_path_factory.mktemp("asked") / "run"
    draw_run(folder)
    ask_about(folder)
    return folder


def test_questions_are_trained_beside_captions_and_validated(asked, tmp_path):
    results = train.finetune(quick(asked, tmp_path, finetune=str(sample.CHECKPOINT_PATH), epochs=8, lr=2e-3))
    steps, validation = events(tmp_path, "step"), events(tmp_path, "validation")[-1]
    assert results["stopped"] == "finished" and np.mean([e["question_loss"] for e in steps[-4:]]) < np.mean(
        [e["question_loss"] for e in steps[:4]]
    )
    assert validation["questions"] == 2 * 11 and 0 <= validation["accuracy"] <= 100
    assert load_captioner(tmp_path / "best", "cpu").model.config.answers
    plain = train.setup(quick(asked, tmp_path / "plain", questions=0))
    assert not plain.state.model.config.answers and not plain.train_set[0].questions


def test_other_questions_are_drawn_in_each_epoch_and_flipped_with_the_image(asked, tmp_path):
    data = train.setup(quick(asked, tmp_path, questions=2)).train_set
    drawn = [[tuple(q.ids) for q in data.at_epoch(epoch)[0].questions] for epoch in range(6)]
    assert drawn == [[tuple(q.ids) for q in data.at_epoch(epoch)[0].questions] for epoch in range(6)]
    assert len(set(map(tuple, drawn))) > 1 and {len(one) for one in drawn} == {2}
    every = train.setup(quick(asked, tmp_path, questions=11, flip="swap", crop_area=1.0)).train_set
    sides = {
        tuple(every.tokenizer.encode(side, add_special_tokens=False)): side for side in ("left", "right")
    }
    (row,) = [row for row in every.questions[every.examples[0].image] if "what side" in row.question]
    original, seen = row.options[row.correct], set()
    still = train.setup(quick(asked, tmp_path, flip="none", crop_area=1.0)).train_set[0].pixels
    for epoch in range(8):
        item = every.at_epoch(epoch)[0]
        flipped = torch.equal(item.pixels, still.flip(-1))
        (question,) = [q for q in item.questions if tuple(q.options[0]) in sides]
        answer = sides[tuple(question.options[question.correct])]
        assert answer == (swap_left_right(original) if flipped else original)
        seen.add(flipped)
    assert seen == {True, False}


def test_a_run_stopped_with_questions_resumes_to_the_same_weights(asked, tmp_path):
    whole, parts = quick(asked, tmp_path / "whole"), quick(asked, tmp_path / "parts")
    train.finetune(whole)
    for _ in range(3):
        train.finetune(changed(parts, max_minutes=1e-6))
    train.finetune(parts)
    a, b = (last(tmp_path / name)["model"] for name in ("whole", "parts"))
    assert all(torch.equal(a[name], b[name]) for name in a) and "answer_map.weight" in a
    accumulated = changed(whole, output_dir=str(tmp_path / "accumulated"), batch_size=2, update_freq=2)
    train.finetune(accumulated)
    assert close(a, last(tmp_path / "accumulated")["model"])


@pytest.mark.slow
def test_two_processes_train_questions_as_one_also_where_one_has_none(asked, tmp_path):
    """With one question per image and half of the images without any, a process may have none in a step."""
    few = tmp_path / "few"
    few.mkdir()
    for name in ("coco_captioning.train.jsonl", "coco_captioning.val.jsonl"):
        (few / name).write_text((asked / name).read_text())
    (few / "images").symlink_to(asked / "images")
    table = read_question_index(asked / "questions.train.jsonl")
    kept = table["images"].map(lambda images: images[0] < "images/avg202300_train_004")
    write_questions(few / "questions.train.jsonl", table[kept])
    train.finetune(quick(few, tmp_path / "one", questions=1, update_freq=2, batch_size=2))
    train.launch(quick(few, tmp_path / "two", questions=1, batch_size=2), 2)
    assert losses(tmp_path / "one") == pytest.approx(losses(tmp_path / "two"), rel=1e-4)
    assert close(last(tmp_path / "one")["model"], last(tmp_path / "two")["model"], atol=1e-4)


def test_answers_are_written_beside_captions_for_every_question(asked, tmp_path):
    config = quick(asked, asked, epochs=1, finetune=str(sample.CHECKPOINT_PATH))
    train.finetune(config)
    table = caption_run(asked, splits=["val"], num_beams=1, batch_size=2, num_workers=0, device="cpu")
    found = read_image_answers(asked / "answers.json")
    questions = read_question_index(asked / "questions.val.jsonl")
    assert len(table) == 4 and sorted(found["id"]) == sorted(questions["id"])
    captioner, row = load_captioner(asked / "best", "cpu"), questions.iloc[5]
    (expected,) = captioner.answer(asked / row["images"][0], [(row["question"], row["options"])])
    (values,) = found.loc[found["id"] == row["id"], "log_probs"]
    assert values == pytest.approx(expected, abs=0.02)  # bf16 rounds
