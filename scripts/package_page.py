"""The links of the package's page on PyPI, made when it is built: all follow from the address in pyproject.toml.

There the README stands alone, so that its links to files must lead to the repository.
"""

import re
from pathlib import Path

from hatchling.metadata.plugin.interface import MetadataHookInterface


def with_whole_links(text: str, *, repository: str, tag: str) -> str:
    """Return a text of Markdown whose relative links lead to the files of a tag, pictures to their bytes."""

    def whole(found: re.Match[str]) -> str:
        if found["code"]:
            return found["code"]
        kind = "raw" if found["picture"] else "blob"
        return f"{found['picture']}[{found['words']}]({repository}/{kind}/{tag}/{found['target']})"

    code = r"(?P<code>^```.*?^```|`[^`\n]+`)"
    link = r"(?P<picture>!?)\[(?P<words>(?:`[^`]*`|[^\]`])*)\]\((?!\w+:|#)(?P<target>[^)\s]+)\)"
    return re.sub(f"{code}|{link}", whole, text, flags=re.M | re.S)


class PackagePage(MetadataHookInterface):
    """Adds `readme` and `urls` to the package's metadata."""

    def update(self, metadata: dict) -> None:
        """Add the two fields in place."""
        repository, tag = self.config["repository"], f"v{metadata['version']}"
        readme = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        text = with_whole_links(readme, repository=repository, tag=tag)
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
        metadata["urls"] = {
            "Repository": repository,
            "Issues": f"{repository}/issues",
            "Changelog": f"{repository}/blob/main/CHANGELOG.md",
        }
