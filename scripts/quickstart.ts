import { type ChildProcess, spawn } from 'node:child_process';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

/**
 * The main job, shown: every line that starts with `$` is a command you can type yourself.
 * `npm run quickstart` waits for Ctrl-C at the end so that you can look at the status page; `npm run quickstart -- --once` does not.
 */
const project = join(import.meta.dirname, '..');
const folder = await mkdtemp(join(tmpdir(), 'hypermesh-quickstart-'));
const env = { ...process.env, HYPERMESH_HOME: join(folder, 'home') };
const stopping = new AbortController();
let running: ChildProcess | null = null;

// A terminal that was closed cannot be written to any more; that must not keep us from cleaning up.
process.stdout.on('error', () => undefined);
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
  process.on(signal, () => {
    stopping.abort();
    // A terminal tells it, too; whoever stops this process alone does not.
    running?.kill('SIGINT');
  });
}

function say(text: string): void {
  process.stdout.write(`${text}\n`);
}

/** Runs one command as a person would, its progress shown as it goes. Resolves to what it printed on standard output. */
async function hypermesh(args: readonly string[], options: { readonly quiet?: boolean } = {}): Promise<string> {
  const shown = args.map((arg) => (/[\s{"]/.test(arg) ? `'${arg}'` : arg.replace(`${folder}/`, '')));
  say(`\n$ hypermesh ${shown.join(' ')}`);
  const child = spawn(process.execPath, [join(project, 'bin', 'hypermesh.js'), ...args], {
    env,
    cwd: project,
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  running = child;
  let output = '';
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    output += text;
    if (options.quiet !== true) process.stdout.write(text.replaceAll(`${folder}/`, ''));
  });
  const status = await new Promise<number | null>((done, failed) => child.once('error', failed).once('close', done));
  running = null;
  if (stopping.signal.aborted) throw stopping.signal.reason;
  if (status !== 0) throw new Error(`hypermesh ${args[0]} ended with status ${status}`);
  return output;
}

/** Nothing is left behind: neither the node nor its folder. */
async function cleanUp(): Promise<void> {
  const down = spawn(process.execPath, [join(project, 'bin', 'hypermesh.js'), 'down'], { env, stdio: 'ignore' });
  await new Promise((done) => down.once('close', done).once('error', done));
  await rm(folder, { recursive: true, force: true });
}

const startedAt = performance.now();
try {
  say(`A node in a fresh home, ${folder}: its keys, its network, its space commitment (100 MiB) are made now.`);
  const { http } = JSON.parse(await hypermesh(['up', '--detach', '--json'], { quiet: true })) as { http: string };
  say(`The node answers at ${http}`);

  await hypermesh(['publish', 'examples/packages/phrases', '--verbose']);
  const bundle = join(folder, 'greeter.bundle');
  await hypermesh(['publish', 'examples/packages/greeter', '--bundle', bundle, '--verbose']);
  await hypermesh(['search', 'greet']);
  await hypermesh(['install', 'hello/greeter', '--to', join(folder, 'here')]);
  await hypermesh(['verify', bundle, '--offline']);
  await hypermesh(['run', 'hello/greeter', '--input', '{"name": "Ada", "language": "fr"}']);

  say(`\nDone in ${Math.round((performance.now() - startedAt) / 1000)} s. Status page: ${http}/`);
  if (!process.argv.includes('--once')) {
    say('Press Ctrl-C to stop the node and remove everything.');
    const keepAlive = setInterval(() => {}, 60_000);
    await new Promise((done) => stopping.signal.addEventListener('abort', done, { once: true }));
    clearInterval(keepAlive);
  }
} catch (error) {
  if (!stopping.signal.aborted) {
    say(`\nThe quickstart stopped: ${error instanceof Error ? error.message : String(error)}`);
    process.exitCode = 1;
  }
} finally {
  say('\nCleaning up.');
  await cleanUp();
}
