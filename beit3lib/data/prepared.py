"""Import a data set laid out as in the original repository: images and caption files.

    your_input/
        avg_normal_244_train/   avg20230707_11_SY3_T1_Camera1_0phase0.jpg …, or image_aic/train/…, or .png
        avg_normal_244_test/
        vehicle_caption/        train/*.json, val/*.json
        pedestrian_caption/
        test-6/                 for_test.json: the segments to caption, as a caption file

    from beit3lib.data.prepared import find_prepared, import_prepared
    phases, problems = import_prepared(find_prepared("your_input"), "runs/mine")

Names may contain `-` instead of `_`, and folders may be nested differently: the split is that of the
innermost folder with train, val or test in its name. Some subjects or aspects may be absent. The two index
calls of the original repository work if its import lines are changed to

    from beit3lib.data.prepared import original_index as _make_captioning_coco_karpathy_dataset_index
    from beit3lib.tokenizer import load_tokenizer as XLMRobertaTokenizer
"""

import math
import os
import re
import shutil
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from beit3lib.data.aspects import merge_aspects
from beit3lib.data.caption_files import CAPTION_COLUMNS, caption_type_of, read_caption_file, write_captions
from beit3lib.data.images import find_image, list_images, open_image, parse_image_name
from beit3lib.data.index import INDEX_NAME, IndexReport, write_index
from beit3lib.data.motion_blur import ImageTable, image_name
from beit3lib.data.schema import PHASE_COLUMNS, SPLITS, SUBJECTS
from beit3lib.data.wts import list_files, list_segments, parse_phase, scenario_of, source_of, split_by_group
from beit3lib.files import Problem, atomic_folder, atomic_path, check_regular_file, file_hash

VAL_SHARE = 0.1  # the share of the recordings of train that becomes val if the input has no val
KEYS = ["split", "scenario", "video", "phase"]


class CaptionFile(NamedTuple):
    """A caption file; `subject` and `aspect` are None for a file of segments to caption."""

    split: str
    subject: str | None
    aspect: str | None
    path: Path


class PreparedRoot(NamedTuple):
    """The caption files and images ({stem: paths}) below a folder."""

    root: Path
    files: list[CaptionFile]
    images: dict[str, list[Path]]


def find_prepared(root: str | Path) -> PreparedRoot | None:
    """Return the caption files and phase images below `root`; None if there are not both. `~` is expanded."""
    root = Path(root).expanduser()
    files, images = [], defaultdict(list)
    for path in list_files(root, skip=("runs",)):
        if path.suffix.lower() == ".json":
            split, (subject, aspect) = _split_of(root, path), caption_type_of(path) or (None, None)
            if re.match(r"for[-_]test", path.name) or (subject and split == "test"):
                files.append(CaptionFile("test", None, None, path))
            elif subject:
                files.append(CaptionFile(split or "train", subject, aspect, path))
        elif parse_image_name(path):
            images[path.stem].append(path)
    return PreparedRoot(root, files, dict(images)) if files and images else None


def _split_of(root: Path, path: Path) -> str | None:
    """Return the split that the innermost folder names: test for `avg-normal-244-test/image_aic/`."""
    folders = reversed(path.relative_to(root).parts[:-1])
    words = [word for folder in folders for word in re.split("[-_]", folder.lower())]
    return next((word for word in words if word in SPLITS), None)


def import_prepared(prepared: PreparedRoot, run: str | Path) -> ImageTable:
    """Copy the images into `run`/images and write `run`/captions/{train,val}, split as the files are.

    If the input has no validation split, a tenth of the recordings of train becomes val. Segments to caption
    become rows of the test split without captions. A phase without an image is a problem and skipped, and so
    are images that no file lists. One problem has the number of images that are in both train and val.
    """
    run, problems = Path(run), []
    captions = _read_captions(prepared, problems)
    images = {  # of several images of one name, the one in a folder of the split
        split: {
            stem: min(paths, key=lambda path: _split_of(prepared.root, path) != split)
            for stem, paths in prepared.images.items()
        }
        for split in SPLITS
    }
    sources: dict[str, Path] = {}  # {name in the run: image}
    rows = []
    for (split, scenario, video, phase), group in captions.groupby(KEYS, sort=True):
        source = find_image(images[split], video, phase, *group["label"].unique())
        where = f"{scenario}/{video} phase {phase}"
        if source is None:
            what = f"{len(group)} captions, but no image below {prepared.root}; skipped"
            problems.append(Problem(where, what))
            continue
        name = image_name(video, phase)
        if sources.get(name, source) != source:  # another scenario has a video of the same name
            name = image_name(f"{scenario}_{video}", phase)
        try:
            _copy(source, run / "images" / name)
        except ValueError as error:
            problems.append(Problem(where, f"{error}; skipped", "make the image again"))
            continue
        sources[name] = source
        rows.append(_phase_row((split, scenario, video, phase), group) | {"image": name})
    if not rows:
        raise FileNotFoundError(
            f"{prepared.root}: expected images of the videos that its caption files list, found none"
        )
    unused = sum(map(len, prepared.images.values())) - len(set(sources.values()))
    if unused:
        problems.append(Problem(str(prepared.root), f"{unused} images that no caption file lists; not used"))
    phases = pd.DataFrame(rows, columns=[*PHASE_COLUMNS, "image"])
    if both := count_shared_images(phases, run / "images", "val"):
        what = f"{both} images are in both train and val, so validation scores are too high"
        problems.append(Problem(str(prepared.root), what, "remove them from one of the two"))
    if any(file.split == "val" for file in prepared.files):
        captions = captions.merge(phases[KEYS])
    else:
        phases, more = split_by_group(phases, VAL_SHARE)
        problems += more
        captions = captions.drop(columns="split").merge(phases[KEYS], on=KEYS[1:])
    with atomic_folder(run / "captions") as new:
        for split, rows in captions[captions["split"] != "test"].groupby("split"):
            write_captions(rows, new / split)
    return ImageTable(phases, problems)


