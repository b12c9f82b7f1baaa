"""Caption photos and videos with a trained checkpoint, outside of a run folder.

    from beit3lib.media import caption_media
    found = caption_media("runs/mine/best", "clip.mp4", "captions", every=2)

`caption_media` writes to the folder `out`:

captions.json     every caption, as in predictions.json, with the start and the end of its phase
answers.json      the log-probability of each option, if there are questions
captions.vtt      for a video: one WebVTT cue per phase; for those of a folder <video>.vtt
gallery.html      the page with images and captions, in which the videos play
photos/ images/ frames/   what the page shows: photos, motion-blur images, and sharp frames of videos
parts/            the captions of each file, from which the same command resumes

Each file is captioned alone, so its captions depend neither on other files nor on interruptions. A part is
found by a hash of its images, the checkpoint and all options.
"""

import hashlib
import html
import math
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import av
import pandas as pd
from PIL import Image
from tqdm import tqdm

from beit3lib.checkpoint import WEIGHTS_NAME
from beit3lib.data.aspects import merge_aspects, split_caption
from beit3lib.data.images import FORMATS, open_image
from beit3lib.data.motion_blur import MAX_FRAME_PX, blur_table, video_length
from beit3lib.data.predictions import COLUMNS, write_predictions
from beit3lib.data.questions import LETTERS, answers_path, read_image_answers, write_image_answers
from beit3lib.data.schema import ASPECTS, IMAGE_COLUMNS, SUBJECTS
from beit3lib.data.wts import list_files, read_object, read_phase, video_stem
from beit3lib.decode import inference_weights
from beit3lib.device import choose_device, inference_precision
from beit3lib.files import (
    FileError,
    Problem,
    atomic_path,
    check_regular_file,
    file_hash,
    lock_folder,
    read_json,
    readable_folder,
    write_text,
)
from beit3lib.run.captioning import caption_images
from beit3lib.run.state import open_captioner
from beit3lib.viz.gallery import write_gallery

VIDEO_SUFFIXES = set(".mp4 .m4v .mov .mkv .webm .avi .mpg .mpeg .ts .mts .m2ts .3gp .wmv .flv .ogv".split())
IMAGE_SUFFIXES = {suffix for suffix, name in Image.registered_extensions().items() if name in FORMATS}
IMAGE_SUFFIXES |= {".heic", ".heif", ".hif", ".avif"}  # a file that needs a plugin is a problem with its name
SHORTEST_S = 0.1  # a shorter rest of a video is no phase of its own
EXTRA = "start_s end_s video_path frame frame_width_px frame_height_px".split()  # columns for the gallery
COLUMNS_OF_IMAGES = ["image", "path", *IMAGE_COLUMNS, "references", *EXTRA]


class MediaCaptions(NamedTuple):
    """The result of `caption_media`."""

    predictions: pd.DataFrame  # a row per caption: the columns of captions.json, and those of `write_gallery`
    answers: pd.DataFrame | None  # a row per image and question, as `write_gallery` reads it
    problems: list[Problem]  # files without captions, and remarks on others
    failed: list[str]  # names of the files without captions
    page: Path  # the gallery


