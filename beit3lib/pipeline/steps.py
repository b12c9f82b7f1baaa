"""The five steps of a run as functions: what each reads from the run's folder, and what it leaves there.

    runs/<name>/   phases.csv, segments.csv, images/, captions/{train,val}/, coco_captioning.*.jsonl, tokenizer.spm,
                   best/, last/, log.jsonl, predictions.json, gallery.html, scores.json, submission.json, summary.json

Notebooks call these. A step whose input is missing makes it first (`ensure`), with the defaults of the step that owes
it.
"""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from beit3lib.files import Problem, in_one_sentence, read_json, versions, write_json, write_text
from beit3lib.pipeline.manifest import load_manifest

SUMMARY_NAME, PHASES_NAME, PREDICTIONS_NAME, SPM_NAME = (
    "summary.json",
    "phases.csv",
    "predictions.json",
    "tokenizer.spm",
)
SCORES_NAME, SUBMISSION_NAME, SEGMENTS_NAME = "scores.json", "submission.json", "segments.csv"
SECTIONS = ("prepare", "index", "finetune", "inspect", "score")
MARKERS = {  # what tells that a step is done
    "prepare": PHASES_NAME,
    "index": "coco_captioning.train.jsonl",
    "finetune": "best/meta.json",
    "inspect": PREDICTIONS_NAME,
}
KAGGLE_INPUT = Path("/kaggle/input")


def home() -> Path:
    """Where relative places begin: here, or the project's own folder when started inside it, as Jupyter is in notebooks/."""
    above = (folder for folder in Path.cwd().parents if (folder / "beit3lib" / "__init__.py").is_file())
    return Path() if Path("beit3lib/__init__.py").is_file() else next(above, Path())


def open_run(name: str, folder: str | Path = "runs") -> Path:
    """The folder of a run, made if it is new; a relative `folder` begins at `home`.

    On Kaggle the output of the notebook before lies on a read-only mount: it is copied here once, so that each step
    finds the run whole and may write to it.
    """
    run = home() / folder / name
    if not (run / SUMMARY_NAME).is_file():
        for source in _mounted_runs(name):
            print(f"{run}: continues {source}")
            shutil.copytree(source, run, dirs_exist_ok=True)
            for path in (run, *run.rglob("*")):  # copies of read-only files are read-only too
                path.chmod(path.stat().st_mode | 0o200)
            break
    run.mkdir(parents=True, exist_ok=True)
    return run


def _mounted_runs(name: str) -> list[Path]:
    """Runs of that name on Kaggle's mounts, the furthest on first."""
    found = [
        path.parent for depth in ("*", "*/*", "*/*/*") for path in KAGGLE_INPUT.glob(f"{depth}/runs/{name}/{SUMMARY_NAME}")
    ]
    return sorted(found, key=lambda run: -len(read_json(run / SUMMARY_NAME)))


def read_summary(run: Path) -> dict[str, Any]:
    """`summary.json`: a section per step that has run."""
    path = run / SUMMARY_NAME
    return read_json(path) if path.is_file() else {}


def add_summary(run: Path, section: str, values: dict[str, Any]) -> dict[str, Any]:
    """Put a step's section into `summary.json`; the other sections stay as they are."""
    summary = read_summary(run) | {section: values}
    write_json(run / SUMMARY_NAME, summary)
    return values


