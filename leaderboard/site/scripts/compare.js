// The page that compares chosen entries.

function compare() {
  const data = window.mixerbench;
  const boxes = [...document.querySelectorAll(".pick")];
  const wanted = new Set((state.get("pick") ?? "").split("."));
  boxes.forEach((box) => { box.checked = wanted.has(box.value); });
  curveControls(data, () => show());

  function show() {
    const ids = new Set(boxes.filter((box) => box.checked).map((box) => box.value));
    const entries = data.entries.filter((entry) => ids.has(entry.id));
    remember({ pick: [...ids].join(".") });
    byId("comparison").hidden = entries.length < 2;
    byId("empty").hidden = entries.length >= 2;
    if (entries.length < 2) return;
    const range = (e, c) => e.ranges[c.name] ? ` (${e.ranges[c.name]})` : "";
    table("numbers", ["figure", ...entries.map((e) => e.label)], [
      ["rank", ...entries.map((e) => e.ranks)],
      ...data.columns.filter((c) => c.inTables)
        .map((c) => [c.header, ...entries.map((e) => e.texts[c.name] + range(e, c))]),
      ...["mixer", "size", "backbone", "stem"].map((field) => [field, ...entries.map((e) => e[field])]),
    ]);
    const rows = [];
    entries.forEach((a, i) => entries.slice(i + 1).forEach((b) => {
      const one = comparison(data, a, b);
      if (one) rows.push([`${a.label} − ${b.label}`, signed(one.difference), interval(one.interval), probability(one.pImages),
        probability(one.pSeeds), probability(one.p), verdict(one), one.onlyA.toFixed(1), one.onlyB.toFixed(1), `${(100 * one.agreement).toFixed(1)} %`, one.kappa.toFixed(3)]);
      else rows.push([`${a.label} − ${b.label}`, "", "", "", "", "", "not tested", "", "", "", ""]);
    }));
    table("pairs", ["pair", "difference", "95 % interval", "p (images)", "p (seeds)", "p corrected", "verdict", "only the first right", "only the second right", "say the same", "kappa"], rows);
    showCurves(data, entries);
    const known = entries.filter((e) => e.reliability); // those with predictions
    showIf("classes-plot", known.length);
    showIf("reliability-plot", known.length);
    if (!known.length) return;
    drawClasses(known.map((e) => ({ name: e.label, color: e.color, dash: DASHES[e.symbol] ?? "longdash",
      classes: e.classes, spread: e.spread })), data.classNames);
    drawReliability(known.map((e) => ({ name: e.label, color: e.color, ...e.reliability })));
  }
  boxes.forEach((box) => box.addEventListener("change", show));
  show();
}
