import { access, constants, stat, statfs } from 'node:fs/promises';
import { findPackageJSON } from 'node:module';
import { createServer } from 'node:net';
import path from 'node:path';
import { EXIT, isCoded, toProblem } from '../../base/errors.ts';
import type { RuntimeStatus } from '../../capabilities/vm.ts';
import type { Client } from '../../client/index.ts';
import type { Config } from '../../config.ts';
import type { Context, Outcome } from '../command.ts';
import { findNode } from '../connect.ts';
import { bytes, date, plain } from '../terminal.ts';
import { spaceLine } from './status.ts';

interface Finding {
  readonly check: string;
  /** `warn`: something optional is missing. */
  readonly verdict: 'ok' | 'warn' | 'fail';
  readonly says: string;
  readonly remedy: string | null;
}

const NODE_MAJOR_MIN = 26;
const FREE_BYTES_MIN = 1 * 2 ** 30;

export async function doctor(context: Context): Promise<Outcome> {
  const { config } = await context.load();
  const findings = [
    checkNode(),
    await checkHome(config),
    await checkSpace(config),
    await checkClock(),
    await checkPort(config),
  ];
  try {
    findings.push(...(await context.withNode((client) => checkRunning(client))));
  } catch (error) {
    if (isCoded(error, 'cancelled')) throw error;
    const { message, hint } = toProblem(error);
    findings.push(fail('node', message, hint ?? 'Run `hypermesh up` to see more.'));
  }
  const failed = findings.filter(({ verdict }) => verdict === 'fail').length;
  const lines = findings.flatMap(({ check, verdict, says, remedy }) => [
    `${verdict.padEnd(5)} ${check.padEnd(15)} ${plain(says)}`,
    ...(remedy === null ? [] : [`${' '.repeat(22)}-> ${plain(remedy)}`]),
  ]);
  lines.push(failed === 0 ? '\nThis machine can run a node.' : `\n${failed} of ${findings.length} checks failed.`);
  return {
    data: { ok: failed === 0, checks: findings },
    text: lines.join('\n'),
    ...(failed === 0 ? {} : { exit: EXIT.unavailable }),
  };
}

function ok(check: string, says: string): Finding {
  return { check, verdict: 'ok', says, remedy: null };
}

function fail(check: string, says: string, remedy: string): Finding {
  return { check, verdict: 'fail', says, remedy };
}

function checkNode(): Finding {
  const says = `${process.version} on ${process.platform} ${process.arch}`;
  if (Number.parseInt(process.versions.node, 10) >= NODE_MAJOR_MIN) return ok('node', says);
  return fail('node', `${says}; Node ${NODE_MAJOR_MIN} is needed`, 'Run `npm ci` again: it installs the pinned Node.');
}

async function checkHome({ home }: Config): Promise<Finding> {
  const folder = await nearestFolder(home);
  const writable = await access(folder, constants.W_OK | constants.X_OK).then(
    () => true,
    () => false,
  );
  if (!writable)
    return fail('home', `${folder} cannot be written`, 'Choose another folder with --home or HYPERMESH_HOME.');
  return ok('home', folder === home ? home : `${home} (will be made)`);
}

async function checkSpace({ home }: Config): Promise<Finding> {
  const { bavail, bsize } = await statfs(await nearestFolder(home));
  const free = bavail * bsize;
  if (free >= FREE_BYTES_MIN) return ok('disk', `${bytes(free)} free`);
  return fail(
    'disk',
    `${bytes(free)} free, ${bytes(FREE_BYTES_MIN)} needed`,
    'Free some space, or choose another --home.',
  );
}

/** The folder itself, or the nearest one above it that exists. */
async function nearestFolder(folder: string): Promise<string> {
  for (let at = folder; ; at = path.dirname(at)) {
    if ((await stat(at).catch(() => null)) !== null || at === path.dirname(at)) return at;
  }
}

/** Certificates and proofs depend on the time; a clock before this very program was installed is wrong. */
async function checkClock(): Promise<Finding> {
  const installed = await stat(findPackageJSON(import.meta.url)!);
  if (Date.now() >= installed.mtimeMs) return ok('clock', `${date(Date.now())} UTC`);
  return fail('clock', `${date(Date.now())} UTC is before this program was installed`, 'Set the clock, best by NTP.');
}

async function checkPort({ home, http: { host, port } }: Config): Promise<Finding> {
  const running = await findNode(home);
  if (running !== null) return ok('address', `${running.http} answers`);
  const server = createServer();
  const { promise, resolve } = Promise.withResolvers<Finding>();
  server.once('error', (error: NodeJS.ErrnoException) =>
    resolve(fail('address', `${host}:${port} cannot be used (${error.code})`, 'Choose another address with --http.')),
  );
  server.listen(port, host, () => resolve(ok('address', `${host}${port === 0 ? ', any port' : `:${port}`}`)));
  return promise.finally(() => server.close());
}

async function checkRunning(client: Client): Promise<Finding[]> {
  const [status, keys, runtimes] = await Promise.all([client.status(), client.keys(), client.runtimes()]);
  const { space } = status;
  const untilMs = keys.publisher.notAfterMs;
  return [
    keys.publisher.status === 'valid'
      ? ok('keys', `${keys.publisher.subject}, certificate until ${date(untilMs)}`)
      : fail('keys', `the publisher certificate is ${keys.publisher.status}`, 'Run `hypermesh cert renew publisher`.'),
    space.state === 'damaged'
      ? fail('space', 'the space commitment is damaged', 'Leave the node up: it builds it again.')
      : ok('space', spaceLine(space)),
    ...runtimes.map(
      ({ kind, available, version, reason }): Finding =>
        available
          ? ok(`run ${kind}`, version ?? 'available')
          : { check: `run ${kind}`, verdict: 'warn', says: 'not available', remedy: oneLine(reason) },
    ),
    ...limitsOf(runtimes).map(checkLimit),
  ];
}

/** A program that was tried may have said several. */
function oneLine(text: string | null): string | null {
  return text === null ? null : text.trim().replace(/\s*\n\s*/g, ' | ');
}

/** Limits that the kernel holds for a program as a whole only where it lends control groups. */
const COUNTED = ['memory', 'cpu', 'pids'];

interface Limit {
  readonly limit: string;
  readonly mechanism: string;
  /** Kinds of programs that it holds for. */
  readonly kinds: readonly string[];
}

/** Every limit, once for each way in which it is held here. */
function limitsOf(runtimes: readonly RuntimeStatus[]): readonly Limit[] {
  const all = runtimes.flatMap(({ kind, enforces = {} }) =>
    Object.entries(enforces).map(([limit, mechanism]) => ({ kind, limit, mechanism })),
  );
  const groups = Map.groupBy(all, ({ limit, mechanism }) => `${limit}\0${mechanism}`);
  return [...groups.values()]
    .map((group) => ({ ...group[0]!, kinds: group.map(({ kind }) => kind) }))
    .sort((one, other) => (one.limit < other.limit ? -1 : Number(one.limit > other.limit)));
}

/** By what a limit is held here. */
function checkLimit({ limit, mechanism, kinds }: Limit): Finding {
  const check = `limit ${limit}`;
  const says = `${mechanism} (${kinds.join(', ')})`;
  if (!COUNTED.includes(limit) || !/^(watchdog|affinity|RLIMIT)/.test(mechanism)) return ok(check, says);
  return {
    check,
    verdict: 'warn',
    says: `${says}; a control group would hold it more exactly`,
    remedy: 'Start the node where it may make control groups: as root, or as a service of `systemctl --user`.',
  };
}
