"""Failing over a group of PostgreSQL servers: what `PostgresPromoter` is made of."""
