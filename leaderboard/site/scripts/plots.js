// Plots: Plotly's, drawn anew when the theme changes.

const byId = (id) => document.getElementById(id);
/** What a page of an entry or a mixer holds for its plots. */
const content = () => JSON.parse(byId("content").textContent);
const SHADES = ["#3574d6", "#cc5a1e", "#1a8f6c", "#b0509b", "#a87800", "#76797f"];

/** Plotly reads some markup in its labels. */
const escaped = (text) =>
  String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
const short = (text, length = 34) => text.length > length ? `${text.slice(0, length - 1)}…` : text;
const label = (entry) => escaped(short(entry.label));
const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const redraws = new Map();

function axis(title, more = {}) {
  return { title: { text: escaped(title) }, gridcolor: color("--line"), zerolinecolor: color("--line"),
    linecolor: color("--line"), automargin: true, ...more };
}

/** Draws now, and again when the theme changes; `make` gives [traces, layout]. */
function draw(id, make) {
  redraws.set(id, make);
  const [traces, layout] = make();
  Plotly.react(id, traces, {
    paper_bgcolor: "transparent", plot_bgcolor: "transparent",
    font: { color: color("--text"), family: "system-ui, sans-serif", size: 13 },
    margin: { l: 60, r: 20, t: 10, b: 50 }, hovermode: "closest", showlegend: false,
    hoverlabel: { align: "left" }, legend: { orientation: "h", y: 1.02, yanchor: "bottom" }, ...layout,
  }, { responsive: true, displaylogo: false,
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"] });
}
addEventListener("themechange", () => redraws.forEach((make, id) => draw(id, make)));