@contextmanager
def timed(values: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Put the seconds that the block took into `values`."""
    started = time.monotonic()
    yield values
    values["seconds"] = round(time.monotonic() - started, 1)


def ensure(run: Path, section: str) -> None:
    """Make what `section` should have left in the run, where it is missing, by running that step with its defaults."""
    makers: dict[str, Callable[[Path], Any]] = {
        "prepare": prepare,
        "index": index,
        "finetune": finetune,
        "inspect": caption_images,
    }
    if (run / MARKERS[section]).is_file():
        return
    print(f"{run} holds no {MARKERS[section]}: step '{section}' is run first, with its defaults")
    makers[section](run)


def find_data(dataset: str = "auto", wts_root: str | None = None, sample_dir: str | Path = "data/sample") -> tuple[str, Path]:
    """("wts", "prepared" or "sample", root) of the data to use, "auto" in this order. Says in a line which.

    `prepared` are images and caption files that were made before; the root is that of the captions. The sample is drawn
    where it is missing.
    """
    manifest = load_manifest()
    found = Path(wts_root) if wts_root else manifest.find("wts")
    if dataset == "wts" or (dataset == "auto" and found is not None):
        root = found or manifest.locate("wts")
        print(f"data: the WTS download in {root}")
        return "wts", root
    if dataset == "prepared" or (dataset == "auto" and manifest.find("images") and manifest.find("captions")):
        print(f"data: prepared images in {manifest.locate('images')}, captions in {manifest.locate('captions')}")
        return "prepared", manifest.locate("captions")
    root = manifest.find("sample")
    if root is None:
        from beit3lib.sample.draw import write_sample

        print(f"data: no WTS download found, so the sample is drawn into {sample_dir} (half a minute)")
        return "sample", write_sample(home() / sample_dir)
    print(f"data: the drawn sample in {root}")
    return "sample", root


def prepare(
    run: Path,
    dataset: str = "auto",
    wts_root: str | None = None,
    views: str = "all",
    image_size: int = 224,
    weights: str = "linear",
    jobs: int | None = None,
    max_scenarios: int | None = None,
) -> pd.DataFrame:
    """Step 1: phases.csv, one motion-blur image per phase and video, and the caption files; returns the phases.

    `.attrs` holds `problems`, `views` (what was chosen, and why) and `counts`.
    """
    from beit3lib.data.prepared import import_prepared

    summary: dict[str, Any] = {}
    with timed(summary):
        kind, root = find_data(dataset, wts_root)
        if kind == "prepared":
            read = chosen = phases = import_prepared(load_manifest().locate("images"), root, run)
            _write_segments(run, phases)
        else:
            options = {"image_size": image_size, "weights": weights, "jobs": jobs, "max_scenarios": max_scenarios}
            read, chosen, phases = _prepare_videos(run, root, views, **options)
        write_text(run / PHASES_NAME, phases.to_csv(index=False))
    problems = [*_problems(read), *_problems(chosen), *_problems(phases)]
    phases.attrs |= {"problems": sorted(set(problems)), "views": chosen.attrs.get("views", [])}
    counts = {split: int(n) for split, n in phases.groupby("split").size().items()}
    summary |= {
        "dataset": kind,
        "root": str(root),
        "views": views,
        "image_size": image_size,
        "phases_read": len(read),
        "phases_chosen": len(chosen),
        "images": len(phases),
        "images_per_split": counts,
        "scenarios": int(phases["scenario"].nunique()),
        "problems": list(map(str, phases.attrs["problems"])),
    }
    add_summary(run, "prepare", summary)
    return phases


def _prepare_videos(
    run: Path, root: Path, views: str, image_size: int, weights: str, jobs: int | None, max_scenarios: int | None
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """A download's images, caption files and segments; the phases that were read, chosen, and have an image."""
    from beit3lib.data.aspects import write_caption_files
    from beit3lib.data.motion_blur import blur_table
    from beit3lib.data.wts import choose_views, read_wts, split_by_group
    from beit3lib.sample.draw import DRAWN_NAME

    roots = [root, *_apart(root)]
    reads = [read_wts(each) for each in roots]
    some = [_first_scenarios(split_by_group(read), max_scenarios) for read in reads]
    chosen = _joined([choose_views(table, views, each) for table, each in zip(some, roots, strict=True)])
    phases = blur_table(chosen, run / "images", image_size, jobs=jobs, weights=weights)
    every = [_first_scenarios(read_wts(each, keep_missing=True), max_scenarios) for each in roots]
    _write_segments(run, _joined(every))
    if (root / DRAWN_NAME).is_file():
        shutil.copyfile(root / DRAWN_NAME, run / DRAWN_NAME)
    for split, table in phases[phases["split"] != "test"].groupby("split"):
        write_caption_files(table, run / "captions" / split)
    return _joined(reads), chosen, phases


def _apart(root: Path) -> list[Path]:
    """BDD_PC_5K, where it lies apart from the WTS download in `root`; the sample holds its own."""
    from beit3lib.sample.draw import DRAWN_NAME

    found = load_manifest().find("bdd") if not (root / DRAWN_NAME).is_file() else None
    if found is None or found.resolve().is_relative_to(root.resolve()):
        return []
    print(f"data: and BDD_PC_5K in {found}")
    return [found]


def _joined(tables: list[pd.DataFrame]) -> pd.DataFrame:
    """One table of several, with what was listed beside each."""
    if len(tables) == 1:
        return tables[0]
    listed = {name: [entry for table in tables for entry in table.attrs.get(name, [])] for name in ("problems", "views")}
    for table in tables:
        table.attrs = {}  # pandas compares them
    table = pd.concat(tables, ignore_index=True)
    table.attrs = listed
    return table


def _write_segments(run: Path, table: pd.DataFrame) -> None:
    """`segments.csv`: every segment of the data, video or not.

    With it, and the sample's truth, a run needs the download no more: on Kaggle a later notebook may not have it.
    """
    segments = table.drop_duplicates(["split", "scenario", "label"])
    columns = ["split", "source", "scenario", "label", "phase", "caption_vehicle", "caption_pedestrian"]
    write_text(run / SEGMENTS_NAME, segments[columns].to_csv(index=False))


def read_segments(run: Path, split: str) -> pd.DataFrame:
    """The segments of a split, as step 1 found them."""
    table = pd.read_csv(run / SEGMENTS_NAME, dtype={"label": str, "scenario": str})
    return table[table["split"] == split]


def _problems(table: pd.DataFrame) -> list[Problem]:
    return list(table.attrs.get("problems", ()))


def _first_scenarios(table: pd.DataFrame, count: int | None) -> pd.DataFrame:
    """The first `count` scenarios of each split, for a quick look at a large download."""
    if count is None:
        return table
    kept = table.drop_duplicates(["split", "scenario"]).groupby("split").head(count)
    out = table.merge(kept[["split", "scenario"]], on=["split", "scenario"])
    out.attrs = dict(table.attrs)
    return out


def read_phases(run: Path) -> pd.DataFrame:
    """The table that step 1 left."""
    ensure(run, "prepare")
    table = pd.read_csv(run / PHASES_NAME, dtype={"label": str, "scenario": str}, keep_default_na=True)
    return table.astype({"phase": int})


def find_tokenizer(run: Path, tokenizer: str = "auto") -> Path:
    """The sentencepiece model of a run: the one named, else `beit3.spm` where it is found, else the sample's own."""
    from beit3lib.sample.draw import SPM_PATH

    if tokenizer != "auto":
        return Path(tokenizer)
    if read_summary(run)["prepare"]["dataset"] == "sample":
        return SPM_PATH
    found = load_manifest().find("tokenizer")
    if found is None:
        print(f"tokenizer: no beit3.spm found, so the sample's {SPM_PATH.name} is used; public checkpoints need beit3.spm")
    return found or SPM_PATH


def index(run: Path, tokenizer: str = "auto") -> dict[str, Any]:
    """Step 2: `coco_captioning.{train,val,test}.jsonl`; returns {split: IndexReport}."""
    from beit3lib.data.index import INDEX_NAME, build_index, index_images
    from beit3lib.tokenizer import load_tokenizer

    phases, summary, reports = read_phases(run), {}, {}
    with timed(summary):
        spm_path = find_tokenizer(run, tokenizer)
        loaded = load_tokenizer(spm_path)
        if Path(spm_path).resolve() != (run / SPM_NAME).resolve():
            shutil.copyfile(spm_path, run / SPM_NAME)
        for split in sorted(path.name for path in (run / "captions").iterdir() if path.is_dir()):
            of_split = phases[phases["split"] == split]
            out = run / INDEX_NAME.format(split=split)
            reports[split] = build_index(run / "captions" / split, run / "images", loaded, out, of_split)
        unknown = phases[phases["split"] == "test"]
        if len(unknown):
            reports["test"] = index_images(unknown, run / "images", run / INDEX_NAME.format(split="test"))
    summary |= {"tokenizer": str(spm_path), "ids": len(loaded)}
    for split, report in reports.items():
        numbers = {name: getattr(report, name) for name in ("captions", "lines", "left_out", "images", "longest")}
        summary[split] = numbers | {"problems": list(map(str, report.problems))}
    add_summary(run, "index", summary)
    return reports


def finetune(run: Path, **options) -> dict[str, Any]:
    """Step 3: `best/`, `last/`, `log.jsonl`; `options` are fields of `train.TrainConfig`. Returns its results."""
    from beit3lib.train import finetune as run_finetune

    ensure(run, "index")
    config = training_config(run, **options)
    summary: dict[str, Any] = {}
    with timed(summary):
        results = run_finetune(config)
    add_summary(run, "finetune", summary | results)
    return results


def training_config(run: Path, **options):
    """`TrainConfig` of a run: the recipe's values for WTS, quicker ones for the sample, and `options` over both."""
    from beit3lib.train import TrainConfig

    sample = read_summary(run)["prepare"]["dataset"] == "sample"
    defaults = SAMPLE_OPTIONS if sample else WTS_OPTIONS
    values = defaults | {name: value for name, value in options.items() if value is not None}
    if not sample:
        values.setdefault("checkpoint_activations", _is_short_of_memory())
    if values.get("finetune") is None:
        values["finetune"] = find_checkpoint(values["model"], sample)
    folders = {"data_path": str(run), "output_dir": str(run), "sentencepiece_model": str(run / SPM_NAME)}
    return TrainConfig(**folders, **values)


def _is_short_of_memory() -> bool:
    """Whether the GPU has the 16 GB of a T4 or less: activations are then computed again instead of kept."""
    import torch

    short = torch.cuda.is_available() and torch.cuda.get_device_properties(0).total_memory < 20e9
    if short:
        print("activations are computed again in the backward pass (checkpoint_activations): this GPU has less than 20 GB")
    return short


WTS_OPTIONS = {  # the seed's values
    "model": "beit3_base_patch16_224",
    "subject": "all",
    "aspect": "all",
    "batch_size": 32,
    "epochs": 10,
    "lr": 4e-5,
    "layer_decay": 1.0,
    "warmup_epochs": 1,
    "captioning_mask_prob": 0.7,
    "drop_worst_after": 12000,
    "randaug": True,
    "seed": 42,
}
SAMPLE_OPTIONS = WTS_OPTIONS | {
    "randaug": False,
    "model": "beit3_tiny_patch8_64",
    "epochs": 13,
    "lr": 1e-3,
    "drop_path": 0.0,
    "crop_area": 0.9,
    "num_workers": 0,
    "val_images": 30,
    "save_ckpt_freq": 100,
}


def find_checkpoint(model: str, sample: bool) -> str:
    """The pretrained checkpoint of a model: the sample's own for the tiny one, else what the manifest finds.

    "" where there is none: the model starts from random weights, which is said.
    """
    from beit3lib.sample.draw import CHECKPOINT_PATH, MODEL

    if model == MODEL and sample:
        return str(CHECKPOINT_PATH)
    found = load_manifest().find(model)
    if found is None:
        print(
            f"checkpoint: no weights of {model} found, so it starts from random ones; `python -m beit3lib.pipeline.manifest` "
            "says where they come from"
        )
    return str(found or "")


def caption_images(
    run: Path,
    checkpoint: str = "best",
    splits=("val", "test"),
    num_beams: int = 3,
    batch_size: int = 16,
    max_images: int | None = None,
) -> pd.DataFrame:
    """Step 4: caption every image of the splits with every description the model was taught; writes predictions.json.

    Returns a row per image, subject and aspect: what the index says of it, caption, reference, score, word_probs.
    """
    from beit3lib.checkpoint import load_captioner

    ensure(run, "finetune")
    summary: dict[str, Any] = {}
    with timed(summary):
        model = load_captioner(run / checkpoint)
        images, references = _images_to_caption(run, splits, max_images, model)
        rows = []
        for start in range(0, len(images), batch_size):
            rows += _caption_batch(model, run, images[start : start + batch_size], num_beams)
        table = pd.DataFrame(rows)
        keys = ["image", "subject", "aspect"]
        table["reference"] = [references.get(key) for key in table[keys].itertuples(index=False, name=None)]
    meta = {"checkpoint": checkpoint, "num_beams": num_beams, "splits": sorted(table["split"].unique())}
    beside = {"max_tokens": model.max_tokens, "length_penalty": model.length_penalty, "versions": versions()}
    write_predictions(run / PREDICTIONS_NAME, table, {**meta, **beside, **summary})
    add_summary(run, "inspect", summary | meta | {"images": len(images), "captions": len(table)})
    return table


def _images_to_caption(run: Path, splits, max_images: int | None, model) -> tuple[list[dict], dict]:
    """One record per image, and {(image, subject, aspect): caption} where it is known.

    A caption in an index with the recipe's three keys alone is that of the one description that the model was taught.
    """
    from beit3lib.data.index import INDEX_NAME, read_index

    files = [(split, run / INDEX_NAME.format(split=split)) for split in splits]
    present = [(split, path) for split, path in files if path.is_file()]
    if not any(split != "test" for split, _ in present):
        print("no validation index here: the captions are those of training images")
        present.append(("train", run / INDEX_NAME.format(split="train")))
    images, references = [], {}
    for split, path in present:
        lines = read_index(path)
        if lines["subject"].isna().all() and lines["text_segment"].notna().any():
            lines["subject"], lines["aspect"] = model.descriptions[0]
            lines["caption"] = lines["text_segment"].map(model.tokenizer.decode)
            lines = lines.assign(split=split, scenario=lines["image_path"].map(lambda name: Path(name).stem))
        for line in lines[lines["caption"].notna()].itertuples(index=False):
            references[line.image_path, line.subject, line.aspect] = line.caption
        first = lines.drop_duplicates("image_path").head(max_images or len(lines))
        about = ["image_path", "scenario", "split", "source", "view", "video", "label", "phase"]
        images += first[about].rename(columns={"image_path": "image"}).assign(split=split).to_dict("records")
    return images, references


def _caption_batch(model, run: Path, images: list[dict], num_beams: int) -> list[dict]:
    import torch

    from beit3lib.dataset import load_image, to_tensor
    from beit3lib.decode import generate, word_probs
    from beit3lib.model import native_precision

    size = model.config.image_size
    pixels = torch.stack([to_tensor(load_image(run / image["image"]), size) for image in images]).to(model.device)
    with native_precision(model.device):
        captions = iter(generate(model, pixels, num_beams=num_beams))
    rows = []
    for image in images:
        for subject, aspect in model.descriptions:
            caption = next(captions)
            probs = [round(p, 4) for p in word_probs(model.tokenizer, caption)]
            about = {**image, "subject": subject, "aspect": aspect}
            rows.append({**about, "caption": caption.text, "score": caption.score, "word_probs": probs})
    return rows


def describe_phase(run: Path, model, predictions: pd.DataFrame, scenario: str, phase: int, num_beams: int = 3):
    """A figure of one phase captioned anew, beside its references; for trying beam widths by hand.

    `predictions`: the table of `caption_images`, from which pictures and references come.
    """
    from beit3lib.viz.figures import caption_pairs

    rows = predictions[(predictions["scenario"] == scenario) & (predictions["phase"] == phase)]
    if rows.empty:
        there = sorted(predictions.loc[predictions["scenario"] == scenario, "phase"].unique())
        raise ValueError(f"{scenario} has no phase {phase}; it has {', '.join(map(str, there)) or 'none'}")
    first = rows[rows["image"] == rows["image"].iloc[0]]
    record = first.iloc[0][["image", "scenario", "split", "source", "view", "video", "label", "phase"]].to_dict()
    anew = pd.DataFrame(_caption_batch(model, run, [record], num_beams))
    known = first[["subject", "aspect", "reference"]]
    return caption_pairs(
        anew.merge(known, on=["subject", "aspect"]), run, title=f"{scenario}, phase {phase}, {num_beams} beams"
    )


def write_predictions(path: Path, table: pd.DataFrame, meta: dict[str, Any]) -> Path:
    """`predictions.json`: {"meta": …, "predictions": [a record per caption]}."""
    records = table.astype(object).where(table.notna(), None).to_dict("records")
    return write_json(path, {"meta": meta, "predictions": records})


def attribute_shares(run: Path, predictions: pd.DataFrame) -> pd.DataFrame | None:
    """`sample.attribute_shares` of a run on the sample, also put into its summary; None on other data."""
    from beit3lib.sample import draw as sample

    drawn = _drawn(run)
    if drawn is None:
        print("what the pictures show is only known of the sample: nothing to compare with here")
        return None
    shares = sample.attribute_shares(predictions[predictions["split"] == "val"], drawn)
    numbers = {name: {k: round(v, 4) for k, v in shares[name].items()} for name in ("own", "shuffled", "chance")}
    add_summary(run, "attributes", numbers)
    return shares


def attention_shares(run: Path, model) -> pd.DataFrame | None:
    """`sample.attention_shares` of a run on the sample, also put into its summary; None on other data."""
    from beit3lib.sample import draw as sample

    if _drawn(run) is None:
        return None
    shares = sample.attention_shares(model)
    add_summary(run, "attention", {name: round(times, 2) for name, times in shares["times"].items()})
    return shares


def attribute_pairs(run: Path, predictions: pd.DataFrame, attribute: str) -> list[tuple[str, str]]:
    """(drawn, said) of one attribute for every caption that should state it; "nothing" where it says none, or two."""
    from beit3lib.sample import draw as sample

    drawn, pairs = _drawn(run), []
    for row in predictions[predictions["split"] == "val"].itertuples(index=False):
        if attribute in sample.stated_attributes(row.subject, row.aspect):
            scene = drawn[row.scenario, row.phase]
            if row.aspect in sample.describe(scene, row.subject):
                said = sample.read_attributes(row.caption, row.subject, row.aspect)[attribute]
                pairs.append((getattr(scene, attribute), said or "nothing"))
    return pairs


def most_confused(run: Path, predictions: pd.DataFrame) -> dict[str, list[tuple[str, str]]]:
    """Of each aspect the attribute that captions have wrong most often: {its name: (drawn, said) pairs}; else nothing."""
    from beit3lib.sample import draw as sample

    found = {}
    for names in sample.ATTRIBUTES.values() if _drawn(run) is not None else ():
        pairs = {name: attribute_pairs(run, predictions, name) for name in names}
        wrong = {name: sum(a != b for a, b in told) / len(told) for name, told in pairs.items() if told}
        if wrong:
            name = max(wrong, key=wrong.get)
            found[sample.IN_WORDS.get(name, name.replace("_", " "))] = pairs[name]
    return found


def _drawn(run: Path):
    from beit3lib.sample import draw as sample

    return sample.read_drawn(run) if (run / sample.DRAWN_NAME).is_file() else None


def score_captions(predictions: pd.DataFrame) -> pd.DataFrame:
    """The captions that have a reference, with the columns bleu, meteor, rouge-l, cider and mean_score (0 to 100).

    Where a reference is missing because its aspect is not mentioned, an empty caption is right and has no score.
    """
    from beit3lib.track2.metrics import score_pairs

    known = predictions[predictions["reference"].notna()].reset_index(drop=True)
    scores = score_pairs(known["caption"].tolist(), known["reference"].tolist()).reset_index(drop=True)
    return pd.concat([known, scores.rename(columns={"score": "mean_score"})], axis=1)


def score(run: Path, split: str = "val") -> dict[str, Any]:
    """Step 5: score captions put together from aspects and views, and what they have to stand against.

    Returns {name: metrics.Scores} for `model`, the same on images of other scenarios (`shuffled`), the `most frequent`
    training captions and those of the `nearest` training image; and under `chosen`, `ways`, `submission` how views were
    chosen and what came of it. Writes scores.json and `submission.<split>.json`.
    """
    from beit3lib.track2 import submission
    from beit3lib.track2.metrics import score_segments
    from beit3lib.viz.gallery import read_predictions

    ensure(run, "inspect")
    summary: dict[str, Any] = {}
    with timed(summary):
        predictions, phases = read_predictions(run / PREDICTIONS_NAME), read_phases(run)
        split = _known_split(predictions, split)
        held_out = predictions[predictions["split"] == split]
        truth, lengths = _references(run, split), submission.usual_lengths(phases[phases["split"] == "train"])
        options, ways = submission.choose_by_validation(held_out, truth, lengths)
        built = submission.build_submission(held_out, **options)
        segments, train = phases[phases["split"] == split], phases[phases["split"] == "train"]
        candidates = {
            "model": built,
            "shuffled": _shuffled(built),
            "nearest": submission.nearest_captions(train, segments, run / "images"),
            "most frequent": submission.most_frequent_captions(train, segments),
        }
        scores = {name: score_segments(said, truth) for name, said in candidates.items()}
    write_json(run / SCORES_NAME, {name: found.as_dict() for name, found in scores.items()})
    write_json(run / f"submission.{split}.json", built)  # what the official script scores, with the captions of that split
    finals = {name: round(found.final, 2) for name, found in scores.items()}
    add_summary(run, "score", summary | {"split": split, "segments": len(truth), **finals})
    return {**scores, "chosen": options, "ways": ways, "submission": built}


def _known_split(predictions: pd.DataFrame, split: str) -> str:
    """The split to score: the one asked for, else the one whose captions are known, which is said."""
    there = sorted(set(predictions["split"]) - {"test"})
    if split in there:
        return split
    if not there:
        raise ValueError(f"{PREDICTIONS_NAME}: expected captions of split {split}, found test alone, which has no references")
    print(f"{PREDICTIONS_NAME} holds no captions of split {split}: those of {there[0]} are scored")
    return there[0]


def _references(run: Path, split: str) -> dict[tuple[str, str], dict[str, str]]:
    """{(scenario, label): {subject: caption}} of every segment of the download that has captions, video or not."""
    known = read_segments(run, split).dropna(subset=["caption_vehicle", "caption_pedestrian"])
    return {
        (row.scenario, row.label): {"vehicle": row.caption_vehicle, "pedestrian": row.caption_pedestrian}
        for row in known.itertuples()
    }


def _shuffled(built: dict[str, list[dict]]) -> dict[str, list[dict]]:
    """Every segment with the captions made for a segment of another scenario."""
    names = sorted(built)
    exchanged = {}
    for name, other in zip(names, names[1:] + names[:1], strict=True):
        pool = built[other]
        pairs = ((pool[i % len(pool)], entry["labels"]) for i, entry in enumerate(built[name]))
        exchanged[name] = [{**captions, "labels": labels} for captions, labels in pairs]
    return exchanged


def submit(run: Path, chosen: dict[str, Any]) -> tuple[Path, dict[str, list[dict]], dict[str, list[str]]]:
    """`submission.json` for the test split, checked against what is asked for; for the held-out split where there is none.

    Returns its path, the submission and what was asked for.
    """
    from beit3lib.track2 import submission
    from beit3lib.viz.gallery import read_predictions

    predictions = read_predictions(run / PREDICTIONS_NAME)
    split = "test" if (predictions["split"] == "test").any() else predictions["split"].iloc[0]
    asked = submission.expected_segments(read_segments(run, split), split)
    phases = read_phases(run)
    built = submission.build_submission(predictions[predictions["split"] == split], **chosen)
    built, filled = submission.complete(built, asked, submission.usual_captions(phases[phases["split"] == "train"]))
    path = submission.write_submission(run / SUBMISSION_NAME, built, asked)
    print(f"{path}: {len(built)} keys, {sum(map(len, built.values()))} segments of the {split} split, as asked for")
    if filled:
        print(f"{len(filled)} segments were not, or not wholly, captioned; the usual training caption stands there:")
        print("\n".join(f"  {text}" for text in filled[:20]) + ("\n  …" if len(filled) > 20 else ""))
    add_summary(run, "submit", {"split": split, "segments": sum(map(len, built.values())), "filled": filled})
    return path, built, asked


def files_table(run: Path, names: list[str]) -> pd.DataFrame:
    """What lies in a run's folder: files with their size, folders with the number of files in them."""
    rows = {}
    for name in names:
        path = run / name
        if path.is_dir():
            files = [file for file in path.rglob("*") if file.is_file()]
            rows[name] = (f"{len(files)} files", f"{sum(file.stat().st_size for file in files) / 1e6:.1f} MB")
        elif path.is_file():
            rows[name] = ("file", f"{path.stat().st_size / 1e3:,.0f} kB")
        else:
            rows[name] = ("not here", "")
    return pd.DataFrame.from_dict(rows, orient="index", columns=["what", "size"])


@in_one_sentence()
def main() -> None:
    """`python -m beit3lib.pipeline.steps RUN`: what a run holds, and which file to open."""
    import argparse

    parser = argparse.ArgumentParser(prog="python -m beit3lib.steps", description=main.__doc__)
    parser.add_argument("run", nargs="?", type=Path, default=Path("runs/demo"), help="folder of the run [runs/demo]")
    run = parser.parse_args().run
    summary = read_summary(run)
    if not summary:
        raise FileNotFoundError(f"{run}: expected a run with {SUMMARY_NAME}, found none; `make demo` makes runs/demo")
    for section, values in summary.items():
        told = {k: v for k, v in values.items() if isinstance(v, (int, float, str)) or k in ("own", "shuffled", "chance")}
        print(f"{section}: " + ", ".join(f"{name} {value}" for name, value in told.items()))
    print(f"open {(run / 'gallery.html').resolve()}")


if __name__ == "__main__":
    main()
