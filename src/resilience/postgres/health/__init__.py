"""What the doctor looks at on a server, and what it thinks of it."""
