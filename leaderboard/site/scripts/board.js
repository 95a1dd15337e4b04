// The page of a board: the table, its filters, what is chosen to be compared.

function board() {
  const data = window.mixerbench;
  const byKey = new Map(data.entries.map((entry) => [entry.id, entry]));
  const heads = [...byId("board").tHead.rows[0].cells].map((cell) => cell.dataset.name);
  const visible = state.has("cols")
    ? new Set(state.get("cols").split(".")) : new Set(heads.filter((name) => !data.hiddenAtFirst.includes(name)));
  const [sortName, direction] = (state.get("sort") ?? `${data.headline}.desc`).split(".");
  const picks = new Set((state.get("pick") ?? "").split(".").filter((id) => byKey.has(id)));

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
    const entry = byKey.get(grid.row(index).node().dataset.entry);
    if (selects.some((select) => select.value && entry[select.dataset.filter] !== select.value)) return false;
    const [cost, reference, within] = equal.map((select) => select.value);
    if (!cost) return true;
    const target = byKey.get(reference).values[cost];
    return Math.abs(entry.values[cost] / target - 1) <= within / 100;
  });

  const shown = () => grid.rows({ search: "applied", order: "applied" }).nodes().toArray()
    .map((row) => byKey.get(row.dataset.entry));

  const against = againstBaseline(data, byKey, shown);
  const pareto = paretoPlot(data, shown);
  const consistency = consistencyMatrix(data, shown);

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
