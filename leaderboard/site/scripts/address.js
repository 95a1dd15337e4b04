// The view is kept in the address: whoever opens the link sees it.

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
