import { Agent, type IncomingMessage, type RequestOptions, request as requestHttp } from 'node:http';
import { request as requestHttps, Agent as TlsAgent } from 'node:https';
import { z } from 'zod';
import { fromUtf8, utf8 } from '../../../base/bytes.ts';
import { HyperMeshError, isCoded } from '../../../base/errors.ts';
import { rest } from './rest.ts';
import { sequencerUnreachable } from './sequencer.ts';

/** How to reach a cluster: the operator's configuration, never shown. */
export interface EtcdAccess {
  /** `http://HOST:PORT` or `https://HOST:PORT`, one for each machine of the cluster. */
  readonly endpoints: readonly string[];
  /** PEM. */
  readonly tls?: { readonly ca?: string; readonly cert?: string; readonly key?: string };
  readonly user?: { readonly name: string; readonly password: string };
  /** For one machine to answer; 3 s when absent. */
  readonly timeoutMs?: number;
}

const TIMEOUT_MS = 3_000;
/** 16 values of the largest size that etcd takes unless told otherwise (1.5 MiB), in base64, and their keys. */
const ANSWER_BYTES_MAX = 40 * 2 ** 20;
const LOOPBACK = /^(localhost|127\.\d+\.\d+\.\d+|\[::1\])$/;

/** Codes of gRPC, as the gateway reports them. */
const PERMISSION_DENIED = 7;
const EXHAUSTED = 8;
const UNAUTHENTICATED = 16;
/** What another machine of the cluster, or the same one later, may answer: cancelled, unknown, deadline exceeded, aborted, internal, unavailable. */
const TRANSIENT = new Set([1, 2, 4, 10, 13, 14]);

const failure = z.object({ error: z.string().optional(), message: z.string().optional(), code: z.int() });
const token = z.object({ token: z.string().min(1).max(4_096) });

/** The JSON gateway of etcd v3: one call at a time to whichever machine of the cluster answers. */
export class EtcdClient implements Disposable {
  readonly #endpoints: URL[];
  readonly #agent: Agent;
  readonly #user: EtcdAccess['user'];
  readonly #timeoutMs: number;
  #token: string | undefined;

