"""`Captioner`: torchscale's BEiT-3 weights, run as two streams.

In BEiT-3 captioning image tokens never see text, so what an image becomes in every layer depends on no caption.
torchscale runs image and text as one masked sequence; here the image goes through once and leaves per layer its keys
and values (`ImageMemory`), against which any number of captions run. Modules and parameter names stay torchscale's,
so public checkpoints load strictly and torchscale's own forward is the oracle of the tests.

Shapes, in every comment of this package: B images, N image tokens (patches + 1), T text tokens, H heads, D width,
d = D / H, V vocabulary, L layers.

Source: BEiT-3 (arXiv 2208.10442, section 2.1), torchscale 0.3.0 `BEiT3`, and the public captioning recipe.
"""

from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from beit3lib.linear import linear, linears
from beit3lib.packed import Grid, grid_of, packed_attention
from beit3lib.pipeline.packages import import_torchscale

IMAGE, TEXT = "A", "B"  # torchscale's names for the two sets of weights in every layer


@dataclass(frozen=True)
class ModelConfig:
    """Size of a captioner; `patch_size` and `image_size` in pixels, `drop_path` a probability at the last layer."""

    width: int
    layers: int
    heads: int
    image_size: int
    patch_size: int = 16
    vocab_size: int = 64010
    drop_path: float = 0.0
    checkpoint_activations: bool = False

    def __post_init__(self) -> None:
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} is no multiple of patch_size {self.patch_size}")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is no multiple of heads {self.heads}")

    @property
    def image_tokens(self) -> int:
        """N: one token per patch and the class token."""
        return (self.image_size // self.patch_size) ** 2 + 1


def _public_models() -> dict[str, ModelConfig]:
    sizes = {"base": (768, 12, 12), "large": (1024, 24, 16)}
    names = {}
    for size, (width, layers, heads) in sizes.items():
        for pixels in (224, 384, 480, 768):
            names[f"beit3_{size}_patch16_{pixels}"] = ModelConfig(width, layers, heads, pixels)
    return names


MODELS: dict[str, ModelConfig] = {
    **_public_models(),
    "beit3_tiny_patch8_64": ModelConfig(128, 4, 4, image_size=64, patch_size=8, vocab_size=176),
}


def model_config(name: str, **changes) -> ModelConfig:
    """The config of a named model, with `changes` to its fields; an unknown name is answered with those that exist."""
    if name not in MODELS:
        raise ValueError(f"model {name!r} is unknown; expected one of: {', '.join(MODELS)}")
    return replace(MODELS[name], **changes)


def choose_device(wanted: str = "auto") -> torch.device:
    """The device to compute on; CUDA without a GPU is the CPU, which is said.

    A GPU that this PyTorch has no kernels for, as Kaggle's P100, is a RuntimeError with what to do instead of a crash
    inside CUDA later.
    """
    if wanted == "cpu" or not torch.cuda.is_available():
        if wanted.startswith("cuda"):
            print("device: no CUDA GPU here, so the CPU is used", flush=True)
        return torch.device("cpu")
    major, minor = torch.cuda.get_device_capability()
    built = [int(arch.removeprefix("sm_").rstrip("af")) for arch in torch.cuda.get_arch_list() if arch.startswith("sm_")]
    if built and not any(number // 10 == major and number % 10 <= minor for number in built):
        raise RuntimeError(
            f"{torch.cuda.get_device_name()} has compute capability {major}.{minor}; this PyTorch is built for "
            f"{', '.join(torch.cuda.get_arch_list())}. On Kaggle choose the accelerator GPU T4 x2; elsewhere install a PyTorch "
            "that still supports this GPU, or pass device cpu"
        )
    return torch.device("cuda")


def choose_precision(wanted: str, device: torch.device) -> tuple[str, str]:
    """("bf16" | "fp16" | "no", the reason), by what the device does natively.

    `torch.cuda.is_bf16_supported()` says yes on a T4, where bf16 is emulated, so the compute capability decides.
    """
    if wanted != "auto":
        return {"fp32": "no"}.get(wanted, wanted), "asked for"
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        name = f"{torch.cuda.get_device_name(device)}, compute capability {major}.{minor}"
        return ("bf16", f"{name}: bf16 is native") if major >= 8 else ("fp16", f"{name}: no native bf16, fp16 with a scaler")
    if device.type == "cpu" and torch.cpu._is_avx512_bf16_supported():
        return "bf16", "this CPU has bf16 instructions"
    return "no", f"{device.type} has no native bf16"


def native_precision(device: torch.device) -> torch.autocast:
    """What to caption under: the precision that the device has natively; a context manager."""
    kind = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(choose_precision("auto", device)[0])
    return torch.autocast(device.type, kind or torch.bfloat16, enabled=kind is not None)


class ImageMemory(NamedTuple):
    """What captions need of B images: keys and values of every layer, and the stochastic depth drawn for the batch."""

    keys: tuple[Tensor, ...]  # L x (B, H, N, d)
    values: tuple[Tensor, ...]  # L x (B, H, N, d)
    paths: Tensor | None = None  # (L, 2, B) scale of each residual branch, None where nothing is dropped

    def select(self, rows: Tensor | slice) -> "ImageMemory":
        """The memory of some images: `rows` an index or mask over B, or a slice."""
        paths = None if self.paths is None else self.paths[:, :, rows]
        return ImageMemory(tuple(k[rows] for k in self.keys), tuple(v[rows] for v in self.values), paths)

    @property
    def batch(self) -> int:
        """B."""
        return self.keys[0].shape[0]


class Captioner(nn.Module):
    """BEiT-3 with a captioning head; parameters `beit3.*` and `mlm_head.*` as in public checkpoints."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        beit3_class, encoder_config = import_torchscale()
        self.config = config
        self.beit3 = beit3_class(
            encoder_config(
                img_size=config.image_size,
                patch_size=config.patch_size,
                vocab_size=config.vocab_size,
                encoder_embed_dim=config.width,
                encoder_attention_heads=config.heads,
                encoder_ffn_embed_dim=4 * config.width,
                encoder_layers=config.layers,
                multiway=True,
                layernorm_embedding=False,
                normalize_output=True,
                no_output_layer=True,
            )
        )
        self.mlm_head = nn.Linear(config.width, config.vocab_size)
        self.apply(initialise)
        self._quieten_positions()
        self._freeze_what_captions_never_use()
        self.tokenizer = None  # set by `checkpoint.load_captioner`
        self.max_tokens, self.length_penalty = 64, 0.6  # of beam search: the recipe's, or those it was validated with
        self.vocabulary: list[int] = []  # ids of its training captions, where known
        self.descriptions: list[tuple[str, str]] = []  # (subject, aspect) it was taught; empty: one, unnamed

    def _quieten_positions(self) -> None:
        """Let a random start see words and patches: torchscale draws positions from normal(0, 1), which drown them.

        The base model then learns what stands where on average and no more: eight captions stay at a loss of 1.5 for as
        many steps as take it to 0.04 with this factor. Pretrained weights bring their own positions.
        """
        positions = self.beit3.encoder.embed_positions
        with torch.no_grad():
            for table in (positions.A, positions.B):
                table.weight.mul_(0.2)

    def _freeze_what_captions_never_use(self) -> None:
        """No caption depends on the image's way through the last layer after its keys and values: no gradient there.

        Left trainable, these parameters would make DistributedDataParallel wait for gradients that never come.
        """
        last = self.beit3.encoder.layers[-1]
        attn = last.self_attn
        unused = [attn.q_proj.A, attn.out_proj.A, attn.inner_attn_ln.A, last.final_layer_norm.A, last.ffn.A]
        for module in [*unused, self.beit3.encoder.layer_norm.A]:
            module.requires_grad_(False)
        self.beit3.vision_embed.mask_token.requires_grad_(False)

    @classmethod
    def unset(cls, config: ModelConfig) -> "Captioner":
        """A model whose weights hold nothing yet, for `load_pretrained`: no minute is spent on a random start."""
        with torch.device("meta"):
            model = cls(config)
        return model.to_empty(device="cpu")

    @property
    def prefixed(self) -> bool:
        """Whether a prefix says which description is wanted: not where only one was taught."""
        return len(self.descriptions) > 1

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self.mlm_head.weight.device

    def encode_image(self, images: Tensor) -> ImageMemory:
        """Run the image stream once.

        `images`: float (B, 3, S, S) in [-1, 1], S = `config.image_size`. In training mode stochastic depth is drawn
        here and kept in the memory, because torchscale drops a branch for an image and its caption together.
        """
        size = self.config.image_size
        if images.ndim != 4 or images.shape[1:] != (3, size, size):
            raise ValueError(f"expected images of shape (B, 3, {size}, {size}), found {tuple(images.shape)}")
        x = self.beit3.vision_embed(images)  # (B, N, D)
        positions = self.beit3.encoder.embed_positions.A.weight
        x = x + positions[2 : 2 + x.shape[1]]
        paths = self._draw_paths(len(images), x.device)
        keys, values = [], []
        for number, layer in enumerate(self.beit3.encoder.layers):
            last = number == self.config.layers - 1
            x, k, v = self._run(_image_layer, layer, x, _at(paths, number), last)
            if not torch.is_grad_enabled():  # decoding reads them at every step: then they should lie in order
                k, v = k.contiguous(), v.contiguous()
            keys.append(k)
            values.append(v)
        return ImageMemory(tuple(keys), tuple(values), paths)

    def encode_text(
        self,
        memory: ImageMemory,
        text_ids: Tensor,
        positions: Tensor | None = None,
        segments: Tensor | None = None,
        record: list[Tensor] | None = None,
    ) -> Tensor:
        """Run captions against their images; returns normed states (B, T, D).

        `text_ids` (B, T); `positions` (B, T) of each token within its caption, from 0; `segments` (B, T) number of the
        caption a token belongs to, -1 for padding. Attention is causal within a segment and open to the image. Without
        `segments` a row is one caption, padding last. `record`, a list, receives per layer the attention of text to
        image tokens, (B, H, T, N), at the cost of the fast attention.
        """
        if positions is None:
            positions = torch.arange(text_ids.shape[1], device=text_ids.device)
        encoder = self.beit3.encoder
        x = self.beit3.text_embed(text_ids) + F.embedding(positions + 2, encoder.embed_positions.B.weight)  # (B, T, D)
        packed = segments is not None and positions.ndim == 2 and record is None
        mask = grid_of(segments, positions) if packed else None
        if mask is None:
            mask = attention_mask(text_ids, segments, self.config.image_tokens)
        for number, layer in enumerate(encoder.layers):
            kv, path = (memory.keys[number], memory.values[number]), _at(memory.paths, number)
            x = self._run(_text_layer, layer, x, *kv, mask, path, record)
        return encoder.layer_norm.B(x)

    def forward(
        self,
        images_or_memory: Tensor | ImageMemory,
        text_ids: Tensor,
        positions: Tensor | None = None,
        segments: Tensor | None = None,
        chosen: Tensor | None = None,
        head: bool = True,
    ) -> Tensor:
        """Logits (B, T, V), or (n, V) at n `chosen` positions; states (…, D) without `head`.

        `chosen`: bool (B, T), or numbers (n,) of positions counted row by row, for which a GPU need not be waited for.
        Other arguments as in `encode_image` and `encode_text`.
        """
        if isinstance(images_or_memory, Tensor):
            images_or_memory = self.encode_image(images_or_memory)
        states = self.encode_text(images_or_memory, text_ids, positions, segments)
        if chosen is not None:
            states = states[chosen] if chosen.dtype == torch.bool else states.flatten(0, 1)[chosen]  # (n, D)
        return linear(self.mlm_head, states) if head else states

    def caption(self, image, subject: str | None = None, aspect: str | None = None, **options):
        """Describe one picture: a path or a PIL image. One caption as text, or {(subject, aspect): text} for several.

        `subject` and `aspect` narrow the descriptions of a model that was taught several; `options` go to
        `decode.generate`.
        """
        from beit3lib.decode import caption_image

        return caption_image(self, image, subject, aspect, **options)

    def meta(self) -> dict:
        """The config as plain values, for `meta.json`."""
        return asdict(self.config)

    def _draw_paths(self, batch: int, device: torch.device) -> Tensor | None:
        """(L, 2, B): 0 for a dropped residual branch, 1 / keep for a kept one; the rate grows linearly with depth."""
        if not self.training or self.config.drop_path == 0:
            return None
        keep = 1 - torch.linspace(0, self.config.drop_path, self.config.layers, device=device)[:, None, None]
        drawn = torch.rand(self.config.layers, 2, batch, device=device) < keep
        return drawn / keep

    def _run(self, function, *args):
        """A layer, or the same recomputed in the backward pass where activations are to be saved."""
        if self.config.checkpoint_activations and self.training and torch.is_grad_enabled():
            return checkpoint(function, *args, use_reentrant=False, preserve_rng_state=False)  # layers draw nothing
        return function(*args)


def attention_mask(text_ids: Tensor, segments: Tensor | None, image_tokens: int) -> Tensor:
    """True where a text token may look: (T, N + T), or (B, 1, T, N + T) with `segments`."""
    length = text_ids.shape[1]
    text = torch.ones(length, length, dtype=torch.bool, device=text_ids.device).tril()
    if segments is not None:
        text = text & (segments[:, None, :, None] == segments[:, None, None, :])  # (B, 1, T, T)
    return F.pad(text, (image_tokens, 0), value=True)


def project(attn: nn.Module, side: str, x: Tensor) -> tuple[Tensor, ...]:
    """Queries, keys and values of one stream: (B, T, D) to three of (B, T, H, d)."""
    parts = [getattr(part, side) for part in (attn.q_proj, attn.k_proj, attn.v_proj)]
    return tuple(out.unflatten(-1, (attn.num_heads, -1)) for out in linears(parts, x))


def finish(layer: nn.Module, side: str, x: Tensor, attended: Tensor, path: Tensor | None = None) -> Tensor:
    """The layer after attention (B, T, D): output projection and feed-forward network, each added to `x` (B, T, D)."""
    attn = layer.self_attn
    branch = linear(getattr(attn.out_proj, side), getattr(attn.inner_attn_ln, side)(attended))
    x = x + _scale(branch, path, 0)
    ffn = getattr(layer.ffn, side)
    hidden = F.gelu(linear(ffn.fc1, getattr(layer.final_layer_norm, side)(x)))
    return x + _scale(linear(ffn.fc2, ffn.ffn_layernorm(hidden)), path, 1)


def _image_layer(layer: nn.Module, x: Tensor, path: Tensor | None, last: bool) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (part.transpose(1, 2) for part in project(layer.self_attn, IMAGE, layer.self_attn_layer_norm.A(x)))
    if not last:  # after the last keys and values nobody looks at the image again
        attended = F.scaled_dot_product_attention(q, k, v)
        x = finish(layer, IMAGE, x, attended.transpose(1, 2).flatten(2), path)  # (B, H, N, d) -> (B, N, D)
    return x, k, v


def _text_layer(
    layer: nn.Module,
    x: Tensor,
    image_keys: Tensor,
    image_values: Tensor,
    mask: Tensor | Grid,
    path: Tensor | None,
    record: list[Tensor] | None,
) -> Tensor:
    q, k, v = (part.transpose(1, 2) for part in project(layer.self_attn, TEXT, layer.self_attn_layer_norm.B(x)))
    if isinstance(mask, Grid):
        attended = packed_attention(q, k, v, image_keys, image_values, mask)
        return finish(layer, TEXT, x, attended.transpose(1, 2).flatten(2), path)
    k, v = torch.cat([image_keys, k], dim=2), torch.cat([image_values, v], dim=2)  # (B, H, N + T, d)
    if record is None:
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    else:
        scores = (q @ k.transpose(2, 3)) * q.shape[-1] ** -0.5
        weights = scores.masked_fill(~mask, -torch.inf).softmax(-1)  # (B, H, T, N + T)
        record.append(weights[..., : image_keys.shape[2]])
        attended = weights @ v
    return finish(layer, TEXT, x, attended.transpose(1, 2).flatten(2), path)  # (B, H, T, d) -> (B, T, D)


def _at(paths: Tensor | None, layer: int) -> Tensor | None:
    return None if paths is None else paths[layer]


def _scale(branch: Tensor, path: Tensor | None, which: int) -> Tensor:
    return branch if path is None else branch * path[which][:, None, None].to(branch.dtype)


def initialise(module: nn.Module) -> None:
    """The recipe's start: linear weights normal(0, 0.02) cut at 0.02, biases 0, norms (1, 0)."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02, a=-0.02, b=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)
