import module from 'node:module';
import { main } from '../../src/cli/main.ts';
import type { Asked, Ran } from './support.ts';

/**
 * Runs commands as `bin/hypermesh.js` runs one, each when the one before it has ended: hundreds of them are run by tests, and what takes most of the
 * time of a command is to start. Ends with the process that asks.
 */
module.enableCompileCache();
let printed: Buffer[] = [];
let complained: Buffer[] = [];
capture(process.stdout, (bytes) => printed.push(bytes));
capture(process.stderr, (bytes) => complained.push(bytes));

process.on('message', (asked: Asked) => void run(asked));
process.once('disconnect', () => process.exit());

async function run({ args, env }: Asked): Promise<void> {
  for (const name of Object.keys(process.env)) delete process.env[name];
  Object.assign(process.env, env);
  [printed, complained] = [[], []];
  process.exitCode = 0;
  await main(args);
  process.stdout.removeAllListeners('error');
  const [stdout, stderr] = [printed, complained].map((pieces) => Buffer.concat(pieces).toString('utf8'));
  process.send!({ status: process.exitCode, stdout, stderr } as Ran);
}

function capture(stream: NodeJS.WriteStream, take: (bytes: Buffer) => void): void {
  stream.write = (chunk: string | Uint8Array, ...rest: readonly unknown[]) => {
    take(Buffer.from(chunk as string));
    const done = rest.at(-1);
    if (typeof done === 'function') process.nextTick(done as () => void);
    return true;
  };
}
