import type { Progress } from '../base/call.ts';
import { bytes, duration, oneLine } from './terminal.ts';

export interface ProgressView extends Disposable {
  show(progress: Progress): void;
}

type Mode = 'terminal' | 'lines' | 'none';

/** How progress is shown on `stream`: redrawn in place on a terminal, a line now and then with --verbose, else not at all. */
export function progressMode(stream: { readonly isTTY?: boolean }, verbose: boolean): Mode {
  if (stream.isTTY === true && process.env['TERM'] !== 'dumb') return 'terminal';
  return verbose ? 'lines' : 'none';
}

const REDRAW_MS = 80;
/** A log is not a terminal: a step that takes long says so every few seconds. */
const LINE_MS = 5_000;

/** Steps may go on side by side, such as the proofs; each is reported when it begins and when it ends. */
export function showProgress(stream: NodeJS.WritableStream & { columns?: number }, mode: Mode): ProgressView {
  const going = new Map<string, { readonly startedAt: number; shownAt: number; latest: Progress }>();
  let drawnAt = 0;

  function finish(step: string): void {
    const { startedAt } = going.get(step)!;
    going.delete(step);
    const clear = mode === 'terminal' ? '\r\u001b[2K' : '';
    stream.write(`${clear}  ${oneLine(step)}: done in ${duration(performance.now() - startedAt)}\n`);
  }
  function redraw(now: number): void {
    if (now - drawnAt < REDRAW_MS) return;
    drawnAt = now;
    const line = [...going.values()].map(({ latest }) => describe(latest)).join(' | ');
    stream.write(`\r\u001b[2K  ${line.slice(0, (stream.columns ?? 80) - 4)}`);
  }
  return {
    show(progress) {
      if (mode === 'none') return;
      const now = performance.now();
      const { step, done, total } = progress;
      const known = going.get(step);
      if (known === undefined) {
        // A step that counts may go on beside others; one that does not ends when the next begins.
        for (const [name, { latest }] of going) if (latest.total === undefined) finish(name);
        going.set(step, { startedAt: now, shownAt: now, latest: progress });
        if (mode === 'lines') stream.write(`  ${describe(progress)}\n`);
      } else {
        known.latest = progress;
        if (mode === 'lines' && now - known.shownAt >= LINE_MS && done !== total) {
          known.shownAt = now;
          stream.write(`  ${describe(progress)}\n`);
        }
      }
      if (total !== undefined && done === total) finish(step);
      else if (mode === 'terminal') redraw(now);
    },
    [Symbol.dispose]() {
      for (const step of [...going.keys()]) finish(step);
    },
  };
}

function describe({ step, done, total, unit, note }: Progress): string {
  const amount = (value: number) => (unit === 'bytes' ? bytes(value) : value.toLocaleString('en-US'));
  const parts = [oneLine(step)];
  if (done !== undefined && total !== undefined && total > 0)
    parts.push(`${Math.floor((100 * done) / total)}%`, `${amount(done)} of ${amount(total)}`);
  else if (done !== undefined) parts.push(amount(done));
  if (note !== undefined) parts.push(oneLine(note));
  return parts.join('  ');
}
