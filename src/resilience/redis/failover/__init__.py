"""Failing over a group of Redis servers that Sentinels watch: what `SentinelPromoter` is made of."""
