import { createHash } from 'node:crypto';
import { type FileHandle, open } from 'node:fs/promises';
import { join } from 'node:path';
import type { CallOptions } from '../../../base/call.ts';
import { HyperMeshError, storing } from '../../../base/errors.ts';
import type { MachineSnapshot, SnapshotOrigin } from '../../../wire/machine-snapshot.ts';
import { visible } from '../output.ts';
import type { Box, BoxExit } from '../process/box.ts';
import type { ProcessSandbox } from '../process/sandbox.ts';
import { KVM } from './accelerator.ts';
import { EMULATOR_BYTES, EMULATOR_PIDS, type Emulator, guestArguments, processorOf } from './emulator.ts';
import { readGuest } from './guest.ts';
import { digestOfFile } from './snapshots.ts';

const MiB = 2 ** 20;
const BOOT_MS_MAX = 180_000;
const CONSOLE_KEPT = 8 * 1024;
const CONSOLE_SHOWN = 600;
const MONITOR_BYTES_MAX = MiB;
const STATE_MARK = Buffer.from('\n--- state ---\n');

/** Shell script: makes the disk that may be written, of $1 bytes; nothing is in it yet. */
export const SCRATCH = '[ "$1" = 0 ] || dd if=/dev/zero of=/tmp/scratch bs=1 count=0 seek="$1" 2>/dev/null; shift; ';
/** Shell script: runs the machine, waits for what is kept of it, and prints that. Descriptor 6: what the guest writes. */
const KEEP = `${SCRATCH}"$@" 6>&2 || exit
while [ -e /tmp/unfinished ]; do sleep 0.02; done
[ -e /tmp/state ] || exit 1
printf '\\n--- state ---\\n'
exec cat /tmp/state`;

export interface BootOptions extends Pick<CallOptions, 'signal'> {
  readonly emulator: Emulator;
  /** Folder of the package. */
  readonly tree: string;
  /** The snapshot to be: `files` is in it already, `state` will be. */
  readonly folder: string;
}

/**
 * Starts a machine, waits until its guest says that it is ready, and keeps it as it is then.
 * Errors: `program-invalid` with the last words of the console, `runtime-unavailable`, `storage-*`, `cancelled`.
 */
export async function boot(
  sandbox: ProcessSandbox,
  origin: SnapshotOrigin,
  { emulator, tree, folder, signal }: BootOptions,
): Promise<Omit<MachineSnapshot, 'formatVersion' | 'origin' | 'madeAtMs'>> {
  const memoryBytes = origin.memoryMiB * MiB;
  const stateBytesMax = memoryBytes + 64 * MiB;
  const tmpBytes = stateBytesMax + origin.scratchBytes;
  const { khz } = await processorOf();
  const box = await sandbox.start(
    {
      command: [
        ...['/bin/sh', '-c', KEEP, 'sh', String(origin.scratchBytes), emulator.path],
        ...['-chardev', 'stdio,id=monitor,signal=off', '-mon', 'chardev=monitor,mode=control'],
        ...['-chardev', 'socket,id=control,fd=3', '-chardev', 'socket,id=console,fd=6'],
        ...['input', 'output', 'log'].flatMap((name) => ['-chardev', `null,id=${name}`]),
        ...guestArguments(origin, khz),
      ],
      root: emulator.root,
      mounts: [
        { source: tree, at: '/package' },
        { source: folder, at: '/snapshot' },
      ],
      environment: { PATH: '/usr/bin:/bin' },
      ...(origin.accelerator === 'kvm' ? { devices: [KVM] } : {}),
      limits: {
        memoryBytes: memoryBytes + EMULATOR_BYTES + tmpBytes,
        cpuCores: origin.processors,
        wallMs: BOOT_MS_MAX,
        pids: EMULATOR_PIDS + origin.processors,
        tmpBytes,
        fileBytes: tmpBytes,
        outputBytes: stateBytesMax + MONITOR_BYTES_MAX,
      },
    },
    { signal },
  );
  const machine = new Booting(box);
  const console = lastOf(box);
  const following = machine.follow(join(folder, 'state')).catch((error: unknown) => {
    box.kill();
    throw error;
  });
  const [state, exit] = await Promise.all([following, box.exit]);
  // What was cut off is not what the machine was.
  if (state === null || machine.bootMs === null || exit.termination !== 'exit' || exit.exitCode !== 0)
    throw await failure(machine.failure, exit, console, signal);
  const files = join(folder, 'files');
  await using handle = await open(files);
  const { size } = await handle.stat();
  return { state, files: { digest: await digestOfFile(files), bytes: size }, bootMs: machine.bootMs };
}

