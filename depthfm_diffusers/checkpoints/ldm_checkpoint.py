"""Reading of the DepthFM authors' weights, whole checkpoints or the UNet alone, without running code from them."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import CLIPTextModel, CLIPTokenizer

from ..models.prompt_embedding import embed_empty_prompt
from .ldm_layout import complete_hparams, read_hparams
from .model_files import not_finite
from .networks import load_model
from .torch_files import ArrayStandIn
from .weight_files import find_network, is_weight, read_weight_file, unwrap_state_dict

DEFAULT_NOISING_STEP = 400  # the authors' own
_ENTRIES = ("state_dict", "ldm_hparams", "empty_text_embedding", "noising_step")
_FIRST_LAYER = "input_blocks.0.0.weight"
_EMBEDDING_NAMES = ("empty_text_embedding", "empty_text_embed")


@dataclass(frozen=True)
class LdmCheckpoint:
    """Content of a checkpoint in the authors' layout.

    Attributes:
        state_dict: Weights of the UNet under the authors' names, on the CPU.
        hparams: Arguments of the authors' `UNetModel`, as plain Python values.
        empty_text_embedding: 1×tokens×dim, float32.
        noising_step: Step of the cosine schedule whose noise level the source image gets; 0 adds no noise.
        notes: A sentence for each thing that the file does not say and was assumed, or that was left out.
    """

    state_dict: dict[str, torch.Tensor]
    hparams: dict[str, Any]
    empty_text_embedding: torch.Tensor
    noising_step: int
    notes: tuple[str, ...] = ()


def load_checkpoint(
    path: str | Path,
    *,
    trust_pickle: bool = False,
    hparams: str | Path | None = None,
    empty_text_embedding: str | Path | None = None,
    text_encoder: str | Path | None = None,
    noise_augmentation_step: int | None = None,
) -> LdmCheckpoint:
    """Reads the DepthFM authors' weights, in either of the forms that people have.

    The first is the authors' own: a dict saved by `torch.save`, with `state_dict`, `ldm_hparams`,
    `empty_text_embedding` (a tensor or a NumPy array) and `noising_step`; other entries are ignored. The second is the
    UNet alone, as safetensors or saved by `torch.save`: tensors under the authors' names, which may have a prefix
    (`model.diffusion_model.`, `state_dict.`). What a file does not say is taken from the arguments. Of the UNet alone,
    the layout is read from the shapes, with heads of 64 channels (Stable Diffusion 2.1) if nothing else is given, and
    the noise is that of step 400.

    Files of `torch.save` are read with `weights_only=True`, which runs no code from them; NumPy arrays and numbers are
    accepted as well, of plain numeric types.

    Args:
        path: The file.
        trust_pickle: Whether to read it by unrestricted unpickling, which can run any code that it contains. Needed if
            it holds other objects, such as OmegaConf's.
        hparams: JSON or YAML file with arguments of the authors' `UNetModel`, preferred to the file's own; see
            `read_hparams` and `complete_hparams`.
        empty_text_embedding: File with the embedding of the empty prompt, preferred to the file's own: `.npy`,
            safetensors, or saved by `torch.save`.
        text_encoder: Instead, a Stable Diffusion folder with `text_encoder` and `tokenizer`, which embed it.
        noise_augmentation_step: The noising step, preferred to the file's own.

    Returns:
        The content, with types checked. Large tensors may be mapped from the file, not copied.

    Raises:
        FileNotFoundError: If there is no such file.
        ImportError: If objects in a trusted file, or a YAML file, need a package that is not installed.
        ValueError: If a file is not of such a form, is damaged, has values that are not finite, lacks something, or
            needs `trust_pickle`.
    """
    if empty_text_embedding is not None and text_encoder is not None:
        raise ValueError("Give `empty_text_embedding` or `text_encoder`, not both.")
    given: dict[str, Any] = {
        "ldm_hparams": None if hparams is None else read_hparams(Path(hparams)),
        "empty_text_embedding": _embedding_elsewhere(empty_text_embedding, text_encoder),
        "noising_step": noise_augmentation_step,
    }
    content = read_weight_file(Path(path), "`checkpoint`", trust_pickle)
    entries, notes = _entries(content, given, path)
    state_dict = _state_dict(entries["state_dict"], path)
    hyperparameters, assumed = _hparams(entries.get("ldm_hparams"), given["ldm_hparams"], state_dict, path)
    if entries.get("noising_step") is None:
        entries["noising_step"] = DEFAULT_NOISING_STEP
        assumed.append(f"The file does not say the step of the source's noise: {DEFAULT_NOISING_STEP} is assumed.")
    if entries.get("empty_text_embedding") is None:
        raise ValueError(
            f"`checkpoint` {path} holds the UNet alone, without the embedding of the empty prompt. Give a file of it "
            "with `empty_text_embedding` (`--empty-text-embedding FILE`), or the folder of Stable Diffusion 2.1 with "
            "`text_encoder` (`--text-encoder DIR`)."
        )
    embedding = _embedding(entries["empty_text_embedding"], empty_text_embedding or text_encoder or path)
    step = _noising_step(entries["noising_step"], path)
    return LdmCheckpoint(state_dict, hyperparameters, embedding, step, (*notes, *assumed))


def _entries(content: Any, given: Mapping[str, Any], path: str | Path) -> tuple[dict[str, Any], list[str]]:
    """Returns the entries of a checkpoint, those that were given first, and what was left out of the file."""
    if not isinstance(content, Mapping):
        raise ValueError(
            f"`checkpoint` {path} holds a {type(content).__name__}, not a dict with {', '.join(_ENTRIES)}."
        )
    told = {name: value for name, value in given.items() if value is not None}
    if content.get("state_dict") is None or not any(name in content for name in _ENTRIES[1:]):
        entries, notes = _entries_of_unet(content, path)
        return {**entries, **told}, notes
    entries = {**content, **told}
    missing = [name for name in _ENTRIES if entries.get(name) is None]
    if missing:
        raise ValueError(
            f"`checkpoint` {path} is not in the layout of the DepthFM authors: it lacks {', '.join(missing)}; it has "
            f"{', '.join(map(str, list(content)[:10]))}. What is missing can be given (`--hparams`, "
            "`--empty-text-embedding` or `--text-encoder`, `--noise-augmentation-step`)."
        )
    return entries, []


def _state_dict(value: Any, path: str | Path) -> dict[str, torch.Tensor]:
    """Checks the UNet's tensors, and takes a prefix off their names."""
    if not isinstance(value, Mapping):
        raise ValueError(f"`state_dict` in {path} is a {type(value).__name__}, not a dict of tensors.")
    found = find_network(value, _FIRST_LAYER, f"`checkpoint` {path}")
    tensors = dict(value) if found is None else found[0]
    odd = [str(name) for name, tensor in tensors.items() if not (isinstance(name, str) and is_weight(tensor))]
    if odd:
        raise ValueError(f"`state_dict` in {path} has entries that are not floating-point tensors: {', '.join(odd)}.")
    if bad := not_finite(tensors):
        raise ValueError(f"`checkpoint` {path} is damaged: the weights {bad} have NaN or infinite values.")
    return tensors


