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

from beit3lib.captioner import Captioner
from beit3lib.checkpoint import WEIGHTS_NAME
from beit3lib.data.aspects import merge_aspects, split_caption
from beit3lib.data.images import FORMATS, open_image
from beit3lib.data.motion_blur import MAX_FRAME_PX, blur_table, video_length
from beit3lib.data.predictions import COLUMNS, write_predictions
from beit3lib.data.questions import LETTERS, answers_path, read_image_answers, write_image_answers
from beit3lib.data.schema import IMAGE_COLUMNS, SUBJECTS
from beit3lib.data.wts import list_files, read_phase, video_stem
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
IMAGE_SUFFIXES |= {".heic", ".heif", ".hif", ".avif"}  # without their plugin they are listed with its name
SHORTEST_S = 0.1  # a shorter rest of a video is no phase of its own
EXTRA = "start_s end_s video_path frame frame_width_px frame_height_px".split()  # columns for the gallery
IMAGES = ["image", "path", *IMAGE_COLUMNS, "references", *EXTRA]
BROKEN = (OSError, ValueError, av.error.FFmpegError)


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
    names = _list_media(source, out)
    folder = source if source.is_dir() else source.parent
    checkpoint = Path(model_folder).expanduser()
    if not checkpoint.is_file():
        best = readable_folder(checkpoint / "best")
        checkpoint = best if best.exists() else readable_folder(checkpoint)
    captioner = open_captioner(checkpoint, choose_device(device))
    if asked and not captioner.model.config.answers:
        raise FileError(f"{questions}: expected a model that was trained with questions, got {checkpoint}")
    weights = checkpoint if checkpoint.is_file() else checkpoint / WEIGHTS_NAME
    meta = {"checkpoint_sha256": file_hash(weights), "beams": num_beams, "batch": batch_size}
    with lock_folder(out, "captioning"):
        videos = [name for name in names if _is_video(name)]
        rows, problems = _photos(folder, [name for name in names if name not in videos], out)
        if videos and not (phases or every or annotations):
            print("Each video is one phase. Divide it with phases, every or annotations.")
        spans, found = _phases(folder, videos, phases, every, annotations)
        problems += found
        if len(spans):
            blurred = blur_table(spans, out / "images", frames_dir=out / "frames")
            problems += blurred.problems
            rows += _video_rows(blurred.phases, captioner, out, bool(annotations))
        if not rows:
            raise FileError("; ".join(map(str, problems)))
        images = pd.DataFrame(rows).reindex(columns=IMAGES).astype(object)
        images = images.where(images.notna(), None).assign(questions=[asked] * len(rows))
        tables, answers = [], []
        with inference_precision(captioner.device), inference_weights(captioner.model):  # once for all files
            groups = images.groupby("scenario", sort=False)
            for name, rows in tqdm(groups, "captions", unit=" file", mininterval=1, file=sys.stdout):
                part = out / "parts" / f"predictions-{_key(name, rows, meta)}.json"
                options = {"num_beams": num_beams, "batch_size": batch_size, "num_workers": 0, "quiet": True}
                tables.append(caption_images(captioner, rows, out, part, meta, **options))
                if asked:
                    answers.append(read_image_answers(answers_path(part)))
        table = pd.concat(tables, ignore_index=True).merge(images[["image", *EXTRA]], on="image")
        failed = [name for name in names if name not in set(table["scenario"])]
        answers = _answer_table(pd.concat(answers), asked) if asked else None
        meta = {"checkpoint": str(checkpoint), **meta, "problems": [str(problem) for problem in problems]}
        page = _write(out, source, table, answers, meta)
    return MediaCaptions(table, answers, problems, failed, page)


def _is_video(name: str) -> bool:
    return Path(name).suffix.lower() in VIDEO_SUFFIXES


def _list_media(source: Path, out: Path) -> list[str]:
    """Return the names of photos and videos, relative to a folder, without what an earlier start wrote to `out`."""
    if not source.is_dir():
        return [check_regular_file(source).name]
    files = [path for path in list_files(source) if not path.resolve().is_relative_to(out.resolve())]
    names = [path.relative_to(source).as_posix() for path in files]
    media = [name for name in names if Path(name).suffix.lower() in VIDEO_SUFFIXES | IMAGE_SUFFIXES]
    if not media:
        raise FileError(f"{source}: expected photos or videos, found {len(names)} other files")
    if len(media) < len(names):
        print(f"{source}: {len(names) - len(media)} files are neither photos nor videos by their names")
    return media


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


def _photos(folder: Path, names: Iterable[str], out: Path) -> tuple[list[dict[str, Any]], list[Problem]]:
    """Return a row per photo that can be read, with a copy for the page, because browsers show few formats."""
    rows, problems = [], []
    for name in names:
        suffix = "" if name.lower().endswith((".jpg", ".jpeg")) else ".jpg"
        image = f"photos/{name}{suffix}"
        try:
            photo = open_image(folder / name)
            photo.thumbnail((MAX_FRAME_PX, MAX_FRAME_PX))
            with atomic_path(out / image) as temporary:
                photo.save(temporary, quality=90)
        except (FileNotFoundError, FileError) as error:
            problems.append(Problem(name, str(error).removeprefix(f"{folder / name}: "), "no captions"))
            continue
        path = (folder / name).resolve()
        rows.append({"image": image, "path": str(path), "scenario": name, "references": {}})
    return rows, problems


