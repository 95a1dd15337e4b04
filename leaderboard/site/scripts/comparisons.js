// The comparison of two entries of a board.

/** A beside B, whichever stands first in the data. */
function comparison(data, a, b) {
  data.positions ??= new Map(data.entries.map((entry, position) => [entry, position]));
  const [i, j] = [data.positions.get(a), data.positions.get(b)];
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
