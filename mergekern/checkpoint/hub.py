"""Models on the Hugging Face Hub: fetched into its cache, then read from there."""

from __future__ import annotations

import re
from dataclasses import dataclass
from glob import escape
from pathlib import Path

from mergekern.checkpoint.adapter import adapter_files, is_adapter
from mergekern.checkpoint.index import read_index
from mergekern.checkpoint.local import no_weights, weights_kind
from mergekern.checkpoint.sidefiles import wanted
from mergekern.errors import CheckpointError

NAME = re.compile(r"(?!.*(--|\.\.))[A-Za-z0-9_][\w.-]*(/[A-Za-z0-9_][\w.-]*)?", re.ASCII)
TIMEOUT = 10.0  # seconds
FILE_SUFFIXES = (".safetensors", ".bin", ".gguf", ".json")


@dataclass(frozen=True)
class HubId:
    """A model of the Hub.

    revision: a branch, tag or commit; None the main branch
    cache:    the folder that it is downloaded to; None the usual one
    """

    repo: str
    revision: str | None
    cache: Path | None = None

    def __str__(self) -> str:
        return self.repo if self.revision is None else f"{self.repo}@{self.revision}"


def parse_id(text: str, revision: str | None) -> HubId | None:
    """Take "org/name" or "org/name@revision" apart; None when it cannot be a Hub id.

    Raises CheckpointError when two revisions are given.
    """
    repo, _, inner = text.partition("@")
    if not NAME.fullmatch(repo) or repo.endswith(FILE_SUFFIXES):
        return None
    if inner and revision is not None and inner != revision:
        raise CheckpointError(f"{text}: names a revision, but revision {revision!r} is given too")
    return HubId(repo, inner or revision)


def fetch(model: HubId, adapter: bool = False) -> Path:
    """The folder in the Hub's cache that holds the model, its files downloaded where missing.

    adapter: fetch the LoRA adapter there; one is fetched, too, where there is nothing else
    Only weights of one kind and side files are fetched. When the Hub cannot be asked, what the
    cache has of that revision is taken; the folder's reader finds out if something is missing.
    Raises CheckpointError when there is no such model here or there.
    """
    from huggingface_hub import HfApi

    try:
        # Asks once, where listing the files would ask again and again for half a minute.
        info = HfApi().model_info(model.repo, revision=model.revision, timeout=TIMEOUT)
    except Exception as error:  # the HTTP library's own errors come through unwrapped
        return _cached(model, error)
    names = [sibling.rfilename for sibling in info.siblings or ()]
    kind = None if adapter else weights_kind(names)
    if kind is None and (adapter or is_adapter(names)):
        wanted_files = [*adapter_files(f"{model} on the Hub", names), *filter(wanted, names)]
        return _download(model, model.revision, wanted_files)
    if kind is None:
        raise CheckpointError(f"{model} on the Hub {no_weights(names)}")
    folder = _download(model, model.revision, [kind, *filter(wanted, names)])
    if kind.endswith(".index.json"):
        shards = sorted(set(read_index(folder / kind).values()))
        # The folder is named by its commit: the branch may have moved on meanwhile.
        _download(model, folder.name, shards)
    return folder


def _download(model: HubId, revision: str | None, names: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    patterns = [escape(name) for name in names]
    try:
        return Path(
            snapshot_download(
                model.repo, revision=revision, allow_patterns=patterns, cache_dir=model.cache
            )
        )
    except Exception as error:
        raise CheckpointError(_reason(model, error)) from error


def _cached(model: HubId, error: Exception) -> Path:
    """The cache's folder of this revision, or the error that kept us from asking the Hub."""
    from huggingface_hub import snapshot_download

    try:
        # No patterns: which files are needed is known only once the folder has been looked into.
        folder = snapshot_download(
            model.repo,
            revision=model.revision,
            local_files_only=True,
            allow_patterns=[],
            cache_dir=model.cache,
        )
    except Exception:  # not there; why the Hub was not asked says more
        raise CheckpointError(_reason(model, error)) from error
    return Path(folder)


def _reason(model: HubId, error: Exception) -> str:
    """One line: what was looked for, why it was not found, and the mend."""
    from huggingface_hub import constants, errors

    lead = f"{model}: no such local folder, and"
    if isinstance(error, errors.GatedRepoError):
        return (
            f"{model}: is gated: accept its terms at {constants.ENDPOINT}/{model.repo} and log in "
            f"with `hf auth login`"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{lead} {model.repo} on the Hub has no revision {model.revision!r}"
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"{lead} the Hub has no such model that you may see; check its spelling, or if it is "
            f"private log in with `hf auth login`"
        )
    if isinstance(error, errors.OfflineModeIsEnabled):
        return (
            f"{lead} it is not in the cache ({model.cache or constants.HF_HUB_CACHE}) while "
            "HF_HUB_OFFLINE is set; unset it, or download the model first"
        )
    text = " ".join(str(error).split()) or type(error).__name__
    return f"{lead} the Hub could not be asked ({text:.200}); try again, or give a local folder"
