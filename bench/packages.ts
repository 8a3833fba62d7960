import { createHash } from 'node:crypto';
import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { systemClock } from '../src/base/clock.ts';
import type { Digest } from '../src/base/digest.ts';
import { Records, type StoredRecord } from '../src/subsystems/assets/records.ts';
import { packageManifest } from '../src/wire/manifest.ts';
import type { PackageName } from '../src/wire/names.ts';

const BATCH = 2_000;

const TOPICS =
  'http json yaml parser router cache queue stream image audio video crypto hash index search graph matrix vector tensor physics'.split(
    ' ',
  );
const QUALITIES =
  'fast tiny safe typed async portable strict modern simple robust native pure lazy atomic modular stable'.split(' ');
const THINGS =
  'client server toolkit engine driver adapter bridge codec builder runner linter formatter compiler loader scheduler'.split(
    ' ',
  );
const LANGUAGES = ['wasm', 'julia', 'python', undefined] as const;
const TYPES = ['library', 'package', 'template', 'container'] as const;
const LICENSES = ['Apache-2.0', 'MIT', 'BSD-3-Clause'] as const;

/** Package number `n`: the same for everybody who asks, with words as uneven as those of real catalogs. */
export function packageNumber(n: number): StoredRecord {
  const [topic, quality, thing] = [
    TOPICS[skewed(n, TOPICS.length)]!,
    QUALITIES[n % QUALITIES.length]!,
    THINGS[n % THINGS.length]!,
  ];
  const name = `${quality}-${n % 997}/${topic}-${thing}-${n}` as PackageName;
  const digest: Digest = `sha256:${createHash('sha256').update(`package ${n}`).digest('hex')}`;
  const manifest = packageManifest.parse({
    name,
    version: '1.0.0',
    type: TYPES[n % TYPES.length],
    ...(LANGUAGES[n % 4] === undefined ? {} : { language: LANGUAGES[n % 4], entry: 'main' }),
    description: `A ${quality} ${topic} ${thing} for people who need word${n % 20_011} and little else.`,
    keywords: [topic, thing, `tag${n % 503}`],
    authors: [`Author ${n % 4_001}`],
    license: LICENSES[n % LICENSES.length],
  });
  return {
    digest,
    type: manifest.type,
    name,
    version: manifest.version,
    owner: `key-${n % 4_001}`,
    privacy: manifest.privacy,
    manifest,
    blobs: [digest],
    layers: [digest],
    bundle: digest,
    size: 1_000 + (n % 100_000),
    state: 'published',
    stateReason: null,
    createdAtMs: 1_700_000_000_000 + n,
    updatedAtMs: 1_700_000_000_000 + n,
  };
}

/** Puts packages `from` to `to` into the index of an assets folder that nobody has open. */
export function addPackages(assets: string, from: number, to: number): void {
  using records = new Records(join(assets, 'index.db'), systemClock);
  for (let at = from; at < to; at += BATCH) {
    records.restore(Array.from({ length: Math.min(BATCH, to - at) }, (_, i) => packageNumber(at + i)));
  }
}

/** Writes the folder of `bench/many`, a package of 5,000 files of up to a few KiB. Returns the folder. */
export async function writeManyFiles(folder: string): Promise<string> {
  await mkdir(folder);
  await writeFile(join(folder, 'catalog.yaml'), 'name: bench/many\nversion: 1.0.0\ntype: library\n');
  for (let d = 0; d < 50; d++) {
    await mkdir(join(folder, `d${d}`));
    for (let f = 0; f < 100; f++)
      await writeFile(join(folder, `d${d}`, `f${f}.txt`), `${d} ${f}\n`.repeat(1 + ((d * f) % 400)));
  }
  return folder;
}

/** The first ones often, the last ones seldom. */
function skewed(n: number, count: number): number {
  const unit = ((n * 2_654_435_761) % 2 ** 32) / 2 ** 32;
  return Math.floor(unit * unit * count);
}
