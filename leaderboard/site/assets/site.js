// What the pages do. Tables are DataTables', plots are Plotly's; this file brings them the data of
// window.mixerbench (board-*.js) or of the page's own #content, and keeps the view in the address.
// Names come from runs, where anybody may have written anything: they are set as text only.
"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const MOST_CURVES = 24; // more lines cannot be told apart
  const MOST_ROWS = 40; // of the plot against a baseline, the best; all are in its table
  const MOST_NAMES = 12; // in a sentence
  const MOST_PAIRS = 60; // rows of the matrix of mistakes

  // --- plots and tables ---------------------------------------------------------------------

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

  /** A table of text; inside of closed details it is made when they are opened. */
  function table(id, heads, rows) {
    const place = byId(id);
    const details = place.closest("details");
    const make = () => place.replaceChildren(tableOf(heads, rows));
    if (!details || details.open) make();
    if (details) details.ontoggle = () => { if (details.open) make(); };
  }

  /** A number in a cell stands to the right. */
  function tableOf(heads, rows) {
    const element = document.createElement("table");
    element.className = "plain";
    const add = (parent, tag, text) => {
      const cell = parent.appendChild(document.createElement(tag));
      cell.textContent = text === null || text === undefined ? "" : text;
      if (typeof text === "number" || /^[+−-]?[\d.,]+( %)?$/.test(text)) cell.className = "number";
      return cell;
    };
    const head = element.createTHead().insertRow();
    heads.forEach((text) => { add(head, "th", text).scope = "col"; });
    const body = element.createTBody();
    for (const [first, ...rest] of rows) {
      const row = body.insertRow();
      add(row, "th", first).scope = "row";
      rest.forEach((text) => add(row, "td", text));
    }
    return element;
  }

  /** A section without anything to show is not there. */
  function showIf(id, something) { byId(id).closest("section").hidden = !something; }

  const signed = (value, digits = 2) => (value < 0 ? "−" : "+") + Math.abs(value).toFixed(digits);
  const probability = (p) => p === null ? "–" : p < 0.0001 ? "< 0.0001" : p.toFixed(4);
  const interval = ([low, high]) => `${signed(low)} to ${signed(high)}`;

  function fill(select, options, chosen) {
    for (const [value, text] of options) select.add(new Option(text, value, false, value === chosen));
  }

  // --- the address --------------------------------------------------------------------------

  const state = new URLSearchParams(location.hash.slice(1));
  addEventListener("hashchange", () => location.reload()); // somebody pasted another view
  function remember(values) {
    for (const [key, value] of Object.entries(values)) {
      if (value) state.set(key, value); else state.delete(key);
    }
    history.replaceState(null, "", `#${state}`);
  }
  /** A select that the address remembers. */
  function remembered(id, onChange, first) {
    const select = byId(id);
    const wanted = state.get(id) ?? first;
    if ([...select.options].some((option) => option.value === wanted)) select.value = wanted;
    select.addEventListener("change", () => { remember({ [id]: select.value }); onChange(); });
    return select;
  }

  // --- comparisons --------------------------------------------------------------------------

  /** A beside B, whichever stands first in the data. */
  function comparison(data, a, b) {
    data.places ??= new Map(data.entries.map((entry, place) => [entry, place]));
    const [i, j] = [data.places.get(a), data.places.get(b)];
    const [first, second, count] = [Math.min(i, j), Math.max(i, j), data.entries.length];
    // Pairs stand in the order (0, 1), (0, 2), ..., (1, 2), ...
    const row = data.comparisons[first * count - (first * (first + 1)) / 2 + second - first - 1];
    if (!row) return null; // there are none of a large board
    const [difference, low, high, onlyA, onlyB, agreement, kappa, differ, p, pImages = null, pSeeds = null] = row;
    const common = { pImages, pSeeds, p, agreement, kappa, differ };
    return i < j
      ? { ...common, difference, interval: [low, high], onlyA, onlyB }
      : { ...common, difference: -difference, interval: [-high, -low], onlyA: onlyB, onlyB: onlyA };
  }

  const verdict = (one) => !one.differ ? "cannot be told apart" : one.difference > 0 ? "better" : "worse";

  // --- curves, shared by the pages of boards, entries and comparisons --------------------------

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

  // --- a board --------------------------------------------------------------------------------

  function board() {
    const data = window.mixerbench;
    const byFingerprint = new Map(data.entries.map((entry) => [entry.id, entry]));
    const heads = [...byId("board").tHead.rows[0].cells].map((cell) => cell.dataset.name);
    const visible = state.has("cols")
      ? new Set(state.get("cols").split(".")) : new Set(heads.filter((name) => !data.hiddenAtFirst.includes(name)));
    const [sortName, direction] = (state.get("sort") ?? `${data.headline}.desc`).split(".");
    const picks = new Set((state.get("pick") ?? "").split(".").filter((id) => byFingerprint.has(id)));

    DataTable.ext.errMode = "throw";
    const grid = new DataTable("#board", {
      paging: data.entries.length > 50, pageLength: 50, autoWidth: false,
      search: { search: state.get("q") ?? "" },
      order: heads.includes(sortName) ? [[heads.indexOf(sortName), direction === "asc" ? "asc" : "desc"]] : [],
      columns: heads.map((name) => ({
        name, visible: name === "pick" || name === "model" || visible.has(name),
        orderable: name !== "pick", searchable: name !== "pick",
        // The best first, at the first click.
        orderSequence: data.columns.find((c) => c.name === name)?.highFirst
          ? ["desc", "asc"] : ["asc", "desc"],
      })),
      layout: {
        topStart: data.entries.length > 50 ? "pageLength" : null,
        topEnd: [{ buttons: [{ extend: "colvis", text: "Columns", columns: ":not([data-name=pick]):not([data-name=model])" }] }, "search"],
      },
      language: { search: "Search", emptyTable: "No entry", zeroRecords: "No entry fits these filters" },
    });

    // Filters beside the table's own search.
    const selects = [...document.querySelectorAll("[data-filter]")];
    selects.forEach((select) => {
      select.id = `filter-${select.dataset.filter}`;
      remembered(select.id, () => grid.draw());
    });
    const equal = ["equal", "equal-as", "equal-within"].map((id) => remembered(id, () => grid.draw()));
    grid.search.fixed("mixerbench", (row, values, index) => {
      const entry = byFingerprint.get(grid.row(index).node().dataset.entry);
      if (selects.some((select) => select.value && entry[select.dataset.filter] !== select.value)) return false;
      const [cost, reference, within] = equal.map((select) => select.value);
      if (!cost) return true;
      const target = byFingerprint.get(reference).values[cost];
      return Math.abs(entry.values[cost] / target - 1) <= within / 100;
    });

    const shown = () => grid.rows({ search: "applied", order: "applied" }).nodes().toArray()
      .map((row) => byFingerprint.get(row.dataset.entry));

    // Against a baseline
    const best = [...data.entries].sort((a, b) => b.values[data.headline] - a.values[data.headline]);
    const first = best.find((entry) => entry.mixer === "attention") ?? best[0];
    const baseline = remembered("baseline", () => against(), first.id);
    function against() {
      const base = byFingerprint.get(baseline.value);
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

    // Pareto
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

    // Who makes the same mistakes
    function consistency() {
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
    }

    function choose() {
      const link = byId("compare");
      link.href = `${link.href.split("#")[0]}#pick=${[...picks].join(".")}`;
      link.textContent = picks.size > 1 ? `Compare the ${picks.size} chosen` : "Compare";
      remember({ pick: [...picks].join(".") });
    }
    byId("board").addEventListener("change", ({ target }) => {
      if (!target.classList.contains("pick")) return;
      if (target.checked) picks.add(target.value); else picks.delete(target.value);
      choose();
    });
    grid.rows().nodes().toArray().forEach((row) => {
      row.querySelector(".pick").checked = picks.has(row.dataset.entry);
    });
    byId("copy").addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(location.href);
        byId("copy").textContent = "Copied";
      } catch { prompt("The link to this view", location.href); }
    });

    curveControls(data, () => showCurves(data, shown()));
    const redraw = () => { against(); pareto(); showCurves(data, shown()); consistency(); };
    grid.on("draw", () => {
      const [sort] = grid.order();
      remember({ q: grid.search(), sort: sort ? `${heads[sort[0]]}.${sort[1]}` : "" });
      redraw();
    });
    grid.on("column-visibility", () => remember({
      cols: heads.filter((name, i) => name !== "pick" && name !== "model" && grid.column(i).visible()).join("."),
    }));
    choose();
    grid.draw();
  }

  /** Those that no other dominates: as good or better in both, better in one. */
  function paretoFront(entries, x, y) {
    const cost = (entry, column) => entry.values[column.name] * (column.highFirst ? -1 : 1);
    return entries.filter((one) => !entries.some((other) =>
      cost(other, x) <= cost(one, x) && cost(other, y) <= cost(one, y) &&
      (cost(other, x) < cost(one, x) || cost(other, y) < cost(one, y))));
  }

  // --- a comparison ---------------------------------------------------------------------------

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

  // --- an entry -------------------------------------------------------------------------------

  const content = () => JSON.parse(byId("content").textContent);
  const SHADES = ["#3574d6", "#cc5a1e", "#1a8f6c", "#b0509b", "#a87800", "#76797f"];

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

  // --- a mixer --------------------------------------------------------------------------------

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

  // --- newer results, beside MLflow -------------------------------------------------------------

  /** `mixerbench leaderboard serve` writes the pages anew: this one then loads again, with its view
   * in the address. At once if nobody touches it, else when its reader says so. */
  async function follow() {
    const version = async () => {
      const answer = await fetch("status", { cache: "no-store" });
      return answer.ok ? (await answer.json()).version : "";
    };
    const shown = await version().catch(() => "");
    if (!shown) return; // a server of files only
    let touched = Date.now();
    ["pointermove", "pointerdown", "keydown", "wheel", "touchmove"].forEach((kind) =>
      addEventListener(kind, () => { touched = Date.now(); }, { passive: true }));
    const button = document.createElement("button");
    Object.assign(button, { type: "button", id: "newer", hidden: true, textContent: "Show newer results" });
    button.addEventListener("click", () => location.reload());
    document.body.append(button);
    setInterval(async () => {
      if (document.hidden) return; // the server need not work for a page that nobody sees
      const newest = await version().catch(() => "");
      if (!newest || newest === shown) return;
      button.hidden = false;
      if (Date.now() - touched > 20000) location.reload();
    }, 5000);
  }
  if (/^https?:$/.test(location.protocol)) addEventListener("DOMContentLoaded", follow);

  addEventListener("DOMContentLoaded", () => ({ board, compare, entry, mixer })[document.body.dataset.page]?.());
})();
