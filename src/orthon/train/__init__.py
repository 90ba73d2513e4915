"""The trainer: `orthon train` and `orthon compare`."""
