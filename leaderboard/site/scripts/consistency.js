// Which entries make the same mistakes.

const MOST_PAIRS = 60; // rows of the matrix of mistakes

/** `shown` gives the entries; the function that is returned draws them. */
function consistencyMatrix(data, shown) {
  return () => {
    const entries = shown().slice(0, MOST_PAIRS);
    const pairs = entries.map((a) => entries.map((b) => a === b ? null : comparison(data, a, b)));
    const known = entries.filter((_, i) => pairs[i].some((one) => one));
    showIf("consistency-plot", known.length);
    draw("consistency-plot", () => [[{
      type: "heatmap", x: known.map((_, i) => i), y: known.map((_, i) => i),
      z: known.map((a) => known.map((b) => a === b ? null : comparison(data, a, b)?.kappa ?? null)),
      text: known.map((a) => known.map((b) => `${label(a)} and ${label(b)}`)),
      hovertemplate: "%{text}<br>kappa %{z:.2f}<extra></extra>", texttemplate: known.length <= 12 ? "%{z:.2f}" : "",
      colorscale: [[0, "#eaf1fb"], [0.5, "#7aa6e6"], [1, "#123a7a"]], zmin: 0, zmax: 1, xgap: 2, ygap: 2,
      colorbar: { title: { text: "kappa" }, thickness: 12 },
    }], {
      xaxis: axis("", { tickvals: known.map((_, i) => i), ticktext: known.map(label), showgrid: false, zeroline: false }),
      yaxis: axis("", { tickvals: known.map((_, i) => i), ticktext: known.map(label), showgrid: false, zeroline: false, autorange: "reversed" }),
    }]);
    const rows = [];
    known.forEach((a, i) => known.slice(i + 1).forEach((b) => {
      const one = comparison(data, a, b);
      if (one) rows.push([a.label, b.label, one.kappa.toFixed(3), `${(100 * one.agreement).toFixed(1)} %`, one.onlyA.toFixed(1), one.onlyB.toFixed(1)]);
    }));
    table("consistency-table", ["A", "B", "kappa", "say the same", "only A right", "only B right"], rows);
  };
}
