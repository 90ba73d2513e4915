"""The manifest of a checkpoint, in JSON: how far the run was, and which files hold the rest."""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from orthon.saving.files import create, open_plain, read_plain
from orthon.saving.shown import shown
from orthon.saving.untrusted.bounded import check_bounded

NAME = "manifest.json"
FORMAT = "orthon checkpoint"
VERSION = 1
LARGEST = 2**26  # bytes
LONGEST = 1e12  # seconds of a training: 30,000 years


@dataclass(frozen=True, kw_only=True)
class Digest:
    """Size and hash that a file must have."""

    bytes: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> "Digest":
        """Return the digest of a file as it is now."""
        with open_plain(path) as file:
            return cls(sha256=hashlib.file_digest(file, "sha256").hexdigest(), bytes=os.fstat(file.fileno()).st_size)

    def has_right_kinds(self) -> bool:
        """Return whether it is as this trainer writes them."""
        return type(self.bytes) is int and self.bytes >= 0 and isinstance(self.sha256, str)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """How far a run was. The schedule and the order of the text follow from the step and the settings."""

    step: int  # number of steps done
    sequences: int  # number of sequences that these steps have read
    seconds: float  # of training
    config: dict[str, Any]  # settings, by dotted name
    corpus: str  # fingerprint of the text
    files: Mapping[str, Digest] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Write it, and wait until it is on the disk."""
        content = {"format": FORMAT, "version": VERSION, **asdict(self)}
        with create(path) as file:
            file.write(json.dumps(content, indent=2).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    @classmethod
    def read(cls, path: Path) -> "Manifest":
        """Read a manifest.

        Raises:
            OSError: the file cannot be read.
            ValueError: it is damaged, or not from this trainer. The message is to follow "the checkpoint …".
        """
        try:
            content = json.loads(read_plain(path, limit=LARGEST))
            check_bounded(content)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"its {NAME} is not JSON") from error
        if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
            raise ValueError(f"its {NAME} is not of an orthon run")
        version = content.pop("version", None)
        if version != VERSION:
            raise ValueError(f"it has version {shown(version)} of the format, and this Orthon reads {VERSION}")
        try:
            files = {name: Digest(**digest) for name, digest in content.pop("files").items()}
            manifest = cls(**content, files=files)
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"its {NAME} lacks entries or has others") from error
        if not (manifest._has_right_kinds() and all(digest.has_right_kinds() for digest in files.values())):
            raise ValueError(f"its {NAME} has entries of another kind")
        for name in files:
            if name == NAME or not re.fullmatch(r"[A-Za-z0-9_.-]{1,200}", name) or set(name) == {"."}:
                raise ValueError(f"its {NAME} names a file {shown(name)} that cannot be one of its own")
        return manifest

    def _has_right_kinds(self) -> bool:
        return (
            type(self.step) is type(self.sequences) is int
            and 0 <= self.step < 10**15
            and type(self.seconds) in (int, float)
            and 0 <= self.seconds < LONGEST
            and isinstance(self.corpus, str)
            and isinstance(self.config, dict)
        )
