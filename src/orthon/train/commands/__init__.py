"""The command line: `orthon train`, `orthon compare` and `orthon convert`."""
