"""WAL on its way: streamed into an archive, pushed and fetched by commands, fed to a recovery."""
