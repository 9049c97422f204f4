/**
 * How a picture is cut into tiles, as runtime/upscale/tiling.py does. All lengths are in LR pixels.
 *
 * A tile has a core, its own part of the picture, and a padded box, which the model is shown: the core with context around it. Cores
 * meet without sharing a pixel, and their results agree there.
 *
 * @typedef {{multiple_of: number, minimum: number, tile: number, context: number, overlap: number, window?: number}} SizeRule
 *   window: height and width of every padded box of a picture that is as large; else the picture's own
 * @typedef {{y0: number, y1: number, x0: number, x1: number}} Box ends not included
 * @typedef {{core: Box, padded: Box}} Tile
 */

/** The smallest size the model takes that holds length. */
export function paddedSize(length, rule) {
  return up(Math.max(length, rule.minimum), rule.multiple_of);
}

/** The core size nearest above `tile` that the rule allows. */
export function tileSize(tile, rule) {
  return up(Math.max(tile, 1), rule.multiple_of);
}

/** The smallest core that is chosen. With less, the model would compute more than nine times its pixels. */
export function leastTile(rule) {
  return tileSize(Math.max(rule.context, rule.multiple_of), rule);
}

/**
 * Tiles in reading order, as a list of rows.
 *
 * @param {number} height of the picture
 * @param {number} width
 * @param {[number, number]} tile height and width of a core, rounded up to what the rule allows
 * @param {SizeRule} rule
 * @param {number} top the first row of the first cores, a multiple of `multiple_of`: one plan may end there and another go on
 * @returns {Tile[][]}
 */
export function planTiles(height, width, tile, rule, top = 0) {
  const across = spans(width, tileSize(tile[1], rule), rule, 0);
  return spans(height, tileSize(tile[0], rule), rule, top).map((row) =>
    across.map((column) => ({
      core: { y0: row.start, y1: row.end, x0: column.start, x1: column.end },
      padded: { y0: row.first, y1: row.last, x0: column.first, x1: column.last },
    })),
  );
}

/**
 * The tile of one box of a picture. It does not depend on the plan for the whole picture.
 *
 * @param {Box} box its edges are rounded outwards to multiples of `multiple_of`
 * @returns {Tile}
 */
export function tileOf(height, width, box, rule) {
  const row = span(height, down(box.y0, rule.multiple_of), Math.min(height, up(box.y1, rule.multiple_of)), rule);
  const column = span(width, down(box.x0, rule.multiple_of), Math.min(width, up(box.x1, rule.multiple_of)), rule);
  return {
    core: { y0: row.start, y1: row.end, x0: column.start, x1: column.end },
    padded: { y0: row.first, y1: row.last, x0: column.first, x1: column.last },
  };
}

/**
 * The rule for a device that takes windows of one shape only, and the core that fits it. A picture smaller than the window is its own
 * window: what is filled up around a picture would change its edges.
 *
 * @param {number} side of the window
 * @returns {{rule: SizeRule, core: number}}
 */
export function fixedRule(side, rule) {
  const fixed = up(Math.max(side, paddedSize(1, rule), 3 * rule.context), rule.multiple_of);
  const core = Math.max(rule.multiple_of, down(fixed - 2 * rule.context, rule.multiple_of));
  return { rule: { ...rule, window: fixed }, core };
}

function spans(length, tile, rule, begin) {
  const found = [];
  for (let start = begin; start < Math.max(begin + 1, length); start += tile) {
    found.push(span(length, start, Math.min(start + tile, length), rule));
  }
  return found;
}

function span(length, start, end, rule) {
  const least = Math.max(paddedSize(1, rule), Math.min(rule.window ?? 0, paddedSize(length, rule)));
  const last = Math.min(paddedSize(length, rule), up(end, rule.multiple_of) + rule.context);
  const first = Math.max(0, Math.min(start - rule.context, last - least)); // at least the minimum, towards the start
  return { start, end, first, last: Math.max(last, first + least) };
}

function up(value, multiple) {
  return Math.ceil(value / multiple) * multiple;
}

function down(value, multiple) {
  return Math.floor(value / multiple) * multiple;
}
