"""What a checkpoint says about itself, in JSON: where the run stood, and which files hold the rest."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

NAME = "manifest.json"
FORMAT = "orthon checkpoint"
VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Digest:
    """What a file must be."""

    bytes: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> "Digest":
        """That of a file as it is."""
        with path.open("rb") as file:
            return cls(sha256=hashlib.file_digest(file, "sha256").hexdigest(), bytes=os.fstat(file.fileno()).st_size)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Where a run stood. The schedule and the order of the text are functions of the step and the settings."""

    step: int  # steps done
    sequences: int  # of the text that these steps have read
    seconds: float  # of training
    config: dict[str, Any]  # settings, by dotted name
    corpus: str  # fingerprint of the text
    files: Mapping[str, Digest] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Write it, and wait until the disk has it."""
        content = {"format": FORMAT, "version": VERSION, **asdict(self)}
        with path.open("w", encoding="utf-8") as file:
            file.write(json.dumps(content, indent=2) + "\n")
            file.flush()
            os.fsync(file.fileno())

    @classmethod
    def read(cls, path: Path) -> "Manifest":
        """Read one.

        Raises:
            OSError: There is none.
            ValueError: It is damaged, or not one of ours; the text follows "the checkpoint …".
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"its {NAME} is not JSON") from error
        if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
            raise ValueError(f"its {NAME} is not of an orthon run")
        version = content.pop("version", None)
        if version != VERSION:
            raise ValueError(f"it has version {version} of the format, and this Orthon reads {VERSION}")
        try:
            files = {name: Digest(**digest) for name, digest in content.pop("files").items()}
            manifest = cls(**content, files=files)
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"its {NAME} lacks entries or has others") from error
        if not (isinstance(manifest.step, int) and isinstance(manifest.config, dict)):
            raise ValueError(f"its {NAME} has entries of another kind")
        for name in files:
            if name in ("", ".", "..", NAME) or set(name) & set("/\\\0"):
                raise ValueError(f"its {NAME} names a file {name!r} that cannot be one of its own")
        return manifest
