"""Training on several devices of one host, and on several hosts."""
