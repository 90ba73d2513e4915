"""The command line: `orthon train`, `orthon compare`, `orthon convert`, `orthon explain` and `orthon plan`."""
