// Fronts: which entries nobody beats in both of two figures.

/** `shown` gives the entries; the function that is returned draws them. */
function paretoPlot(data, shown) {
  const numeric = data.columns.filter((column) => column.isAxis);
  fill(byId("pareto-y"), numeric.map((c) => [c.name, c.header]));
  fill(byId("pareto-x"), numeric.map((c) => [c.name, c.header]));
  const costs = numeric.filter((column) => column.isCost).map((column) => column.name);
  const paretoY = remembered("pareto-y", () => pareto(), data.headline);
  const paretoX = remembered("pareto-x", () => pareto(), costs.includes("gmacs") ? "gmacs" : costs[0] ?? data.headline);
  function pareto() {
    const [x, y] = [paretoX.value, paretoY.value].map((name) => data.columns.find((c) => c.name === name));
    const entries = shown().filter((e) => e.values[x.name] !== null && e.values[y.name] !== null);
    const front = new Set(paretoFront(entries, x, y));
    const line = entries.filter((e) => front.has(e)).sort((a, b) => a.values[x.name] - b.values[x.name]);
    const bars = (column) => ({ type: "data", symmetric: false, thickness: 1, width: 0, color: `${color("--muted")}`,
      array: entries.map((e) => e.intervals[column.name] ? e.intervals[column.name][1] - e.values[column.name] : 0),
      arrayminus: entries.map((e) => e.intervals[column.name] ? e.values[column.name] - e.intervals[column.name][0] : 0) });
    const scale = (column) => column.isCost ? { type: "log", exponentformat: "SI", minor: { ticks: "outside" } } : {};
    draw("pareto-plot", () => [[
      { x: line.map((e) => e.values[x.name]), y: line.map((e) => e.values[y.name]), mode: "lines", hoverinfo: "skip",
        line: { shape: x.highFirst ? "vh" : "hv", color: color("--muted"), width: 1.5 } },
      { x: entries.map((e) => e.values[x.name]), y: entries.map((e) => e.values[y.name]), mode: entries.length <= 24 ? "markers+text" : "markers",
        text: entries.map(label), textposition: "top center", textfont: { size: 11, color: entries.map((e) => front.has(e) ? color("--text") : color("--muted")) },
        customdata: entries.map((e) => [escaped(e.texts[x.name]), escaped(e.texts[y.name])]),
        hovertemplate: `%{text}<br>${escaped(x.header)}: %{customdata[0]}<br>${escaped(y.header)}: %{customdata[1]}<extra></extra>`,
        marker: { size: 12, color: entries.map((e) => e.color), symbol: entries.map((e) => e.symbol),
          opacity: entries.map((e) => front.has(e) ? 1 : 0.35) },
        cliponaxis: false, error_x: bars(x), error_y: bars(y) },
    ], { xaxis: axis(x.header, scale(x)), yaxis: axis(y.header, scale(y)), margin: { l: 60, r: 40, t: 30, b: 50 } }]);
    table("pareto-table", ["entry", x.header, y.header, "on the front"],
      entries.map((e) => [e.label, e.texts[x.name], e.texts[y.name], front.has(e) ? "yes" : "no"]));
  }
  return pareto;
}

/** Those that no other dominates: as good or better in both, better in one. */
function paretoFront(entries, x, y) {
  const cost = (entry, column) => entry.values[column.name] * (column.highFirst ? -1 : 1);
  return entries.filter((one) => !entries.some((other) =>
    cost(other, x) <= cost(one, x) && cost(other, y) <= cost(one, y) &&
    (cost(other, x) < cost(one, x) || cost(other, y) < cost(one, y))));
}
