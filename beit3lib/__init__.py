"""Teach BEiT-3 to describe traffic scenes, and see what it says.

One file, one purpose; `import beit3lib` alone loads neither torch nor transformers, because preparing data and scoring
captions must not need them. The three-line way in, for someone with one picture:

    from beit3lib.checkpoint import load_captioner
    captioner = load_captioner("runs/demo/best")
    print(captioner.caption("photo.jpg"))
"""

__version__ = "0.1.0"
