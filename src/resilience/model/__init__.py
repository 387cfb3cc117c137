"""Values only: what is looked at, decided and reported. No I/O, no clock, no system's name."""
