"""How torch.distributed.checkpoint makes the files of a checkpoint: each is a new one, whatever lies there."""

import io
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from torch.distributed.checkpoint.filesystem import FileSystem

from orthon.saving.files import create


class NewFiles(FileSystem):
    """A FileSystem that only makes new files. It follows no link and writes over nothing."""

    @contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Generator[io.IOBase, None, None]:
        """Make a file and open it to write."""
        assert mode == "wb"
        with create(Path(path)) as file:
            yield cast(io.IOBase, file)
