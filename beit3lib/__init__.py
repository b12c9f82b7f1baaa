"""Fine-tune BEiT-3 to caption traffic scenes.

`import beit3lib` loads neither torch nor transformers, because data preparation and scoring need neither. To
caption one image:

    from beit3lib.checkpoint import load_captioner
    captioner = load_captioner("runs/demo/best")
    print(captioner.caption("photo.jpg"))
"""

from importlib import metadata

__version__ = "0.1.0"


def versions() -> dict[str, str]:
    """Versions of torch and of this package, for meta.json."""
    return {"torch": metadata.version("torch"), "beit3lib": __version__}