async function failure(
  said: string | null,
  exit: BoxExit,
  console: Promise<Buffer>,
  signal: AbortSignal | undefined,
): Promise<HyperMeshError> {
  if (signal?.aborted || (exit.termination === 'cancelled' && said === null))
    return new HyperMeshError('cancelled', 'The run was cancelled before the machine was ready.', {
      cause: signal?.reason,
    });
  if (exit.termination === 'sandbox')
    return new HyperMeshError('runtime-unavailable', `The machine could not be started: ${exit.reason}`);
  const why = said ?? exit.reason ?? 'it ended by itself.';
  const shown = visible((await console).toString('utf8'))
    .trim()
    .slice(-CONSOLE_SHOWN);
  return new HyperMeshError(
    'program-invalid',
    `The machine did not become ready: ${why.replace(/\.?$/, '.')}${shown === '' ? '' : ` Its console ended with: ${shown}`}`,
    { hint: 'The guest says `ready 1` on its port hypermesh.control: docs/protocol/guest.md.' },
  );
}

/** A machine until it is kept: the guest says that it is ready, the emulator is told to write down all it knows, and ends. */
class Booting {
  readonly #box: Box;
  readonly #startMs = performance.now();
  bootMs: number | null = null;
  failure: string | null = null;

  constructor(box: Box) {
    this.#box = box;
  }

  /** What was kept; null when it was not. */
  async follow(file: string): Promise<MachineSnapshot['state'] | null> {
    void this.#listen();
    this.#order('qmp_capabilities');
    const events = [{ capability: 'events', state: true }];
    this.#order('migrate-set-capabilities', { capabilities: events });
    // The default would take seconds.
    this.#order('migrate-set-parameters', { 'max-bandwidth': 2 ** 40 });
    let head: Buffer = Buffer.alloc(0);
    await using stack = new AsyncDisposableStack();
    let kept: FileHandle | null = null;
    const hash = createHash('sha256');
    let bytes = 0;
    const keep = async (handle: FileHandle, piece: Buffer) => {
      hash.update(piece);
      bytes += piece.length;
      await storing('keeping a snapshot', () => handle.writeFile(piece));
    };
    for await (const piece of this.#box.stdout as AsyncIterable<Buffer>) {
      if (kept !== null) {
        await keep(kept, piece);
        continue;
      }
      head = Buffer.concat([head, piece]);
      const mark = head.indexOf(STATE_MARK);
      head = this.#obey(head, mark);
      if (mark < 0) continue;
      kept = stack.use(await storing('keeping a snapshot', () => open(file, 'wx', 0o644)));
      await kept.chmod(0o644);
      await keep(kept, head);
    }
    return kept === null || this.failure !== null || bytes === 0
      ? null
      : { digest: `sha256:${hash.digest('hex')}`, bytes };
  }

  async #listen(): Promise<void> {
    try {
      for await (const word of readGuest(this.#box.control)) {
        if (word.kind !== 'ready') throw new Error('it ended its program before it was ready');
        if (this.bootMs !== null) throw new Error('it said twice that it is ready');
        this.bootMs = Math.round(performance.now() - this.#startMs);
        this.#order('migrate', { uri: 'exec:cat > /tmp/unfinished && mv /tmp/unfinished /tmp/state' });
      }
    } catch (error) {
      this.#fail((error as Error).message);
    }
  }

  /** Lines of the emulator before the mark; returns what is behind them. */
  #obey(said: Buffer, mark: number): Buffer {
    const end = mark < 0 ? said.lastIndexOf('\n') + 1 : mark;
    for (const line of said.subarray(0, end).toString('utf8').split('\n')) {
      const { event, data, error } = parse(line);
      if (event === 'MIGRATION' && data?.status === 'completed') this.#order('quit');
      if (event === 'MIGRATION' && data?.status === 'failed') this.#fail('the emulator could not keep it');
      if (error !== undefined) this.#fail(`the emulator said ${JSON.stringify(error).slice(0, 200)}`);
    }
    if (said.length - end > MONITOR_BYTES_MAX) this.#fail('the emulator said too much');
    return said.subarray(mark < 0 ? end : mark + STATE_MARK.length);
  }

  #order(command: string, args?: object): void {
    this.#box.stdin.write(`${JSON.stringify({ execute: command, ...(args && { arguments: args }) })}\n`);
  }

  #fail(why: string): void {
    // Its end is no failure once it is kept.
    this.failure ??= why;
    this.#box.kill();
  }
}

interface Said {
  readonly event?: string;
  readonly data?: { readonly status?: string };
  readonly error?: unknown;
}

function parse(line: string): Said {
  try {
    return line.trim() === '' ? {} : (JSON.parse(line) as Said);
  } catch {
    return {};
  }
}

async function lastOf({ stderr }: Box): Promise<Buffer> {
  let last: Buffer = Buffer.alloc(0);
  try {
    for await (const piece of stderr as AsyncIterable<Buffer>)
      last = Buffer.concat([last, piece]).subarray(-CONSOLE_KEPT);
  } catch {
    // A pipe of a box that was killed may end by an error.
  }
  return last;
}
