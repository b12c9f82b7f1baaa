"""Fine-tune BEiT-3 to caption traffic scenes.

`import beit3lib` loads neither torch nor transformers, because data preparation and scoring need neither. To
caption one image:

    from beit3lib.checkpoint import load_captioner
    captioner = load_captioner("runs/demo/best")
    print(captioner.caption("photo.jpg"))
"""

import os
from importlib import metadata

# By default GNU OpenMP's threads spin 300,000 times at every barrier, at the cost of whatever else uses the
# cores. A training step of the tiny model on two busy cores takes 3.1 to 3.9 s by default, 0.85 to 1.8 s with
# 10,000 spins, 0.76 to 1.03 s with 1,000; on two idle cores 0.20 s, 0.21 to 0.24 s and 0.24 s. OpenMP reads
# this when torch is first imported.
if not os.environ.keys() & {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}:
    os.environ["GOMP_SPINCOUNT"] = "10000"

__version__ = "0.1.0"


def versions() -> dict[str, str]:
    """Versions of torch and of this package, for meta.json."""
    return {"torch": metadata.version("torch"), "beit3lib": __version__}
