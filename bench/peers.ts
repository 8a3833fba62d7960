import { execFile } from 'node:child_process';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';

const FOLDER = join(import.meta.dirname, 'peers');

/** The path of something in `bench/peers`, installed now when it is missing. Null when it cannot be installed here. */
export async function peer(name: string, path: string): Promise<string | null> {
  const entry = join(FOLDER, 'node_modules', path);
  if (existsSync(entry)) return entry;
  process.stderr.write(`  installing ${name} (npm ci in bench/peers) …\n`);
  try {
    await promisify(execFile)('npm', ['ci', '--ignore-scripts'], { cwd: FOLDER });
    return entry;
  } catch (error) {
    const [why] = (error as Error).message.split('\n').filter((line) => line.startsWith('npm error'));
    process.stderr.write(`  reference unavailable: ${name} cannot be installed here (${why ?? 'npm ci failed'})\n`);
    return null;
  }
}
