"""The trainer: the command `orthon`, and all that it does."""
