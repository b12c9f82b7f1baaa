"""What the host lacks."""
import warnings
def import_torchscale():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Importing from timm.models.layers", category=FutureWarning)
        from torchscale.architecture.config import EncoderConfig
        from torchscale.model.BEiT3 import BEiT3
    return BEiT3, EncoderConfig