def _hparams(
    stored: Any, given: Mapping[str, Any] | None, tensors: Mapping[str, torch.Tensor], path: str | Path
) -> tuple[dict[str, Any], list[str]]:
    """Returns the hyperparameters, and what was assumed of them: a complete checkpoint's own are taken as they are."""
    if given is None and stored is not None:
        plain = _plain(stored)
        if not isinstance(plain, dict):
            raise ValueError(f"`ldm_hparams` in {path} must be a dict, got {type(plain).__name__}.")
        return {str(name): value for name, value in plain.items()}, []
    return complete_hparams(given or {}, tensors, f"`checkpoint` {path}")


def _entries_of_unet(content: Mapping[str, Any], path: str | Path) -> tuple[dict[str, Any], list[str]]:
    """Returns what a file with the UNet alone has of a checkpoint's entries, and what is left out of it."""
    tensors = unwrap_state_dict(content)
    found = find_network(tensors, _FIRST_LAYER, f"`checkpoint` {path}")
    if found is None:
        hint = ""
        if any(str(name).endswith("down_blocks.0.resnets.0.conv1.weight") for name in tensors):
            hint = " Its tensors have diffusers' names: load it with UNet2DConditionModel, and make a pipeline of it."
        raise ValueError(
            f"`checkpoint` {path} is not in the layout of the DepthFM authors: it lacks {', '.join(_ENTRIES)}, and no "
            f"tensor in it is called {_FIRST_LAYER}; it has "
            f"{', '.join(map(str, list(content)[:10])) or 'nothing'}.{hint}"
        )
    network, prefix = found
    entries: dict[str, Any] = {}
    for name, value in tensors.items():
        last = str(name).rpartition(".")[2]
        if last in _EMBEDDING_NAMES:
            entries["empty_text_embedding"] = value
        elif last == "noising_step":
            entries["noising_step"] = value
        else:
            continue
        network.pop(str(name).removeprefix(prefix), None)
    left_out = [str(name) for name in tensors if not str(name).startswith(prefix)]
    left_out = [name for name in left_out if name.rpartition(".")[2] not in (*_EMBEDDING_NAMES, "noising_step")]
    notes = []
    if left_out:
        notes.append(
            f"{len(left_out)} tensors that are not under {prefix} were left out: {', '.join(left_out[:3])}, …."
        )
    return {**entries, "state_dict": network}, notes


