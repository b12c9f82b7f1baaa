"""Use images and caption files that exist already, in the data structure of the original repository.

    your_input/
       avg_normal_244_train/   avg20230707_11_SY3_T1_Camera1_0phase0.jpg …    or …/image_aic/train/…, .jpg or .png
       avg_normal_244_test/    …
       vehicle_caption/        train/*.json, val/*.json                       and pedestrian_caption/ likewise
       test-6/                 for_test.json: the segments to caption, as a caption file

    from beit3lib.data.prepared import find_prepared, import_prepared
    phases, problems = import_prepared(find_prepared("your_input"), "runs/mine")

Names may contain `-` instead of `_`, and folders may be nested differently: the split is that of the innermost folder
with train, val or test in its name. Some subjects or aspects may be absent. The two index calls of the original repository
work if its import lines are changed to

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
from beit3lib.data.caption_files import caption_file_name, caption_type_of, read_caption_file
from beit3lib.data.images import ImageError, find_image, is_phase_image, list_images, open_image
from beit3lib.data.index import INDEX_NAME, IndexReport, write_index
from beit3lib.data.motion_blur import ImageTable, image_name
from beit3lib.data.schema import PHASE_COLUMNS, SPLITS, SUBJECTS
from beit3lib.data.wts import cap_problems, list_files, list_segments, split_by_group
from beit3lib.files import Problem, atomic_folder, atomic_path, check_regular_file, write_json

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
        split = _split_of(path.relative_to(root))
        if path.suffix.lower() == ".json":
            subject, aspect = caption_type_of(path) or (None, None)
            if re.match(r"for[-_]test", path.name) or (subject and split == "test"):
                files.append(CaptionFile("test", None, None, path))
            elif subject:
                files.append(CaptionFile(split or "train", subject, aspect, path))
        elif is_phase_image(path):
            images[path.stem].append(path)
    return PreparedRoot(root, files, dict(images)) if files and images else None


def _split_of(path: Path) -> str | None:
    """Return the split in the name of the innermost folder that has one: test for `avg-normal-244-test/image_aic/`."""
    words = [word for folder in reversed(path.parts[:-1]) for word in re.split("[-_]", folder.lower())]
    return next((word for word in words if word in SPLITS), None)


def import_prepared(prepared: PreparedRoot, run: str | Path) -> ImageTable:
    """Copy the images into `run`/images and write `run`/captions/{train,val}, split as the files are.

    If the input has no validation split, a tenth of the recordings of train becomes val. Segments to caption become rows
    of the test split without captions. A phase without an image is a problem and skipped.
    """
    run, problems = Path(run), []
    captions = _read_captions(prepared, problems)
    images = {split: _images_of(prepared, split) for split in SPLITS}
    sources: dict[str, Path] = {}  # {name in the run: image}
    rows, missing = [], []
    for (split, scenario, video, phase), group in captions.groupby(KEYS, sort=True):
        source = find_image(images[split], video, phase, *group["label"].unique())
        where = f"{scenario}/{video} phase {phase}"
        if source is None:
            missing.append(
                Problem(where, f"{len(group)} captions, but no image below {prepared.root}; skipped")
            )
            continue
        name = image_name(video, phase)
        if sources.get(name, source) != source:  # another scenario has a video of the same name
            name = image_name(f"{scenario}_{video}", phase)
        try:
            _copy(source, run / "images" / name)
        except ImageError as error:
            problems.append(Problem(where, f"{error}; skipped", "make the image again"))
            continue
        sources[name] = source
        row = {
            "split": split,
            "source": _source(scenario),
            "scenario": scenario,
            "video": video,
            "video_path": "",
        }
        row["view"] = "vehicle_view" if row["source"] == "bdd" or "vehicle_view" in video else "overhead_view"
        row |= {
            "label": group["label"].iloc[0],
            "phase": phase,
            "start_s": math.nan,
            "end_s": math.nan,
            "image": name,
        }
        for subject in SUBJECTS:
            parts = (
                group[group["subject"] == subject]
                .drop_duplicates("aspect")
                .set_index("aspect")["caption"]
                .to_dict()
            )
            row[f"caption_{subject}"] = merge_aspects(parts, subject) if parts else None
        rows.append(row)
    problems += cap_problems(missing, str(prepared.root))
    unused = sum(map(len, prepared.images.values())) - len(set(sources.values()))
    if unused:
        problems.append(Problem(str(prepared.root), f"{unused} images that no caption file lists; not used"))
    phases = pd.DataFrame(rows, columns=[*PHASE_COLUMNS, "image"])
    if not rows:
        raise FileNotFoundError(
            f"{prepared.root}: expected images of the videos that its caption files list, found none"
        )
    if any(file.split == "val" for file in prepared.files):
        captions = captions.merge(phases[KEYS])
    else:
        phases, more, _ = split_by_group(phases, VAL_SHARE)
        problems += more
        captions = captions.drop(columns="split").merge(phases[KEYS], on=KEYS[1:])
    _write_captions(captions[captions["split"] != "test"], run / "captions")
    return ImageTable(phases, problems)


def list_test_segments(prepared: PreparedRoot) -> pd.DataFrame:
    """Return the segments to caption, with or without an image, with the columns of `wts.list_segments`."""
    tests = [file for file in prepared.files if file.split == "test"]
    rows = _read_captions(prepared._replace(files=tests), [])
    return list_segments(
        rows.assign(source=rows["scenario"].map(_source), caption_vehicle=None, caption_pedestrian=None)
    )


def _read_captions(prepared: PreparedRoot, problems: list[Problem]) -> pd.DataFrame:
    """Return one row per caption and video: split, scenario, video, phase, label, subject, aspect, caption."""
    rows = []
    for file in prepared.files:
        is_test = file.subject is None
        for scenario, videos, label, phase, caption in read_caption_file(
            file.path, problems, keep_empty=is_test
        ):
            about = (phase, label, file.subject, file.aspect, None if is_test else caption)
            rows += [(file.split, scenario, video, *about) for video in videos]
    return pd.DataFrame(rows, columns=[*KEYS, "label", "subject", "aspect", "caption"])


def _source(scenario: str) -> str:
    return "bdd" if scenario.startswith("video") else "wts"


def _images_of(prepared: PreparedRoot, split: str) -> dict[str, Path]:
    """Return {stem: path}: of several images of one name, the one in a folder of this split."""
    return {
        stem: min(paths, key=lambda path: _split_of(path.relative_to(prepared.root)) != split)
        for stem, paths in prepared.images.items()
    }


def _copy(source: Path, target: Path) -> None:
    """Copy an image as JPEG, unless the existing copy has the modification time of `source`."""
    time_ns = source.stat().st_mtime_ns
    if target.is_file() and target.stat().st_mtime_ns == time_ns:
        return
    image = open_image(
        source
    )  # raises ImageError also for a damaged JPEG, which is copied unchanged otherwise
    with atomic_path(target) as temporary:
        if source.suffix.lower() == ".png":
            image.save(temporary, quality=95, subsampling=0)
        else:
            shutil.copyfile(source, temporary)
        os.utime(temporary, ns=(time_ns, time_ns))


def _write_captions(captions: pd.DataFrame, folder: Path) -> None:
    """Replace `folder` by a folder for each split, with one caption file per subject and aspect."""
    with atomic_folder(folder) as new:
        for (split, *caption_type), rows in captions.groupby(["split", "subject", "aspect"]):
            content = {}
            for scenario, of_scenario in rows.groupby("scenario"):
                texts = of_scenario.drop_duplicates(["label", "caption"]).sort_values("phase", kind="stable")
                entries = [
                    {"label": x, "caption": y} for x, y in zip(texts["label"], texts["caption"], strict=True)
                ]
                content[scenario] = {"videos": sorted(of_scenario["video"].unique()), "caption": entries}
            write_json(new / split / caption_file_name(*caption_type), content)


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
    `{type}{video stem}phase{label}` in `image_dir`; "avg" and no prefix, and all spellings of the suffix, are found as
    well. Image paths are absolute; captions without words get text_segment null. The lines have no subject and aspect,
    because the original model is trained on one caption type without a prompt. `split` has no effect in the original
    function either.
    """
    path, out_path = check_regular_file(data_path), Path(INDEX_NAME.format(split=split_name))
    images, prefixes = list_images(image_dir), tuple(dict.fromkeys((type, "avg", "")))
    lines, problems, skipped = [], [], 0
    for scenario, videos, label, phase, caption in read_caption_file(path, problems, keep_empty=True):
        ids = tokenizer.encode(caption, add_special_tokens=False) if caption else None
        about = {
            "caption": caption,
            "split": split_name,
            "scenario": scenario,
            "label": label,
            "phase": phase,
        }
        for video in videos:
            image = find_image(images, video, label, phase, prefixes=prefixes)
            if image is None:
                skipped += 1
                continue
            lines.append({"image_path": os.path.abspath(image), "text_segment": ids, "video": video} | about)
    if skipped:
        problems.append(Problem(path.name, f"{skipped} captions without an image in {image_dir}; skipped"))
    report = write_index(out_path, lines, skipped, 0, problems)
    print("\n".join(map(str, [report, *problems])))
    return report
