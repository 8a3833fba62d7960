import type { Progress } from '../base/call.ts';
import { bytes, duration, oneLine, plain } from './terminal.ts';

/** Disposed of before its end, it leaves nothing behind of what was still going on: that is not done. */
export interface ProgressView extends Disposable {
  show(progress: Progress): void;
  /** What is still going on is done. */
  end(): void;
}

type Mode = 'terminal' | 'lines' | 'late';

/** How progress is shown on `stream`: redrawn in place on a terminal, a line now and then with --verbose, else one line for each step that takes long. */
export function progressMode(stream: { readonly isTTY?: boolean }, verbose: boolean): Mode {
  if (stream.isTTY === true && process.env['TERM'] !== 'dumb') return 'terminal';
  return verbose ? 'lines' : 'late';
}

const REDRAW_MS = 80;
/** A log is not a terminal: a step that takes long says so every few seconds, or once. */
const LINE_MS = 5_000;
const LINE_LENGTH_MAX = 64 * 1024;

/** Steps may go on side by side, such as the proofs; each is reported when it begins and when it ends. */
export function showProgress(stream: NodeJS.WritableStream & { columns?: number }, mode: Mode): ProgressView {
  const going = new Map<string, { readonly startedAt: number; shownAt: number; latest: Progress }>();
  let drawnAt = 0;

  const clear = mode === 'terminal' ? '\r\u001b[2K' : '';
  /** The last line of a log, until it has its end. */
  let unfinished = '';

  /** What a program says stands above what goes on. */
  function print(log: string): void {
    const lines = (unfinished + log).split('\n');
    unfinished = lines.pop()!;
    if (unfinished.length > LINE_LENGTH_MAX) {
      lines.push(unfinished);
      unfinished = '';
    }
    if (lines.length > 0) stream.write(`${clear}${plain(lines.join('\n'))}\n`);
  }

  function finish(step: string): void {
    if (mode === 'late') {
      going.delete(step);
      return;
    }
    const took = Math.round(performance.now() - going.get(step)!.startedAt);
    going.delete(step);
    stream.write(`${clear}  ${oneLine(step)}: done${took === 0 ? '' : ` in ${duration(took)}`}\n`);
  }
  function redraw(now: number): void {
    if (now - drawnAt < REDRAW_MS) return;
    drawnAt = now;
    const latest = [...going.values()].map((each) => each.latest);
    const line = latest.map(latest.length === 1 ? describe : brief).join('  ');
    stream.write(`${clear}  ${line.slice(0, (stream.columns || 80) - 4)}`);
  }
  return {
    show(progress) {
      if (progress.log !== undefined) {
        print(progress.log);
        return;
      }
      const now = performance.now();
      const { step, done, total } = progress;
      const known = going.get(step);
      if (known === undefined) {
        // A step that counts may go on beside others; one that does not ends when the next begins.
        for (const [name, { latest }] of going) if (latest.total === undefined) finish(name);
        going.set(step, { startedAt: now, shownAt: now, latest: progress });
        if (mode === 'lines' && (total === undefined || done !== total)) stream.write(`  ${describe(progress)}\n`);
      } else {
        known.latest = progress;
        if (mode !== 'terminal' && now - known.shownAt >= LINE_MS && done !== total) {
          known.shownAt = mode === 'late' ? Number.POSITIVE_INFINITY : now;
          stream.write(`  ${describe(progress)}\n`);
        }
      }
      if (total !== undefined && done === total) finish(step);
      else if (mode === 'terminal') redraw(now);
    },
    end() {
      if (unfinished !== '') print('\n');
      for (const step of [...going.keys()]) finish(step);
    },
    [Symbol.dispose]() {
      if (going.size > 0) stream.write(clear);
      going.clear();
    },
  };
}

/** `step  part  amount  note`, as far as each is known. */
function describe(progress: Progress): string {
  const { step, done, total, unit, note } = progress;
  const amount = (value: number) => (unit === 'bytes' ? bytes(value) : value.toLocaleString('en-US'));
  const parts = [oneLine(step)];
  if (done !== undefined)
    parts.push(total ? `${percent(done, total)}  ${amount(done)} of ${amount(total)}` : amount(done));
  if (note !== undefined) parts.push(oneLine(note));
  return parts.join('  ');
}

/** For steps side by side, which share a line. */
function brief({ step, done, total }: Progress): string {
  return done !== undefined && total ? `${oneLine(step)} ${percent(done, total)}` : oneLine(step);
}

function percent(done: number, total: number): string {
  return `${Math.floor((100 * done) / total)}%`;
}