def _embedding_elsewhere(file: str | Path | None, text_encoder: str | Path | None) -> Any:
    """Reads the embedding of the empty prompt from a file of its own, or computes it; `None` without either."""
    if file is not None:
        return _read_embedding(Path(file))
    if text_encoder is None:
        return None
    folder = Path(text_encoder)
    for name in ("tokenizer", "text_encoder"):
        if not (folder / name).is_dir():
            raise FileNotFoundError(
                f"`text_encoder` {folder} must be a Stable Diffusion folder with tokenizer/ and text_encoder/: there "
                f"is no {name}/ in it."
            )
    what = f"`text_encoder` {folder}: its"
    tokenizer = load_model(CLIPTokenizer, f"{what} tokenizer", str(folder), "tokenizer")
    encoder = load_model(CLIPTextModel, f"{what} text encoder", str(folder), "text_encoder")
    return embed_empty_prompt(tokenizer, encoder).embedding.detach()


def _read_embedding(path: Path) -> Any:
    """Reads a file that holds an embedding, alone or under its name."""
    what = "`empty_text_embedding`"
    if path.suffix == ".npy":
        try:
            return np.load(path, allow_pickle=False)
        except FileNotFoundError:
            raise FileNotFoundError(f"{what} {path} does not exist.") from None
        except (ValueError, OSError, EOFError) as error:
            raise ValueError(f"{what} {path} cannot be read as an array of numbers: {error}") from error
    content = read_weight_file(path, what)
    if isinstance(content, Mapping):
        named = [value for name, value in content.items() if str(name).rpartition(".")[2] in _EMBEDDING_NAMES]
        values = named or list(content.values())
        if len(values) != 1:
            raise ValueError(f"{what} {path} must hold one tensor, or one that is called empty_text_embedding.")
        return values[0]
    return content


def _plain(value: Any) -> Any:
    """Turns containers, OmegaConf's too, into dicts and lists, and numbers of NumPy and torch into Python's."""
    if isinstance(value, Mapping):
        return {_plain(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (Sequence, set, frozenset)) and not isinstance(value, (str, bytes)):
        return [_plain(entry) for entry in value]
    if isinstance(value, ArrayStandIn):
        value = value.array
    if isinstance(value, (np.ndarray, np.generic, torch.Tensor)):
        return value.tolist()
    return value


def _embedding(value: Any, path: str | Path) -> torch.Tensor:
    array = value.array if isinstance(value, ArrayStandIn) else value
    if not isinstance(array, (np.ndarray, torch.Tensor)):
        raise ValueError(
            f"`empty_text_embedding` in {path} must be a tensor or a NumPy array, got {type(array).__name__}."
        )
    if isinstance(array, np.ndarray) and array.dtype.kind not in "fiu":
        raise ValueError(f"`empty_text_embedding` in {path} must hold numbers, got {array.dtype}.")
    embedding = torch.as_tensor(array).detach().to(torch.float32)
    if embedding.ndim == 2:
        embedding = embedding[None]
    if embedding.ndim != 3 or embedding.shape[0] != 1 or 0 in embedding.shape:
        raise ValueError(
            f"`empty_text_embedding` in {path} must have shape 1×tokens×dim or tokens×dim, got {tuple(array.shape)}."
        )
    if not_finite({"": embedding}) is not None:
        raise ValueError(f"`empty_text_embedding` in {path} has NaN or infinite values.")
    return embedding


def _noising_step(value: Any, path: str | Path) -> int:
    plain = _plain(value)
    try:
        step = int(plain) if isinstance(plain, float) and plain.is_integer() else operator.index(plain)
    except TypeError:
        raise ValueError(f"`noising_step` in {path} must be an integer, got {plain!r}.") from None
    # The authors add noise only if the step is positive.
    return max(step, 0)
