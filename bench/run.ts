import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { type Bench, machine, rowOf } from './harness.ts';

/**
 * `npm run bench [-- NAME ...] [--json]`: ours, the named reference, the ratio; medians of rounds taken in turn.
 * Figures are for reading, not for failing: on a shared machine only ratios hold.
 */
const { values, positionals } = parseArgs({
  options: { json: { type: 'boolean', default: false } },
  allowPositionals: true,
});
const files = (await readdir(import.meta.dirname)).filter((file) => file.endsWith('.bench.ts')).sort();
const benches = await Promise.all(
  files.map(async (file) => ((await import(join(import.meta.dirname, file))) as { readonly bench: Bench }).bench),
);
const chosen = benches.filter((bench) => positionals.length === 0 || positionals.includes(bench.name));
if (chosen.length === 0) {
  process.stderr.write(`No such bench. There are: ${benches.map((bench) => bench.name).join(', ')}\n`);
  process.exit(2);
}

const results = [];
for (const bench of chosen) {
  process.stderr.write(`\n${bench.name}: ${bench.about}\n`);
  for (const comparison of await bench.run()) {
    const row = rowOf(comparison);
    results.push({ bench: bench.name, ...row, rounds: { ours: comparison.ours, theirs: comparison.theirs } });
    const verdict =
      row.met === null ? '' : row.met ? `  (target ${row.target}: met)` : `  (target ${row.target}: MISSED)`;
    process.stderr.write(
      `  ${row.name}: ${row.ours.toFixed(2)} ${row.unit}, ${row.reference} ${row.theirs.toFixed(2)} ${row.unit}, ratio ${row.ratio.toFixed(2)}${verdict}\n`,
    );
  }
}
if (values.json) process.stdout.write(`${JSON.stringify({ machine: machine(), results }, null, 2)}\n`);
