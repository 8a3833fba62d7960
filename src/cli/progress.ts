import type { Progress } from '../base/call.ts';
import { bytes, duration, oneLine } from './terminal.ts';

export interface ProgressView extends Disposable {
  show(progress: Progress): void;
}

type Mode = 'terminal' | 'lines' | 'none';

/** How progress is shown on `stream`: redrawn in place on a terminal, one line per step with --verbose, else not at all. */
export function progressMode(stream: { readonly isTTY?: boolean }, verbose: boolean): Mode {
  if (stream.isTTY === true && process.env['TERM'] !== 'dumb') return 'terminal';
  return verbose ? 'lines' : 'none';
}

const REDRAW_MS = 80;

export function showProgress(stream: NodeJS.WritableStream & { columns?: number }, mode: Mode): ProgressView {
  let current: Progress | undefined;
  let startedAt = 0;
  let drawnAt = 0;

  const finish = () => {
    if (current === undefined) return;
    const took = duration(performance.now() - startedAt);
    if (mode === 'terminal') stream.write(`\r\u001b[2K  ${oneLine(current.step)} ${took}\n`);
    else stream.write(`${oneLine(current.step)} done in ${took}\n`);
    current = undefined;
  };
  return {
    show(progress) {
      if (mode === 'none') return;
      if (progress.step !== current?.step) {
        finish();
        startedAt = performance.now();
        drawnAt = 0;
        if (mode === 'lines') stream.write(`${describe(progress)}\n`);
      }
      current = progress;
      const now = performance.now();
      if (mode === 'terminal' && now - drawnAt >= REDRAW_MS) {
        drawnAt = now;
        stream.write(`\r\u001b[2K  ${describe(progress).slice(0, (stream.columns ?? 80) - 4)}`);
      }
    },
    [Symbol.dispose]: finish,
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
