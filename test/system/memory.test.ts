import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { existsSync } from 'node:fs';
import { mkdir, open, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { promisify } from 'node:util';
import { freshHome, type Home, nodeOf, PROJECT, SMALL_NETWORK } from './support.ts';

const MIB = 2 ** 20;
/** A commitment as large as that of a home that is no test, of which every label is cheaper. */
const { requirements, space } = { ...SMALL_NETWORK, space: { bytes: 100 * MIB, iterations: 2 } };
const SIZES_MIB = [64, 384];
/** What is collected late on a busy machine: a fifth of what the larger content has more. */
const GROWTH_MIB_MAX = 64;
const ALL_MIB_MAX = 256;

/** Said by a command when it ends. */
const TELL_PEAK = `process.on('exit', () => {
  const fs = process.getBuiltinModule('fs');
  fs.writeSync(2, '\\n' + /VmHWM:.*/.exec(fs.readFileSync('/proc/self/status', 'utf8'))[0] + '\\n');
});`;

test('memory of node and command does not grow with what is published and installed, also beside the making of a space commitment', {
  skip: existsSync('/proc/self/status') ? false : 'memory is read from /proc',
  timeout: 1_800_000,
}, async () => {
  const rows = Object.fromEntries(Object.entries(requirements).map(([name, { kind: _, ...row }]) => [name, row]));
  await using home = await freshHome({}, { network: { requirements: rows, space } });
  await home.json(['up', '--detach']);
  const { pid } = await nodeOf(home);
  const seen: { readonly node: number; readonly publish: number; readonly install: number }[] = [];
  for (const mib of SIZES_MIB) {
    const name = `ada/content-${mib}`;
    const folder = await contentFolder(join(home.folder, String(mib)), name, mib);
    const publish = await peakOf(home, 'publish', folder);
    const install = await peakOf(home, 'install', name, '--to', join(home.folder, `to-${mib}`));
    seen.push({ publish, install, node: peak(await readFile(`/proc/${pid}/status`, 'utf8')) });
  }
  const [few, many] = seen as [(typeof seen)[number], (typeof seen)[number]];
  const says = `MiB at most, for ${SIZES_MIB.join(' and ')} MiB of content: ${JSON.stringify(seen)}`;
  for (const who of ['node', 'publish', 'install'] as const) {
    assert.ok(many[who] - few[who] < GROWTH_MIB_MAX, `${who} grows; ${says}`);
    assert.ok(many[who] < ALL_MIB_MAX, `${who} takes too much; ${says}`);
  }
});

/** Most of the file is a hole; no two pieces of it are equal. */
async function contentFolder(folder: string, name: string, mib: number): Promise<string> {
  await mkdir(folder);
  await writeFile(join(folder, 'catalog.yaml'), `name: ${name}\nversion: 1.0.0\ntype: library\n`);
  await using file = await open(join(folder, 'content'), 'wx');
  await file.truncate(mib * MIB);
  for (let at = 0; at < mib * 16; at++) await file.write(`${name} ${at}`, at * (MIB / 16));
  return folder;
}

/** A process of its own, as a person starts it. */
async function peakOf({ home }: Home, ...args: string[]): Promise<number> {
  const command = join(PROJECT, 'bin', 'hypermesh.js');
  const imported = `data:text/javascript,${encodeURIComponent(TELL_PEAK)}`;
  const { stderr } = await promisify(execFile)(process.execPath, ['--import', imported, command, ...args], {
    env: { PATH: process.env['PATH'], HYPERMESH_HOME: home },
    maxBuffer: 16 * MIB,
  });
  return peak(stderr);
}

function peak(status: string): number {
  const kib = /VmHWM:\s+(\d+) kB/.exec(status)?.[1];
  assert.ok(kib !== undefined, status);
  return Number(kib) / 1024;
}
