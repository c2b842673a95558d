"""The decision page's form: one file of HTML, its own script, and what it looks up, inside it."""

import html
import json
from typing import Any

from fractal_lib.attention import PATTERNS
from fractal_lib.attention.choose import SMOOTH
from fractal_lib.benchmark.choices import GAPS, KERNELS, TOLERANCES
from fractal_lib.benchmark.record import load, rows

__all__ = ["form_data", "form_html"]

LEARNED = "none: let it be learned"


def form_data(run: dict | None = None) -> dict[str, Any]:
    """What the form looks up, from a record of the case ``choices``, the library's own by default.

    >>> sorted(form_data())
    ['classes', 'gaps', 'kernels', 'ladder', 'rows', 'sizes', 'smooth', 'tolerances']
    """
    found = rows(load("choices") if run is None else run)
    ladder: dict[str, dict[str, int]] = {}
    table: dict[str, dict[str, Any]] = {}
    for row in found:
        n, method = str(row["n"]), row["method"].split(",")[0]
        if method == "ladder":
            ladder.setdefault(n, {})[row["method"]] = row["reads"]
            continue
        here = table.setdefault(row["name"], {}).setdefault(n, {"window": {}, "multilevel": []})
        if method == "window":
            numbers = [row["reads"], row["bound"], row["error"]]
            here["window"].setdefault(repr(row["tail"]), {})[str(row["gap"])] = numbers
        else:
            keys = ("cells", "expansion", "reads", "bound", "bound_gaps", "error")
            here["multilevel"].append([row[key] for key in keys])
    return {
        "kernels": {name: [type(KERNELS[name]).__name__, repr(KERNELS[name])] for name in table},
        "classes": {name: make.__name__ for name, make in PATTERNS.items()},
        "sizes": sorted({row["n"] for row in found}),
        "gaps": list(GAPS),
        "tolerances": [[tolerance, repr(tolerance / 2)] for tolerance in TOLERANCES],
        "smooth": repr(SMOOTH),
        "ladder": ladder,
        "rows": table,
    }


def form_html(data: dict[str, Any] | None = None) -> str:
    """The form. It works without a network, in any page, and by the keyboard alone.

    >>> "<form" in form_html() and "http" not in form_html()
    True
    """
    data = form_data() if data is None else data
    gaps = [(gap, f"{gap:,} in a row" if gap else "none") for gap in data["gaps"]]
    controls = [
        _select("kernel", "kernel", [("", LEARNED), *((k, k) for k in data["kernels"])], 1),
        _select("n", "rows n", [(n, f"{n:,}") for n in data["sizes"]], 2),
        '<label>queries of one context <input name="queries" type="number" min="1" step="1" '
        'value="1"></label>',
        _select("tolerance", "largest error", [(t, f"{t:g}") for t, _ in data["tolerances"]], 1),
        _select("gap", "rows missing", gaps, 0),
        _check("derivative", "differentiated in t"),
        _check("irregular", "uneven times"),
        _check("causal", "the past alone"),
        _check("noisy", "noisy rows"),
    ]
    inside = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    answers = "".join(
        f'<dt>{label}</dt><dd data-answer="{name}"></dd>' for name, label in ANSWERS.items()
    )
    return (
        f'<div class="fractal-choose"><style>{STYLE}</style><form aria-label="Which reader for my '
        f'data"><div class="controls">{"".join(controls)}</div><div class="answer" role="status">'
        f'<dl>{answers}</dl><pre data-answer="code" tabindex="0" role="group" '
        f'aria-label="the lines that make it"></pre></div></form>'
        f"<script>(() => {{const data = {inside};{SCRIPT}}})()</script>"
        "</div>"
    )


ANSWERS = {
    "reader": "reader",
    "why": "why",
    "reads": "reads a query",
    "bytes": "bytes a query, 64 float32 a row",
    "prepared": "prepared once",
    "bound": "error bound",
    "error": "measured error",
}


def _select(name: str, label: str, options: list[tuple[Any, str]], chosen: int) -> str:
    inner = "".join(
        f'<option value="{html.escape(str(value))}"{" selected" * (place == chosen)}>'
        f"{html.escape(text)}</option>"
        for place, (value, text) in enumerate(options)
    )
    return f'<label>{label} <select name="{name}">{inner}</select></label>'


def _check(name: str, label: str) -> str:
    return f'<label class="check"><input name="{name}" type="checkbox"> {label}</label>'


