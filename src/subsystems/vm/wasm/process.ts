import { spawn } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';
import { realpath } from 'node:fs/promises';
import path from 'node:path';
import type { Readable, Writable } from 'node:stream';
import { fileURLToPath } from 'node:url';
import { siblingModule } from '../../../base/module.ts';
import type { ProcessSandbox } from '../process/sandbox.ts';
import { BOX_FRAME_MAX, FRAME, frameHead } from './frames.ts';

const FOLDER = path.dirname(fileURLToPath(siblingModule(import.meta.url, './box-child')));
/** All that a box may read of this machine: its own source. */
const SOURCES = [
  ...['box-child', 'abi', 'binary', 'component', 'files', 'frames', 'fuel', 'link', 'meter', 'preview2', 'wasi'],
].map((name) => path.basename(fileURLToPath(siblingModule(import.meta.url, `./${name}`))));
/** For the text of modules, trees and our own objects; what a program holds is outside this heap. */
const HEAP_MIB = 128;
const DIAGNOSTICS_MAX = 8 * 1024;

/** Of Node.js, with the sources in `folder`. */
function optionsFor(folder: string): string[] {
  return [
    '--permission',
    ...SOURCES.map((name) => `--allow-fs-read=${path.join(folder, name)}`),
    '--no-addons',
    '--no-warnings',
    '--disable-proto=delete',
    '--expose-gc',
    `--max-old-space-size=${HEAP_MIB}`,
    '--max-semi-space-size=2',
    '--v8-pool-size=1',
    path.join(folder, SOURCES[0]!),
  ];
}

/** A process of Node.js that runs `box-child.ts`. */
interface Started {
  readonly stdin: Writable;
  readonly stdout: Readable;
  readonly stderr: Readable;
  /** Why it ended; `text` when more is known than it said on standard error. */
  readonly gone: Promise<{ readonly signal: string | null; readonly text: string }>;
  /** What the kernel measured so far; null where it does not say. */
  measure(): { readonly cpuMs: number; readonly residentBytes: number; readonly peakBytes: number } | null;
  /** From here on `peakBytes` counts anew, where the kernel lets us. */
  forgetPeak(): void;
  /** While it waits, it does not keep the node's process alive. */
  hold(isHeld: boolean): void;
  kill(): void;
}
export type Starter = () => Promise<Started>;

/** Held by nothing but Node's permission model. */
export async function startPlain(): Promise<Started> {
  const child = spawn(
    process.execPath,
    optionsFor(FOLDER),
    // Its own session: a Ctrl-C at the terminal is for the node, which then ends its boxes.
    { env: {}, cwd: '/', stdio: ['pipe', 'pipe', 'pipe'], detached: true },
  );
  const { stdin, stdout, stderr, pid } = child;
  return {
    ...{ stdin, stdout, stderr },
    gone: new Promise((resolve) => {
      child.once('error', ({ message }) => resolve({ signal: null, text: message }));
      child.once('close', (_code, signal) => resolve({ signal, text: '' }));
    }),
    measure: () => (pid === undefined ? null : measureProcess(pid)),
    forgetPeak() {
      if (process.platform !== 'linux' || pid === undefined) return;
      try {
        writeFileSync(`/proc/${pid}/clear_refs`, '5');
      } catch {
        // Then it is the largest of all runs in this process.
      }
    },
    hold(isHeld) {
      for (const handle of [child, stdin, stdout, stderr] as unknown as Handle[])
        if (isHeld) handle.ref();
        else handle.unref();
    },
    kill: () => void child.kill('SIGKILL'),
  };
}
type Handle = { ref(): void; unref(): void };

const DAYS_24_MS = 2 ** 31 - 1;
const PIDS = 32;
const CORES = 2;
const AT = { node: '/node', sources: '/hypermesh' };

