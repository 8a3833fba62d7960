import { mkdir, mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { systemClock } from '../src/base/clock.ts';
import type { AssetQuery } from '../src/capabilities/assets.ts';
import { openAssets } from '../src/subsystems/assets/index.ts';
import { type Bench, median, quantile, timed } from './harness.ts';
import { addPackages, packageNumber } from './packages.ts';

const PACKAGES = 100_000;
const ROUNDS = 5;
/** A scan takes its time: it answers every so many of the queries. */
const SCANNED = 37;

/** What people type: names, common and rare words, beginnings of words, errors, filters, nothing. */
function queries(): readonly AssetQuery[] {
  const all: AssetQuery[] = [];
  for (let i = 0; i < 40; i++) {
    const n = (i * 2_477) % PACKAGES;
    const { name, manifest } = packageNumber(n);
    const [topic, thing, tag] = manifest.keywords as [string, string, string];
    all.push(
      { text: name },
      { text: name.split('/')[1]! },
      { text: topic },
      { text: `${topic} ${thing}` },
      { text: `${thing} ${topic.slice(0, 3)}` },
      { text: topic.slice(0, 2) },
      { text: `word${n % 20_011}` },
      { text: `${topic.slice(0, -1)}x ${thing}` },
      { text: `${thing.slice(0, 3)}${thing.slice(4)}` },
      { text: topic, type: 'library' },
      { text: thing, language: 'wasm', license: 'MIT' },
      { keyword: tag },
      { type: 'template' },
      { owner: `key-${n % 4_001}` },
      {},
      { text: `nothing-like-this-${i}` },
    );
  }
  return all;
}

export const bench: Bench = {
  name: 'search',
  about: `mixed queries over ${PACKAGES.toLocaleString('en')} packages, against a linear scan of the same packages in memory`,
  async run() {
    const folder = await mkdtemp(join(tmpdir(), 'hypermesh-bench-'));
    try {
      const assets = join(folder, 'assets');
      await mkdir(assets);
      addPackages(assets, 0, PACKAGES);
      const scan = scanner(PACKAGES);
      await using store = await openAssets({ directory: assets, clock: systemClock });
      const asked = queries();
      // Each query by the median of its rounds: what another program takes from the processor is not the query's.
      const medians = async (some: readonly AssetQuery[], answer: (query: AssetQuery) => unknown) => {
        const rounds: number[][] = some.map(() => []);
        for (let round = 0; round < ROUNDS; round++)
          for (const [i, query] of some.entries()) rounds[i]!.push(await timed(() => answer(query)));
        return rounds.map(median);
      };
      const ours = await medians(asked, (query) => store.query(query));
      const theirs = await medians(
        asked.filter((_, i) => i % SCANNED === 0),
        scan,
      );
      const reference = 'a linear scan';
      const at = (q: number) => ({ ours: [quantile(ours, q)], theirs: [quantile(theirs, q)] });
      return [
        { name: '99 % of the queries', unit: 'ms', reference, oursMax: 10, ratioMax: 1 / 20, ...at(0.99) },
        { name: 'half of the queries', unit: 'ms', reference, ratioMax: 1 / 20, ...at(0.5) },
      ];
    } finally {
      await rm(folder, { recursive: true, force: true });
    }
  },
};

/**
 * Looks at every record: all words in its name, or in any of its texts, letter case aside; those whose name holds them come first.
 * Forgives no typing errors.
 */
function scanner(count: number): (query: AssetQuery) => { readonly total: number; readonly names: readonly string[] } {
  const records = Array.from({ length: count }, (_, n) => packageNumber(n));
  return ({ text = '', type, language, owner, license, keyword }) => {
    const words = text.toLowerCase().split(/\s+/).filter(Boolean);
    const inName: string[] = [];
    const elsewhere: string[] = [];
    for (const { name, type: itsType, owner: itsOwner, manifest } of records) {
      if (type !== undefined && itsType !== type) continue;
      if (language !== undefined && manifest.language !== language) continue;
      if (owner !== undefined && itsOwner !== owner) continue;
      if (license !== undefined && manifest.license !== license) continue;
      if (keyword !== undefined && !manifest.keywords.includes(keyword)) continue;
      const all = [name, ...manifest.keywords, manifest.description, ...manifest.authors].join(' ').toLowerCase();
      if (!words.every((word) => all.includes(word))) continue;
      (words.every((word) => name.includes(word)) ? inName : elsewhere).push(name);
    }
    const names = [...inName, ...elsewhere];
    return { total: names.length, names: names.slice(0, 20) };
  };
}
