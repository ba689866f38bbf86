"""The documentation site: `make docs`. The repository's root is the source folder, so links between its files work."""

import lal_triton

project = "lal_triton"
release = version = lal_triton.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "docs/index"
include_patterns = ["*.md", "docs/**", "benchmarks/*.md", "benchmarks/data/nuclei/README.md"]
exclude_patterns = [".*", "bench_results", "build", "dist", "examples", "kernels", "lal_triton", "plots", "tests"]

default_role = "literal"  # of the docstrings' `names`
smartquotes = False
highlight_language = "none"  # of blocks that name none
autodoc_member_order = "bysource"
napoleon_numpy_docstring = False
maximum_signature_line_length = 80

myst_heading_anchors = 4  # as GitHub makes them

html_theme = "furo"
html_title = f"lal_triton {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_extra_path = ["_extra"]  # index.html of the site's root, which leads to docs/
html_copy_source = html_show_copyright = html_show_sphinx = False
