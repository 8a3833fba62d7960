import { type ChildProcess, fork } from 'node:child_process';
import { join } from 'node:path';

/** What an end is to fetch. `into`: null to throw it away. `window`: credit of session and stream, where the reference has one. */
export interface Wanted {
  readonly port: number;
  readonly bytes: number;
  readonly window?: number;
  readonly into: string | null;
}

/** What a process that is one end of a reference is asked; it answers with a number. */
type Question = { readonly serve: string } | { readonly get: Wanted } | { readonly usage: true };

/** One end of a reference, in a process of its own: node:http2, or the least that can be done over node:tls. */
export class Reference implements Disposable {
  readonly #child: ChildProcess;

  constructor(of: 'http2' | 'tls') {
    this.#child = fork(join(import.meta.dirname, `${of}-child.ts`));
  }

  serve(file: string): Promise<number> {
    return this.#ask({ serve: file });
  }

  /** Milliseconds. */
  get(wanted: Wanted): Promise<number> {
    return this.#ask({ get: wanted });
  }

  /** Milliseconds of processor time so far. */
  usage(): Promise<number> {
    return this.#ask({ usage: true });
  }

  [Symbol.dispose](): void {
    if (this.#child.connected) this.#child.disconnect();
  }

  #ask(question: Question): Promise<number> {
    return new Promise((resolve, reject) => {
      this.#child.once('message', (answer) => resolve(answer as number));
      this.#child.once('exit', () => reject(new Error('the reference ended')));
      this.#child.send(question);
    });
  }
}

/** The process itself. `serve` says on which port, `get` how many milliseconds it took. */
export function beReference(end: { serve(file: string): Promise<number>; get(wanted: Wanted): Promise<number> }): void {
  async function answer(question: Question): Promise<number> {
    if ('serve' in question) return end.serve(question.serve);
    if ('get' in question) return end.get(question.get);
    const { user, system } = process.cpuUsage();
    return (user + system) / 1_000;
  }
  process.on('message', (question: Question) => void answer(question).then((figure) => process.send!(figure)));
  process.on('disconnect', () => process.exit());
}
