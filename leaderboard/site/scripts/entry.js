// The page of an entry.

function entry() {
  const { curves, axes, imagesPerEpoch, reliability, classes, spread, confusion } = content();
  if (byId("curve")) {
    const show = () => {
      const [one, x] = [curves[byId("curve").value], byId("curve-x").value];
      const at = (run) => along(run, x, imagesPerEpoch);
      drawCurves(one.runs.filter(at).map((run, i) => ({ name: `seed ${run.seed}`,
        color: SHADES[i % SHADES.length], x: at(run), y: run.mean })), one.label, axes[x]);
    };
    remembered("curve", show);
    remembered("curve-x", show);
    show();
  }
  const own = { name: "all seeds", color: SHADES[0] };
  if (reliability) drawReliability([{ ...own, ...reliability }]);
  if (reliability) drawClasses([{ ...own, classes, spread }]);
  if (confusion.length) {
    const names = confusion.map((_, i) => String(i));
    draw("confusion-plot", () => [[{
      type: "heatmap", x: names, y: names, z: confusion.map((row, i) => row.map((n, j) => i === j ? null : n)),
      text: confusion.map((row, i) => row.map((n, j) => i === j ? "" : n)), texttemplate: names.length <= 12 ? "%{text}" : "", xgap: 1, ygap: 1,
      hovertemplate: "is %{y}, called %{x}: %{z}<extra></extra>",
      colorscale: [[0, color("--raised")], [1, "#cc5a1e"]], showscale: false,
    }], { xaxis: axis("called", { type: "category", showgrid: false }), yaxis: axis("is", { type: "category", showgrid: false, autorange: "reversed" }) }]);
    table("confusion-table", ["is \\ called", ...names], confusion.map((row, i) => [names[i], ...row]));
  }
}
