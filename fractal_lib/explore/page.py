"""What a slider of `fractal_lib.explore` carries with it into a page: its style and its script."""

__all__ = ["SCRIPT", "STYLE"]

STYLE = """
.fractal-explore { margin: 0 auto; max-width: 45rem; }
.fractal-explore img { display: block; width: 100%; height: auto; }
.fractal-explore img[hidden], .fractal-explore [hidden] { display: none !important; }
.fractal-explore .control { display: flex; align-items: center; gap: .75em; margin: .25em 0; }
.fractal-explore label { flex: 1; display: flex; align-items: center; gap: .75em; min-width: 0; }
.fractal-explore input { flex: 1; min-width: 0; height: 2.25em; margin: 0; cursor: pointer;
  accent-color: #0868b0; }
.fractal-explore input:focus-visible { outline: 2px solid #c8500a; outline-offset: 1px;
  border-radius: 4px; }
.fractal-explore output { min-width: 2.5em; font-variant-numeric: tabular-nums; font-weight: 600; }
"""

# It looks for figures not yet set going, so it needs no id and may stand in a page many times.
SCRIPT = """
document.querySelectorAll("figure.fractal-explore:not([data-ready])").forEach((figure) => {
  figure.dataset.ready = "";
  const inputs = figure.querySelectorAll("input"), frames = figure.querySelectorAll("img");
  const show = () => {
    let k = 0;
    inputs.forEach((input) => {
      const values = JSON.parse(input.dataset.values), text = values[Number(input.value)];
      k = k * values.length + Number(input.value);
      input.setAttribute("aria-valuetext", text);
      input.closest(".control").querySelector("output").value = text;
    });
    frames.forEach((frame, i) => { frame.hidden = i !== k; });
  };
  inputs.forEach((input) => input.addEventListener("input", show));
  figure.querySelectorAll(".control").forEach((control) => { control.hidden = false; });
  show();
});
"""
