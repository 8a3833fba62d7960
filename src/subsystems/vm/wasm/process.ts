import { type ChildProcessByStdio, spawn } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';
import type { Readable, Writable } from 'node:stream';
import { fileURLToPath } from 'node:url';
import { siblingModule } from '../../../base/module.ts';
import { BOX_FRAME_MAX, FRAME, frameHead } from './frames.ts';

/** All that a box may read of this machine: its own source. */
const SOURCES = [
  ...['box-child', 'abi', 'binary', 'component', 'files', 'frames', 'fuel', 'link', 'meter', 'preview2', 'wasi'],
].map((name) => fileURLToPath(siblingModule(import.meta.url, `./${name}`)));
/** For the text of modules, trees and our own objects; what a program holds is outside this heap. */
const HEAP_MIB = 128;
const DIAGNOSTICS_MAX = 8 * 1024;

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
  readonly #child: ChildProcessByStdio<Writable, Readable, Readable>;
  #pieces: Uint8Array[] = [];
  #held = 0;
  #diagnostics = '';
  #listener: ((event: BoxEvent) => void) | undefined;
  /** Events that came before anybody listened: at most `ready` and `gone`. */
  #early: BoxEvent[] = [];
  #gone = false;

  constructor() {
    this.#child = spawn(
      process.execPath,
      [
        '--permission',
        ...SOURCES.map((path) => `--allow-fs-read=${path}`),
        '--no-addons',
        '--no-warnings',
        '--disable-proto=delete',
        '--expose-gc',
        `--max-old-space-size=${HEAP_MIB}`,
        '--max-semi-space-size=2',
        '--v8-pool-size=1',
        SOURCES[0]!,
      ],
      // Its own session: a Ctrl-C at the terminal is for the node, which then ends its boxes.
      { env: {}, cwd: '/', stdio: ['pipe', 'pipe', 'pipe'], detached: true },
    );
    this.#child.stdin.on('error', () => {});
    this.#child.stdout.on('data', (piece: Uint8Array) => this.#take(piece));
    this.#child.stderr.on('data', (piece: Buffer) => {
      this.#diagnostics = (this.#diagnostics + piece.toString('latin1')).slice(-DIAGNOSTICS_MAX);
    });
    this.#child.once('error', (error) => this.#end(null, error.message));
    this.#child.once('close', (_code, signal) => this.#end(signal, this.#diagnostics));
  }

  get pid(): number | undefined {
    return this.#child.pid;
  }

  /** Or about to be. */
  get gone(): boolean {
    return this.#gone || this.#child.killed;
  }

  listen(listener: (event: BoxEvent) => void): void {
    this.#listener = listener;
    for (const event of this.#early.splice(0)) listener(event);
  }

  send(type: number, body: Uint8Array): void {
    const { stdin } = this.#child;
    stdin.cork();
    stdin.write(frameHead(type, body.length));
    if (body.length > 0) stdin.write(body);
    stdin.uncork();
  }

  kill(): void {
    this.#child.kill('SIGKILL');
    this.#child.stdin.destroy();
  }

  /** While a box waits, it does not keep the node's process alive. */
  hold(isHeld: boolean): void {
    const { stdin, stdout, stderr } = this.#child;
    for (const handle of [this.#child, stdin, stdout, stderr] as unknown as { ref(): void; unref(): void }[]) {
      if (isHeld) handle.ref();
      else handle.unref();
    }
  }

  /** From here on `peakBytes` counts anew, where the kernel lets us. */
  forgetPeak(): void {
    if (process.platform !== 'linux' || this.pid === undefined) return;
    try {
      writeFileSync(`/proc/${this.pid}/clear_refs`, '5');
    } catch {
      // Then it is the largest of all runs in this box.
    }
  }

  /** What the kernel measured so far; null where it does not say. */
  measure(): { cpuMs: number; residentBytes: number; peakBytes: number } | null {
    if (process.platform !== 'linux' || this.pid === undefined) return null;
    try {
      const stat = readFileSync(`/proc/${this.pid}/stat`, 'latin1');
      const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
      const status = readFileSync(`/proc/${this.pid}/status`, 'latin1');
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
  /** The one that waits longest first. */
  readonly #idle = new Set<Idle<Loaded>>();
  #closed = false;

  constructor(keptMax: number) {
    this.#keptMax = keptMax;
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
    const box = found === undefined ? new BoxProcess() : this.#wake(found);
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
    if (!this.#closed && ![...this.#idle].some((idle) => idle.kept === null)) this.#rest(new BoxProcess(), null);
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
