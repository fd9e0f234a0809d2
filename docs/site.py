"""Hooks of `make site`: pages of the repository that lie outside docs/, and links to them."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path, PurePosixPath
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = {
    "SECURITY.md": "security-policy.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "CODE_OF_CONDUCT.md": "code-of-conduct.md",
    "README.zh-CN.md": "zh.md",
    "benchmarks/README.md": "benchmarks.md",
    "benchmarks/results/transfer.md": "benchmarks-transfer.md",
    "benchmarks/results/tutorials.md": "benchmarks-tutorials.md",
    "benchmarks/results/scaling.md": "benchmarks-scaling.md",
    "benchmarks/results/explain.md": "benchmarks-explain.md",
    "benchmarks/results/evaluation.md": "benchmarks-evaluation.md",
    "benchmarks/results/export.md": "benchmarks-export.md",
    "benchmarks/results/features.md": "benchmarks-features.md",
    "benchmarks/results/peers.md": "benchmarks-peers.md",
    "benchmarks/results/doctor.md": "benchmarks-doctor.md",
    "benchmarks/results/compress.md": "benchmarks-compress.md",
    "benchmarks/results/servers.md": "benchmarks-servers.md",
    "benchmarks/results/studio.md": "benchmarks-studio.md",
    "benchmarks/results/tasks.md": "benchmarks-tasks.md",
}
NOT_PAGES = {"LICENSE", "README.md", "CITATION.cff"}


def on_config(config: Any) -> None:
    """Give headings the anchors that GitHub gives them, Chinese ones included."""
    from markdown.extensions.toc import slugify_unicode

    config.mdx_configs["toc"]["slugify"] = slugify_unicode


def on_files(files: Any, config: Any) -> Any:
    """Add the pages outside docs/, with links as seen from docs/."""
    from mkdocs.structure.files import File

    for source, target in PAGES.items():
        files.append(File.generated(config, target, content=_with_links(source)))
    return files


def _with_links(source: str) -> str:
    folder, text = Path(source).parent, (REPOSITORY / source).read_text(encoding="utf-8")
    return re.sub(r"\]\((?!https?:|#)([^)#\s]+)", lambda m: f"]({_link(folder / m[1])}", text)


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Point links that leave docs/ at the pages added here."""
    folder = PurePosixPath(page.file.src_uri).parent
    up = "../" * len(folder.parts)

    def replace(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join("docs", folder, link[1]))
        return link[0] if target.startswith("docs/") else f"]({up}{_link(Path(target))}"

    return re.sub(r"\]\((\.\./[^)#\s]+)", replace, markdown)


def on_page_context(_context: Any, page: Any, config: Any, **_: Any) -> None:
    """Choose the language of the theme's own words, such as "Search", which Material has for the whole site only."""
    is_chinese = page.file.src_uri.startswith("zh-CN/") or page.file.src_uri == PAGES["README.zh-CN.md"]
    config.theme["language"] = "zh" if is_chinese else "en"


def on_post_page(output: str, **_: Any) -> str:
    """State the language of the Chinese pages, by which browsers choose the shapes of characters and their voice."""
    return output.replace('<html lang="zh"', '<html lang="zh-CN"', 1)


def _link(target: Path) -> str:
    parts: list[str] = []
    for name in target.parts:
        parts = parts[:-1] if name == ".." else [*parts, name]
    path = "/".join(parts)
    if path in NOT_PAGES:
        return "index.md"
    return PAGES.get(path, path.removeprefix("docs/"))
