"""The command line: a file for each command of `orthon`, and what these share."""
