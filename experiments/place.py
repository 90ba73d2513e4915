"""Where runs are trained, and on which text."""

from dataclasses import dataclass
from functools import cache

from orthon.train.settings.data import DataConfig
from orthon.train.settings.run import DeviceName
from orthon.train.text.corpus import load_corpus
from orthon.train.text.tokens import Corpus


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where runs are trained, and on which text.

    Attributes:
        device: "cpu", or "cuda" for one GPU that all workers share. It changes the numbers of a run by rounding.
        text: a folder whose files are the text; by default the source of this Python's standard library.
    """

    device: DeviceName = "cpu"
    text: str | None = None

    def corpus(self) -> Corpus:
        """Return the text.

        Raises:
            UserError: There is no such folder, or no text in it.
        """
        return _corpus(self.text)


@cache
def _corpus(text: str | None) -> Corpus:
    return load_corpus(DataConfig() if text is None else DataConfig(source="text", paths=(text,)))
