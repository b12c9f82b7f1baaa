"""`log.jsonl` of a fine-tuning: an event a line, whole lines only, cut back where a run goes on from an earlier step."""

import json
from pathlib import Path
from typing import Any

from beit3lib.files import sweep_up, write_text

LOG_NAME = "log.jsonl"


class Log:
    """`log.jsonl`: a line per event, what depends on the clock under `timing`.

    The first line takes the place of an earlier log, unless that was `cut`: a run is looked at without harm to the one before.
    """

    def __init__(self, path: Path, active: bool) -> None:
        self.path, self.active, self.new = path, active, True
        if active:
            sweep_up(path)

    def cut(self, step: int, due: bool) -> None:
        """Forget what came after a step that is gone back to; its validation too, where that is `due`."""
        self.new = False
        if self.active:
            events = read_log(self.path)
            kept = [e for e in events if e["step"] < step or (e["step"] == step and not (due and e["event"] == "validation"))]
            write_text(self.path, "".join(json.dumps(event) + "\n" for event in kept))

    def write(self, event: str, **values: Any) -> None:
        """One event."""
        if not self.active:
            return
        line = json.dumps({"event": event, **values}, ensure_ascii=False) + "\n"
        if self.new:
            write_text(self.path, line)
        else:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line)
        self.new = False


def read_log(path: str | Path) -> list[dict[str, Any]]:
    """The events of a log; a last line that a killed run left half is dropped."""
    path = Path(path)
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    events = []
    for line in lines:
        try:
            events.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return events
