// Tables, their numbers and the options of a select.

/** A table of text; inside of closed details it is made when they are opened. */
function table(id, heads, rows) {
  const element = byId(id);
  const details = element.closest("details");
  const make = () => element.replaceChildren(tableOf(heads, rows));
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