  /** Errors: `config-invalid`. */
  constructor({ endpoints, tls, user, timeoutMs }: EtcdAccess) {
    this.#endpoints = endpoints.map(parseEndpoint);
    const isPlain = this.#endpoints.some(({ protocol, hostname }) => protocol === 'http:' && !LOOPBACK.test(hostname));
    if (isPlain && user !== undefined) {
      throw new HyperMeshError('config-invalid', 'A password would be sent to etcd without encryption.', {
        hint: 'Use https:// for every endpoint.',
      });
    }
    if (new Set(this.#endpoints.map(({ protocol }) => protocol)).size !== 1) {
      throw new HyperMeshError('config-invalid', 'The endpoints of etcd are either all http:// or all https://.');
    }
    const sockets = { keepAlive: true, maxSockets: 16 };
    this.#agent = this.#endpoints[0]?.protocol === 'https:' ? new TlsAgent({ ...sockets, ...tls }) : new Agent(sockets);
    this.#user = user;
    this.#timeoutMs = timeoutMs ?? TIMEOUT_MS;
  }

  /** Errors: `sequencer-unreachable`, `not-permitted`, `storage-full`, `cancelled`. */
  async call<T>(path: string, body: unknown, schema: z.ZodType<T>, signal: AbortSignal | undefined): Promise<T> {
    let renewed = false;
    for (;;) {
      try {
        await this.#authenticate(signal);
        return await this.#anywhere(path, body, schema, signal);
      } catch (error) {
        // A token ends after some minutes, and with the machine that gave it.
        if (renewed || this.#token === undefined || !isCoded(error, 'not-permitted')) throw error;
        this.#token = undefined;
        renewed = true;
      }
    }
  }

  /** Resolves when something happened to the key after that revision, or perhaps did: after an error or some seconds. */
  async changed(key: string, revision: bigint, waitMs: number, signal: AbortSignal): Promise<void> {
    const create_request = { key, start_revision: String(revision + 1n) };
    const ends = AbortSignal.any([signal, AbortSignal.timeout(waitMs)]);
    try {
      await this.#authenticate(ends);
      const answer = await this.#send(this.#endpoints[0]!, '/v3/watch', { create_request }, ends);
      let seen = '';
      for await (const piece of answer) {
        seen = (seen + (piece as Buffer).toString('latin1')).slice(-65_536);
        if (/"events"|"canceled"/.test(seen)) break;
      }
    } catch (error) {
      if (isCoded(error, 'not-permitted')) this.#token = undefined;
      if (!ends.aborted) {
        this.#next();
        await rest(Math.min(500, waitMs), signal);
      }
    }
  }

  [Symbol.dispose](): void {
    this.#agent.destroy();
  }

  async #authenticate(signal: AbortSignal | undefined): Promise<void> {
    if (this.#user === undefined || this.#token !== undefined) return;
    const answer = await this.#anywhere('/v3/auth/authenticate', this.#user, token, signal);
    this.#token = answer.token;
  }

  /** Each machine once, beginning with the one that answered last. */
  async #anywhere<T>(path: string, body: unknown, schema: z.ZodType<T>, signal: AbortSignal | undefined): Promise<T> {
    const said: string[] = [];
    for (let tries = this.#endpoints.length; tries > 0; tries -= 1) {
      const endpoint = this.#endpoints[0]!;
      const late = AbortSignal.timeout(this.#timeoutMs);
      try {
        const ends = signal === undefined ? late : AbortSignal.any([signal, late]);
        const answer = await whole(await this.#send(endpoint, path, body, ends));
        const parsed = schema.safeParse(answer);
        if (parsed.success) return parsed.data;
        said.push(`${endpoint.host} is not etcd v3`);
      } catch (error) {
        if (signal?.aborted === true) {
          throw new HyperMeshError('cancelled', 'The operation was cancelled.', { cause: signal.reason });
        }
        if (isCoded(error)) throw error;
        said.push(`${endpoint.host} ${late.aborted ? 'is silent' : plainly(error)}`);
      }
      this.#next();
    }
    throw sequencerUnreachable(said.join(', ').slice(0, 500));
  }

  #next(): void {
    this.#endpoints.push(this.#endpoints.shift()!);
  }

  /** The answer, once it says that it is a good one. */
  async #send(endpoint: URL, path: string, body: unknown, signal: AbortSignal): Promise<IncomingMessage> {
    const bytes = utf8(JSON.stringify(body));
    const options: RequestOptions = {
      agent: this.#agent,
      method: 'POST',
      signal,
      headers: {
        'content-type': 'application/json',
        'content-length': bytes.length,
        ...(this.#token === undefined ? {} : { authorization: this.#token }),
      },
    };
    const answer = await new Promise<IncomingMessage>((resolve, reject) => {
      const url = new URL(path, endpoint);
      const sent = url.protocol === 'https:' ? requestHttps(url, options) : requestHttp(url, options);
      sent.on('response', resolve).on('error', reject).end(bytes);
    });
    if (answer.statusCode === 200) return answer;
    const { code, error, message } = failure.catch({ code: 2 }).parse(await whole(answer));
    const says = (error ?? message ?? `status ${answer.statusCode}`).slice(0, 200);
    if (code === EXHAUSTED) {
      throw new HyperMeshError('storage-full', `etcd takes no more: ${says}.`, {
        hint: 'Compact and defragment it, or raise its --quota-backend-bytes.',
      });
    }
    if (code === PERMISSION_DENIED || code === UNAUTHENTICATED || /auth|user name/.test(says)) {
      throw new HyperMeshError('not-permitted', `etcd refuses this node: ${says}.`, {
        hint: 'Check the user and the password of `sequencer:` in config.yaml, and the rights of the user in etcd.',
      });
    }
    throw TRANSIENT.has(code) ? new Error(says) : new Error(`${says} (code ${code})`);
  }
}

/** Errors: `config-invalid`; the text is not repeated, because a password may be in it. */
function parseEndpoint(text: string): URL {
  const url = URL.parse(text);
  if (url === null || !/^https?:$/.test(url.protocol) || url.username !== '' || url.password !== '') {
    throw new HyperMeshError('config-invalid', 'Expected an endpoint of etcd such as https://192.0.2.7:2379.', {
      hint: 'User and password have keys of their own.',
    });
  }
  return url;
}

async function whole(answer: IncomingMessage): Promise<unknown> {
  const pieces: Buffer[] = [];
  let size = 0;
  for await (const piece of answer) {
    size += (piece as Buffer).length;
    if (size > ANSWER_BYTES_MAX) {
      answer.destroy();
      throw new Error('sends too much');
    }
    pieces.push(piece as Buffer);
  }
  try {
    return JSON.parse(fromUtf8(Buffer.concat(pieces)));
  } catch {
    return null;
  }
}

function plainly(error: unknown): string {
  const { code, message } = error as NodeJS.ErrnoException;
  if (code === 'ECONNREFUSED') return 'is not there';
  return `says "${(code ?? message).slice(0, 200)}"`;
}
