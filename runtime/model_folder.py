"""A model's folder: where its parts lie, in diffusers' layout and in Wan's original one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from longtake.runtime.weight_files import find_problems, raise_first, read_json, unfinished_hint
from longtake.scheduler.errors import UserError


@dataclass(frozen=True)
class Layout:
    """Where a model's parts lie, whether or not they are there.

    `config` tells the transformer's architecture; `tokenizer` is a folder; the others are weights:
    a file, or a folder of them.
    """

    config: Path
    transformer: Path
    vae: Path
    text_encoder: Path
    tokenizer: Path

    @property
    def weights(self) -> dict[str, Path]:
        """The parts that have weights, by name."""
        return {
            "transformer": self.transformer,
            "vae": self.vae,
            "text_encoder": self.text_encoder,
        }

    def preflight(self) -> None:
        """Look at names, sizes and headers only, so that errors come before any weight is read.

        Raises:
            UserError: a file is missing, unfinished, truncated or of no known kind.
        """
        problems = [line for source in self.weights.values() for line in find_problems(source)]
        words = self.tokenizer / "tokenizer.json"
        if not words.is_file():
            problems.append(f"{words}: no such file{unfinished_hint(words)}")
        raise_first(problems)


def find_layout(folder: Path, checkpoint: Path | None = None) -> Layout:
    """Tell the layout of a model's folder.

    Args:
        folder: as published, in either layout.
        checkpoint: weights of another transformer, which take the place of the folder's own.

    Raises:
        UserError: the folder has neither layout, or is that of a model with two transformers.
    """
    if (folder / "transformer" / "config.json").is_file():
        index = folder / "model_index.json"
        if index.is_file() and (read_json(index).get("transformer_2") or [None])[0] is not None:
            raise UserError(
                f"{folder}: has two transformers, as Wan 2.2 has; only one is supported"
            )
        return Layout(
            config=folder / "transformer" / "config.json",
            transformer=checkpoint or folder / "transformer",
            vae=folder / "vae",
            text_encoder=folder / "text_encoder",
            tokenizer=folder / "tokenizer",
        )
    if (folder / "config.json").is_file():
        return Layout(
            config=folder / "config.json",
            transformer=checkpoint or folder,
            vae=folder / "Wan2.1_VAE.pth",
            text_encoder=folder / "models_t5_umt5-xxl-enc-bf16.pth",
            tokenizer=folder / "google" / "umt5-xxl",
        )
    raise UserError(
        f"{folder}: not the folder of a Wan 2.1; it has neither transformer/config.json, as in "
        "diffusers' layout, nor config.json, as in the original one"
        f"{unfinished_hint(folder / 'config.json')}"
    )
