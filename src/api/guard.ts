import { createHash, timingSafeEqual } from 'node:crypto';
import { isIP } from 'node:net';
import type { FastifyRequest } from 'fastify';
import { HyperMeshError } from '../base/errors.ts';

export interface GuardOptions {
  readonly token: string;
  /** The host name or address of the configuration, beside the loopback names. */
  readonly host: string;
}

const LOOPBACK_NAMES = new Set(['localhost', '127.0.0.1', '::1']);

/**
 * Who may ask. Reads are open to programs of this machine; everything else, and everything from another machine, needs the token.
 * The Host header must name this machine, so that a web page cannot reach the node through a name of its own (DNS rebinding).
 */
export function guard(options: GuardOptions): (request: FastifyRequest) => void {
  const expected = sha256(options.token);
  return (request) => {
    checkHost(request, options.host);
    const access = (request.routeOptions.config as { access?: 'read' | 'token' }).access ?? 'read';
    const given = /^Bearer ([A-Za-z0-9_-]{1,256})$/.exec(request.headers.authorization ?? '')?.[1];
    const valid = given !== undefined && timingSafeEqual(sha256(given), expected);
    if (valid) return;
    if (given === undefined && access === 'read' && isLoopback(request.socket.remoteAddress)) return;
    throw new HyperMeshError(
      'not-permitted',
      `${request.method} ${request.url.split('?', 1)[0]!.slice(0, 200)} needs the token of this node, but the request carries ${given === undefined ? 'none' : 'another one'}.`,
      { hint: 'Send "Authorization: Bearer TOKEN"; the token is in node.json in the home of the node.' },
    );
  };
}

function checkHost(request: FastifyRequest, configured: string): void {
  const name = request.hostname.replace(/^\[|\]$/g, '').toLowerCase();
  const local = request.socket.localAddress?.replace(/^::ffff:/, '');
  if (LOOPBACK_NAMES.has(name) || name === configured.toLowerCase() || (isIP(name) !== 0 && name === local)) return;
  throw new HyperMeshError('not-permitted', `The Host header names "${name.slice(0, 100)}", which is not this node.`, {
    hint: 'Use the address that `hypermesh status` prints.',
  });
}

function isLoopback(address: string | undefined): boolean {
  return address === undefined || address === '::1' || /^(::ffff:)?127\./.test(address);
}

function sha256(text: string): Uint8Array {
  return createHash('sha256').update(text).digest();
}
