"""The trainer: `orthon train`, `orthon compare` and `orthon convert`."""
