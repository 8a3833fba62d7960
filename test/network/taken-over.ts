import assert from 'node:assert/strict';
import { type ChildProcess, fork } from 'node:child_process';
import { once } from 'node:events';
import type { LiarOrder } from './lying-node-child.ts';

/** The node of a validator that was taken over, in a process of its own over the home of an honest one. */
export class TakenOver {
  readonly #child: ChildProcess;
  #ids = 0;

  static async up(home: string): Promise<TakenOver> {
    const child = fork(new URL('./lying-node-child.ts', import.meta.url), [home]);
    await Promise.race([
      once(child, 'message'),
      once(child, 'exit').then(() => assert.fail('the dishonest node ended at its start')),
    ]);
    return new TakenOver(child);
  }

  private constructor(child: ChildProcess) {
    this.#child = child;
  }

  async obey<T>(order: LiarOrder): Promise<T> {
    const id = ++this.#ids;
    const { promise, resolve, reject } = Promise.withResolvers<T>();
    const hear = (answer: {
      readonly id: number;
      readonly value: T;
      readonly problem?: { readonly message: string };
    }) => {
      if (answer.id !== id) return;
      this.#child.off('message', hear);
      if (answer.problem === undefined) resolve(answer.value);
      else reject(new Error(answer.problem.message));
    };
    this.#child.on('message', hear);
    this.#child.send({ id, order });
    return promise;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#child.exitCode !== null || this.#child.signalCode !== null) return;
    this.#child.kill('SIGKILL');
    await once(this.#child, 'exit');
  }
}
