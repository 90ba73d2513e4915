"""The Hugging Face hub: tried once, and without messages of its own."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from orthon.train.errors import UserError

PATIENCE = 10.0  # seconds
CHATTER = ("huggingface_hub", "datasets")  # loggers


@contextmanager
def hub() -> Iterator[str | None]:
    """Inside a `with` block, nothing waits for a hub that cannot be reached: only what is in the cache is found.

    The libraries would try six times, over half a minute, with a message at each.

    Yields:
        Why the hub cannot be reached, or None if it can.
    """
    from huggingface_hub import constants

    places: list[Any] = [constants]  # each has the switch
    if (config := sys.modules.get("datasets.config")) is not None:
        places.append(config)
    loggers = [logging.getLogger(name) for name in CHATTER]
    before = [place.HF_HUB_OFFLINE for place in places], [logger.level for logger in loggers]
    unreachable = _unreachable()
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        for place in places:
            place.HF_HUB_OFFLINE = place.HF_HUB_OFFLINE or unreachable is not None
        yield unreachable
    finally:
        for place, offline in zip(places, before[0], strict=True):
            place.HF_HUB_OFFLINE = offline
        for logger, level in zip(loggers, before[1], strict=True):
            logger.setLevel(level)


def hub_file(name: str, file: str) -> Path:
    """Return a file of a model on the hub: from the cache of earlier downloads, else downloaded.

    Raises:
        UserError: it is not in the cache, and cannot be downloaded.
    """
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    try:
        cached = try_to_load_from_cache(name, file)
    except ValueError as error:  # what the library calls an invalid name
        raise UserError(f"{name!r} is no name of a model on the hub: {' '.join(str(error).split())}") from error
    if isinstance(cached, str):
        return Path(cached)
    with hub() as unreachable:
        try:
            return Path(hf_hub_download(name, file))
        except Exception as error:  # network and hub errors of many kinds
            reason = unreachable or " ".join(str(error).split())
            raise UserError(f"cannot get {file} of {name}: {reason}") from error


def _unreachable() -> str | None:
    """Ask the hub for anything, once. Any answer will do."""
    from huggingface_hub import constants, get_session

    if constants.is_offline_mode():
        return "HF_HUB_OFFLINE is set, and it is not in the cache"
    try:
        get_session().head(constants.ENDPOINT, timeout=PATIENCE)
    except Exception as error:  # of the HTTP library, which has changed before
        reason = " ".join(str(error).split()) or type(error).__name__
        return f"{constants.ENDPOINT} cannot be reached ({reason}), and it is not in the cache"
    return None
