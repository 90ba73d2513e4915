"""Files from strangers, read as data: what they say is checked, and torch's objects are made anew from it."""
