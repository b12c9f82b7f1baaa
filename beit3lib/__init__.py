"""Fine-tune BEiT-3 to caption traffic scenes.

`import beit3lib` loads neither torch nor transformers, because data preparation and scoring need neither. To
caption one image:

    from beit3lib.checkpoint import load_captioner
    captioner = load_captioner("runs/demo/best")
    print(captioner.caption("photo.jpg"))
"""

__version__ = "0.1.0"
