"""The reference platform's policy, ready-made: what every number in the documents refers to."""