def caption_media(
    model_folder: str | Path,
    source: str | Path,
    out: str | Path = "captions",
    phases: str = "",
    every: float = 0.0,
    annotations: str | Path = "",
    questions: str | Path = "",
    num_beams: int = 3,
    batch_size: int | None = None,
    device: str = "auto",
) -> MediaCaptions:
    """Caption a photo, a video, or all of them in a folder, and write the files above to `out`.

    `model_folder` is a checkpoint, such as runs/mine/best, or a run folder. At most one of these divides
    videos into phases, and without one the whole video is one phase: `phases` "0-1.3,1.3-2.6", in seconds;
    `every`, a number of seconds; `annotations`, a caption file of WTS or a folder of them, whose captions
    become references. `questions` is a JSON file with a list of {"question", "a", "b", …}.

    A file that cannot be read is a problem, and all others are captioned; if there is none, it is an error.
    """
    source, out = Path(source).expanduser(), Path(out).expanduser()
    asked = read_question_list(questions) if questions else []
    names, folder = _list_media(source, out), source if source.is_dir() else source.parent
    videos = [name for name in names if Path(name).suffix.lower() in VIDEO_SUFFIXES]
    checkpoint = Path(model_folder).expanduser()
    if not checkpoint.is_file():
        best = readable_folder(checkpoint / "best")
        checkpoint = best if best.exists() else readable_folder(checkpoint)
    captioner = open_captioner(checkpoint, choose_device(device))
    if asked and not captioner.model.config.answers:
        raise FileError(f"{questions}: expected a model that was trained with questions, got {checkpoint}")
    options = {"num_beams": num_beams, "batch_size": batch_size}
    weights = checkpoint if checkpoint.is_file() else checkpoint / WEIGHTS_NAME
    meta = {"checkpoint_sha256": file_hash(weights), **options}
    problems: list[Problem] = []
    with lock_folder(out, "captioning"):
        rows = _photos(folder, [name for name in names if name not in videos], out, problems)
        rows += _videos(folder, videos, out, phases, every, str(annotations), problems)
        if not rows:
            raise FileError("; ".join(map(str, problems)))
        images = pd.DataFrame(rows, columns=COLUMNS_OF_IMAGES, dtype=object)
        images = images.where(images.notna(), None).assign(questions=[asked] * len(rows))
        tables, found, answers = [], [], None
        with inference_precision(captioner.device), inference_weights(captioner.model):  # once for all files
            files = images.groupby("scenario", sort=False)
            for name, own in tqdm(files, "captions", unit=" file", mininterval=1, file=sys.stdout):
                part = out / "parts" / f"predictions-{_key(name, own, meta)}.json"
                tables.append(
                    caption_images(captioner, own, out, part, meta, **options, num_workers=0, quiet=True)
                )
                if asked:
                    found.append(read_image_answers(answers_path(part)))
        table = pd.concat(tables, ignore_index=True).merge(images[["image", *EXTRA]], on="image")
        failed = [name for name in names if name not in set(table["scenario"])]
        if asked:
            answers = pd.concat(found).merge(pd.DataFrame(asked, dtype=object), on="id")
            best = [max(log_probs, key=log_probs.get) for log_probs in answers["log_probs"]]
            answers = answers.assign(answer=best, changed=False, scope="phase")
        meta = {"checkpoint": str(checkpoint), **meta, "problems": [str(problem) for problem in problems]}
        page = _write(out, source, table, answers, meta)
    return MediaCaptions(table, answers, problems, failed, page)


def _list_media(source: Path, out: Path) -> list[str]:
    """Return the names of photos and videos in a folder, without what an earlier start wrote to `out`."""
    if not source.is_dir():
        return [check_regular_file(source).name]
    if source.resolve().is_relative_to(out.resolve()):
        raise FileError(f"out: expected another folder than that of the photos and videos, got {out}")
    files = [path for path in list_files(source) if not path.resolve().is_relative_to(out.resolve())]
    media = [path for path in files if path.suffix.lower() in VIDEO_SUFFIXES | IMAGE_SUFFIXES]
    print(f"{source}: {len(media)} photos and videos, and {len(files) - len(media)} other files")
    if not media:
        raise FileError(f"{source}: expected photos or videos, found none")
    return [path.relative_to(source).as_posix() for path in media]


def read_question_list(path: str | Path) -> list[dict[str, Any]]:
    """Read a JSON list of {"question", "a", "b", …, and optionally "correct"} in the form of WTS."""
    asked = []
    for number, entry in enumerate(read_json(path, list), start=1):
        entry = entry if isinstance(entry, dict) else {}
        options = {letter: str(entry[letter]) for letter in LETTERS if entry.get(letter) is not None}
        if not isinstance(entry.get("question"), str) or not options:
            expected = 'expected {"question": "…", "a": "…", "b": "…"}'
            raise FileError(f"{path}, question {number}: {expected}, found other keys. Correct it.")
        correct = str(entry.get("correct") or "").strip().lower()
        about = {"id": f"{number}", "question": entry["question"], "options": options}
        asked.append(about | {"correct": correct if correct in options else None})
    return asked


