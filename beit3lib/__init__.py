"""Fine-tune BEiT-3 to caption traffic scenes.

`import beit3lib` loads neither torch nor transformers, because data preparation and scoring need neither. To caption one
image:

    from beit3lib.checkpoint import load_captioner
    captioner = load_captioner("runs/demo/best")
    print(captioner.caption("photo.jpg"))
"""

import os

# By default GNU OpenMP's threads spin 300,000 times at every barrier, at the cost of whatever else uses the cores: on two
# busy cores a training step of the tiny model takes 3 to 4 s by default, 0.8 to 1.0 s with 1,000 spins, 0.6 to 0.9 s without
# spinning (OMP_WAIT_POLICY=PASSIVE); on idle cores 0.20, 0.24 and 0.27 s. OpenMP reads this when torch is first imported.
if not os.environ.keys() & {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}:
    os.environ["GOMP_SPINCOUNT"] = "1000"

__version__ = "0.1.0"
