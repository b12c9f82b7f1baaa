"""Write WTS and BDD downloads for tests; their videos are empty, because reading a tree opens none."""

import json

SCENE = "20230707_1_AB1_T1"


def phase(label, start, end, **captions):
    """One entry of event_phase as in a download: times are text."""
    texts = {
        "caption_pedestrian": f"A person in phase {label}.",
        "caption_vehicle": f"A car in phase {label}.",
    }
    return {"labels": [label], **(texts | captions), "start_time": str(start), "end_time": str(end)}


FIVE = [phase(str(n), n, n + 1) for n in range(5)]


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def touch(path):
    return write(path, "")


def add_view(root, view, videos, phases=FIVE, scenario=SCENE, split="train", between="", listed=None):
    """Write one view of a WTS scenario; `listed` are the videos in its caption file, if not those on disk."""
    listed = videos if listed is None else listed
    content = {"id": 1, "overhead_videos": listed} if view == "overhead_view" else {"vehicle_view": listed[0]}
    for video in videos:
        touch(root / "videos" / split / between / scenario / view / video)
    folder = root / "annotations/caption" / split / between / scenario / view
    return write(folder / f"{scenario}_caption.json", content | {"event_phase": phases})


def add_bdd(
    root, number, phases=FIVE, split="train", folder="external/BDD_PC_5K", caption="caption", fps="30.0"
):
    base = root / folder
    touch(base / "videos" / split / f"video{number}.mp4")
    content = {"video_name": f"video{number}.mp4", "fps": fps, "event_phase": phases}
    return write(base / "annotations" / caption / split / f"video{number}_caption.json", content)


def add_boxes(
    root, video, sizes, view="overhead_view", scenario=SCENE, kind="annotated", subject="pedestrian"
):
    """Write square boxes: {phase: side in px}."""
    entries = [{"image_id": n, "bbox": [0, 0, side, side], "phase_number": n} for n, side in sizes.items()]
    folder = root / f"annotations/bbox_{kind}" / subject / "train" / scenario / view
    return write(folder / f"{video.removesuffix('.mp4')}_bbox.json", {"annotations": entries})


def overhead(number, scenario=SCENE):
    return f"{scenario}_Camera{number}_0.mp4"


def vehicle(scenario=SCENE):
    return f"{scenario}_vehicle_view.mp4"
