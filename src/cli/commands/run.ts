import { text as readAll } from 'node:stream/consumers';
import { EXIT, HyperMeshError } from '../../base/errors.ts';
import type { Json } from '../../base/json.ts';
import type { CatalogRun } from '../../client/index.ts';
import type { RunRequest } from '../../wire/http.ts';
import { byteCount } from '../../wire/manifest.ts';
import type { Context, Outcome } from '../command.ts';
import { parseJson, readTextFile } from '../files.ts';
import { json, plain } from '../terminal.ts';
import { withGrants } from './grants.ts';

interface RunOptions {
  readonly input?: string;
  readonly env?: readonly string[];
  readonly memory?: string;
  readonly timeout?: string;
  readonly cpus?: string;
  readonly disk?: string;
  readonly output?: string;
  readonly fuel?: string;
  readonly allow?: readonly string[];
}

const INPUT_BYTES_MAX = 8 * 2 ** 20;
/** More than a result repeats of standard error, made visible. */
const LOGGED_KEPT = 2 ** 20;

export async function run(
  context: Context,
  ref: string,
  args: readonly string[],
  options: RunOptions,
): Promise<Outcome> {
  const input = await readInput(options.input);
  const limits = limitsOf(options);
  let logged = '';
  const onProgress: Context['onProgress'] = (progress) => {
    logged = (logged + (progress.log ?? '')).slice(-LOGGED_KEPT);
    context.onProgress?.(progress);
  };
  const request = {
    ref,
    input,
    ...(args.length === 0 ? {} : { args: [...args] }),
    ...(options.env === undefined ? {} : { environment: environmentOf(options.env) }),
    ...(Object.keys(limits).length === 0 ? {} : { limits }),
  };
  const result = await context.withNode((client) =>
    withGrants(context, client, options.allow ?? [], () => client.run(request, { signal: context.signal, onProgress })),
  );
  return describe(context, result, logged);
}

/** `logged`: what was shown already. A report may be lost on its way; then all is shown again. */
function describe(context: Context, result: CatalogRun, logged: string): Outcome {
  const { output, usage, exitCode, termination, reason, ref, id, text, stderr, enforcedBy } = result;
  const failed = termination !== 'exit' || exitCode !== 0;
  if (!context.json) {
    if (stderr !== '' && !logged.endsWith(stderr))
      process.stderr.write(stderr.endsWith('\n') ? plain(stderr) : `${plain(stderr)}\n`);
    const why = reason?.replace(/\.$/, '') ?? `exit status ${exitCode}`;
    if (failed) context.note(`${ref} failed: ${why} (${termination}).`);
  }
  return {
    data: { output, usage, exit: exitCode, termination, reason, text, stderr, ref, id, enforcedBy },
    text: text === null ? (output === null ? '' : json(output)) : plain(text),
    ...(failed ? { exit: EXIT.program } : {}),
  };
}

/** JSON itself, `@FILE`, or `-` for standard input. */
async function readInput(given: string | undefined): Promise<Json> {
  if (given === undefined) return null;
  if (given === '-') return parseJson(await readAll(process.stdin), 'on standard input');
  if (given.startsWith('@'))
    return parseJson(await readTextFile(given.slice(1), INPUT_BYTES_MAX), `in ${given.slice(1)}`);
  return parseJson(given, 'after --input');
}

function environmentOf(pairs: readonly string[]): Record<string, string> {
  return Object.fromEntries(
    pairs.map((pair) => {
      const at = pair.indexOf('=');
      if (at <= 0)
        throw new HyperMeshError('usage', `Expected NAME=VALUE after --env, but got "${pair.slice(0, 100)}".`, {
          hint: 'Arguments of the program come before --env, or after --.',
        });
      return [pair.slice(0, at), pair.slice(at + 1)];
    }),
  );
}

const SECONDS_MAX = 86_400;
const CPUS_MAX = 4_096;

/** Nothing stands in it that was not asked for. */
function limitsOf({ memory, timeout, cpus, disk, output, fuel }: RunOptions): NonNullable<RunRequest['limits']> {
  return {
    ...(memory === undefined ? {} : { memoryBytes: size('--memory', memory) }),
    ...(timeout === undefined
      ? {}
      : { wallMs: Math.ceil(amount('--timeout', timeout, 'a number of seconds', SECONDS_MAX) * 1_000) }),
    ...(cpus === undefined ? {} : { cpuCores: amount('--cpus', cpus, 'a number of processors', CPUS_MAX) }),
    ...(disk === undefined ? {} : { tmpBytes: size('--disk', disk) }),
    ...(output === undefined ? {} : { outputBytes: size('--output', output) }),
    ...(fuel === undefined
      ? {}
      : { fuel: Math.ceil(amount('--fuel', fuel, 'a number of instructions', Number.MAX_SAFE_INTEGER)) }),
  };
}

function amount(option: string, text: string, what: string, max: number): number {
  const value = Number(text);
  if (value > 0 && value <= max) return value;
  throw new HyperMeshError(
    'usage',
    `Expected ${what}, at most ${max}, after ${option}, but got "${text.slice(0, 50)}".`,
  );
}

function size(option: string, text: string): number {
  const parsed = byteCount.safeParse(/^\d+$/.test(text) ? Number(text) : text);
  if (parsed.success) return parsed.data;
  throw new HyperMeshError('usage', `Expected a size such as 64MiB after ${option}, but got "${text.slice(0, 50)}".`);
}
