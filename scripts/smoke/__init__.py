"""Is a wheel whole? It is installed where nothing else is, and tried as its users would."""
