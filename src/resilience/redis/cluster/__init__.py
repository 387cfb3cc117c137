"""Redis Cluster: all its masters backed up as one backup, and brought back as the data directories of a new cluster."""
