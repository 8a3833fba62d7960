import { isIPv4, isIPv6 } from 'node:net';
import { HyperMeshError } from '../../../base/errors.ts';

export interface HostPort {
  readonly host: string;
  readonly port: number;
}

/** `host:port` or `[ipv6]:port`. Errors: `usage`. */
export function parseAddress(text: string): HostPort {
  const match = /^(?:\[([0-9a-fA-F:.%a-z]{2,64})\]|([A-Za-z0-9._-]{1,253})):(\d{1,5})$/.exec(text);
  const port = Number(match?.[3]);
  if (match === null || port < 1 || port > 65_535) {
    throw new HyperMeshError(
      'usage',
      `Expected an address such as 192.0.2.7:4400 or [2001:db8::7]:4400, but got ${text.slice(0, 300)}.`,
    );
  }
  return { host: match[1] ?? match[2]!, port };
}

export function formatAddress({ host, port }: HostPort): string {
  return isIPv6(host) ? `[${host}]:${port}` : `${host}:${port}`;
}

/** What counts as one place: an IPv4 address, or the /64 of an IPv6 address, which one customer gets as a whole. */
export function originOf(host: string | undefined): string {
  if (host === undefined) return 'unknown';
  const mapped = /^::ffff:(\d+\.\d+\.\d+\.\d+)$/i.exec(host)?.[1];
  if (mapped !== undefined || isIPv4(host)) return mapped ?? host;
  const [before = '', after] = host.replace(/%.*$/, '').split('::');
  const left = before === '' ? [] : before.split(':');
  const right = after === undefined || after === '' ? [] : after.split(':');
  const zeros = after === undefined ? 0 : Math.max(0, 8 - left.length - right.length);
  return [...left, ...Array.from({ length: zeros }, () => '0'), ...right].slice(0, 4).join(':');
}
