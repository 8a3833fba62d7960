import { cp, mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { HyperMesh } from '../src/index.ts';
import { SMALL_NETWORK } from './system/support.ts';

/**
 * Homes of a small network that were opened once and closed again. To make the keys of a home, and its commitment, takes two thirds of its first start:
 * a run of all tests makes some before its first test, and tests that are about networks, not about the first start, begin with copies of them.
 */
const FOLDER = 'HYPERMESH_TEST_HOMES';
/** As many as the largest networks of one test file have. */
const COUNT = 6;

/** Makes them in a folder, for this process and those that it starts. */
export async function makeHomes(folder: string): Promise<void> {
  await Promise.all(
    Array.from({ length: COUNT }, async (_, at) => {
      const home = join(folder, `${at}`);
      await mkdir(home, { mode: 0o700 });
      await using _opened = await HyperMesh.create({ home, network: SMALL_NETWORK, threads: 1 });
    }),
  );
  process.env[FOLDER] = folder;
}

let taken = 0;

/** Fills a home that was never opened, each time with another one; leaves it empty where there is none, as when one test file is run alone. */
export async function fillHome(home: string): Promise<void> {
  const folder = process.env[FOLDER];
  if (folder === undefined || taken === COUNT) return;
  await cp(join(folder, `${taken++}`), home, { recursive: true, preserveTimestamps: true });
}
