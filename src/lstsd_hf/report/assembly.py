"""Puts a page together: one HTML file with its data, libraries and styles, which loads nothing from the network.

The data and the libraries are gzip in base64, which the browser unpacks: this takes a third of the size, and nothing
in it can end a `<script>`. Texts are data: the page's own script shows them as text (`textContent`), escapes them for
plotly, whose labels may have some HTML, and lets DataTables escape them. If one of them were read as HTML all the
same, the page's content security policy would run no script but its own, which it names by hash, and load nothing.
"""

import base64
import gzip
import hashlib
import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from plotly.offline import get_plotlyjs


def write_html(path: Path, kind: str, data: dict[str, Any], **words: Any) -> Path:
    """Writes a page and returns its path.

    Args:
        path: The file to write.
        kind: Which page: it is made of "page.<kind>.html", "page.<kind>.js", and what all pages share.
        data: What the script reads; JSON must be able to hold it.
        words: The template's variables, which it escapes.
    """
    folder, bundle = files(__package__), files("itables") / "html"

    def read(file: Any) -> str:
        return file.read_text(encoding="utf-8")

    # Autoescape: the names of a folder, of classes and of columns are the user's.
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: read(folder / name)),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = read(folder / "page.js") + read(folder / f"page.{kind}.js")
    page = environment.get_template(f"page.{kind}.html").render(
        **words,
        data=_pack(json.dumps(data, allow_nan=False)),
        plotly=_pack(get_plotlyjs()),
        datatables=_pack(read(bundle / "dt_bundle.js")),
        styles=[read(bundle / "dt_bundle.css"), read(folder / "page.css")],
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii"),
    )
    path.write_text(page, encoding="utf-8")
    return path


def _pack(text: str) -> str:
    return base64.b64encode(gzip.compress(text.encode(), compresslevel=6, mtime=0)).decode("ascii")
