"""The reference: pages written from the docstrings of `fractal_lib`.

In a page of Markdown

    ```{api} fractal_lib.attention
    ```

becomes a table of what the module exports, and then each name with its docstring, in the order of
``__all__``. A docstring is Markdown's cousin: single backticks hold a name or code, and the words
``Complexity:`` and ``Source:`` begin a part of their own. Both are made reStructuredText here.
"""

import importlib
import inspect
import re
from pathlib import Path

PARTS = [
    *("distributed.training", "distributed"),  # whose names others have too: theirs are linked
    *("attention", "self_attention", "posterior", "inference", "data", "reference", "curves"),
]
ASKED = re.compile(r"^```\{api\} (\S+)\n```$", re.M)
NAME = re.compile(r"(?<![`:\\])`([^`\n]+)`(?![`_])")
PART = re.compile(r"(?:^|(?<=[.;)] ))(Complexity|Source): ")
CHAPTER = re.compile(r"``((?:start|posterior|self_attention|gallery|scale|measure)/\w+)``")


def exported(module) -> list[tuple[str, object]]:
    """Names and values of ``__all__``: the classes and functions that are its own."""
    found = [(name, getattr(module, name)) for name in module.__all__]
    return [
        (name, value)
        for name, value in found
        if (inspect.isclass(value) or inspect.isroutine(value))
        and value.__module__.startswith(module.__name__)
    ]


def modules() -> list:
    """The modules that the reference documents."""
    found = []
    for part in PARTS:
        module = importlib.import_module(f"fractal_lib.{part}")
        inner = sorted(Path(str(module.__file__)).parent.glob("[a-z]*.py"))
        found += (
            [module]
            if getattr(module, "__all__", None)
            else [importlib.import_module(f"{module.__name__}.{path.stem}") for path in inner]
        )
    return found


def place(value) -> str:
    """Where a class or function is defined, by its full name; links in code lead there."""
    return f"{value.__module__}.{value.__qualname__}"


def written(name: str) -> str:
    """The reStructuredText that documents a module."""
    module = importlib.import_module(name)
    values = [value for _, value in exported(module)]
    lines = [".. autosummary::", "   :nosignatures:", ""]
    lines += [f"   ~{place(value)}" for value in values] + [""]
    for value in values:
        kind = "class" if inspect.isclass(value) else "function"
        lines += [f".. auto{kind}:: {place(value)}", *["   :members:"] * (kind == "class"), ""]
    return "\n".join(lines)


def fill(app, docname, source):
    """Put each module's documentation where a page asks for it (source-read)."""
    source[0] = ASKED.sub(lambda m: f"```{{eval-rst}}\n{written(m[1])}\n```", source[0])


def fields(paragraph: str) -> list[str]:
    """A paragraph, and what in it begins with ``Complexity:`` or ``Source:``, each a field."""
    text, *parts = PART.split(paragraph)
    found = [text.strip()] if text.strip() else []
    pairs = zip(parts[::2], parts[1::2], strict=True)
    return found + [f":{name}: {what.strip()}" for name, what in pairs]


def inline(line: str, app) -> str:
    """A line's names as links, its code as code, and its bars as bars."""
    public = app.config.api_names

    def linked(match):
        bare = match[1].split("(")[0]
        if bare == match[1] and bare in public:
            return f":py:obj:`{bare} <{public[bare]}>`"
        return f"``{match[1]}``"

    line = NAME.sub(linked, line)
    known = Path(app.srcdir) / "book"
    line = CHAPTER.sub(
        lambda m: f":doc:`/book/{m[1]}`" if any(known.glob(f"{m[1]}.*")) else m[0], line
    )
    pieces = re.split(r"(``.*?``|:\w+(?::\w+)?:`.*?`)", line)
    return "".join(
        piece if k % 2 else re.sub(r"([|*]|_(?=\W|$))", r"\\\1", piece)
        for k, piece in enumerate(pieces)
    )


def rewrite(app, what, name, obj, options, lines):
    """A docstring in this library's style as reStructuredText (autodoc-process-docstring)."""
    blocks = re.split(r"\n[ ]*\n", "\n".join(lines))
    done = []
    for block in blocks:
        if block.lstrip().startswith(">>>"):
            done.append(block)
            continue
        if not block.startswith((" ", "Args:", "Returns:", "Raises:", "Attributes:", "Example")):
            if PART.search(" ".join(block.split("\n"))):
                done += [inline(part, app) for part in fields(" ".join(block.split("\n")))]
                continue
        done.append("\n".join(inline(line, app) for line in block.split("\n")))
    lines[:] = "\n\n".join(done).split("\n") + [""]


def accept_types(app, config):
    """A strict build need not find the types of other libraries, only ours."""
    config.nitpick_ignore_regex = [("py:class", ".*"), ("py:.*", r"(?!fractal_lib\.).*")]


def setup(app):
    """Run before napoleon, which makes sections of what is left."""
    places = {name: place(value) for module in modules() for name, value in exported(module)}
    app.add_config_value("api_names", places, "env")
    app.connect("config-inited", accept_types)
    app.connect("source-read", fill)
    app.connect("autodoc-process-docstring", rewrite, priority=400)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
