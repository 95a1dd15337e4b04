// Newer results, beside MLflow.

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
