// Learning curves, on the pages of boards, entries and comparisons.

const MOST_CURVES = 24; // more lines cannot be told apart

function drawCurves(lines, yLabel, xLabel) {
  draw("curves-plot", () => {
    const traces = [];
    for (const line of lines) {
      const band = line.low && line.low.some((low, i) => low !== line.high[i]);
      if (band) {
        const edge = { x: line.x, mode: "lines", line: { width: 0 }, hoverinfo: "skip", showlegend: false };
        traces.push({ ...edge, y: line.low },
          { ...edge, y: line.high, fill: "tonexty", fillcolor: `${line.color}22` });
      }
      traces.push({ x: line.x, y: line.y, mode: "lines", name: escaped(short(line.name)),
        line: { color: line.color, width: 2, dash: line.dash ?? "solid" } });
    }
    return [traces, { xaxis: axis(xLabel), yaxis: axis(yLabel), showlegend: lines.length > 1 && lines.length <= 12 }];
  });
  const rows = lines.flatMap((line) => line.x.map((x, i) => [line.name, x, line.y[i]]));
  table("curves-table", ["entry", xLabel, yLabel], rows);
}

const DASHES = { circle: "solid", square: "dash", diamond: "dot", "triangle-up": "dashdot" };
/** Of one curve; images are a multiple of epochs. */
const along = (one, x, imagesPerEpoch) => x !== "images" ? one?.[x]
  : imagesPerEpoch ? one?.epoch?.map((epoch) => Math.round(epoch * imagesPerEpoch)) : undefined;
function curvesOf(data, entries, curve, x) {
  const at = (entry) => along(entry.curves[curve], x, data.imagesPerEpoch);
  return entries.filter(at).slice(0, MOST_CURVES).map((entry) => {
    const one = entry.curves[curve];
    return { name: entry.label, color: entry.color, dash: DASHES[entry.symbol] ?? "longdash",
      x: at(entry), y: one.mean, low: one.low, high: one.high };
  });
}
function curveControls(data, onChange) {
  fill(byId("curve"), Object.entries(data.curves).filter(([key]) => data.entries.some((e) => e.curves[key])));
  fill(byId("curve-x"), Object.entries(data.curveAxes));
  ["curve", "curve-x"].forEach((id) => remembered(id, onChange));
}
function showCurves(data, entries) {
  const [curve, x] = [byId("curve").value, byId("curve-x").value];
  showIf("curves-plot", curve);
  if (!curve) return;
  drawCurves(curvesOf(data, entries, curve, x), data.curves[curve], data.curveAxes[x]);
}
