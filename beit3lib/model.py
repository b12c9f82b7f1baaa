"""`CaptionModel`: BEiT-3 with a captioning head, run as an image stream and a text stream.

In BEiT-3 captioning image tokens do not attend to text, so the image stream does not depend on any caption.
torchscale runs image and text as one masked sequence. Here the image is encoded once into the keys and values
of every layer (`ImageMemory`), and any number of captions attends to them. Modules and parameter names are
torchscale's, so public checkpoints load strictly, and the reference implementation's own model is the oracle
of the tests.

Shapes, in every comment of this package: B images, N image tokens (patches + 1), T text tokens, H heads, D
width, d = D / H, V vocabulary, L layers.

Source: BEiT-3 (arXiv 2208.10442, section 2.1), torchscale 0.3.0 `BEiT3`, and the reference implementation of
captioning, https://github.com/microsoft/unilm/tree/master/beit3.
"""

import warnings
from dataclasses import dataclass, replace
from typing import Annotated, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from beit3lib.question import Options

Size = Annotated[int, Field(strict=True, ge=1, le=1_000_000)]  # checked where a config is read from a file
IMAGE, TEXT = "A", "B"  # torchscale's names for the two sets of weights in every layer


@dataclass(frozen=True)
class ModelConfig:
    """Size of a model; `patch_size` and `image_size` in pixels, `drop_path` is the rate of the last layer."""

    width: Size
    layers: Size
    heads: Size
    image_size: Size
    patch_size: Size = 16
    vocab_size: Size = 64010
    drop_path: float = 0.0
    checkpoint_activations: bool = False
    answers: bool = False  # whether the model has an answer map, for multiple-choice questions

    def __post_init__(self) -> None:
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image_size: expected a multiple of patch_size {self.patch_size}, got {self.image_size}"
            )
        assert self.width % self.heads == 0, f"width {self.width} is not a multiple of heads {self.heads}"

    @property
    def image_tokens(self) -> int:
        """N: one token per patch, and the class token."""
        return (self.image_size // self.patch_size) ** 2 + 1


MODELS: dict[str, ModelConfig] = {
    f"beit3_{size}_patch16_{pixels}": ModelConfig(width, layers, heads, pixels)
    for size, width, layers, heads in (("base", 768, 12, 12), ("large", 1024, 24, 16))
    for pixels in (224, 384, 480, 768)
}
MODELS["beit3_tiny_patch8_64"] = ModelConfig(128, 4, 4, image_size=64, patch_size=8, vocab_size=176)


def model_config(name: str, **changes) -> ModelConfig:
    """Return the config of a named model, with `changes` to its fields."""
    if name not in MODELS:
        raise ValueError(f"model: expected one of {', '.join(MODELS)}, got {name!r}")
    return replace(MODELS[name], **changes)


class ImageMemory(NamedTuple):
    """What captions need of B images: keys and values of every layer, and the batch's stochastic depth."""

    keys: tuple[Tensor, ...]  # L x (B, H, N, d)
    values: tuple[Tensor, ...]  # L x (B, H, N, d)
    drop_path_mask: Tensor | None = None  # (L, 2, B) scale of each residual branch, None without drop path

    def select(self, images: Tensor | list[int] | slice) -> "ImageMemory":
        """Return the memory of some of the images: an index, a boolean mask over B, or a slice."""
        scales = None if self.drop_path_mask is None else self.drop_path_mask[:, :, images]
        return ImageMemory(tuple(k[images] for k in self.keys), tuple(v[images] for v in self.values), scales)


class CaptionModel(nn.Module):
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
        if config.answers:
            self.answer_map = nn.Linear(config.width, config.width, bias=False)
        self.apply(initialize_weights)
        # torchscale draws position embeddings from N(0, 1), which drown the token embeddings when training
        # from scratch: eight captions stay at a loss of 1.5 for as many steps as reach 0.04 with this factor.
        with torch.no_grad():
            for table in (self.beit3.encoder.embed_positions.A, self.beit3.encoder.embed_positions.B):
                table.weight.mul_(0.2)
        self._freeze_unused()

    @classmethod
    def empty(cls, config: ModelConfig) -> "CaptionModel":
        """Return a model to load weights into: initializing those of the base model takes half a minute."""
        with torch.device("meta"):
            model = cls(config)
        return model.to_empty(device="cpu")

    def _freeze_unused(self) -> None:
        """Freeze what no caption depends on: the image stream of the last layer after its keys and values.

        DistributedDataParallel would wait for their gradients, which never come.
        """
        last = self.beit3.encoder.layers[-1]
        attn = last.self_attn
        unused = [attn.q_proj.A, attn.out_proj.A, attn.inner_attn_ln.A, last.final_layer_norm.A, last.ffn.A]
        for module in [*unused, self.beit3.encoder.layer_norm.A]:
            module.requires_grad_(False)
        self.beit3.vision_embed.mask_token.requires_grad_(False)

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.mlm_head.weight.device

    def encode_image(self, images: Tensor) -> ImageMemory:
        """Run the image stream.

        `images`: float (B, 3, S, S) in [-1, 1], S = `config.image_size`. In training mode stochastic depth is
        drawn here and kept in the memory, because torchscale drops a residual branch for an image and its
        caption together.
        """
        size = self.config.image_size
        assert images.shape[1:] == (3, size, size), f"expected (B, 3, {size}, {size}), got {images.shape}"
        x = self.beit3.vision_embed(images)  # (B, N, D)
        positions = self.beit3.encoder.embed_positions.A.weight
        x = x + positions[2 : 2 + x.shape[1]]  # positions start at row 2, as in fairseq
        scales = self._draw_drop_path_mask(len(images), x.device)
        keys, values = [], []
        for index, layer in enumerate(self.beit3.encoder.layers):
            is_last = index == self.config.layers - 1
            x, k, v = self._run(_image_layer, layer, x, _at(scales, index), is_last)
            if (
                not torch.is_grad_enabled()
            ):  # decoding reads them at every step, faster if they are contiguous
                k, v = k.contiguous(), v.contiguous()
            keys.append(k)
            values.append(v)
        return ImageMemory(tuple(keys), tuple(values), scales)

    def encode_text(
        self,
        memory: ImageMemory,
        input_ids: Tensor,
        positions: Tensor | None = None,
        doc_ids: Tensor | None = None,
        bidirectional: Tensor | None = None,
    ) -> Tensor:
        """Run the text stream; returns the normalized states (B, T, D).

        `input_ids` (B, T). For sequences that pack several documents (captions or questions): `positions` (B,
        T) of each token within its document, from 0, and `doc_ids` (B, T), the index of the document a token
        belongs to, -1 for padding. Tokens attend to the image and to the earlier tokens of their document;
        those for which `bidirectional` (B, T) is true, which belong to questions, attend to the later ones,
        too. Without `doc_ids` a sequence is one caption, with any padding at its end.
        """
        if positions is None:
            positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        encoder = self.beit3.encoder
        x = self.beit3.text_embed(input_ids)  # (B, T, D)
        x = x + F.embedding(positions + 2, encoder.embed_positions.B.weight)
        mask = attention_mask(input_ids, doc_ids, self.config.image_tokens, bidirectional)
        for index, layer in enumerate(encoder.layers):
            scales = _at(memory.drop_path_mask, index)
            x = self._run(_text_layer, layer, x, memory.keys[index], memory.values[index], mask, scales)
        return encoder.layer_norm.B(x)

    def forward(
        self,
        images_or_memory: Tensor | ImageMemory,
        input_ids: Tensor,
        positions: Tensor | None = None,
        doc_ids: Tensor | None = None,
    ) -> Tensor:
        """Return logits (B, T, V); arguments as in `encode_image` and `encode_text`."""
        if isinstance(images_or_memory, Tensor):
            images_or_memory = self.encode_image(images_or_memory)
        return self.mlm_head(self.encode_text(images_or_memory, input_ids, positions, doc_ids))

    def score_options(self, states: Tensor, options: Options) -> Tensor:
        """Return the scores (O,), float32, of all options of Q questions, whose states at `<s>` are (Q, D).

        The vector of an option is the mean of its tokens' embeddings, normalized: any text has one, also a
        text that is no option in training. The score is its product with a linear map of the state, divided
        by √D.
        """
        width = self.config.width
        embeddings, (ids, weights, starts) = self.beit3.text_embed.weight.float(), options[:3]
        vectors = F.embedding_bag(ids, embeddings, starts, mode="sum", per_sample_weights=weights)  # (O, D)
        mapped = self.answer_map(states).float()[options.question]  # (O, D)
        return (F.layer_norm(vectors, (width,)) * mapped).sum(-1) * width**-0.5

    def _draw_drop_path_mask(self, batch: int, device: torch.device) -> Tensor | None:
        """(L, 2, B): 0 for a dropped residual branch, else 1 / keep; the rate grows linearly with depth."""
        if not self.training or self.config.drop_path == 0:
            return None
        keep = 1 - torch.linspace(0, self.config.drop_path, self.config.layers, device=device)[:, None, None]
        return (torch.rand(self.config.layers, 2, batch, device=device) < keep) / keep

    def _run(self, layer_function, *args):
        """Call a layer; with `checkpoint_activations`, recompute its activations in the backward pass."""
        if self.config.checkpoint_activations and self.training and torch.is_grad_enabled():
            # Layers draw no random numbers, so the generator's state need not be saved.
            return checkpoint(layer_function, *args, use_reentrant=False, preserve_rng_state=False)
        return layer_function(*args)


def attention_mask(
    input_ids: Tensor, doc_ids: Tensor | None, image_tokens: int, bidirectional: Tensor | None = None
) -> Tensor:
    """True where text may attend: (T, N + T), or (B, 1, T, N + T) with `doc_ids`."""
    length = input_ids.shape[1]
    mask = torch.ones(length, length, dtype=torch.bool, device=input_ids.device).tril()
    if bidirectional is not None:
        mask = mask | bidirectional[:, None, :, None]  # (B, 1, T, T)
    if doc_ids is not None:
        mask = mask & (doc_ids[:, None, :, None] == doc_ids[:, None, None, :])  # (B, 1, T, T)
    return F.pad(mask, (image_tokens, 0), value=True)


def project_qkv(layer: nn.Module, stream: str, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of one stream: (B, T, D) to three of (B, T, H, d)."""
    attn, x = layer.self_attn, getattr(layer.self_attn_layer_norm, stream)(x)
    q, k, v = (getattr(part, stream)(x) for part in (attn.q_proj, attn.k_proj, attn.v_proj))
    return tuple(part.unflatten(-1, (attn.num_heads, -1)) for part in (q, k, v))


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention of queries (B, H, T, d) to keys and values (B, H, K, d), where `mask` is True."""
    if not (torch.is_grad_enabled() and q.dtype == torch.bfloat16 and q.device.type == "cpu"):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    # On a CPU in bf16, the backward pass of PyTorch's fused attention is slow: with the products written out,
    # forward and backward take 0.3 to 0.7 of the time for image tokens, and about 0.9 for text; a training
    # step of the tiny model takes 0.74 of the time (Xeon with AMX, one thread, shared machine).
    scores = q * q.shape[-1] ** -0.5 @ k.transpose(2, 3)  # (B, H, T, K)
    if mask is not None:
        scores += torch.zeros_like(mask, dtype=scores.dtype).masked_fill_(~mask, -torch.inf)
    return scores.softmax(-1) @ v


def output_and_ffn(
    layer: nn.Module, stream: str, x: Tensor, attended: Tensor, scales: Tensor | None = None
) -> Tensor:
    """The rest of a layer: output projection and feed-forward network, each added to `x` (B, T, D)."""
    attn, ffn = layer.self_attn, getattr(layer.ffn, stream)
    branch = getattr(attn.out_proj, stream)(getattr(attn.inner_attn_ln, stream)(attended))
    x = x + _scale(branch, scales, 0)
    hidden = F.gelu(ffn.fc1(getattr(layer.final_layer_norm, stream)(x)))  # (B, T, 4 D)
    return x + _scale(ffn.fc2(ffn.ffn_layernorm(hidden)), scales, 1)


def _image_layer(
    layer: nn.Module, x: Tensor, scales: Tensor | None, is_last: bool
) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (part.transpose(1, 2) for part in project_qkv(layer, IMAGE, x))  # (B, H, N, d)
    if not is_last:  # captions use only the keys and values of the last layer
        attended = attention(q, k, v)
        attended = attended.transpose(1, 2).flatten(2)  # (B, H, N, d) -> (B, N, D)
        x = output_and_ffn(layer, IMAGE, x, attended, scales)
    return x, k, v


def _text_layer(
    layer: nn.Module, x: Tensor, image_keys: Tensor, image_values: Tensor, mask: Tensor, scales: Tensor | None
) -> Tensor:
    q, k, v = (part.transpose(1, 2) for part in project_qkv(layer, TEXT, x))  # (B, H, T, d)
    k, v = torch.cat([image_keys, k], dim=2), torch.cat([image_values, v], dim=2)  # (B, H, N + T, d)
    attended = attention(q, k, v, mask).transpose(1, 2).flatten(2)  # (B, H, T, d) -> (B, T, D)
    return output_and_ffn(layer, TEXT, x, attended, scales)


def _at(scales: Tensor | None, layer: int) -> Tensor | None:
    return None if scales is None else scales[layer]


def _scale(branch: Tensor, scales: Tensor | None, which: int) -> Tensor:
    return branch if scales is None else branch * scales[which][:, None, None].to(branch.dtype)


def initialize_weights(module: nn.Module) -> None:
    """Initialize as the reference implementation does.

    Linear weights are drawn from N(0, 0.02) truncated at ±0.02, biases are 0, layer norms (1, 0).
    """
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02, a=-0.02, b=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        module.reset_parameters()


def import_torchscale() -> tuple[type, type]:
    """Return torchscale's (BEiT3, EncoderConfig); importing it makes timm warn about an old import path."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Importing from timm.models.layers", category=FutureWarning)
        try:
            from torchscale.architecture.config import EncoderConfig
            from torchscale.model.BEiT3 import BEiT3
        except ModuleNotFoundError as error:
            error.msg += ". Run `python -m beit3lib.pipeline.packages`."
            raise
    return BEiT3, EncoderConfig