def _phases(
    folder: Path, videos: Sequence[str], phases: str, every: float, annotations: str | Path
) -> tuple[pd.DataFrame, list[Problem]]:
    """Return the phases of all videos as `blur_table` reads them, and the videos without any as problems."""
    assert sum(map(bool, (phases, every, annotations))) < 2, "expected one of phases, every and annotations"
    given, files = parse_phases(phases), _caption_files(annotations) if annotations else {}
    rows, problems = [], []
    for number, name in enumerate(videos):
        try:
            if annotations:
                path = next(iter(files.values())) if len(videos) == len(files) == 1 else None
                path = path or files.get(video_stem(Path(name).name))
                if path is None:
                    raise ValueError(f"{annotations}: expected a caption file that lists it, found none")
                spans = _annotated(path, problems)
            else:
                times = given or _divide(video_length(folder / name), every)
                spans = [(f"{a:g}–{b:g} s", i, a, b, None, None) for i, (a, b) in enumerate(times)]
        except BROKEN as error:
            reason = getattr(error, "strerror", None) or str(error)
            problems.append(Problem(name, reason.removeprefix(f"{folder / name}: "), "no captions"))
            continue
        # Two videos of one name, in two folders, are two scenarios.
        about = (f"{number}", name.replace("/", "_"), name, str((folder / name).resolve()))
        rows += [(*about, *span) for span in spans]
    columns = "scenario video name video_path label phase start_s end_s caption_vehicle caption_pedestrian"
    return pd.DataFrame(rows, columns=columns.split()), problems


def parse_phases(text: str) -> list[tuple[float, float]]:
    """Return the phases (start, end), in seconds, of a text such as "0-1.3,1.3-2.6"."""
    pairs = [re.fullmatch(r"\s*([\d.]+)\s*-\s*([\d.]+)\s*", part) for part in text.split(",") if text]
    try:
        spans = [(float(pair[1]), float(pair[2])) for pair in pairs]
        if all(start < end for start, end in spans):
            return spans
    except (TypeError, ValueError):
        pass
    raise ValueError(f"phases: expected start-end in seconds, such as 0-1.3,1.3-2.6, got {text}")


def _divide(length_s: float, every: float) -> list[tuple[float, float]]:
    """Divide a video into phases of `every` seconds; 0: it is one phase."""
    if not every:
        return [(0.0, round(length_s, 3))]
    count = max(1, math.ceil((length_s - SHORTEST_S) / every))
    ends = [round(every * number, 3) for number in range(1, count)]
    return list(zip([0.0, *ends], [*ends, round(length_s, 3)], strict=True))


def _caption_files(annotations: str | Path) -> dict[str, Path]:
    """Return {video stem: the caption file that lists it}, of one file or of all below a folder."""
    root, files = Path(annotations).expanduser(), {}
    paths = [p for p in list_files(root) if p.name.endswith("_caption.json")] if root.is_dir() else [root]
    for path in paths:
        content = read_json(path, dict)
        listed = [content.get(key) for key in ("overhead_videos", "vehicle_view")]
        listed = [name for value in listed for name in (value if isinstance(value, list) else [value])]
        for name in [*listed, path.name.removesuffix("_caption.json")]:  # a file of BDD has its video's name
            if isinstance(name, str):
                files.setdefault(video_stem(Path(name).name), path)
    return files


def _annotated(path: Path, problems: list[Problem]) -> list[tuple]:
    """Return (label, phase, start_s, end_s, caption_vehicle, caption_pedestrian) of each phase, by time."""
    entries = read_json(path, dict).get("event_phase")

    def report(what: str) -> None:
        problems.append(Problem(path.name, what))

    spans = [read_phase(entry, True, report) for entry in (entries if isinstance(entries, list) else [])]
    spans = list({span[1]: span for span in spans if span}.values())
    if not spans:
        raise ValueError(f"{path}: expected event_phase with labels, start_time and end_time, found none")
    return sorted(spans, key=lambda span: span[2:4])


def _video_rows(
    phases: pd.DataFrame, captioner: Captioner, out: Path, numbered: bool
) -> list[dict[str, Any]]:
    """Return a row per phase; only those of a caption file have the `numbered` phases of WTS."""
    rows = []
    for row in phases.to_dict("records"):
        references = {}
        for subject in SUBJECTS:
            if isinstance(caption := row[f"caption_{subject}"], str):
                parts = split_caption(caption, subject)
                own = [kind for kind in captioner.caption_types if kind[0] == subject]
                references |= {kind: parts.get(kind[1], "") for kind in own}
        image, phase = f"images/{row['image']}", row["phase"] if numbered else None
        about = {"image": image, "frame": f"frames/{row['image']}", "phase": phase, "references": references}
        about["path"] = str((out / image).resolve())
        rows.append(row | about | {"scenario": row["name"], "video": Path(row["name"]).name})
    return rows


def _key(name: str, images: pd.DataFrame, meta: dict[str, Any]) -> str:
    """Return the hash of all that the captions of a file depend on."""
    content = [file_hash(path) for path in images["path"]]
    about = images[["image", "label", "references", "questions"]].to_dict("records")
    return hashlib.sha256(f"{name} {content} {about} {meta}".encode()).hexdigest()[:16]


def _answer_table(answers: pd.DataFrame, asked: list[dict[str, Any]]) -> pd.DataFrame:
    """Return the answers with their questions, as `write_gallery` reads them."""
    table = answers.merge(pd.DataFrame(asked, dtype=object), on="id")
    best = [max(log_probs, key=log_probs.get) for log_probs in table["log_probs"]]
    return table.assign(answer=best, changed=False, scope="phase")


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
