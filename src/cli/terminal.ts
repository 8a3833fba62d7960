/** Text for a terminal. */

/**
 * Makes text from outside harmless to a terminal: control characters (escape sequences begin with one), and the marks that
 * reverse or hide text, become visible. Line feed and tab stay.
 */
export function plain(text: string): string {
  return text.replace(UNSAFE, (character) => `\\u{${character.codePointAt(0)!.toString(16)}}`);
}

/** Controls, formats, half surrogates, line and paragraph separators, but not tab and line feed. */
const UNSAFE = /(?![\t\n])[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]/gu;

/** JSON for people and programs alike: what {@link plain} would make visible is escaped, so the document stays the same value. */
export function json(value: unknown): string {
  return JSON.stringify(value, null, 2).replace(UNSAFE, (character) =>
    [...Array(character.length).keys()]
      .map((at) => `\\u${character.charCodeAt(at).toString(16).padStart(4, '0')}`)
      .join(''),
  );
}

/** {@link plain} on one line, at most `max` characters. */
export function oneLine(text: string, max = 200): string {
  const line = plain(text).replaceAll(/\s+/g, ' ').trim();
  return line.length <= max ? line : `${line.slice(0, max - 1)}…`;
}

/** A word for a shell, to be copied: as it is, or in quotes where a shell would read it in another way. */
export function shellWord(text: string): string {
  return /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`;
}

export function bytes(count: number): string {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  const power = Math.min(units.length - 1, count < 1 ? 0 : Math.floor(Math.log2(count) / 10));
  return `${power === 0 ? count : (count / 2 ** (10 * power)).toFixed(1)} ${units[power]}`;
}

export function duration(ms: number): string {
  if (ms < 1_000) return `${Math.round(ms)} ms`;
  if (ms < 60_000) return `${(ms / 1_000).toFixed(1)} s`;
  const [whole, part, units] = ms < 3_600_000 ? [60_000, 1_000, ['min', 's']] : [3_600_000, 60_000, ['h', 'min']];
  const rest = Math.floor((ms % whole) / part);
  return `${Math.floor(ms / whole)} ${units[0]}${rest === 0 ? '' : ` ${rest} ${units[1]}`}`;
}

export function date(ms: number): string {
  return new Date(ms).toISOString().slice(0, 16).replace('T', ' ');
}

/** Columns as wide as their longest cell; the cells are made plain. */
export function table(rows: readonly (readonly string[])[]): string {
  const lines = rows.map((row) => row.map((cell) => oneLine(cell)));
  const widths = (lines[0] ?? []).map((_, column) => Math.max(...lines.map((row) => (row[column] ?? '').length)));
  return lines
    .map((row) =>
      row
        .map((cell, i) => cell.padEnd(widths[i] ?? 0))
        .join('  ')
        .trimEnd(),
    )
    .join('\n');
}

/** `name  value` lines. */
export function fields(values: Readonly<Record<string, string | undefined>>): string {
  return table(Object.entries(values).flatMap(([name, value]) => (value === undefined ? [] : [[name, value]])));
}

export function count(number: number, noun: string): string {
  return `${number.toLocaleString('en-US')} ${noun}${number === 1 ? '' : 's'}`;
}
