"""Records to plain dicts, and dicts to pages, text and figures."""
