// Which page this is; the last of the scripts.

addEventListener("DOMContentLoaded", () => ({ board, compare, entry, mixer })[document.body.dataset.page]?.());
