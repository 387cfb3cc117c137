"""The doctor of Redis: what of a server's configuration would lose data, or keep it from coming back."""
