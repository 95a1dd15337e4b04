// The page of a mixer.

function mixer() {
  const { parts } = content();
  if (!parts.length) return; // it could not be measured; the page says why
  draw("macs-plot", () => [
    parts.flatMap((part, i) => [["macs", "executed", "solid"], ["formulaMacs", "by the paper's formula", "dot"]].map(
      ([key, what, dash]) => ({ x: part[key].map(([n]) => n), y: part[key].map(([, m]) => m), mode: "lines+markers",
        name: `${escaped(part.name)}, ${what}`, line: { color: SHADES[i % SHADES.length], dash } })).filter((line) => line.x.length)),
    { xaxis: axis("tokens", { type: "log", tickvals: parts[0]?.macs.map(([n]) => n) }),
      yaxis: axis("multiply-adds of one layer", { type: "log", exponentformat: "SI" }),
      showlegend: parts.length > 1 || parts.some((part) => part.formulaMacs.length) }]);
  draw("reach-plot", () => {
    const layout = { grid: { rows: 1, columns: parts.length, pattern: "independent" }, annotations: [] };
    const traces = parts.map((part, i) => {
      const n = i ? i + 1 : "";
      layout[`xaxis${n}`] = axis(part.name, { showgrid: false, zeroline: false, showticklabels: false, constrain: "domain" });
      layout[`yaxis${n}`] = axis("", { showgrid: false, zeroline: false, showticklabels: false, scaleanchor: `x${n}`, autorange: "reversed" });
      return { type: "heatmap", z: part.reach, xaxis: `x${n}`, yaxis: `y${n}`, showscale: false, xgap: 1, ygap: 1, zmin: 0, zmax: 1,
        colorscale: [[0, color("--raised")], [0.001, "#9cc0f5"], [1, "#123a7a"]], hovertemplate: "influence %{z:.3f}<extra></extra>" };
    });
    return [traces, layout];
  });
}
