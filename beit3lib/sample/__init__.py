"""The drawn sample: a small imitation of a WTS download, the truth about its scenes, and a pretrained tiny
model.
"""

from pathlib import Path

MODEL = "beit3_tiny_patch8_64"
SPM_PATH = Path(__file__).parent / "pretrained" / "sample.spm"
CHECKPOINT_PATH = SPM_PATH.with_name(f"{MODEL}.pth")
DRAWN_NAME = "drawn.json"  # the values that every phase was drawn with, see `truth.read_drawn`