def _photos(folder: Path, names: Iterable[str], out: Path, problems: list[Problem]) -> list[dict[str, Any]]:
    """Return a row per photo, and write a JPEG of it for the page, because browsers show few formats."""
    rows = []
    for name in names:
        image = f"photos/{name}" + ("" if name.lower().endswith((".jpg", ".jpeg")) else ".jpg")
        try:
            photo = open_image(folder / name)
        except (FileNotFoundError, FileError) as error:
            problems.append(Problem(name, str(error).removeprefix(f"{folder / name}: "), "no captions"))
            continue
        photo.thumbnail((MAX_FRAME_PX, MAX_FRAME_PX))
        with atomic_path(out / image) as temporary:
            photo.save(temporary, quality=90)
        rows.append({"image": image, "path": (folder / name).resolve(), "scenario": name, "references": {}})
    return rows


def _videos(
    folder: Path,
    names: Sequence[str],
    out: Path,
    phases: str,
    every: float,
    annotations: str,
    problems: list[Problem],
) -> list[dict[str, Any]]:
    """Return a row per phase of the videos, and make their images and sharp frames."""
    assert sum(map(bool, (phases, every, annotations))) < 2, "expected one of phases, every and annotations"
    if names and not (phases or every or annotations):
        print("Each video is one phase. Divide it with phases, every or annotations.")
    annotations = annotations and str(Path(annotations).expanduser())
    given = parse_phases(phases) if phases else []
    files = _read_phases(Path(annotations), problems) if annotations else {}
    table = []
    for number, name in enumerate(names):
        try:
            times = given or ([] if annotations else divide(video_length(folder / name), every))
            spans = [(f"{a:g}–{b:g} s", i, a, b, None, None) for i, (a, b) in enumerate(times)]
            own = files.get(video_stem(Path(name).name)) or (len(names) == 1 and files.get(annotations))
            if annotations and not own:
                raise ValueError(f"{annotations}: expected a caption file with its phases, found none")
        except (OSError, ValueError, av.error.FFmpegError) as error:
            reason = (getattr(error, "strerror", None) or str(error)).removeprefix(f"{folder / name}: ")
            problems.append(Problem(name, reason, "no captions"))
            continue
        # Each video is a scenario, so that two of one name in two folders get images of different names.
        about = (f"{number}", name.replace("/", "_"), name, str((folder / name).resolve()))
        table += [(*about, *span) for span in own or spans]
    columns = "scenario video name video_path label phase start_s end_s caption_vehicle caption_pedestrian"
    if not table:
        return []
    blurred = blur_table(
        pd.DataFrame(table, columns=columns.split()), out / "images", frames_dir=out / "frames"
    )
    problems += blurred.problems
    rows = []
    for row in blurred.phases.to_dict("records"):
        image, frame = f"images/{row['image']}", f"frames/{row['image']}"
        about = {"image": image, "path": (out / image).resolve(), "frame": frame, "references": {}}
        about |= {"scenario": row["name"], "video": Path(row["name"]).name}
        about |= {} if annotations else {"phase": None}  # only those of WTS have names
        for subject in SUBJECTS:
            if isinstance(caption := row[f"caption_{subject}"], str):
                parts = split_caption(caption, subject)
                about["references"] |= {(subject, aspect): parts.get(aspect, "") for aspect in ASPECTS}
        rows.append(row | about)
    return rows


def parse_phases(text: str) -> list[tuple[float, float]]:
    """Return the phases (start, end), in seconds, of a text such as "0-1.3,1.3-2.6"."""
    pairs = [re.fullmatch(r"(\d*\.?\d+)-(\d*\.?\d+)", part.strip()) for part in text.split(",")]
    spans = [(float(pair[1]), float(pair[2])) for pair in pairs if pair]
    if len(spans) < len(pairs) or any(start >= end for start, end in spans):
        raise ValueError(f"phases: expected start-end in seconds, such as 0-1.3,1.3-2.6, got {text}")
    return spans


def divide(length_s: float, every: float) -> list[tuple[float, float]]:
    """Divide a video into phases of `every` seconds, of which the last may be shorter; 0: it is one phase."""
    if every and every < SHORTEST_S:
        raise ValueError(f"every: expected at least {SHORTEST_S} seconds, got {every}")
    count = max(1, math.ceil((length_s - SHORTEST_S) / every)) if every else 1
    ends = [*(round(every * number, 3) for number in range(1, count)), round(length_s, 3)]
    return list(zip([0.0, *ends], ends, strict=False))


