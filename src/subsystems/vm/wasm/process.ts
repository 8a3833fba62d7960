import { type ChildProcessByStdio, spawn } from 'node:child_process';
import { readFileSync } from 'node:fs';
import type { Readable, Writable } from 'node:stream';
import { fileURLToPath } from 'node:url';
import { siblingModule } from '../../../base/module.ts';
import { BOX_FRAME_MAX, FRAME, frameHead } from './frames.ts';

/** All that a box may read of this machine: its own source. */
const SOURCES = ['./box-child', './binary', './files', './frames', './meter', './wasi'].map((name) =>
  fileURLToPath(siblingModule(import.meta.url, name)),
);
/** For the text of modules, trees and our own objects; what a program holds is outside this heap. */
const HEAP_MIB = 128;
const DIAGNOSTICS_MAX = 8 * 1024;

export type BoxEvent =
  | { readonly kind: 'frame'; readonly type: number; readonly body: Uint8Array }
  /** The process is gone; `text` is the last it said on standard error. */
  | { readonly kind: 'gone'; readonly signal: string | null; readonly text: string };

/**
 * One process that runs one program (`box-child.ts`). It cannot open files, sockets, processes, threads, addons or an inspector: Node's permission
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

  get gone(): boolean {
    return this.#gone;
  }

  listen(listener: (event: BoxEvent) => void): void {
    this.#listener = listener;
    for (const event of this.#early.splice(0)) listener(event);
  }

  send(type: number, body: Uint8Array): void {
    this.#child.stdin.write(frameHead(type, body.length));
    if (body.length > 0) this.#child.stdin.write(body);
  }

  kill(): void {
    this.#child.kill('SIGKILL');
    this.#child.stdin.destroy();
  }

  /** While a spare box waits, it does not keep the node's process alive. */
  hold(isHeld: boolean): void {
    const { stdin, stdout, stderr } = this.#child;
    for (const handle of [this.#child, stdin, stdout, stderr] as unknown as { ref(): void; unref(): void }[]) {
      if (isHeld) handle.ref();
      else handle.unref();
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
const SPARE_MS = 30_000;

/** Starts boxes, and keeps one spare for a while after a run, because starting one takes longer than most programs run. */
export class BoxPool implements Disposable {
  #spare: { readonly box: BoxProcess; readonly timer: NodeJS.Timeout } | undefined;
  #closed = false;

  /** A box that waits for its order. Throws an Error that says why there is none. */
  async take(): Promise<BoxProcess> {
    const spare = this.#spare;
    this.#spare = undefined;
    if (spare !== undefined) clearTimeout(spare.timer);
    const box = spare === undefined || spare.box.gone ? new BoxProcess() : spare.box;
    box.hold(true);
    await ready(box);
    return box;
  }

  /** To be called after a run. */
  refill(): void {
    if (this.#closed || this.#spare !== undefined) return;
    const box = new BoxProcess();
    box.hold(false);
    const timer = setTimeout(() => {
      this.#spare = undefined;
      box.kill();
    }, SPARE_MS).unref();
    this.#spare = { box, timer };
  }

  [Symbol.dispose](): void {
    this.#closed = true;
    if (this.#spare === undefined) return;
    clearTimeout(this.#spare.timer);
    this.#spare.box.kill();
    this.#spare = undefined;
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
