"""A page loads each script once, and only scripts that the book itself carries.

Jupyter Book and its theme both register sphinx-thebe, so that every page names its scripts twice
and the second `const THEBE_JS_URL` is an error in the browser. The book offers no live kernel
inside a page (Colab and JupyterLab serve for that), so thebe's scripts, whose address is elsewhere,
go. So do the buttons that lead to the project's public address, until there is one.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))
import address


def without_address(app, config):
    """Drop the buttons whose links could lead nowhere (config-inited)."""
    options = config.html_theme_options
    if not address.is_public(address.current(Path(app.srcdir))):
        options["launch_buttons"] = {}
        options.update(dict.fromkeys(["use_repository_button", "use_issues_button"], False))


def keep_own_scripts(app, pagename, templatename, context, doctree):
    """Drop thebe and every repetition from a page's list of scripts (html-page-context)."""
    kept, seen = [], set()
    for script in context.get("script_files", []):
        key = (str(script), str(getattr(script, "attributes", "")))
        if "thebe" not in "".join(key).lower() and key not in seen:
            seen.add(key)
            kept.append(script)
    context["script_files"] = kept


def setup(app):
    """Run last, after the theme has added its own scripts."""
    app.connect("config-inited", without_address)
    app.connect("html-page-context", keep_own_scripts, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