def count_shared_images(phases: pd.DataFrame, image_dir: Path, split: str) -> int:
    """Return how many different images of a split are also in train, by their content."""
    contents = {}
    for name in ("train", split):
        paths = (image_dir / image for image in phases.loc[phases["split"] == name, "image"])
        contents[name] = {file_hash(path) for path in paths if path.is_file()}
    return len(contents["train"] & contents[split])


def _phase_row(key: tuple, captions: pd.DataFrame) -> dict[str, Any]:
    """Return the row of phases.csv of one video and phase; `key` has the values of `KEYS`."""
    _, scenario, video, _ = key
    is_vehicle = source_of(scenario) == "bdd" or "vehicle_view" in video
    row: dict[str, Any] = dict(zip(KEYS, key, strict=True)) | {"label": captions["label"].iloc[0]}
    row |= {"source": source_of(scenario), "view": "vehicle_view" if is_vehicle else "overhead_view"}
    row |= {"video_path": "", "start_s": math.nan, "end_s": math.nan}
    for subject in SUBJECTS:
        own = captions[captions["subject"] == subject].drop_duplicates("aspect")
        parts = dict(zip(own["aspect"], own["caption"], strict=True))
        row[f"caption_{subject}"] = merge_aspects(parts, subject) if parts else None
    return row


def list_test_segments(prepared: PreparedRoot) -> pd.DataFrame:
    """Return the segments to caption, with or without an image, with the columns of `wts.list_segments`."""
    tests = [file for file in prepared.files if file.split == "test"]
    rows = _read_captions(prepared._replace(files=tests), [])
    rows = rows[rows["split"] == "test"].assign(caption_vehicle=None, caption_pedestrian=None)
    return list_segments(rows.assign(source=rows["scenario"].map(source_of)))


def _read_captions(prepared: PreparedRoot, problems: list[Problem]) -> pd.DataFrame:
    """Return one row per caption and video: split, and the columns of a caption table.

    Segments to caption have no subject, aspect and caption. Without a file of such segments they are those of
    the images in folders of the test split, by their names.
    """
    rows = []
    for file in prepared.files:
        is_test = file.subject is None
        for scenario, videos, label, phase, caption in read_caption_file(file.path, problems, is_test):
            about = (label, phase, file.subject, file.aspect, None if is_test else caption)
            rows += [(file.split, scenario, video, *about) for video in videos]
    if not any(file.split == "test" for file in prepared.files):
        paths = [path for paths in prepared.images.values() for path in paths]
        tests = [parse_image_name(path) for path in paths if _split_of(prepared.root, path) == "test"]
        for video, label in tests:
            rows.append(("test", scenario_of(video), video, label, parse_phase(label), None, None, None))
        if tests:
            what = f"{len(tests)} images of the test split without for_test.json; they name the segments"
            problems.append(Problem(str(prepared.root), what))
    return pd.DataFrame(rows, columns=["split", *CAPTION_COLUMNS])


def _copy(source: Path, target: Path) -> None:
    """Copy an image as JPEG, unless the existing copy has the modification time of `source`."""
    time_ns = source.stat().st_mtime_ns
    if target.is_file() and target.stat().st_mtime_ns == time_ns:
        return
    image = open_image(source)  # raises ImageError also for a damaged JPEG, which would be copied unchanged
    with atomic_path(target) as temporary:
        if source.suffix.lower() == ".png":
            image.save(temporary, quality=95, subsampling=0)
        else:
            shutil.copyfile(source, temporary)
        os.utime(temporary, ns=(time_ns, time_ns))


def original_index(
    data_path: str | Path,
    tokenizer: Any,
    image_dir: str | Path,
    split: Iterable[str] = (),
    split_name: str = "train",
    type: str = "avg",
) -> IndexReport:
    """Write `coco_captioning.{split_name}.jsonl` into the working directory, as the original repository does.

    Every caption of the caption file `data_path` is paired with every video of its scenario that has an image
    `{type}{video stem}phase{label}` in `image_dir`; "avg" and no prefix, and all spellings of the suffix, are
    found as well. Image paths are absolute; captions without words get text_segment null. The lines have no
    subject and aspect, because the original model is trained on one caption type without a prompt. `split`
    has no effect in the original function either.
    """
    path, out_path = check_regular_file(data_path), Path(INDEX_NAME.format(split=split_name))
    images, prefixes = list_images(image_dir), tuple(dict.fromkeys((type, "avg", "")))
    lines, problems, skipped = [], [], 0
    for scenario, videos, label, phase, caption in read_caption_file(path, problems, keep_empty=True):
        line = {"text_segment": tokenizer.encode(caption, add_special_tokens=False) if caption else None}
        line |= {"caption": caption, "split": split_name}
        line |= {"scenario": scenario, "label": label, "phase": phase}
        for video in videos:
            image = find_image(images, video, label, phase, prefixes=prefixes)
            if image is None:
                skipped += 1
            else:
                lines.append({"image_path": Path(os.path.abspath(image)).as_posix(), "video": video} | line)
    if skipped:
        problems.append(Problem(path.name, f"{skipped} captions without an image in {image_dir}; skipped"))
    report = write_index(out_path, lines, skipped, problems)
    print("\n".join(map(str, [report, *problems])))
    return report
