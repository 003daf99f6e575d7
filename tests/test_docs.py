"""What the documentation shows is run as it stands there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", ["docs/extend.md", "docs/teachers.md"])
def test_the_code_of_a_page_runs(page):
    blocks = BLOCK.findall((ROOT / page).read_text(encoding="utf-8"))
    assert blocks
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, page, "exec"), names)


def test_the_tree_in_design_names_every_module():
    text = (ROOT / "docs/design.md").read_text(encoding="utf-8")
    tree = text[: text.index("## One owner")]
    for path in (ROOT / "src/lstsd_hf").rglob("*.py"):
        if not path.name.startswith("_"):
            assert path.name in tree, f"{path.name} is not in docs/design.md"


@pytest.mark.parametrize("page", [*sorted(path.name for path in (ROOT / "docs").glob("*.md")), "../CONTRIBUTING.md"])
def test_links_between_pages_lead_somewhere(page):
    path = ROOT / "docs" / page
    for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), f"{page} links to {target}"
