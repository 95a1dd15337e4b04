// Every entry of a board against one of them.

const MOST_ROWS = 40; // of the plot, the best; all are in its table
const MOST_NAMES = 12; // in a sentence

/** `shown` gives the entries; the function that is returned draws them. */
function againstBaseline(data, byKey, shown) {
  const best = [...data.entries].sort((a, b) => b.values[data.headline] - a.values[data.headline]);
  const first = best.find((entry) => entry.mixer === "attention") ?? best[0];
  const baseline = remembered("baseline", () => against(), first.id);
  function against() {
    const base = byKey.get(baseline.value);
    const pairs = shown().filter((entry) => entry !== base)
      .map((entry) => ({ entry, one: comparison(data, entry, base) }));
    const rows = pairs.filter(({ one }) => one).sort((a, b) => a.one.difference - b.one.difference);
    const named = (kind) => {
      const all = kind === "not tested" ? pairs.filter(({ one }) => !one).map(({ entry }) => short(entry.label))
        : rows.filter(({ one }) => verdict(one) === kind).reverse()
          .map(({ entry, one }) => `${short(entry.label)} (${signed(one.difference)})`);
      const more = all.length > MOST_NAMES ? ` and ${all.length - MOST_NAMES} more` : "";
      return all.slice(0, MOST_NAMES).join(", ") + more;
    };
    const drawn = rows.slice(-MOST_ROWS);
    const words = [["Better beyond chance", named("better")], ["Cannot be told apart", named("cannot be told apart")],
      ["Worse beyond chance", named("worse")], ["Not tested", named("not tested")]].filter(([, names]) => names).map(([kind, names]) => `${kind}: ${names}.`);
    byId("verdict").textContent = words.join(" ") || "There is nothing to compare it with.";
    byId("against-plot").hidden = !drawn.length;
    byId("against-plot").style.height = `${Math.max(9, 5 + 1.7 * drawn.length)}rem`;
    draw("against-plot", () => [[{
      type: "scatter", mode: "markers", y: drawn.map((_, i) => i), x: drawn.map(({ one }) => one.difference),
      text: drawn.map(({ entry, one }) => `${label(entry)}: ${signed(one.difference)} points, ${verdict(one)}`),
      hovertemplate: "%{text}<extra></extra>",
      marker: { size: 11, color: drawn.map(({ entry, one }) => one.differ ? entry.color : color("--background")),
        line: { width: 2, color: drawn.map(({ entry }) => entry.color) } },
      error_x: { type: "data", symmetric: false, color: color("--muted"), thickness: 1.5, width: 0,
        array: drawn.map(({ one }) => one.interval[1] - one.difference),
        arrayminus: drawn.map(({ one }) => one.difference - one.interval[0]) },
    }], {
      xaxis: axis(`${data.headlineHeader} minus that of ${short(base.label)} (percentage points)`, { zerolinecolor: color("--text"), zerolinewidth: 1.5 }),
      yaxis: axis("", { tickvals: drawn.map((_, i) => i), ticktext: drawn.map(({ entry }) => label(entry)), zeroline: false }),
    }]);
    table("against-table", ["entry", "difference", "95 % interval", "p (images)", "p (seeds)", "p corrected", "verdict"],
      [...rows].reverse().map(({ entry, one }) => [entry.label, signed(one.difference), interval(one.interval),
        probability(one.pImages), probability(one.pSeeds), probability(one.p), verdict(one)]));
  }
  return against;
}
