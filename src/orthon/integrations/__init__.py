"""Orthon in other people's trainers. Nothing of theirs is imported before it is used."""

from orthon.integrations.hugging_face import hf

__all__ = ["hf"]
