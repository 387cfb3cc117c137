"""Pure decisions: facts and manifests in, plans out. No I/O, and no clock but an argument."""
