"""Step times that others have published, beside what `orthon.plan` says of the same work."""
