"""Orthon with other people's packages: `make test-integrations`."""
