import { Worker } from 'node:worker_threads';
import { fromProblem, HyperMeshError } from '../../base/errors.ts';
import { compiledBefore, siblingModule } from '../../base/module.ts';
import type { CertificateSigner } from '../../wire/certificate.ts';
import type { PublicKeys } from '../../wire/key-id.ts';
import type { KeyAnswer, KeyReply, KeyRequest, KeyWorkerData } from './key-worker.ts';
import type { KeyName, Unlock } from './keystore.ts';

type Without<T, K extends PropertyKey> = T extends unknown ? Omit<T, K> : never;

/**
 * The home's secret keys, behind a worker thread that is started for the first signature and ended when it has been idle for a while:
 * signing (8 ms) and key generation (40 ms) never block the event loop, and an idle node holds neither keys nor that memory.
 */
export class Keys implements AsyncDisposable {
  readonly #unlock: Unlock;
  readonly #idleMs: number;
  #sealed: readonly string[];
  #worker: Worker | undefined;
  #idle: NodeJS.Timeout | undefined;
  #nextId = 1;
  #closed = false;
  readonly #waiting = new Map<number, { resolve(answer: KeyAnswer): void; reject(error: unknown): void }>();

  constructor(unlock: Unlock, sealed: readonly string[], options: { readonly idleMs: number }) {
    this.#unlock = unlock;
    this.#sealed = sealed;
    this.#idleMs = options.idleMs;
  }

  /** One sealed document for each list of names; keys that are not there yet are made. The caller stores the documents, then {@link use}s them. */
  async seal(documents: readonly (readonly KeyName[])[]): Promise<readonly string[]> {
    const answer = await this.#ask({ kind: 'seal', documents });
    if (answer.kind !== 'seal') throw new Error('the key worker gave another answer');
    return answer.sealed;
  }

  /** From here on these documents are the key store: keys that are in none of them are gone. */
  async use(sealed: readonly string[]): Promise<void> {
    this.#sealed = sealed;
    await this.#ask({ kind: 'open', sealed });
  }

  async publicKeys(): Promise<ReadonlyMap<KeyName, PublicKeys>> {
    const answer = await this.#ask({ kind: 'public' });
    if (answer.kind !== 'public') throw new Error('the key worker gave another answer');
    return answer.keys;
  }

  /** Errors: `key-locked` when that key is not here. */
  async sign(key: KeyName, bytes: Uint8Array): Promise<{ falcon: Uint8Array; ed25519: Uint8Array }> {
    const answer = await this.#ask({ kind: 'sign', key, algorithm: 'both', bytes });
    if (answer.kind !== 'sign' || !answer.falcon || !answer.ed25519)
      throw new Error('the key worker gave another answer');
    return { falcon: answer.falcon, ed25519: answer.ed25519 };
  }

  /** Ed25519 alone, in the order of the messages. Errors: `key-locked` when that key is not here. */
  async signAll(key: KeyName, messages: readonly Uint8Array[]): Promise<readonly Uint8Array[]> {
    const answer = await this.#ask({ kind: 'sign-all', key, messages });
    if (answer.kind !== 'sign-all') throw new Error('the key worker gave another answer');
    return answer.signatures;
  }

  /** The key in the form in which certificates and lists are signed. */
  authority(key: KeyName): CertificateSigner {
    const one = async (algorithm: 'falcon' | 'ed25519', bytes: Uint8Array) => {
      const answer = await this.#ask({ kind: 'sign', key, algorithm, bytes });
      const signature = answer.kind === 'sign' ? answer[algorithm] : null;
      if (signature === null) throw new Error('the key worker gave another answer');
      return signature;
    };
    return { falcon: (bytes) => one('falcon', bytes), ed25519: (bytes) => one('ed25519', bytes) };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#closed = true;
    this.#unlock.key.fill(0);
    await this.#end(new HyperMeshError('cancelled', 'The key store was closed.'));
  }

  #ask(request: Without<KeyRequest, 'id'>): Promise<KeyAnswer> {
    if (this.#closed) return Promise.reject(new HyperMeshError('cancelled', 'The key store is closed.'));
    const id = this.#nextId++;
    clearTimeout(this.#idle);
    this.#worker ??= this.#start();
    const worker = this.#worker;
    worker.ref();
    return new Promise((resolve, reject) => {
      this.#waiting.set(id, { resolve, reject });
      worker.postMessage({ ...request, id } as KeyRequest);
    });
  }

  #start(): Worker {
    const worker = new Worker(siblingModule(import.meta.url, './key-worker'), {
      workerData: { unlock: this.#unlock, sealed: this.#sealed } satisfies KeyWorkerData,
      name: 'hypermesh-keys',
      // Nothing else of the environment, which may hold the passphrase, is needed there; nor are flags meant for the main module.
      env: compiledBefore(),
      execArgv: [],
    });
    worker.on('message', (reply: KeyReply) => {
      const waiting = this.#waiting.get(reply.id);
      this.#waiting.delete(reply.id);
      if ('answer' in reply) waiting?.resolve(reply.answer);
      else {
        const cause = reply.problem.code === 'internal' ? { cause: new Error(reply.detail) } : {};
        waiting?.reject(Object.assign(fromProblem(reply.problem), cause));
      }
      // One that is being ended holds the process until it has: nothing else may be there to wait for that.
      if (this.#waiting.size === 0 && this.#worker === worker) this.#rest(worker);
    });
    const lost = (error: unknown) => {
      if (this.#worker === worker)
        void this.#end(new HyperMeshError('internal', 'The key worker ended.', { cause: error }));
    };
    worker.on('error', lost);
    worker.on('exit', lost);
    return worker;
  }

  #rest(worker: Worker): void {
    worker.unref();
    clearTimeout(this.#idle);
    this.#idle = setTimeout(
      () => void this.#end(new HyperMeshError('cancelled', 'The key worker was idle.')),
      this.#idleMs,
    );
    this.#idle.unref();
  }

  async #end(reason: HyperMeshError): Promise<void> {
    clearTimeout(this.#idle);
    const worker = this.#worker;
    this.#worker = undefined;
    const waiting = [...this.#waiting.values()];
    this.#waiting.clear();
    for (const { reject } of waiting) reject(reason);
    await worker?.terminate();
  }
}