/** The same in a hardened box of the machine. `memoryBytes`: of the whole process. */
export async function startIn(sandbox: Pick<ProcessSandbox, 'start'>, memoryBytes: number): Promise<Started> {
  const [node, sources] = await Promise.all([realpath(process.execPath), realpath(FOLDER)]);
  const box = await sandbox.start({
    command: [path.join(AT.node, path.basename(node)), ...optionsFor(AT.sources)],
    root: 'host',
    mounts: [],
    folders: [
      { source: path.dirname(node), at: AT.node, isWritable: false },
      { source: sources, at: AT.sources, isWritable: false },
    ],
    environment: {},
    hasControl: false,
    limits: {
      ...{ memoryBytes, cpuCores: CORES, wallMs: DAYS_24_MS, pids: PIDS, tmpBytes: 0, fileBytes: 1 },
      outputBytes: Number.MAX_SAFE_INTEGER,
    },
  });
  const { stdin, stdout, stderr } = box;
  let peakBytes = 0;
  return {
    ...{ stdin, stdout, stderr },
    gone: box.exit.then(({ signal, termination, reason }) => ({
      signal,
      text: `${termination === 'memory' ? 'out of memory: ' : ''}${reason ?? ''}`,
    })),
    measure() {
      const measured = box.measure();
      peakBytes = Math.max(peakBytes, measured.residentBytes);
      return { ...measured, peakBytes };
    },
    forgetPeak() {
      peakBytes = 0;
    },
    hold() {},
    kill: () => box.kill(),
  };
}

function measureProcess(pid: number): ReturnType<Started['measure']> {
  if (process.platform !== 'linux') return null;
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'latin1');
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
    const status = readFileSync(`/proc/${pid}/status`, 'latin1');
    const kibibytes = (name: string) => Number(new RegExp(`^${name}:\\s+(\\d+) kB`, 'm').exec(status)?.[1] ?? 0);
    return {
      // utime and stime, in ticks of 10 ms on every Linux
      cpuMs: (Number(fields[11]) + Number(fields[12])) * 10,
      residentBytes: kibibytes('VmRSS') * 1024,
      peakBytes: kibibytes('VmHWM') * 1024,
    };
  } catch {
    return null;
  }
}

export type BoxEvent =
  | { readonly kind: 'frame'; readonly type: number; readonly body: Uint8Array }
  /** The process is gone; `text` is the last it said on standard error. */
  | { readonly kind: 'gone'; readonly signal: string | null; readonly text: string };

/**
 * One process that runs one program, once or again (`box-child.ts`). It cannot open files, sockets, processes, threads, addons or an inspector: Node's permission
 * model refuses, and the program has no way to ask. It ends with its standard input, so it does not outlive the node even when the node is
 * killed.
 */
export class BoxProcess {
  readonly #started: Started;
  #pieces: Uint8Array[] = [];
  #held = 0;
  #diagnostics = '';
  #listener: ((event: BoxEvent) => void) | undefined;
  /** Events that came before anybody listened: at most `ready` and `gone`. */
  #early: BoxEvent[] = [];
  #gone = false;
  #killed = false;