STYLE = """
.fractal-choose { border: 1px solid currentColor; border-radius: .4em; padding: .8em 1em; }
.fractal-choose .controls { display: flex; flex-wrap: wrap; gap: .6em 1.4em; align-items: end; }
.fractal-choose label { display: flex; flex-direction: column; font-size: .95em; }
.fractal-choose label.check { flex-direction: row; gap: .4em; align-items: center; }
.fractal-choose :is(select, input[type=number]) { font: inherit; max-width: 100%; padding: .15em;
  color: inherit; background: transparent; border: 1px solid currentColor; border-radius: .2em; }
.fractal-choose option { color: #111; background: #fff; }
.fractal-choose :focus-visible { outline: 2px solid #c2410c; outline-offset: 2px; }
.fractal-choose .answer { margin-top: .9em; }
.fractal-choose dl { display: grid; grid-template-columns: max-content 1fr; gap: .2em 1em;
  margin: 0; }
.fractal-choose dt { font-weight: 600; } .fractal-choose dd { margin: 0; }
.fractal-choose pre { overflow-x: auto; margin: .8em 0 0; padding: .5em; color: inherit;
  background: transparent; border: 1px dashed currentColor; }
@media (max-width: 500px) { .fractal-choose dl { grid-template-columns: 1fr; gap: 0; }
  .fractal-choose dd { margin: 0 0 .4em 1em; } }
"""

# the rule of fractal_lib.attention.choose, word for word: a test compares the two
SCRIPT = r"""
const root = document.currentScript.parentElement, form = root.querySelector("form");
const code = (name, kernel, options) => {
  const made = data.classes[name], given = kernel ? [kernel[1], ...options] : options;
  const from = kernel ? `fractal_lib.attention import ${made}, ${kernel[0]}`
    : `fractal_lib import ${made}`;
  return `from ${from}\nattention = ${made}(${given.join(", ")})`;
};
const ladder = (s) => {
  const pooled = s.noisy || s.gap > 0 || s.irregular;
  const row = `ladder, ${pooled ? "pyramid" : "sample"}${s.causal ? ", causal" : ""}`;
  const options = [...(s.causal ? ["causal=True"] : []), ...(pooled ? ["source='pyramid'"] : [])];
  const why = !s.causal ? "its weights are learned, a share for each scale"
    : "no other reader sees the past alone" + (s.kernel ? "; its kernel is its own" : "");
  return {name: "ladder", reads: data.ladder[s.n][row], prepared: pooled ? 2 * s.n : 0,
    bound: null, error: null, why, code: code("ladder", null, options)};
};
const choose = (s) => {
  if (!s.kernel || s.causal) return ladder(s);
  const kernel = data.kernels[s.kernel], here = data.rows[s.kernel][s.n];
  const found = [{name: "dense", reads: s.n, prepared: 0, bound: 0, error: 0,
    why: "every row is read", code: code("dense", kernel, [])}];
  const half = data.tolerances.find(([tolerance]) => tolerance === s.tolerance)[1];
  const tail = s.derivative && Number(half) > Number(data.smooth) ? data.smooth : half;
  const [reads, bound, error] = here.window[tail][s.gap];
  if (!s.irregular && reads < s.n) {
    const options = [`tail=${tail}`, ...(s.gap ? [`gap=${s.gap}`] : [])];
    found.push({name: "window", reads, prepared: 0, bound, error,
      why: "the kernel ends, and so does what is read", code: code("window", kernel, options)});
  }
  for (const [cells, expansion, reads, plain, gaps, error] of here.multilevel) {
    const bound = s.gap ? gaps : plain;
    if (bound === null || bound > s.tolerance || reads >= s.n) continue;
    found.push({name: "multilevel", reads, prepared: 2 * s.n, bound: s.irregular ? null : bound,
      error: s.gap || s.irregular ? null : error,
      why: "far rows are read by means over cells that grow with distance"
        + (s.irregular ? "; at uneven times without a bound" : ""),
      code: code("multilevel", kernel, [`cells=${cells}`, `expansion=${expansion}`])});
  }
  const cost = (one) => one.prepared + s.queries * one.reads;
  return found.reduce((best, one) => cost(one) < cost(best) ? one : best);
};
const setting = () => {
  const at = (name) => form.elements[name];
  const queries = Math.max(1, Math.floor(Number(at("queries").value)) || 1);
  return {kernel: at("kernel").value, n: Number(at("n").value), queries,
    tolerance: Number(at("tolerance").value), gap: Number(at("gap").value),
    derivative: at("derivative").checked, irregular: at("irregular").checked,
    causal: at("causal").checked, noisy: at("noisy").checked};
};
const count = (number) => number.toLocaleString("en");
const small = (number, none) => number === null ? none
  : number === 0 ? "0, rounding aside" : number.toPrecision(2);
const show = () => {
  const s = setting(), one = choose(s);
  const said = {reader: data.classes[one.name], why: one.why, reads: count(one.reads),
    bytes: count(one.reads * 256), code: one.code, bound: small(one.bound, "none is proven"),
    prepared: one.prepared ? `a pyramid: ${count(one.prepared)} rows` : "nothing",
    error: small(one.error, "not measured for this setting")};
  for (const [name, text] of Object.entries(said))
    root.querySelector(`[data-answer=${name}]`).textContent = text;
};
form.addEventListener("input", show);
form.addEventListener("submit", (event) => event.preventDefault());
root.choose = choose; root.setting = setting;
show();
"""
