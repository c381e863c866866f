"""Models on the Hugging Face Hub: `org/name` becomes a folder of its cache, and a checkpoint becomes `org/name`."""

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi, constants, get_token, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from victor_jax.errors import UserError
from victor_jax.weights.checkpoint import Checkpoint
from victor_jax.weights.write import write_checkpoint

REPOSITORY = re.compile(r"(?P<id>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<revision>\S+))?")
# What a checkpoint is read from. Repositories also hold the same weights for other libraries: those stay there.
FILES = ("*.json", "*.jinja", "merges.txt", "tokenizer.model", "mm_projector.bin", "victor.safetensors", "params/*")
WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")  # the second where a repository has none of the first
LOG_IN = "log in with `hf auth login` or set HF_TOKEN"


def local_folder(path: str | Path) -> Path:
    """`org/name` or `org/name@revision` -> its folder in the cache, fetched where it is not there yet; else `path`."""
    if not (repository := REPOSITORY.fullmatch(str(path))):
        return Path(path)
    with _one_sentence(f"{path} is no folder here, and on the Hugging Face Hub"):
        for weights in WEIGHTS:
            found = snapshot_download(
                repository["id"], revision=repository["revision"], allow_patterns=[*FILES, weights]
            )
            if any(Path(found).glob(weights)) or (Path(found) / "params").exists():
                break
    return Path(found)


def push_checkpoint(checkpoint: Checkpoint, repository: str, private: bool = True) -> str:
    """Writes the checkpoint in the Hugging Face layout, with a model card, to `org/name`; returns its address."""
    if not re.fullmatch(REPOSITORY, repository) or "@" in repository:
        raise UserError(f"{repository!r} does not name a model on the Hugging Face Hub: write org/name")
    if constants.HF_HUB_OFFLINE:
        raise UserError(f"{repository} cannot be written: HF_HUB_OFFLINE is set")
    if not get_token():
        raise UserError(f"{repository} cannot be written without a token: {LOG_IN}")
    api = HfApi()
    with _one_sentence(f"{repository} cannot be written:"), tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        # First: where it fails, nothing is left on the Hub.
        write_checkpoint(checkpoint, folder, "hf", name=repository)
        address = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Upload with victor_jax")
    return str(address)


@contextmanager
def _one_sentence(beginning: str) -> Iterator[None]:
    """Errors of the Hub as one UserError."""
    try:
        yield
    except GatedRepoError:
        raise UserError(f"{beginning} access has to be asked for on its page: do so, then {LOG_IN}") from None
    except RepositoryNotFoundError:
        raise UserError(f"{beginning} there is no such model, or it is private: check the name, or {LOG_IN}") from None
    except RevisionNotFoundError:
        raise UserError(f"{beginning} the model has no such revision: give a branch, a tag or a commit") from None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled):
        raise UserError(
            f"{beginning} it cannot be reached (offline?), and the cache {constants.HF_HUB_CACHE} does not hold all "
            "its files: give a folder, or load it once where there is a network"
        ) from None
    except (HTTPError, HFValidationError) as error:  # HTTPError is every other failure of the network or the Hub
        raise UserError(f"{beginning} {(str(error) or type(error).__name__).splitlines()[0]}") from None
