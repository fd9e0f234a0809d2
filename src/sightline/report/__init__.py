"""Reports: values as plain dicts, and dicts as HTML, text and figures."""
