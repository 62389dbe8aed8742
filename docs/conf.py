"""How Sphinx builds the site (`make docs`): README.md is its first page.

Its source is the whole repository, so that a link between two files is the same in the site, in a
checkout and on a forge.  A link that leads nowhere is an error: -W in the Makefile.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from sphinx.application import Sphinx

import mpshm

project = "mpshm"
version = release = mpshm.__version__
author = "the mpshm developers"

extensions = ["myst_parser", "sphinx.ext.autodoc"]
root_doc = "README"
include_patterns = [
    "*.md",
    "docs/*.md",
    "docs/*.rst",
    "docs/bench/*.md",
    "bench/README.md",
    "examples/README.md",
    "tests/*/README.md",
]
exclude_patterns = [".*"]
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
add_module_names = False
# Docstrings name arguments as `name`.
default_role = "code"

html_theme = "furo"
html_title = f"mpshm {release}"
html_copy_source = False

# Sphinx wants a table of contents; for who reads README.md elsewhere, its last section is that.
CONTENTS = """
```{toctree}
:hidden:
:caption: Using mpshm

docs/need
docs/using
docs/differences
docs/versions
docs/troubleshooting
docs/api
SECURITY
CHANGELOG
```

```{toctree}
:hidden:
:caption: How it works

docs/design
docs/tried
CONTRIBUTING
```

```{toctree}
:hidden:
:caption: Measured

Pipes, pools, arrays <docs/bench/report>
Queues <docs/bench/queues>
docs/bench/bursts
docs/clients
examples/README
bench/README
tests/clients/README
tests/conformance/README
tests/pythons/README
tests/stress/README
```
"""


def add_contents(app: Sphinx, page: str, source: list[str]) -> None:
    if page == root_doc:
        source[0] += CONTENTS


def name_first_page(app: Sphinx, failure: Exception | None) -> None:
    """Browsers and servers ask for index.html."""
    if failure is None and app.builder.name == "html":
        folder = Path(app.outdir)
        shutil.copy(folder / f"{root_doc}.html", folder / "index.html")


def setup(app: Sphinx) -> None:
    app.connect("source-read", add_contents)
    app.connect("build-finished", name_first_page)
