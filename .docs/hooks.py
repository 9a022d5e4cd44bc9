"""Puts the repository's own Markdown into the site, and every page under its path in the repository."""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel

ROOT = Path(__file__).parents[1]
PAGES = ("*.md", ".docs/pages/*.md", "jobs/*.md", "cluster/*.md", "benchmarks/*.md")
LINKED = ("LICENSE", "jobs/*.yaml", "cluster/*.*", "cluster/Containerfile", "cluster/kubernetes/*", "benchmarks/*.png")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """All pages, and the files that they link to. `.docs/pages/start.md` becomes `start.html`."""
    for file in list(files.documentation_pages()):
        files.remove(file)
    for path in sorted({path for pattern in (*PAGES, *LINKED) for path in ROOT.glob(pattern)}):
        source = path.relative_to(ROOT).as_posix()
        file = File(source, str(ROOT), config.site_dir, config.use_directory_urls, inclusion=InclusionLevel.INCLUDED)
        file.dest_uri = file.dest_uri.removeprefix(".docs/pages/")
        files.append(file)
    return files
