// What predictions say: calibration, classes.

function drawReliability(lines) {
  draw("reliability-plot", () => [[
    { x: [0, 1], y: [0, 1], mode: "lines", hoverinfo: "skip", showlegend: false,
      line: { dash: "dot", color: color("--muted") } },
    ...lines.map((line) => ({ x: line.confidence, y: line.accuracy, mode: "lines+markers",
      name: escaped(short(line.name)), line: { color: line.color },
      marker: { size: line.share.map((share) => 5 + 18 * Math.sqrt(share)), color: line.color },
      hovertemplate: "confidence %{x:.3f}<br>accuracy %{y:.3f}<extra></extra>" })),
  ], { xaxis: axis("confidence", { range: [0, 1.02] }), yaxis: axis("accuracy", { range: [0, 1.02] }),
    showlegend: lines.length > 1 }]);
  table("reliability-table", ["entry", "confidence", "accuracy", "share of the images"],
    lines.flatMap((l) => l.confidence.map((c, i) => [l.name, c, l.accuracy[i], l.share[i]])));
}

/** A bar for each class; of many classes how many are how well recognised. */
function drawClasses(lines, names = {}) {
  if (lines.some((line) => line.spread)) { drawSpread(lines, names); return; }
  const count = Math.max(...lines.map((line) => line.classes.length));
  const classes = Array.from({ length: count }, (_, i) => named(i, names));
  draw("classes-plot", () => [
    lines.map((line) => ({ type: "bar", x: classes.map((_, i) => i), y: line.classes, name: escaped(short(line.name)),
      marker: { color: line.color } })),
    { xaxis: axis("class", { tickvals: classes.map((_, i) => i), ticktext: classes.map((text) => escaped(short(text, 20))) }),
      yaxis: axis("right (%)", { rangemode: "tozero" }), showlegend: lines.length > 1 }]);
  table("classes-table", ["class", ...lines.map((line) => line.name)],
    classes.map((name, i) => [name, ...lines.map((line) => line.classes[i])]));
}

const named = (number, names) => names[number] === undefined ? String(number) : `${number} · ${names[number]}`;

function drawSpread(lines, names) {
  const drawn = lines.filter((line) => line.spread);
  const width = 100 / drawn[0].spread.length;
  const ranges = drawn[0].spread.map((_, i) => `${i * width} – ${(i + 1) * width}`);
  draw("classes-plot", () => [
    drawn.map((line) => ({ type: "scatter", mode: "lines", line: { shape: "hvh", color: line.color, dash: line.dash ?? "solid" },
      x: ranges.map((_, i) => (i + 0.5) * width), y: line.spread, name: escaped(short(line.name)),
      fill: lines.length === 1 ? "tozeroy" : "none", text: ranges,
      hovertemplate: "%{y} classes with %{text} % right<extra></extra>" })),
    { xaxis: axis("right (%)", { range: [0, 100] }), yaxis: axis("classes", { rangemode: "tozero" }),
      showlegend: lines.length > 1 }]);
  const whole = lines.filter((line) => line.classes);
  if (!whole.length) {
    table("classes-table", ["right (%)", ...drawn.map((line) => `classes of ${line.name}`)],
      ranges.map((range, i) => [range, ...drawn.map((line) => line.spread[i])]));
    return;
  }
  const apart = (i) => {
    const values = whole.map((line) => line.classes[i]).filter((value) => typeof value === "number");
    return values.length ? Math.max(...values) - Math.min(...values) : 0;
  };
  const order = Array.from({ length: Math.max(...whole.map((line) => line.classes.length)) }, (_, i) => i);
  if (whole.length > 1) order.sort((a, b) => apart(b) - apart(a)); // those of which they differ the most
  table("classes-table", ["class", ...whole.map((line) => line.name)],
    order.map((i) => [named(i, names), ...whole.map((line) => line.classes[i])]));
}
