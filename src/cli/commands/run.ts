import { text as readAll } from 'node:stream/consumers';
import { EXIT, HyperMeshError } from '../../base/errors.ts';
import type { Json } from '../../base/json.ts';
import type { CatalogRun } from '../../client/index.ts';
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
    ...(limits === undefined ? {} : { limits }),
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
        throw new HyperMeshError('usage', `Expected NAME=VALUE after --env, but got "${pair.slice(0, 100)}".`);
      return [pair.slice(0, at), pair.slice(at + 1)];
    }),
  );
}

function limitsOf({ memory, timeout }: RunOptions): { memoryBytes?: number; wallMs?: number } | undefined {
  if (memory === undefined && timeout === undefined) return undefined;
  const seconds = Number(timeout ?? 1);
  if (!(seconds > 0 && seconds <= 86_400))
    throw new HyperMeshError(
      'usage',
      `Expected a number of seconds after --timeout, but got "${String(timeout).slice(0, 50)}".`,
    );
  const size = byteCount.safeParse(memory !== undefined && /^\d+$/.test(memory) ? Number(memory) : (memory ?? 0));
  if (!size.success)
    throw new HyperMeshError(
      'usage',
      `Expected a size such as 64MiB after --memory, but got "${String(memory).slice(0, 50)}".`,
    );
  return {
    ...(memory === undefined ? {} : { memoryBytes: size.data }),
    ...(timeout === undefined ? {} : { wallMs: Math.ceil(seconds * 1_000) }),
  };
}
