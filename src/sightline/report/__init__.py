"""Reports: values to plain dicts, and dicts to HTML, text and figures."""
