"""Load `beit3.spm` as transformers' XLM-RoBERTa tokenizer, and check it.

Ids: piece id + 1; 0 `<s>`, 1 `<pad>`, 2 `</s>`, 3 `<unk>`, the last one `<mask>`. With transformers 5,
`XLMRobertaTokenizer("beit3.spm")` raises and `XLMRobertaTokenizer(vocab_file=…)` silently yields a vocabulary
of five words; `from_pretrained` on a folder that names the file `sentencepiece.bpe.model` gives the ids of
transformers 4 in both versions.
"""

import shutil
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import sentencepiece
from tokenizers import normalizers
from transformers import PreTrainedTokenizerBase, XLMRobertaTokenizer

from beit3lib.data.schema import CaptionType
from beit3lib.files import check_regular_file

SPM_NAME = "sentencepiece.bpe.model"
UNUSED_ROWS = 8  # public BEiT-3 models have 64,010 rows of text embeddings for 64,002 ids
XLM_ROBERTA_PIECES = 250_000


class TokenizerError(ValueError):
    """The file is not a sentencepiece model that BEiT-3 can use."""


def load_tokenizer(spm_path: str | Path, vocab_size: int | None = None) -> PreTrainedTokenizerBase:
    """Read a sentencepiece unigram model; with `vocab_size`, check that it fits a model of that vocabulary.

    `model_max_length` is unbounded: captions are cut at `num_max_bpe_tokens` instead.
    """
    path = check_regular_file(spm_path)
    processor = sentencepiece.SentencePieceProcessor()
    pieces = []
    with suppress(RuntimeError):  # another kind of file
        processor.LoadFromSerializedProto(path.read_bytes())
        pieces = [processor.id_to_piece(index) for index in range(processor.get_piece_size())]
    wanted = len(pieces) if vocab_size is None else vocab_size - UNUSED_ROWS - 2
    if pieces[:3] != ["<unk>", "<s>", "</s>"] or len(pieces) >= XLM_ROBERTA_PIECES or len(pieces) != wanted:
        raise TokenizerError(
            f"{path}: expected the sentencepiece model of BEiT-3 with {wanted or 64_000:,} pieces, found "
            f"{len(pieces):,}, beginning with {pieces[:3]}. Use the beit3.spm of the checkpoint."
        )
    with tempfile.TemporaryDirectory() as folder:
        shutil.copyfile(path, Path(folder) / SPM_NAME)
        tokenizer = XLMRobertaTokenizer.from_pretrained(folder, split_special_tokens=True)
    assert len(tokenizer) == tokenizer.mask_token_id + 1 == len(pieces) + 2, "unexpected ids of transformers"
    # "</s>" in a caption is text. Without a space in it, it would be the piece that ends a caption.
    separate = [normalizers.Replace(name, f"{name[0]} {name[1:]}") for name in tokenizer.all_special_tokens]
    backend = tokenizer.backend_tokenizer
    backend.normalizer = normalizers.Sequence([*separate, backend.normalizer])
    return tokenizer


def prompt_ids(tokenizer: PreTrainedTokenizerBase, subject: str, aspect: str) -> list[int]:
    """Return the ids that a caption of this type is conditioned on, fed between `<s>` and the caption."""
    return tokenizer.encode(f"{subject} {aspect.replace('_', ' ')}:", add_special_tokens=False)


def prompts_by_type(tokenizer, caption_types: Sequence[CaptionType]) -> dict[CaptionType, list[int]]:
    """Return the prompt of each caption type; that of a single one is empty."""
    several = len(caption_types) > 1
    return {kind: prompt_ids(tokenizer, *kind) if several else [] for kind in caption_types}