def _read_phases(root: Path, problems: list[Problem]) -> dict[str, list[tuple]]:
    """Return {video: its phases by time} of a caption file or of all below a folder.

    A phase is (label, phase, start_s, end_s, caption_vehicle, caption_pedestrian). The phases are also found
    by the path of the file, because the only video may have another name now.
    """
    paths = [path for path in list_files(root) if path.name.endswith("_caption.json")]
    found: dict[str, list[tuple]] = {}
    for path in paths if root.is_dir() else [check_regular_file(root)]:

        def report(what: str, where: str = path.name) -> None:
            problems.append(Problem(where, what))

        content = read_object(path.parent, Path(path.name), "event_phase", problems) or {"event_phase": []}
        phases = [read_phase(entry, True, report) for entry in content["event_phase"]]
        phases = {phase[1]: phase for phase in phases if phase}.values()  # one image per phase
        listed = [content.get(key) for key in ("overhead_videos", "vehicle_view")]
        listed = [name for value in listed for name in (value if isinstance(value, list) else [value])]
        listed.append(path.name.removesuffix("_caption.json"))  # a file of BDD has the name of its video
        stems = [video_stem(Path(name).name) for name in listed if isinstance(name, str)]
        for stem in [*stems, str(path)]:
            found.setdefault(stem, sorted(phases, key=lambda phase: phase[2:4]))
    return found


def _key(name: str, images: pd.DataFrame, meta: dict[str, Any]) -> str:
    """Return the hash of all that the captions of a file depend on."""
    content = [file_hash(path) for path in images["path"]]
    about = images[["image", "label", "references", "questions"]].to_dict("records")
    return hashlib.sha256(f"{name} {content} {about} {meta}".encode()).hexdigest()[:16]


def _write(
    out: Path, source: Path, table: pd.DataFrame, answers: pd.DataFrame | None, meta: dict[str, Any]
) -> Path:
    """Write captions.json, answers.json, the WebVTT files and the gallery, whose path is returned."""
    output = out / "captions.json"
    for name in ("answers.json", "captions.vtt"):  # of an earlier start with questions, or of a video
        (out / name).unlink(missing_ok=True)
    write_predictions(output, table[[*COLUMNS, "start_s", "end_s"]], meta)
    if answers is not None:
        by_image = answers.groupby("image", sort=False)
        found = {image: dict(zip(rows["id"], rows["log_probs"], strict=True)) for image, rows in by_image}
        columns = ["id", "question", "options", "correct"]
        asked = answers.drop_duplicates("id")[columns].to_dict("records")
        write_image_answers(out / "answers.json", found, meta | {"questions": asked})
    for name, captions in table[table["start_s"].notna()].groupby("scenario", sort=False):
        write_text(out / (f"{name}.vtt" if source.is_dir() else "captions.vtt"), webvtt(captions))
    folder = source if source.is_dir() else source.parent
    title = f"Captions of {source.resolve().name}"
    return write_gallery(
        table,
        out / "gallery.html",
        out,
        title,
        media_root=folder,
        answers=answers,
        name=Path(meta["checkpoint"]).name,
    )


def webvtt(captions: pd.DataFrame) -> str:
    """Return captions with start_s and end_s as WebVTT: a cue per phase, with a line per subject."""
    cues = ["WEBVTT\n"]
    for (start_s, end_s), rows in captions.groupby(["start_s", "end_s"]):
        lines = []
        for subject, own in rows.groupby("subject", sort=False):
            texts = dict(zip(own["aspect"], own["caption"], strict=True))
            text = f"{subject}: {merge_aspects(texts, subject)}" if subject else " ".join(texts.values())
            lines.append(html.escape(" ".join(text.split()), quote=False))
        end_s = max(end_s, start_s + SHORTEST_S)  # a phase of WTS may have no length, a cue must have one
        cues.append(f"{_clock(start_s)} --> {_clock(end_s)}\n" + "\n".join(lines) + "\n")
    return "\n".join(cues)


def _clock(seconds: float) -> str:
    milliseconds = round(1000 * seconds)
    return f"{milliseconds // 3_600_000:02}:{milliseconds // 60_000 % 60:02}:{milliseconds / 1000 % 60:06.3f}"
