"""The public Python API; commands, servers, the studio and sweeps call it."""
