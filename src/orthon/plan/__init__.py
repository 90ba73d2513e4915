"""What a step costs on a machine that is not here: its work, its traffic and its time."""