  constructor(started: Started) {
    this.#started = started;
    started.stdin.on('error', () => {});
    started.stdout.on('error', () => {});
    started.stderr.on('error', () => {});
    started.stdout.on('data', (piece: Uint8Array) => this.#take(piece));
    started.stderr.on('data', (piece: Buffer) => {
      this.#diagnostics = (this.#diagnostics + piece.toString('latin1')).slice(-DIAGNOSTICS_MAX);
    });
    void started.gone.then(({ signal, text }) => this.#end(signal, `${text} ${this.#diagnostics}`));
  }

  /** Or about to be. */
  get gone(): boolean {
    return this.#gone || this.#killed;
  }

  listen(listener: (event: BoxEvent) => void): void {
    this.#listener = listener;
    for (const event of this.#early.splice(0)) listener(event);
  }

  send(type: number, body: Uint8Array): void {
    const { stdin } = this.#started;
    stdin.cork();
    stdin.write(frameHead(type, body.length));
    if (body.length > 0) stdin.write(body);
    stdin.uncork();
  }

  kill(): void {
    this.#killed = true;
    this.#started.kill();
    this.#started.stdin.destroy();
  }

  hold(isHeld: boolean): void {
    this.#started.hold(isHeld);
  }

  forgetPeak(): void {
    this.#started.forgetPeak();
  }

  measure(): ReturnType<Started['measure']> {
    return this.#started.measure();
  }

  #take(piece: Uint8Array): void {
    this.#pieces.push(piece);
    this.#held += piece.length;
    while (this.#held >= 5) {
      if (this.#pieces[0]!.length < 5) this.#pieces = [Buffer.concat(this.#pieces)];
      const first = this.#pieces[0]!;
      const length = new DataView(first.buffer, first.byteOffset).getUint32(0, true);
      if (length === 0 || length > BOX_FRAME_MAX) {
        this.kill();
        return;
      }
      if (this.#held < 4 + length) return;
      const all = this.#pieces.length === 1 ? first : Buffer.concat(this.#pieces);
      const rest = all.subarray(4 + length);
      this.#pieces = rest.length === 0 ? [] : [rest];
      this.#held = rest.length;
      this.#tell({ kind: 'frame', type: all[4]!, body: all.subarray(5, 4 + length) });
    }
  }

  #end(signal: string | null, text: string): void {
    if (this.#gone) return;
    this.#gone = true;
    this.#tell({ kind: 'gone', signal, text });
  }

  #tell(event: BoxEvent): void {
    if (this.#listener === undefined) this.#early.push(event);
    else this.#listener(event);
  }
}

const READY_MS_MAX = 30_000;
const IDLE_MS = 30_000;

/** A box that knows its program, under a key that says which. */
interface Kept {
  readonly key: string;
  readonly box: BoxProcess;
}

interface Idle<Loaded extends Kept> {
  readonly box: BoxProcess;
  /** null: it has no program yet. */
  readonly kept: Loaded | null;
  readonly timer: NodeJS.Timeout;
}

/**
 * Boxes that wait: those in which a program ran well, each for another run of that same program and no other, and a blank one, because
 * starting one takes longer than most programs run. Nothing waits longer than half a minute.
 */
export class BoxPool<Loaded extends Kept> implements Disposable {
  readonly #keptMax: number;
  readonly #start: Starter;
  #starting = false;
  /** The one that waits longest first. */
  readonly #idle = new Set<Idle<Loaded>>();
  #closed = false;

  constructor(keptMax: number, start: Starter) {
    this.#keptMax = keptMax;
    this.#start = start;
  }

  /** The box that last ran the program of that key. */
  takeKept(key: string): Loaded | null {
    const found = [...this.#idle].findLast((idle) => idle.kept?.key === key && !idle.box.gone);
    if (found === undefined) return null;
    this.#wake(found);
    return found.kept;
  }

  /** A box that waits for its first program. Throws an Error that says why there is none. */
  async takeBlank(): Promise<BoxProcess> {
    const found = [...this.#idle].find((idle) => idle.kept === null && !idle.box.gone);
    const box = found === undefined ? new BoxProcess(await this.#start()) : this.#wake(found);
    await ready(box);
    return box;
  }

  /** For a box that is as it was before its run. */
  keep(loaded: Loaded): void {
    const kept = [...this.#idle].filter((idle) => idle.kept !== null);
    if (kept.length >= this.#keptMax && kept[0] !== undefined) this.#drop(kept[0]);
    if (this.#closed || this.#keptMax === 0 || loaded.box.gone) loaded.box.kill();
    else this.#rest(loaded.box, loaded);
  }

  /** To be called after a run. */
  refill(): void {
    if (this.#closed || this.#starting || [...this.#idle].some((idle) => idle.kept === null)) return;
    this.#starting = true;
    this.#start()
      .then(
        (started) => {
          const box = new BoxProcess(started);
          if (this.#closed) box.kill();
          else this.#rest(box, null);
        },
        // Whoever needs one starts one, and is told why there is none.
        () => {},
      )
      .finally(() => {
        this.#starting = false;
      });
  }

  [Symbol.dispose](): void {
    this.#closed = true;
    for (const idle of this.#idle) this.#drop(idle);
  }

  #rest(box: BoxProcess, kept: Loaded | null): void {
    box.hold(false);
    const idle = { box, kept, timer: setTimeout(() => this.#drop(idle), IDLE_MS).unref() };
    this.#idle.add(idle);
    // What it says now, nobody asked for. The first word of a blank box is for who takes it.
    if (kept !== null) box.listen(() => this.#drop(idle));
  }

  #wake(idle: Idle<Loaded>): BoxProcess {
    clearTimeout(idle.timer);
    this.#idle.delete(idle);
    idle.box.hold(true);
    return idle.box;
  }

  #drop(idle: Idle<Loaded>): void {
    clearTimeout(idle.timer);
    this.#idle.delete(idle);
    idle.box.kill();
  }
}

function ready(box: BoxProcess): Promise<void> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => {
      box.kill();
      reject(new Error(`the box was not ready after ${READY_MS_MAX} ms`));
    }, READY_MS_MAX);
    box.listen((event) => {
      clearTimeout(timer);
      if (event.kind === 'frame' && event.type === FRAME.ready) {
        resolve();
      } else {
        box.kill();
        reject(
          new Error(
            event.kind === 'gone' ? event.text.trim().slice(-500) || 'the box ended at once' : 'bad first frame',
          ),
        );
      }
    });
  });
}
