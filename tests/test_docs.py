"""The README and the documentation: links, jobs in YAML, commands and code that they show."""

import ast
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from raykd.config.load import build, read_yaml
from raykd.options import parse
from raykd.search.space import Space

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / ".docs" / "pages").glob("*.md")), ROOT / "jobs" / "README.md"]
LINK = re.compile(r"\]\(([^)\s]+)\)")
by_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of a language, "" for those that name none; without their indentation."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^\1```$", page.read_text(), re.MULTILINE | re.DOTALL)
    return [re.sub(rf"^{indent}", "", text, flags=re.MULTILINE) for indent, text in found]


def test_the_site_builds_and_its_links_lead_somewhere(tmp_path):
    """mkdocs checks links and anchors of every page, and that every page is in the navigation."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", ".docs/mkdocs.yml", "-d", tmp_path]
    env = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    start, tasks = (tmp_path / name for name in ("index.html", "tasks.html"))
    assert 'src="benchmarks/digits_answer.png"' in start.read_text()
    assert "<td><code>text-classification</code></td>" in tasks.read_text()
    assert "<td><code>teachers.N.folds</code></td>" in (tmp_path / "jobs" / "REFERENCE.html").read_text()
    fetched = {
        url
        for page in tmp_path.rglob("*.html")
        for url in re.findall(r'(?:src|@import)="(https?://[^"]+)', page.read_text())
    }
    assert not fetched  # a page shows nothing from elsewhere


@by_page
def test_relative_links_name_files(page):
    """For those who read the files in the repository, where mkdocs does not check."""
    targets = {target.partition("#")[0] for target in LINK.findall(page.read_text()) if "://" not in target}
    assert [target for target in targets if target and not (page.parent / target).exists()] == []


@by_page
def test_the_yaml_is_valid(page):
    """A whole job is one by itself. A part of one replaces that part of the demo's."""
    demo = read_yaml(ROOT / "jobs" / "digits_sweep.yaml")
    for text in blocks(page, "yaml"):
        tree = yaml.safe_load(text)
        if "task" not in tree:
            tree = demo | {
                key: {**demo.get(key, {}), **part} if isinstance(part, dict) else part for key, part in tree.items()
            }
        config = build(tree)
        if "search" in tree:
            Space(config)


@by_page
def test_the_commands_are_valid(page):
    lines = [line for block in blocks(page, "") for line in block.splitlines() if line.startswith("raykd ")]
    for line in lines:
        arguments = shlex.split(line.partition(" > ")[0], comments=True)[1:]
        if arguments != ["--version"]:
            parse(arguments)  # SystemExit if there is no such command or option


@by_page
def test_the_code_is_valid(page):
    for text in blocks(page, "python"):
        ast.parse(text)


def test_the_extra_for_the_docs_is_what_the_tests_need():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(extras["docs"]) <= set(extras["dev"])
