"""`sightline env`."""

from __future__ import annotations

from sightline.cli.output import FormatOption, print_json, print_table
from sightline.progress import ProgressDisplay


def env(output_format: FormatOption = "text") -> None:
    """Show versions, devices, memory, caches, and which backend is used and why."""
    from sightline.report.fonts import describe_fonts
    from sightline.runs.environment import describe_environment

    with ProgressDisplay(quiet=output_format == "json") as display:
        facts = describe_environment(display.on_message)
    facts["plot_fonts"] = describe_fonts()
    if output_format == "json":
        print_json(facts)
        return
    rows = [
        [key.replace("_", " "), ", ".join(map(str, value)) if isinstance(value, list) else str(value)]
        for key, value in facts.items()
        if key != "versions"
    ]
    rows += [[f"  {name}", version] for name, version in facts["versions"].items()]
    print_table(["property", "value"], rows)
