"""Names, columns and caption types that all tables of this project share, and tables as CSV files."""

import csv
import io
from pathlib import Path

import pandas as pd
import pydantic

from beit3lib.files import FileError, read_text, write_text

SPLITS = ("train", "val", "test")
PHASES = ("prerecognition", "recognition", "judgement", "action", "avoidance")  # of an event, numbered from 0
SUBJECTS = ("vehicle", "pedestrian")
# A new aspect also needs a place in READING_ORDER, its facts (`SLOT_ASPECT` in facts.py), and for the sample
# sentences (`FACTS` in draw.py, and wordings.yaml).
ASPECTS = ("moving", "pedestrian_description", "position", "road", "weather")
READING_ORDER = {  # of the aspects in a full caption: the mean position of their sentences in real captions
    "vehicle": ("position", "moving", "pedestrian_description", "weather", "road"),
    "pedestrian": ("pedestrian_description", "weather", "road", "position", "moving"),
}

CaptionType = tuple[str, str]  # (subject, aspect)
# The caption type of an index without subject and aspect, such as the reference implementation's.
UNNAMED: CaptionType = ("", "")

# They describe the image of a phase.
IMAGE_COLUMNS = ("split", "source", "scenario", "view", "video", "label", "phase")
# The columns of phases.csv, which also has `image`, `frame_width_px` and `frame_height_px` of `blur_table`
# and the boxes of `first_boxes`. Times are by the video's own clock.
PHASE_COLUMNS = (
    *("split", "source", "scenario", "view", "video", "video_path", "label", "phase", "start_s", "end_s"),
    *("caption_vehicle", "caption_pedestrian"),
)
# The columns of tables that are not text.
NUMBERS = dict.fromkeys(("phase", "frame_width_px", "frame_height_px"), "int64")
NUMBERS |= {"start_s": "float64", "end_s": "float64"}


def write_table(path: str | Path, table: pd.DataFrame) -> Path:
    """Write a table as CSV with quoted text, so that captions with commas or line ends survive.

    Missing values are empty. Cells that begin with = + - @ are written unchanged, although a spreadsheet may
    read them as formulas.
    """
    return write_text(path, table.to_csv(index=False, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC))


def read_table(path: str | Path) -> pd.DataFrame:
    """Read a table of `write_table`; text stays text ("04", "N/A", "nan"), and only empty cells are None.

    Raises FileError, with the path, for a file that is truncated or is not CSV.
    """
    text = read_text(path)
    try:
        if not text.endswith("\n"):
            raise ValueError("the last line has no end")
        table = pd.read_csv(
            io.StringIO(text, newline=""), dtype=str, index_col=False, keep_default_na=False, na_values=[""]
        )
        numbers = {name: table[name].astype(kind) for name, kind in NUMBERS.items() if name in table}
    except (ValueError, TypeError, csv.Error) as error:
        found = f"found another file ({error}). Rerun the stage that writes it."
        raise FileError(f"{path}: expected a complete table in CSV, {found}") from None
    return table.astype(object).where(table.notna(), None).assign(**numbers)


def first_error(error: pydantic.ValidationError) -> str:
    """Return pydantic's first error: "subject: expected 'vehicle' or 'pedestrian', found 'dog'"."""
    first = error.errors()[0]
    where, what = " ".join(map(str, first["loc"])), first["msg"].replace("Input should be", "expected")
    return f"{where}: {what}, found {first['input']!r:.60}".lstrip(": ")
