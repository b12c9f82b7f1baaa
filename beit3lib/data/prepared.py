"""Images and caption files that somebody has made already, as the seed's users have them, into a run.

Pictures `{avg|}{video}phase{label}.{jpg|png}` and the ten `{subject}_caption_{aspect}_datasets.json`, without any video.
Aspects stay as the files have them; a tenth of the recordings is held out, because such files know no split.
"""

import math
import shutil
from pathlib import Path

import pandas as pd

from beit3lib.data.aspects import FILE_NAME, SUBJECTS, merge_aspects, read_caption_files
from beit3lib.data.index import find_image, list_images
from beit3lib.data.motion_blur import image_name
from beit3lib.data.wts import parse_phase, split_by_group
from beit3lib.files import Problem, atomic_path, read_json, write_json

VAL_SHARE = 0.1


def import_prepared(image_dir: str | Path, caption_dir: str | Path, run: Path, val_share: float = VAL_SHARE) -> pd.DataFrame:
    """Copy pictures and caption files into a run, split by recording; the table of phases as `blur_table` gives it.

    `.attrs["problems"]` lists captions without a picture and what was wrong with the files; pictures of which no caption
    speaks are counted there in one line.
    """
    captions = read_caption_files(caption_dir)
    pictures, used, rows, problems = list_images(Path(image_dir)), set(), [], list(captions.attrs["problems"])
    (run / "images").mkdir(parents=True, exist_ok=True)
    for (scenario, video, label), told in captions.groupby(["scenario", "video", "label"]):
        phase = parse_phase(label)
        picture = find_image(pictures, video, label, phase)
        if picture is None:
            where = f"{video} phase {label}"
            problems.append(Problem(where, f"{len(told)} captions, but no picture in {image_dir}; left out", "add the picture"))
            continue
        used.add(picture.name)
        rows.append({**_about(scenario, video, label, phase), **_captions(told)})
        _copy(picture, run / "images" / rows[-1]["image"])
    if not rows:
        raise FileNotFoundError(f"{image_dir}: expected pictures of the videos that {caption_dir} names, found none of them")
    if len(used) < len(pictures):
        problems.append(Problem(str(image_dir), f"{len(pictures) - len(used)} pictures of which no caption speaks; left out"))
    table = split_by_group(pd.DataFrame(rows), val_share)
    for split, part in table.groupby("split"):
        _copy_captions(Path(caption_dir), run / "captions" / split, set(part["scenario"]))
    table.attrs["problems"] = [*problems, *table.attrs["problems"]]
    return table


def _about(scenario: str, video: str, label: str, phase: int) -> dict:
    """What a row of phases says of a picture, as far as names tell."""
    bdd = scenario.startswith("video")
    view = "vehicle_view" if bdd or "vehicle_view" in video else "overhead_view"
    about = {"scenario": scenario, "split": "train", "source": "bdd" if bdd else "wts", "view": view, "video": video}
    return {
        **about,
        "video_path": "",
        "label": label,
        "phase": phase,
        "start_s": math.nan,
        "end_s": math.nan,
        "image": image_name(video, phase),
    }


def _captions(told: pd.DataFrame) -> dict[str, str | None]:
    parts = {subject: dict(zip(rows["aspect"], rows["caption"], strict=True)) for subject, rows in told.groupby("subject")}
    return {f"caption_{s}": merge_aspects(parts[s], s) if s in parts else None for s in SUBJECTS}


def _copy(picture: Path, place: Path) -> None:
    """The picture under our name, as JPEG."""
    if place.is_file():
        return
    with atomic_path(place) as temporary:
        if picture.suffix.lower() in (".jpg", ".jpeg"):
            shutil.copyfile(picture, temporary)
        else:
            from PIL import Image

            with Image.open(picture) as image:
                image.convert("RGB").save(temporary, quality=95)


def _copy_captions(source: Path, target: Path, scenarios: set[str]) -> None:
    """The caption files with the entries of some scenarios; what cannot be read is among the problems already."""
    for path in sorted(source.glob("*.json")):
        if FILE_NAME.fullmatch(path.name):
            try:
                content = read_json(path)
            except ValueError:
                continue
            if isinstance(content, dict):
                write_json(target / path.name, {name: entry for name, entry in content.items() if name in scenarios})
