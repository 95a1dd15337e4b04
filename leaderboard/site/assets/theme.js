// Before anything is drawn, so that a dark page does not flash white.
"use strict";
(() => {
  let stored = null;
  try { stored = localStorage.getItem("mixerbench-theme"); } catch { /* private window */ }
  const dark = stored ? stored === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  document.documentElement.classList.toggle("dark", dark); // what DataTables looks at
  addEventListener("DOMContentLoaded", () => {
    document.getElementById("theme").addEventListener("click", () => {
      const next = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
      document.documentElement.dataset.theme = next;
      document.documentElement.classList.toggle("dark", next === "dark");
      try { localStorage.setItem("mixerbench-theme", next); } catch { /* private window */ }
      dispatchEvent(new Event("themechange"));
    });
  });
})();
