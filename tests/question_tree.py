"""Write question files of a WTS download for tests, with every quirk of the real ones."""

from wts_tree import SCENE, overhead, vehicle, write

NORMAL = "20231013_1_normal_192.168.0.14_1_event_2"


def ask(text, *options, correct="a", **more):
    """One question as in a download: the options a, b, c, …, and the letter of the correct one."""
    return {"question": text, **dict(zip("abcdefgh", options, strict=False)), "correct": correct, **more}


def about_phase(label, *questions):
    return {"start_time": "1.0", "end_time": "2.0", "labels": [label], "conversations": list(questions)}


def add_questions(
    root, content, view="overhead_view", scenario=SCENE, split="train", between="", name="", top=""
):
    folder = root / top / "annotations/vqa" / split / between / scenario / view
    return write(folder / f"{name or scenario}.json", content)


def add_test_questions(root, content, name="SubTask2-VQA/WTS_VQA_PUBLIC_TEST.json"):
    return write(root / name, content)


ACTION = ask("What is the action?", "Stopped", "Turns left", correct="B")
COLOR = ask("What is the color of the hat?", "Red", "", "Red", "Blue", "Green", correct="d")
HAT = ask("Is pedestrian wearning a hat?", "Yes", "No", correct=" A")


def quirky_tree(root):
    """Write a download with every quirk: 10 questions that can be used, and 4 without a correct answer."""
    cameras = [overhead(1), overhead(2)]
    wrong = [ask("Is it dry?", "Yes", "No", correct=letter) for letter in ("", None, "c", "yes")]
    twice = [{"id": 7, "overhead_videos": cameras, "event_phase": [about_phase("avoidance", ACTION)]}] * 2
    add_questions(root, twice)
    vehicles = {"id": 7, "overhead_videos": cameras, "event_phase": [about_phase("4", COLOR)]}
    add_questions(root, [vehicles], "vehicle_view")
    environment = {"id": 7, "overhead_videos": cameras, "environment": [HAT, *wrong]}
    add_questions(root, environment, "environment", name="20230707_1")  # a bare object, and another name
    add_questions(root, [{"environment": [HAT]}], "environment", NORMAL, "val", "normal_trimmed")
    bdd = {"id": "3c8c80e3", "videos": ["video5.mp4"], "event_phase": [about_phase("action", ACTION)]}
    add_questions(root, [bdd], scenario="video5", top="external/BDD_PC_5K")
    synthetic = {"overhead_videos": ["a.mp4"], "event_phase": [about_phase("judgement", ACTION)]}
    add_questions(root, [synthetic], scenario="synthetic", top="SynWTS/data")
    first = about_phase("recognition", ask("?", "Yes", "No", id="q1", correct=""))
    second = {"question": "Is it dry?", "a": "Yes", "b": "No", "id": "q2"}
    third = about_phase("action", ask("What?", "One", id="q3", correct=None))
    test = [
        {"videos": [vehicle(NORMAL)], "event_phase": [first]},
        {"videos": cameras, "conversations": [second]},
    ]
    add_test_questions(root, [*test, {"videos": ["video9.mp4"], "event_phase": [third]}])
    return root
